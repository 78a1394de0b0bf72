#!/usr/bin/env bash
# A run on one machine with GPUs: environment, doctor, training; started again if it dies.
#
#   bash launch/gpu_node.sh -- --config=configs/target_rpo_qwen2_5_coder_7b.py --workdir=RUN --config.data.path=DATA
#
# Options
#   --venv=DIR       virtual environment to make or use (default: .venv in this checkout)
#   --cuda=12|13     of the driver (default: 12)
#   --image=IMAGE    use a container instead of an environment (launch/Dockerfile.cuda); Docker with NVIDIA's toolkit;
#                    it sees this folder and what --workdir and --config.* name by absolute paths
#   --gpus=LIST      such as 0,1 (default: all)
#   --attempts=N     starts of training in all (default: 3)
#   --dry-run        show every command, run none
#   -- WORDS         options of `iterpref train`
#
# One process drives all GPUs. Ctrl-C or SIGTERM: training saves and stops; the same command goes on.
set -euo pipefail
# shellcheck source=launch/commands.sh
. "$(dirname "$0")/commands.sh"
configs_in=$PWD

venv=$root/.venv cuda=12 image='' gpus='' attempts=3 doctor_words=()
while [ $# -gt 0 ]; do
  case "$1" in
    --venv=* | --venv) venv=$(value "$1") ;;
    --cuda=* | --cuda) cuda=$(value "$1") ;;
    --image=* | --image) image=$(value "$1") ;;
    --gpus=* | --gpus) gpus=$(value "$1") ;;
    --attempts=* | --attempts) attempts=$(value "$1") ;;
    --dry-run) dry=1 ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown option $1 (see --help)" ;;
  esac
  shift
done
case "$cuda" in 12 | 13) ;; *) fail "--cuda must be 12 or 13, not '$cuda'" ;; esac
[[ -z "$gpus" || "$gpus" =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "--gpus=$gpus: numbers with commas, such as 0,1"
whole --attempts "$attempts"
check_words "$@"
words_of_doctor "$@"

share=XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
if [ -n "$image" ]; then
  # The checkout's folder, the run's and the data's have the same paths inside; what is written elsewhere is lost.
  volumes=("--volume=$PWD:$PWD")
  for word in "$@"; do
    case "$word" in
      --workdir=/* | --config.*=/*)
        folder=${word#*=}
        case "$folder/" in "$PWD"/*) ;; *) volumes+=("--volume=$folder:$folder") ;; esac ;;
    esac
  done
  iterpref=(docker run --rm --init "--gpus=${gpus:+\"device=$gpus\"}" --ipc=host --ulimit=memlock=-1 --ulimit=nofile=65536
    "${volumes[@]}" "--workdir=$PWD" "--env=$share" --stop-timeout=300 "$image")
  [ -n "$gpus" ] || iterpref[4]=--gpus=all
else
  iterpref=(env "$share")
  [ -z "$gpus" ] || iterpref+=("CUDA_VISIBLE_DEVICES=$gpus")
  iterpref+=("$venv/bin/iterpref")
  [ -x "$venv/bin/python" ] || run "${PYTHON:-python3}" -m venv "$venv"
  run "$venv/bin/python" -m pip install --quiet "${root}[$([ "$cuda" = 12 ] && echo cuda || echo cuda13)]"
fi
run "${iterpref[@]}" doctor "${doctor_words[@]}"

# Both signals come to this script alone and are handed on (systemd: KillMode=mixed).
stopped='' signals=0 pid=''
for signal in INT TERM; do
  # shellcheck disable=SC2064
  trap "stopped=1 signals=\$((signals + 1)); [ -z \"\$pid\" ] || kill -$signal \"\$pid\"" "$signal"
done
for ((attempt = 1; ; attempt++)); do
  if [ -n "$dry" ]; then
    run "${iterpref[@]}" train "$@"
    exit 0
  fi
  echo "+ $(quoted "${iterpref[@]}" train "$@")" >&2
  # In a process group of its own: else a shell starts it with Ctrl-C ignored, until training itself listens for it.
  set -m
  "${iterpref[@]}" train "$@" &
  pid=$!
  set +m
  # A signal ends `wait`, not training.
  while :; do
    before=$signals status=0
    wait "$pid" || status=$?
    [ "$signals" != "$before" ] || break
  done
  # 1 and 2 are errors that another start would meet again.
  if [ "$status" -le 2 ] || [ -n "$stopped" ] || [ "$attempt" -ge "$attempts" ]; then exit "$status"; fi
  echo "$program: start $attempt of $attempts ended with status $status; starting again" >&2
  sleep 10
done
