#!/usr/bin/env bash
# Submit a run as a managed job of SkyPilot (launch/skypilot.yaml): it finds machines, and others after a preemption.
#
#   bash launch/skypilot.sh --name=run7 --nodes=2 --gpus=H100:8 \
#     -- --config=configs/target_rpo_qwen2_5_coder_7b.py --workdir=gs://BUCKET/RUN --config.data.path=gs://BUCKET/DATA
#
# Options
#   --name=NAME      of the job (default: iterpref)
#   --nodes=N        machines (default: 1)
#   --gpus=KIND:N    of each machine (default: H100:8)
#   --infra=WHERE    such as gcp, aws/us-east-1 or k8s (default: the cheapest)
#   --on-demand      no Spot machines
#   --secret=NAME    an environment variable of this shell that training gets, such as HF_TOKEN; again for more
#   --env=NAME=VALUE an environment variable; again for more
#   --dry-run        show the command, run nothing
#   -- WORDS         options of `iterpref train`; the workdir must outlive the machines: gs://BUCKET/RUN; data may
#                    be in s3:// too
#
# Follow it with `sky jobs logs`, end it with `sky jobs cancel`; the same command goes on.
set -euo pipefail
# shellcheck source=launch/commands.sh
. "$(dirname "$0")/commands.sh"

name=iterpref nodes=1 gpus=H100:8 spot=--use-spot
more=()
while [ $# -gt 0 ]; do
  case "$1" in
    --name=* | --name) name=$(value "$1") ;;
    --nodes=* | --nodes) nodes=$(value "$1") ;;
    --gpus=* | --gpus) gpus=$(value "$1") ;;
    --infra=* | --infra) more+=("--infra=$(value "$1")") ;;
    --on-demand) spot=--no-use-spot ;;
    --secret=* | --secret) more+=("--secret=$(value "$1")") ;;
    --env=* | --env) more+=("--env=$(value "$1")") ;;
    --dry-run) dry=1 ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown option $1 (see --help)" ;;
  esac
  shift
done
whole --nodes "$nodes"
[[ "$gpus" =~ ^[A-Za-z0-9-]+:[1-9][0-9]*$ ]] || fail "--gpus=$gpus: expected KIND:NUMBER, such as H100:8"
check_words "$@"
for word in "$@"; do
  case "$word" in
    --workdir=gs://*) ;;
    --workdir=*) fail "$word: a folder of a machine is lost with it; give one in a bucket: gs://BUCKET/RUN" ;;
  esac
done

run sky jobs launch "$root/launch/skypilot.yaml" --name="$name" --workdir="$root" --num-nodes="$nodes" --gpus="$gpus" \
  "$spot" ${more[@]+"${more[@]}"} --env="TRAIN=$(quoted "$@")" --yes
