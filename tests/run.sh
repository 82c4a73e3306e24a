#!/usr/bin/env bash
# Makes .venv-test in the repository root and runs there the linters, the type check and the tests.
#
#   bash tests/run.sh                        what every change has to pass, compiled quickly
#   bash tests/run.sh --all                  every test; those that are optimized as users compile
#   SUBJAX_FUZZ=10000 bash tests/run.sh …    as many damaged files for each reader (150; --all: 1000)
#   SUBJAX_KILLS=20 bash tests/run.sh …      as many kills of a training (8)
#   bash tests/run.sh tests/nn               any other argument goes to pytest; as users compile
#
# .venv-test is not .venv: the tests need torch and other packages that a run must do without.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"

cd -- "$root"
# Python compiles the modules that are imported, which few of them are, and keeps what it compiled.
export PIP_COMPILE=0
unset PYTHONDONTWRITEBYTECODE # or every process that a test starts would compile them again: 6 s
ensure_environment "$root/.venv-test" requirements-dev.txt requirements.txt
python=$root/.venv-test/bin/python

step() {
  say "running $*"
  "$python" -m "$@"
}

step ruff format --check .
step ruff check .
step mypy --no-error-summary
# Most of the time goes into compiling, on one core, or into waiting for other processes: three at a
# time on two cores, and programs that are optimized little; but a few tests are of what XLA makes of
# programs. tests/conftest.py says which files come first. The default marker expression stands in
# pyproject.toml.
side_by_side=(--numprocesses=3 --dist=loadfile --no-loadscope-reorder)
quickly=(--quick-compile "${side_by_side[@]}")
if [ "${1:-}" = --all ]; then
  shift
  code=0
  export SUBJAX_FUZZ=${SUBJAX_FUZZ:-1000} # damaged files that each reader is given
  set -- --durations=25 "$@" # what makes it long, for whoever shortens it
  step pytest -m 'not optimized' "${quickly[@]}" "$@" || code=$?
  step pytest -m optimized "${side_by_side[@]}" "$@" || code=$?
  exit "$code"
elif [ $# -eq 0 ]; then
  step pytest "${quickly[@]}"
else
  step pytest "$@"
fi
