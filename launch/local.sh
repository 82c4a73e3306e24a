#!/usr/bin/env bash
# Makes .venv in the repository root, installs requirements.txt into it, and runs subjax there.
#
#   bash launch/local.sh                                the quickstart: a figure after some minutes
#   bash launch/local.sh --config=configs/x.py --list   any other run: the arguments of subjax.main
#   bash launch/local.sh --install                      only the environment
#   SUBJAX_DEVICE=gpu bash launch/local.sh ...          on NVIDIA GPUs of this machine (tpu: on TPUs,
#                                                       whose images may need a Python from uv)
#
# Paths in the arguments are relative to the repository root. PYTHON=/path/to/python3.11 chooses the
# Python. Running it again installs nothing and resumes the run. The exit code is subjax.main's.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"

cd -- "$root"
[ "${SUBJAX_DEVICE:-}" != tpu ] || python_from_uv "$root/.venv"
case "${SUBJAX_DEVICE:-cpu}" in
  cpu) ensure_environment "$root/.venv" requirements.txt ;;
  gpu | tpu) ensure_environment "$root/.venv" "launch/requirements-$SUBJAX_DEVICE.txt" requirements.txt ;;
  *) fail "SUBJAX_DEVICE=$SUBJAX_DEVICE is none of cpu, gpu, tpu" ;;
esac
if [ "$*" = --install ]; then
  exit 0
fi
if [ $# -eq 0 ]; then
  set -- --config=configs/quickstart.py
fi
exec "$root/.venv/bin/python" -m subjax.main "$@"
