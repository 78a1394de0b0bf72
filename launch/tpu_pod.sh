#!/usr/bin/env bash
# A run on Cloud TPU VMs, a slice or several, driven from this machine with gcloud.
#
#   bash launch/tpu_pod.sh run --name=pod --zone=us-east5-b --type=v6e-32 --runtime=v2-alpha-tpuv6e --spot \
#     -- --config=configs/target_rpo_qwen2_5_coder_7b.py --workdir=gs://BUCKET/RUN --config.data.path=gs://BUCKET/DATA
#
# Actions
#   run       up, install, start, follow; after a preemption or a lost worker all of it again, until training has ended
#   up        ask for the slice (a queued resource) and wait until it is there; one that was preempted is made anew
#   install   copy this checkout to every worker and install it there (Python by uv, beside the system's)
#   doctor    `iterpref doctor` on all workers, with the config and workdir behind --
#   start     start training on all workers as a system service: it goes on without this machine
#   follow    show the log until training ends; exit status: 0 ended, 75 go on with `start`, others as of training
#   stop      let training save and stop
#   down      delete the slice
#
# Options
#   --name=NAME        of the slice; of several slices the nodes are NAME-0, NAME-1, ...
#   --zone=ZONE        its zone
#   --project=PROJECT  default: gcloud's
#   --type=TYPE        for `up` and `run`: accelerator type, such as v5p-64 or v6e-32
#   --runtime=VERSION  for `up` and `run`: the VMs' image, such as v2-alpha-tpuv6e or v2-alpha-tpuv5
#   --slices=N         slices, joined by the data centre's network (default: 1); set mesh.data to a multiple of N
#   --spot, --reserved kind of capacity (default: on demand)
#   --create=FLAG      a further flag for `gcloud compute tpus queued-resources create`; again for more
#   --ssh=FLAG         a further flag for gcloud's ssh and scp, such as --ssh=--internal-ip; again for more
#   --env=NAME=VALUE   an environment variable of training; again for more
#   --attempts=N       of `run` (default: 20)
#   --dry-run          show every command, run none
#   -- WORDS           options of `iterpref train`; the workdir must be one for all workers: gs:// or a mounted folder;
#                      the config lies in configs/, which is copied
#
# Training gets SIGTERM when a VM is shut down; it saves and stops, and the next attempt goes on from there.
set -euo pipefail
# shellcheck source=launch/commands.sh
. "$(dirname "$0")/commands.sh"

# What install copies.
config_under=(configs/)
name='' zone='' project='' type='' runtime='' slices=1 capacity='' attempts=20
create=() variables=() ssh=() doctor_words=()
[ $# -gt 0 ] || { usage >&2; exit 2; }
action=$1
case "$action" in
  run | up | install | doctor | start | follow | stop | down) shift ;;
  -h | --help) usage; exit 0 ;;
  *) fail "unknown action '$action' (see --help)" ;;
esac
while [ $# -gt 0 ]; do
  case "$1" in
    --name=* | --name) name=$(value "$1") ;;
    --zone=* | --zone) zone=$(value "$1") ;;
    --project=* | --project) project=$(value "$1") ;;
    --type=* | --type) type=$(value "$1") ;;
    --runtime=* | --runtime) runtime=$(value "$1") ;;
    --slices=* | --slices) slices=$(value "$1") ;;
    --spot | --reserved) capacity=$1 ;;
    --create=* | --create) create+=("$(value "$1")") ;;
    --ssh=* | --ssh) ssh+=("$(value "$1")") ;;
    --env=* | --env) variables+=("--setenv=$(value "$1")") ;;
    --attempts=* | --attempts) attempts=$(value "$1") ;;
    --dry-run) dry=1 ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown option $1 (see --help)" ;;
  esac
  shift
done
[ -n "$name" ] && [ -n "$zone" ] || fail "--name and --zone are needed"
whole --slices "$slices"
whole --attempts "$attempts"
case "$action" in
  run | up) [ -n "$type" ] && [ -n "$runtime" ] || fail "$action needs --type and --runtime" ;;
esac
case "$action" in
  run | start | doctor) check_words "$@"; words_of_doctor "$@" ;;
  *) [ $# = 0 ] || fail "$action takes no words behind --" ;;
esac

where=("--zone=$zone")
[ -z "$project" ] || where+=("--project=$project")
nodes=("$name")
if [ "$slices" -gt 1 ]; then
  nodes=()
  for ((slice = 0; slice < slices; slice++)); do nodes+=("$name-$slice"); done
fi

# on NODE WORKER COMMAND
on() {
  run gcloud compute tpus tpu-vm ssh "$1" "${where[@]}" --worker="$2" ${ssh[@]+"${ssh[@]}"} --command="$3"
}

# on_all COMMAND: on every worker of all slices at once; the first failure is the result.
on_all() {
  local node pid status=0 pids=''
  for node in "${nodes[@]}"; do
    if [ -n "$dry" ]; then
      on "$node" all "$1"
    else
      on "$node" all "$1" &
      pids="$pids $!"
    fi
  done
  for pid in $pids; do wait "$pid" || status=$?; done
  return "$status"
}

# state: of the slice. NONE only where gcloud says so: one that is there cannot be made, and costs. Without a network or
# a token gcloud knows nothing: it is asked again.
describe=(gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)')
state() {
  local said try
  for ((try = 1; ; try++)); do
    # The state goes to where it is wanted, what gcloud says besides is kept.
    if said=$("${describe[@]}" 2>&1 >&3); then return; fi
    case "$said" in
      *NOT_FOUND*) echo NONE; return ;;
    esac
    echo "$program: $said" >&2
    if [ "$try" = 5 ]; then
      echo "$program: gcloud does not say whether the slice $name is there; if it is, it costs until 'down' deletes it" >&2
      return 1
    fi
    sleep 30
  done
} 3>&1

down() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

# up: exit status 75 where the slice was lost meanwhile, and another `up` makes it anew.
up() {
  local now=NONE active='' which=(--node-id="$name")
  [ "$slices" = 1 ] || which=(--node-prefix="$name" --node-count="$slices")
  note "asked again and again: SUSPENDING and DELETING are waited for, NONE is created, SUSPENDED and FAILED are deleted" \
    "and created, ACTIVE is there"
  if [ -n "$dry" ]; then
    run "${describe[@]}"
  else
    while now=$(state) || return; [ "$now" = SUSPENDING ] || [ "$now" = DELETING ]; do
      echo "$program: the slice is $now" >&2
      sleep 30
    done
  fi
  case "$now" in
    ACTIVE) active=1 ;;
    SUSPENDED | FAILED) down || return; now=NONE ;;
  esac
  if [ "$now" = NONE ]; then
    run gcloud compute tpus queued-resources create "$name" "${where[@]}" "${which[@]}" --accelerator-type="$type" \
      --runtime-version="$runtime" ${capacity:+"$capacity"} ${create[@]+"${create[@]}"} || return
  fi
  [ -z "$dry" ] || return 0
  while now=$(state) || return; [ "$now" != ACTIVE ]; do
    echo "$program: the slice is $now" >&2
    case "$now$active" in
      SUSPENDED* | FAILED1) return 75 ;;
      # What was never there fails again: a quota, a type that the zone does not have.
      FAILED | NONE*) return 1 ;;
    esac
    sleep 30
  done
}

install() {
  local node archive=${TMPDIR:-/tmp}/iterpref-$name.tar.gz
  run tar -czf "$archive" -C "$root" --exclude=__pycache__ setup.py pyproject.toml README.md LICENSE iterpref_jax configs ||
    return
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm scp "$archive" "$node:iterpref.tar.gz" "${where[@]}" --worker=all \
      ${ssh[@]+"${ssh[@]}"} || return
  done
  on_all "$(cat <<'REMOTE'
set -e
rm -rf iterpref && mkdir iterpref && tar -xzf iterpref.tar.gz -C iterpref
[ -x ~/.local/bin/uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh
[ -x venv/bin/python ] || ~/.local/bin/uv venv --python 3.12 venv
~/.local/bin/uv pip install --quiet --python venv/bin/python --reinstall-package iterpref_jax "./iterpref[tpu]" gcsfs
REMOTE
  )"
}

start() {
  # systemd replaces $NAME in a command's words, and $$ by one $.
  local words=("${@//\$/\$\$}")
  on_all "$(cat <<REMOTE
set -e
[ "\$(systemctl show iterpref --property=SubState --value)" != running ] || { echo 'training runs already' >&2; exit 1; }
sudo systemctl stop iterpref 2>/dev/null || true
sudo systemctl reset-failed iterpref 2>/dev/null || true
rm -f iterpref.log
sudo systemd-run --quiet --unit=iterpref --uid="\$USER" --remain-after-exit \\
  --property=KillMode=mixed --property=TimeoutStopSec=300 \\
  --property=LimitMEMLOCK=infinity --property=LimitNOFILE=65536 \\
  --property=StandardOutput=append:"\$HOME"/iterpref.log --property=StandardError=append:"\$HOME"/iterpref.log \\
  --property=WorkingDirectory="\$HOME"/iterpref --setenv=HOME="\$HOME" $(quoted ${variables[@]+"${variables[@]}"}) \\
  "\$HOME"/venv/bin/iterpref train $(quoted "${words[@]}")
REMOTE
  )"
}

# Ends with 101 and 102 for 1 and 2 of training, which its next start would meet again: gcloud ends with 1 as well.
follow() {
  on "${nodes[0]}" 0 "$(cat <<'REMOTE'
show() { systemctl show iterpref --property="$1" --value; }
pid=$(show MainPID)
[ "$pid" = 0 ] || tail --pid="$pid" --lines=+1 --follow=name iterpref.log
[ "$(show LoadState)" = loaded ] || { echo 'training was stopped, or the VM started anew' >&2; exit 75; }
status=$(show ExecMainStatus)
exit $((status == 1 || status == 2 ? status + 100 : status))
REMOTE
  )"
}

# A lost connection (255) is no end of training, as long as the slice is there.
follow_to_the_end() {
  local status lost=0
  while :; do
    status=0
    follow || status=$?
    [ "$status" = 255 ] && [ "$lost" -lt 10 ] && [ "$(state)" = ACTIVE ] || return "$status"
    lost=$((lost + 1))
    sleep 30
  done
}

# SIGTERM to training itself; after TimeoutStopSec whatever is left is killed.
stop() {
  on_all 'sudo systemctl stop iterpref'
}

doctor() {
  on_all "cd iterpref && ../venv/bin/iterpref doctor $(quoted "${doctor_words[@]}")"
}

# The status of training itself.
plain() { echo $(($1 == 101 || $1 == 102 ? $1 - 100 : $1)); }

# An error of training comes again, and so does one of gcloud within minutes; whatever else is worth another attempt.
run_until_done() {
  local attempt=1 began status ended
  while :; do
    began=$SECONDS status=0
    up && install && start "$@" && follow_to_the_end || status=$?
    if [ "$status" = 0 ] || [ -n "$dry" ]; then break; fi
    ended=$(plain "$status")
    echo "$program: attempt $attempt of $attempts ended with status $ended" >&2
    if [ "$attempt" -ge "$attempts" ] || [ "$ended" != "$status" ]; then exit "$ended"; fi
    if [ "$status" -le 2 ] && [ $((SECONDS - began)) -lt 600 ]; then exit "$status"; fi
    attempt=$((attempt + 1))
    # What is left of training on other workers must end before it starts again; a slice that is gone has none.
    stop || true
    sleep 30
  done
  note "status 75 (stopped, or a host vanished) and a lost connection: stop, then all of it again"
}

case "$action" in
  run) run_until_done "$@" ;;
  start) start "$@" ;;
  follow) follow || exit "$(plain $?)" ;;
  *) "$action" ;;
esac
