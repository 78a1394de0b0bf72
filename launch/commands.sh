# shellcheck shell=bash
# Sourced by the launchers: commands are shown as they run; with --dry-run they are only shown, word for word.
# Works with Bash 3.2, which macOS has.

program=$(basename "$0")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry=''
# Where a relative --config lies.
configs_in=$root
# Where a --config must lie if the run's machines do not have the whole checkout; empty: anywhere.
config_under=()

fail() {
  echo "$program: $*" >&2
  exit 2
}

# The comment at the top of a launcher is its help.
usage() {
  sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"
}

# quoted WORD...: the words as a shell reads them again.
quoted() {
  local word line=''
  for word in "$@"; do
    case "$word" in
      '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'" ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# run COMMAND...: shows it, then runs it.
run() {
  if [ -n "$dry" ]; then
    quoted "$@"
  else
    echo "+ $(quoted "$@")" >&2
    "$@"
  fi
}

# note TEXT: what a dry run cannot know.
note() {
  if [ -n "$dry" ]; then echo "# $*"; fi
}

# value OPTION: what stands behind the = of --name=value.
value() {
  case "$1" in
    --*=?*) printf '%s\n' "${1#*=}" ;;
    *) fail "${1%%=*} needs a value: ${1%%=*}=VALUE" ;;
  esac
}

# whole NAME TEXT: a whole number above 0.
whole() {
  case "$2" in
    '' | *[!0-9]* | 0*) fail "$1 must be a whole number above 0, not '$2'" ;;
  esac
}

# check_words WORD...: what stands behind -- must be what `iterpref train` needs.
check_words() {
  local word config='' workdir='' folder there=''
  for word in "$@"; do
    case "$word" in
      --config=?*) config=${word#*=} ;;
      --workdir=?*) workdir=${word#*=} ;;
      --config | --workdir) fail "write $word=VALUE behind --" ;;
      train | iterpref) fail "behind -- stand the options of 'iterpref train' alone, not '$word'" ;;
    esac
  done
  [ -n "$config" ] && [ -n "$workdir" ] ||
    fail "behind -- stand the options of 'iterpref train', at least --config=FILE and --workdir=DIR"
  # As iterpref_jax/train/remote.py has it; it would say so only after machines were waited and paid for.
  case "$workdir" in
    gs://*) ;;
    *://*)
      fail "--workdir=$workdir: of buckets, runs are written to gs:// only; give gs://BUCKET/RUN, or a bucket mounted as" \
        "a folder on all hosts"
      ;;
  esac
  case "$config" in
    /*) ;;
    *) [ -f "$configs_in/${config%%:*}" ] || fail "--config=$config: there is no ${config%%:*} in $configs_in" ;;
  esac
  for folder in ${config_under[@]+"${config_under[@]}"}; do
    case "$config" in
      */../*) ;;
      "$folder"*) there=1 ;;
    esac
  done
  [ -n "$there" ] || [ -z "${config_under[*]+some}" ] ||
    fail "--config=$config: of this machine the run gets configs/ only; put the file there (an image must be built" \
      "again) and give --config=configs/NAME.py${config_under[1]+, or a file below ${config_under[1]}}"
}

# words_of_doctor WORD...: puts those that `doctor` takes too into doctor_words.
words_of_doctor() {
  local word
  for word in "$@"; do
    case "$word" in
      --config=* | --config.* | --workdir=*) doctor_words[${#doctor_words[@]}]=$word ;;
    esac
  done
}
