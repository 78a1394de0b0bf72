#!/usr/bin/env bash
# Submit a run to Slurm: one process a node with all of its GPUs (or one a GPU), queued again when its time is over.
#
#   bash launch/slurm.sh --nodes=4 --gpus=8 --time=24:00:00 --partition=gpu --env=/shared/venv \
#     -- --config=configs/target_rpo_qwen2_5_coder_7b.py --workdir=/shared/run --config.data.path=/shared/data
#
# Options
#   --nodes=N            (default: 1)
#   --gpus=N             a node (default: 8)
#   --per-gpu            one process a GPU instead of one a node
#   --time=LIMIT         of one job, as sbatch has it; the run goes on in the next (default: 24:00:00)
#   --env=DIR            the virtual environment that has iterpref_jax, on all nodes
#   --container=IMAGE    or a container with it (Pyxis and Enroot): a name, or a .sqsh file
#   --mounts=A:B,...     of the container (default: the folder of --workdir, at the same place)
#   --name=NAME          of the job (default: iterpref)
#   --notice=SECONDS     ahead of the time limit: time to end the update and save (default: 300)
#   --attempts=N         most jobs that follow each other (default: 50)
#   --sbatch=FLAG        a further flag for sbatch, such as --sbatch=--account=ME; again for more
#   --dry-run            show the sbatch command and what the job runs
#   -- WORDS             options of `iterpref train`; workdir and data on a file system that all nodes share
#
# Before a job's time is over, and when it is preempted, training saves and stops, and the job is queued again. So it is
# when a node fails or training is killed: the job goes on from the newest checkpoint. To end it for good:
# `scancel --batch --signal=USR2 JOB` lets training save first; scancel alone does not wait for that.
set -euo pipefail
# shellcheck source=launch/commands.sh
. "$(dirname "$0")/commands.sh"

nodes=1 gpus=8 per_gpu='' time=24:00:00 env='' container='' mounts='' name=iterpref notice=300 attempts=50 workdir=''
more=()
while [ $# -gt 0 ]; do
  case "$1" in
    --nodes=* | --nodes) nodes=$(value "$1") ;;
    --gpus=* | --gpus) gpus=$(value "$1") ;;
    --per-gpu) per_gpu=1 ;;
    --time=* | --time) time=$(value "$1") ;;
    --env=* | --env) env=$(value "$1") ;;
    --container=* | --container) container=$(value "$1") ;;
    --mounts=* | --mounts) mounts=$(value "$1") ;;
    --name=* | --name) name=$(value "$1") ;;
    --notice=* | --notice) notice=$(value "$1") ;;
    --attempts=* | --attempts) attempts=$(value "$1") ;;
    --partition=* | --partition) more+=("--partition=$(value "$1")") ;;
    --sbatch=* | --sbatch) more+=("$(value "$1")") ;;
    --dry-run) dry=1 ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown option $1 (see --help)" ;;
  esac
  shift
done
whole --nodes "$nodes"
whole --gpus "$gpus"
whole --notice "$notice"
whole --attempts "$attempts"
check_words "$@"
[ -n "$env$container" ] && [ -z "${env:+$container}" ] || fail "give one of --env=DIR and --container=IMAGE"
[ -n "$container" ] || [ -z "$mounts" ] || fail "--mounts has no effect without --container"
for word in "$@"; do
  case "$word" in
    --workdir=gs://*) ;;
    --workdir=/*) workdir=${word#*=}; mounts=${mounts:-$workdir:$workdir} ;;
    --workdir=*) fail "$word: give the whole path, because the job starts elsewhere" ;;
  esac
done

job=("$root/launch/slurm.sbatch" "--attempts=$attempts" "--env=$env" "--container=$container")
job+=("--mounts=${container:+$mounts}" -- "$@")
tasks=$([ -n "$per_gpu" ] && echo "$gpus" || echo 1)
# Enroot does not make a folder that it is to mount, and before the first job it does not exist.
case ",${container:+$mounts}," in
  *",$workdir:"*) run mkdir -p "$workdir" ;;
esac
run sbatch --job-name="$name" --nodes="$nodes" --ntasks-per-node="$tasks" --gpus-per-node="$gpus" --time="$time" \
  --signal="B:USR1@$notice" --chdir="$root" ${more[@]+"${more[@]}"} "${job[@]}"
[ -z "$dry" ] || bash "$root/launch/slurm.sbatch" --dry-run "${job[@]:1}"
