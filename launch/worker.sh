#!/usr/bin/env bash
# launch/tpu.sh calls this script on every worker of a TPU, in its copy of the repository.
#
#   bash launch/worker.sh install FILE     Python, and .venv with the requirements file
#   bash launch/worker.sh start ARG...     python -m subjax.main --distributed ARG..., detached
#   bash launch/worker.sh state            a line: "subjax-worker: new", "running" or "exit CODE"
#   bash launch/worker.sh stop             SIGTERM, so that the run saves; waits for its end
#
# A run outlives the connection that started it: its output goes to ~/subjax-run/log and its exit
# code to ~/subjax-run/exit. Not run on a TPU; its tests run it on one machine.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"
run=$HOME/subjax-run
cd -- "$root"

install() {
  [ -f "${1:-}" ] || fail "launch/worker.sh install needs a requirements file, not '${1:-}'"
  python_from_uv "$root/.venv"
  ensure_environment "$root/.venv" "$1" requirements.txt
}

running() {
  [ -s "$run/pid" ] && [ ! -e "$run/exit" ] && kill -0 "$(<"$run/pid")" 2>/dev/null
}

# The exit code is written a moment after the end of a run; after a reboot, never.
settle() {
  local waited=0
  while [ -s "$run/pid" ] && [ ! -e "$run/exit" ] && ! running && [ "$waited" -lt 50 ]; do
    waited=$((waited + 1))
    sleep 0.1
  done
}

# The same command twice starts one run, so that the watching command can be restarted.
start() {
  mkdir -p "$run"
  settle
  if running; then
    printf '%s\n' "$@" | cmp -s - "$run/arguments" ||
      fail "another run is going on on $(hostname): wait for it, or delete the TPU"
    return 0
  fi
  rm -f "$run/exit" "$run/pid"
  printf '%s\n' "$@" >"$run/arguments"
  setsid nohup bash launch/worker.sh main "$@" >>"$run/log" 2>&1 </dev/null &
  until [ -s "$run/pid" ]; do sleep 0.1; done
}

# The detached process of `start`. A rename writes the exit code atomically.
main() {
  local code=0
  # Since jax 0.8.1, Google Cloud's default firewall blocks the default port.
  export JAX_COORDINATOR_PORT=${JAX_COORDINATOR_PORT:-8476}
  "$root/.venv/bin/python" -m subjax.main --distributed "$@" &
  printf '%s\n' "$!" >"$run/pid"
  wait "$!" || code=$?
  printf '%s\n' "$code" >"$run/exit.new"
  mv "$run/exit.new" "$run/exit"
}

state() {
  settle
  if running; then
    printf 'subjax-worker: running\n'
  elif [ -e "$run/exit" ]; then
    printf 'subjax-worker: exit %s\n' "$(<"$run/exit")"
  elif [ -s "$run/pid" ]; then
    # Ended without an exit code, for example by a reboot.
    printf 'subjax-worker: exit 137\n'
  else
    printf 'subjax-worker: new\n'
  fi
}

stop() {
  local waited=0
  while running && [ "$waited" -lt 300 ]; do
    [ "$waited" -gt 0 ] || kill -TERM "$(<"$run/pid")" 2>/dev/null || true
    waited=$((waited + 1))
    sleep 1
  done
}

case "${1:-}" in
  install | start | main | state | stop) "$@" ;;
  *) fail "'${1:-}' is no command of launch/worker.sh: install, start, state, stop" ;;
esac
