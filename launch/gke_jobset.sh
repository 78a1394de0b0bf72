#!/usr/bin/env bash
# A run on GKE: as a JobSet on TPU slices or GPU nodes, or handed to xpk.
#
#   bash launch/gke_jobset.sh apply --name=run7 --accelerator=v6e:4x4 --slices=2 \
#     --image=REGION-docker.pkg.dev/P/R/iterpref:1 \
#     -- --config=configs/target_rpo_qwen2_5_coder_7b.py --workdir=gs://BUCKET/RUN --config.data.path=gs://BUCKET/DATA \
#     --config.mesh.data=2
#
# Actions
#   build     build launch/Dockerfile.tpu or .cuda as --image, and push it
#   manifest  show the JobSet
#   apply     create it in the cluster of kubectl's context (JobSet 0.7 or newer must be installed there)
#   logs      follow the log of the first host
#   delete    delete it: every host gets SIGTERM, saves and stops; `apply` goes on from there
#   xpk       the same run as an xpk workload instead (TPU; needs --cluster; --zone and --project as of xpk)
#
# Options
#   --name=NAME            of the JobSet: letters, digits and -, short, because hosts' names are made of it
#   --accelerator=KIND     v4, v5e, v5p or v6e with a slice's chips, as in v6e:4x4; a100, h100, h200 or b200 with hosts
#                          x GPUs, as in h100:4x8 (the same words as of `iterpref plan --topology`)
#   --image=IMAGE          with this project in it
#   --slices=N             TPU slices (default: 1); set mesh.data to a multiple of N
#   --chips-per-host=N     of TPU VMs (default: 4, or the whole slice if it is smaller; 8 for ct5lp-hightpu-8t and
#                          ct6e-standard-8t)
#   --namespace=NAME       (default: default)
#   --service-account=NAME Kubernetes service account that may read and write the bucket (default: default)
#   --queue=NAME           Kueue's local queue
#   --claim=NAME           a PersistentVolumeClaim that all hosts mount at /shared
#   --secret=NAME          a Secret whose entries become environment variables, such as HF_TOKEN; again for more
#   --env=NAME=VALUE       an environment variable; again for more
#   --spot                 on Spot nodes
#   --restarts=N           after failures (default: 20); preemptions and vanished hosts count with xpk only
#   --cluster, --zone, --project   for xpk
#   --dry-run              show every command, run none
#   -- WORDS               options of `iterpref train`; the workdir must be one for all hosts: gs:// or below /shared;
#                          the config one that the image has (configs/) or, with --claim, below /shared
#
# GPUs: the manifest uses the cluster's plain network. GPUDirect (TCPX, TCPXO, RDMA) needs the sidecars and annotations
# of the machine type, which GKE's documentation has: add them to launch/gke_jobset.yaml.
set -euo pipefail
# shellcheck source=launch/commands.sh
. "$(dirname "$0")/commands.sh"
# With it, & in a value would stand for what it replaces.
shopt -u patsub_replacement 2>/dev/null || true

name='' accelerator='' image='' slices=1 chips_per_host='' namespace=default account=default queue='' claim=''
spot='' restarts=20 cluster='' zone='' project=''
secrets=() variables=()
[ $# -gt 0 ] || { usage >&2; exit 2; }
action=$1
case "$action" in
  build | manifest | apply | logs | delete | xpk) shift ;;
  -h | --help) usage; exit 0 ;;
  *) fail "unknown action '$action' (see --help)" ;;
esac
while [ $# -gt 0 ]; do
  case "$1" in
    --name=* | --name) name=$(value "$1") ;;
    --accelerator=* | --accelerator) accelerator=$(value "$1") ;;
    --image=* | --image) image=$(value "$1") ;;
    --slices=* | --slices) slices=$(value "$1") ;;
    --chips-per-host=* | --chips-per-host) chips_per_host=$(value "$1") ;;
    --namespace=* | --namespace) namespace=$(value "$1") ;;
    --service-account=* | --service-account) account=$(value "$1") ;;
    --queue=* | --queue) queue=$(value "$1") ;;
    --claim=* | --claim) claim=$(value "$1") ;;
    --secret=* | --secret) secrets+=("$(value "$1")") ;;
    --env=* | --env) variables+=("$(value "$1")") ;;
    --spot) spot=1 ;;
    --restarts=* | --restarts) restarts=$(value "$1") ;;
    --cluster=* | --cluster) cluster=$(value "$1") ;;
    --zone=* | --zone) zone=$(value "$1") ;;
    --project=* | --project) project=$(value "$1") ;;
    --dry-run) dry=1 ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown option $1 (see --help)" ;;
  esac
  shift
done

needs() {
  local option
  for option in "$@"; do
    case "$option" in
      --name)
        [[ "$name" =~ ^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$ ]] ||
          fail "$action needs --name: up to 30 small letters, digits and -"
        ;;
      --accelerator) [ -n "$accelerator" ] || fail "$action needs --accelerator, such as v6e:4x4 or h100:4x8" ;;
      --image) [ -n "$image" ] || fail "$action needs --image" ;;
      --cluster) [ -n "$cluster" ] || fail "$action needs --cluster" ;;
    esac
  done
}

# Sets: kind (tpu or gpu), label (GKE's name of it), chip, shape, hosts (of a slice), devices (of a host).
read_accelerator() {
  chip=${accelerator%%:*} shape=${accelerator#*:}
  [[ "$accelerator" =~ ^[a-z0-9]+:[1-9][0-9]*(x[1-9][0-9]*)+$ ]] ||
    fail "--accelerator=$accelerator: write the chips along each side, as in v6e:4x4, or hosts x GPUs, as in h100:4x8"
  case "$chip" in
    v4) kind=tpu label=tpu-v4-podslice ;;
    v5e) kind=tpu label=tpu-v5-lite-podslice ;;
    v5p) kind=tpu label=tpu-v5p-slice ;;
    v6e) kind=tpu label=tpu-v6e-slice ;;
    a100) kind=gpu label=nvidia-a100-80gb ;;
    h100) kind=gpu label=nvidia-h100-80gb ;;
    h200) kind=gpu label=nvidia-h200-141gb ;;
    b200) kind=gpu label=nvidia-b200 ;;
    *) fail "--accelerator=$accelerator: $chip is none of v4, v5e, v5p, v6e, a100, h100, h200, b200" ;;
  esac
  if [ "$kind" = gpu ]; then
    [[ "$shape" =~ ^[0-9]+x[0-9]+$ ]] || fail "--accelerator=$accelerator: GPUs are hosts x GPUs, as in h100:4x8"
    [ "$slices" = 1 ] || fail "--slices are of TPUs; write the hosts, as in $chip:8x8"
    [ -z "$chips_per_host" ] || fail "--chips-per-host is of TPUs; write hosts x GPUs, as in $chip:8x8"
    hosts=${shape%x*} devices=${shape#*x}
    return
  fi
  case "$chip" in
    v4 | v5p) [[ "$shape" =~ ^[0-9]+x[0-9]+x[0-9]+$ ]] || fail "--accelerator=$accelerator: $chip slices have three sides" ;;
    *)
      [[ "$shape" =~ ^[0-9]+x[0-9]+$ ]] || fail "--accelerator=$accelerator: $chip slices have two sides"
      case "$shape" in
        1x1 | 2x2 | 2x4 | 4x4 | 4x8 | 8x8 | 8x16 | 16x16) ;;
        *) fail "--accelerator=$accelerator: $chip slices are 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 and 16x16" ;;
      esac
      ;;
  esac
  local chips=$((${shape//x/ * }))
  devices=${chips_per_host:-$((chips < 4 ? chips : 4))}
  whole --chips-per-host "$devices"
  [ $((chips % devices)) = 0 ] || fail "--chips-per-host=$devices: $shape has $chips chips, which is no multiple of it"
  hosts=$((chips / devices))
}

# text TEXT: as a string of YAML (and of JSON).
text() {
  case "$1" in
    *$'\n'*) fail "a value with a line break: $1" ;;
  esac
  printf '"%s"' "$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"
}

# list ITEM...: items that are YAML already.
list() {
  local item line=''
  for item in "$@"; do line="$line${line:+, }$item"; done
  printf '[%s]' "$line"
}

manifest() {
  local word filled selector args=() env=() from=() labels='' annotations='' tolerations=() limits mounts=() volumes=()
  selector='cloud.google.com/gke-tpu-accelerator: '$label', cloud.google.com/gke-tpu-topology: '$(text "$shape")
  limits="google.com/tpu: $devices"
  [ "$kind" = tpu ] && annotations='alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool'
  if [ "$kind" = gpu ]; then
    selector="cloud.google.com/gke-accelerator: $label" limits="nvidia.com/gpu: $devices"
    tolerations+=('{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}')
    # On TPU GKE itself says who the hosts are.
    env+=("{name: JAX_COORDINATOR_ADDRESS, value: \"$name-slice-0-0.$name:8476\"}")
    env+=("{name: JAX_NUM_PROCESSES, value: \"$hosts\"}")
    env+=("{name: JAX_PROCESS_ID, valueFrom: {fieldRef: {fieldPath: \"metadata.annotations['batch.kubernetes.io/job-completion-index']\"}}}")
    env+=('{name: XLA_PYTHON_CLIENT_MEM_FRACTION, value: "0.92"}')
    # NCCL exchanges data between the GPUs of a host through it.
    mounts+=('{name: shm, mountPath: /dev/shm}') volumes+=('{name: shm, emptyDir: {medium: Memory}}')
  fi
  if [ -n "$spot" ]; then
    selector="$selector, cloud.google.com/gke-spot: \"true\""
    tolerations+=('{key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}')
  fi
  [ -z "$queue" ] || labels="kueue.x-k8s.io/queue-name: $(text "$queue")"
  if [ -n "$claim" ]; then
    mounts+=('{name: shared, mountPath: /shared}')
    volumes+=("{name: shared, persistentVolumeClaim: {claimName: $(text "$claim")}}")
  fi
  for word in ${secrets[@]+"${secrets[@]}"}; do from+=("{secretRef: {name: $(text "$word")}}"); done
  for word in ${variables[@]+"${variables[@]}"}; do
    [[ "$word" =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "--env=$word: expected --env=NAME=VALUE"
    env+=("{name: ${word%%=*}, value: $(text "${word#*=}")}")
  done
  # Nodes that are made for the pods come minutes apart, and those that gave up waiting count as restarts. A word of the
  # user's comes later and is the one that counts. Kubernetes itself would fill in $(NAME).
  for word in train --config.hosts.start_timeout_s=1800 "$@"; do args+=("$(text "$(printf '%s' "$word" | sed 's/[$](/$&/g')")"); done

  filled=$(cat "$root/launch/gke_jobset.yaml")
  fill() { filled=${filled//@$1@/$2}; }
  fill NAME "$(text "$name")"
  fill NAMESPACE "$(text "$namespace")"
  fill LABELS "{$labels}"
  fill ANNOTATIONS "{$annotations}"
  fill RESTARTS "$restarts"
  fill SLICES "$slices"
  fill HOSTS "$hosts"
  fill SERVICE_ACCOUNT "$(text "$account")"
  fill HOST_NETWORK "$([ "$kind" = tpu ] && echo true || echo false)"
  fill DNS "$([ "$kind" = tpu ] && echo ClusterFirstWithHostNet || echo ClusterFirst)"
  fill NODES "{$selector}"
  fill TOLERATIONS "$(list ${tolerations[@]+"${tolerations[@]}"})"
  fill PRIVILEGED "$([ "$kind" = tpu ] && echo true || echo false)"
  fill LIMITS "{$limits}"
  fill MOUNTS "$(list ${mounts[@]+"${mounts[@]}"})"
  fill VOLUMES "$(list ${volumes[@]+"${volumes[@]}"})"
  fill IMAGE "$(text "$image")"
  fill ENV_FROM "$(list ${from[@]+"${from[@]}"})"
  fill ENV "$(list ${env[@]+"${env[@]}"})"
  # The last one: a word of training may hold anything.
  fill ARGS "$(list "${args[@]}")"
  printf '%s\n' "$filled" | sed '/^#/d'
}

apply() {
  local content
  content=$(manifest "$@")
  if [ -n "$dry" ]; then
    printf "kubectl apply --filename=- <<'MANIFEST'\n%s\nMANIFEST\n" "$content"
  else
    printf '%s\n' "$content" | run kubectl apply --filename=-
    echo "follow it: bash launch/gke_jobset.sh logs --name=$name --namespace=$namespace" >&2
  fi
}

logs() {
  run kubectl logs --namespace="$namespace" --follow --tail=-1 \
    --selector="jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
}

# xpk calls a slice by its chips, and those of v4 and v5p by their cores, of which a chip has two.
xpk_type() {
  local chips=$((${shape//x/ * }))
  case "$chip" in
    v4 | v5p) echo "$chip-$((2 * chips))" ;;
    v5e) echo "v5litepod-$chips" ;;
    *) echo "$chip-$chips" ;;
  esac
}

with_xpk() {
  local word env=()
  [ "$kind" = tpu ] || fail "xpk: only for TPUs here; use apply"
  [ -z "$claim$queue${secrets[*]+${secrets[*]}}" ] || fail "xpk has no use for --claim, --queue and --secret"
  for word in ${variables[@]+"${variables[@]}"}; do env+=("--env=$word"); done
  # xpk gives up for good at most statuses; 75 means that training was stopped or lost a host, and can go on.
  run xpk workload create --cluster="$cluster" ${zone:+"--zone=$zone"} ${project:+"--project=$project"} --workload="$name" \
    --tpu-type="$(xpk_type)" --num-slices="$slices" --docker-image="$image" --max-restarts="$restarts" \
    --restart-on-exit-codes=75 --termination-grace-period-seconds=300 ${spot:+--spot} ${env[@]+"${env[@]}"} \
    --command="iterpref train $(quoted "$@")"
}

whole --slices "$slices"
whole --restarts "$restarts"
case "$action" in
  manifest | apply | xpk)
    needs --name --accelerator --image
    # What the image holds, and what all hosts mount.
    config_under=(configs/ ${claim:+/shared/})
    check_words "$@"
    read_accelerator
    ;;
  *) [ $# = 0 ] || fail "$action takes no words behind --" ;;
esac
case "$action" in
  build)
    needs --accelerator --image
    read_accelerator
    # An ARM laptop would build for itself; GKE's hosts are x86, and libtpu is for x86 only.
    run docker build --platform=linux/amd64 --file="$root/launch/Dockerfile.$([ "$kind" = tpu ] && echo tpu || echo cuda)" \
      --tag="$image" "$root"
    run docker push "$image"
    ;;
  xpk) needs --cluster; with_xpk "$@" ;;
  logs) needs --name; logs ;;
  delete) needs --name; run kubectl delete jobset "$name" --namespace="$namespace" ;;
  *) "$action" "$@" ;;
esac
