#!/usr/bin/env bash
# The test suite, from a fresh clone: makes a virtual environment, installs, lints, type-checks, tests.
#
#   bash launch/test.sh                  lint, types and the tests: about eleven minutes on two cores
#   bash launch/test.sh --all            with the tests marked slow, as CI does: three quarters of an hour
#   bash launch/test.sh --fast           without the tests marked slow, lint, types and the parity packages
#   bash launch/test.sh --venv DIR       virtual environment to make or use (default: .venv-test)
#   bash launch/test.sh -- -k layout     words behind -- go to pytest
#
# ITERPREF_DATA=FOLDER adds the tests on real histories, tokenizers and benchmarks; without it they skip and say so. With
# ITERPREF_ALL_TASKS=1 the slow ones judge every program there, and not every eighth.
# ITERPREF_SLOW_UNTIL=SECONDS (since 1970) leaves out slow tests that would start later, and says how many.
# Parity tests need torch, trl, peft and a pretrained model; they are installed where pip can (set PARITY=0 to do without).
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-test fast='' chosen=(-m 'not slow')
while [ $# -gt 0 ]; do
  case "$1" in
    --all) chosen=(); shift ;;
    --fast) fast=1; shift ;;
    --venv) venv=${2:?--venv needs a folder}; shift 2 ;;
    --) shift; break ;;
    -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) echo "test.sh: unknown option $1 (see --help)" >&2; exit 2 ;;
  esac
done

python=$venv/bin/python
if [ ! -x "$python" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
  "$python" -m pip install --quiet --upgrade pip
fi
"$python" -m pip install --quiet --editable '.[dev]'
if [ "${PARITY:-1}" = 1 ] && [ -z "$fast" ]; then
  # A CPU build of torch first: the newest one from the default index brings gigabytes of CUDA.
  "$python" -c 'import accelerate, gguf, peft, torch, trl' 2>/dev/null ||
    { "$python" -m pip install --quiet 'torch==2.13.0' && "$python" -m pip install --quiet --editable '.[parity]'; } ||
    echo "test.sh: the packages of the parity extra could not be installed; parity tests will skip" >&2
fi

if [ -z "$fast" ]; then
  "$venv/bin/ruff" check .
  "$venv/bin/ruff" format --check .
  "$venv/bin/pyright" --pythonpath "$python"
fi
exec "$python" -m pytest -n 2 "${chosen[@]}" "$@"
