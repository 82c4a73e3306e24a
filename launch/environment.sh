# shellcheck shell=bash
# Functions for launch/local.sh, launch/worker.sh and tests/run.sh: find a Python, make a virtual
# environment, install a requirements file into it once. They change nothing outside the environment,
# except for `python_from_uv`, which is for rented machines.
# Written for bash 3.2, the version of macOS. Progress and errors go to stderr, so that the output of
# the following command can be piped.

say() {
  printf 'subjax: %s\n' "$*" >&2
}

fail() {
  printf 'subjax: error: %s\n' "$*" >&2
  exit 1
}

# Prints the version of the Python $1 ("3.11.7"), or nothing if it does not run.
python_version() {
  "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true
}

# Whether subjax runs on version $1. Below 3.14, because jax and array-record need wheels for a
# Python version.
version_fits() {
  case "$1" in
    3.11.* | 3.12.* | 3.13.*) return 0 ;;
    *) return 1 ;;
  esac
}

# Prints the command of a suitable Python. $PYTHON, if set, is used and never replaced.
find_python() {
  local candidate version found=""
  if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
  else
    set -- python3 python3.11 python3.12 python3.13 python
  fi
  for candidate in "$@"; do
    version=$(python_version "$candidate")
    if version_fits "$version"; then
      printf '%s\n' "$candidate"
      return 0
    fi
    if [ -n "$version" ] && [ -z "$found" ]; then
      found="$version ($candidate)"
    fi
  done
  fail "subjax needs Python 3.11 or newer (below 3.14); found ${found:-none as $*};" \
    "install it or set PYTHON=/path/to/python3.11"
}

# Sets $PYTHON to a Python from uv if neither the environment $1 nor the machine has a suitable one:
# TPU images of 2025 have Python 3.10.
python_from_uv() {
  local uv=$HOME/.local/bin/uv
  ! version_fits "$(python_version "$1/bin/python")" || return 0
  if [ -z "${PYTHON:-}" ] && ! (find_python >/dev/null 2>&1); then
    say "no Python of this machine fits: installing 3.12 with uv"
    { python3 -m pip install --user --quiet uv && "$uv" python install --quiet 3.12; } >&2 ||
      fail "cannot install Python 3.12 with uv: check this machine's network"
    PYTHON=$("$uv" python find 3.12)
  fi
}

# Makes the virtual environment $1, replacing a partial one of an interrupted attempt.
make_environment() {
  local venv=$1 python=$2 output
  say "making $(basename "$venv") with Python $(python_version "$python")"
  output=$("$python" -m venv --clear "$venv" 2>&1) ||
    fail "cannot make $venv with $python: $(last_line <<<"$output");" \
      "look for a full disk, a folder that cannot be written, or a Python without venv" \
      "(on Debian and Ubuntu: apt install python3-venv)"
}

# Prints the last line of stdin that is not blank.
last_line() {
  awk 'NF { line = $0 } END { print line }'
}

# Prints why pip failed, from its log $1. With PIP_RETRIES=0, or if an index refuses, pip does not
# say whether it reached the index; then the message names both causes.
failure_cause() {
  local check="check the network and PIP_INDEX_URL"
  if grep -qE 'Max retries exceeded|[Ff]ailed to (establish|connect)|Retrying \(' "$1"; then
    printf 'the package index cannot be reached (%s)' "$check"
  elif grep -q 'from versions: none' "$1"; then
    printf 'the package index cannot be reached or lacks a package (%s)' "$check"
  else
    printf 'pip failed'
  fi
}

# Installs the requirements file $2 into the environment $1; pip's whole output goes to pip.log.
install_requirements() {
  local venv=$1 requirements=$2 log=$1/pip.log reason
  say "installing $requirements into $(basename "$venv") (once; some minutes; details in $log)"
  if "$venv/bin/python" -m pip install --disable-pip-version-check -r "$requirements" \
    </dev/null >"$log" 2>&1; then
    return 0
  fi
  reason=$(grep -E '^ *ERROR: ' "$log" | last_line || true)
  if [ -z "$reason" ]; then
    reason=$(last_line <"$log")
  fi
  fail "cannot install $requirements: $(failure_cause "$log");" \
    "pip's last error: ${reason#*ERROR: }; full log: $log"
}

# ensure_environment VENV FILE [FILE...]: installs the first requirements file into VENV; the other
# files are the ones that it includes. No-op if VENV was completed with the same text. The stamp is
# written last, so that the next call repeats an interrupted installation.
ensure_environment() {
  local venv=$1 stamp=$1/requirements.installed python version wanted
  shift
  version=$(python_version "$venv/bin/python")
  # If PYTHON is set, the environment must use it; otherwise a working environment is kept.
  if [ -n "${PYTHON:-}" ] || ! version_fits "$version"; then
    python=$(find_python) || exit 1
    wanted=$(python_version "$python")
    if [ "${wanted%.*}" != "${version%.*}" ]; then
      make_environment "$venv" "$python"
    fi
  fi
  if cat "$@" | cmp -s - "$stamp"; then
    return 0
  fi
  # An interrupted `python -m venv` leaves a Python without pip.
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python) || exit 1
    make_environment "$venv" "$python"
  fi
  install_requirements "$venv" "$1"
  cat "$@" >"$stamp"
}
