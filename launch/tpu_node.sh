# shellcheck shell=bash
# Functions of launch/tpu.sh that call gcloud: they read and change the state of a TPU and its
# workers, and add up its cost. They read variables that launch/tpu.sh sets.
# shellcheck disable=SC2154

worker_script="bash subjax/launch/worker.sh"

# Prints one argument quoted for a POSIX shell.
quote() {
  if [[ $1 =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
    printf '%s' "$1"
  else
    printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"
  fi
}

quote_all() {
  local argument separator=""
  for argument in "$@"; do
    printf '%s' "$separator"
    quote "$argument"
    separator=" "
  done
}

# Runs gcloud compute tpus with these arguments in the zone, or prints the command. With --until-done
# a call fails after $timeout_s, also after the watch. Other calls run without `timeout`, which would
# keep Ctrl-C from gcloud.
tpus() {
  tpus_within "$timeout_s" "$@"
}

# The same with a longer timeout.
slow_tpus() {
  tpus_within "${timeout_s}0" "$@"
}

tpus_within() {
  local seconds=$1 code=0
  shift
  set -- gcloud compute tpus "$@" "--zone=$zone" ${project:+"--project=$project"}
  if [ -n "$dry_run" ]; then
    quote_all "$@"
    printf '\n'
  elif [ -z "$until_done" ]; then
    "$@" 2>"$gcloud_stderr" </dev/null
  else
    "$timeout" --kill-after=10 "$seconds" "$@" 2>"$gcloud_stderr" </dev/null || code=$?
    [ "$code" != 124 ] && [ "$code" != 137 ] || printf 'gcloud did not answer in %s s\n' "$seconds" >>"$gcloud_stderr"
    return "$code"
  fi
}

# The reason of gcloud's last failure in one line, preferably a worker's message.
reason() {
  local line
  line=$(grep -E '^subjax: error: |ERROR: ' "$gcloud_stderr" | sort -r | head -n 1 || true)
  [ -n "$line" ] || line=$(last_line <"$gcloud_stderr")
  printf '%s' "${line#subjax: error: }"
}

# Prints Google's recommended runtime for a type of TPU.
runtime_version() {
  case "$1" in
    v5litepod-*) printf 'v2-alpha-tpuv5-lite' ;;
    v5p-*) printf 'v2-alpha-tpuv5' ;;
    v6e-*) printf 'v2-alpha-tpuv6e' ;;
    v2-* | v3-* | v4-*) printf 'tpu-ubuntu2204-base' ;;
    *) fail "no runtime is known for --type=$1: give --version=RUNTIME" ;;
  esac
}

create_node() {
  # Options of both kinds.
  set -- ${spot:+--spot} ${service_account:+"--service-account=$service_account"} \
    ${network:+"--network=$network"} ${subnetwork:+"--subnetwork=$subnetwork"} --quiet
  if [ -n "$queued" ]; then
    slow_tpus queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" \
      "--runtime-version=$version" "$@"
  else
    slow_tpus tpu-vm create "$name" "--accelerator-type=$type" "--version=$version" "$@"
  fi
}

delete_node() {
  if [ -n "$queued" ]; then
    slow_tpus queued-resources delete "$name" --force --quiet
  else
    slow_tpus tpu-vm delete "$name" --quiet
  fi
}

# Prints the state of a resource, or "none"; fails if gcloud cannot tell.
describe() {
  local kind=$1 field=$2 state
  if state=$(tpus "$kind" describe "$name" "--format=value($field)"); then
    printf '%s\n' "$state"
  elif grep -q NOT_FOUND "$gcloud_stderr"; then
    printf 'none\n'
  else
    return 1
  fi
}

# Prints none, waiting (no cost yet), coming, ready or ended; with --queued also plain, if a TPU of
# that name was created without --queued.
node_state() {
  local state
  if [ -n "$queued" ]; then
    state=$(describe queued-resources state.state) || return 1
    case "$state" in
      none)
        plain_state
        return
        ;;
      FAILED | SUSPENDED) printf 'ended\n' && return ;;
      ACTIVE) ;;
      PROVISIONING | SUSPENDING | DELETING) printf 'coming\n' && return ;;
      *) printf 'waiting\n' && return ;;
    esac
  fi
  state=$(describe tpu-vm state) || return 1
  case "$state" in
    none) if [ -n "$queued" ]; then printf 'ended\n'; else printf 'none\n'; fi ;;
    READY) printf 'ready\n' ;;
    PREEMPTED | TERMINATED | STOPPED) printf 'ended\n' ;;
    *) printf 'coming\n' ;;
  esac
}

# The state of a node whose queued resource does not exist.
plain_state() {
  local state
  state=$(describe tpu-vm state) || return 1
  case "$state" in
    none) printf 'none\n' ;;
    DELETING) printf 'coming\n' ;;
    *) printf 'plain\n' ;;
  esac
}

on_workers() {
  tpus tpu-vm ssh "$name" --worker=all "--command=$1" --quiet
}

on_workers_slowly() {
  slow_tpus tpu-vm ssh "$name" --worker=all "--command=$1" --quiet
}

worker_states() {
  on_workers "$worker_script state || echo subjax-worker: new"
}

# Reads the workers' states; prints the combined state. No state is a failure. If one worker ends
# with 1 or crashes, the others lose it and stop with 75: the code of the first one counts.
verdict() {
  awk '
    $1 == "subjax-worker:" { seen++; if ($2 == "exit") code[$3]++; else state[$2]++ }
    END {
      if (!seen) exit 1
      if (code[1]) print "mistake"
      else if (state["running"]) print "running"
      else if (state["new"]) print "new"
      else if (code[0] == seen) print "done"
      else print (code[0] + code[75] == seen ? "interrupted" : "crashed")
    }'
}

last_words() {
  local words
  words=$(tpus tpu-vm ssh "$name" --worker=0 "--command=tail -n 20 subjax-run/log" --quiet) || true
  last_line <<<"$words"
}

show_log() {
  tpus tpu-vm ssh "$name" "--worker=$worker" --quiet \
    "--command=tail -n 100 ${follow:+-f }subjax-run/log" ||
    fail "no log of worker $worker of $name: $(reason)"
}

# Copies the repository, installs, starts.
launch() {
  local archive=runs/tpu/$name.tar.gz
  if [ -z "$dry_run" ]; then
    say "copying to $name, installing, starting"
    mkdir -p runs/tpu
    pack "$archive"
  fi
  # Keeps the environment of an earlier launch.
  local unpack="mkdir -p subjax && find subjax -mindepth 1 -maxdepth 1 ! -name .venv"
  unpack+=" -exec rm -rf {} + && tar -xzf subjax.tar.gz -C subjax"
  slow_tpus tpu-vm scp "$archive" "$name:subjax.tar.gz" --worker=all --quiet &&
    on_workers_slowly "$unpack && $worker_script install launch/requirements-tpu.txt" &&
    start_workers
}

# A restarted worker has lost its mounts, so --setup runs before every start.
start_workers() {
  local before=""
  if [ -n "$setup" ]; then
    before="bash -c $(quote "$setup") >&2 || "
    before+="{ echo \"subjax: error: --setup failed on \$(hostname)\" >&2; exit 1; }; "
  fi
  if [ "${#variables[@]}" -gt 0 ]; then
    before+="env $(quote_all "${variables[@]}") "
  fi
  on_workers_slowly "$before$worker_script start $(quote_all "${main_arguments[@]}")"
}

stop_workers() {
  on_workers_slowly "$worker_script stop" >/dev/null || true
}

# Archives the tracked and untracked files of this repository in their present state.
pack() {
  local file
  git rev-parse --git-dir >/dev/null 2>&1 ||
    fail "$root is no git checkout, which tells what to copy: clone the repository"
  git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do
      if [ -e "$file" ]; then printf '%s\0' "$file"; fi
    done | tar -czf "$1" --null -T - || fail "cannot write $root/$1"
}

ledger() {
  printf 'runs/tpu/%s.spent' "$name"
}

# within_budget STATE: adds the time since the last check to the ledger, if the TPU existed; fails if
# the time until the next check could cost more than is left.
within_budget() {
  [ -n "$max_usd" ] || return 0
  local now seconds=0 last=0
  now=$(date +%s)
  mkdir -p runs/tpu
  if [ -s "$(ledger)" ]; then
    read -r seconds last <"$(ledger)"
  fi
  [ "$last" = 0 ] || seconds=$((seconds + now - last))
  case "$1" in
    none | waiting | ended) last=0 ;;
    *) last=$now ;;
  esac
  printf '%s %s\n' "$seconds" "$last" >"$(ledger)"
  # A TPU that does not exist costs nothing until it is made, so it must not be made in vain.
  awk -v s="$seconds" -v p="$poll_s" -v r="$usd_per_hour" -v m="$max_usd" \
    'BEGIN { exit (s + p) / 3600 * r > m }'
}

# After a successful delete: stop counting time.
close_ledger() {
  local seconds last
  [ -s "$(ledger)" ] || return 0
  read -r seconds last <"$(ledger)"
  [ "$last" = 0 ] || seconds=$((seconds + $(date +%s) - last))
  printf '%s 0\n' "$seconds" >"$(ledger)"
}

spent_usd() {
  awk -v r="$usd_per_hour" '{ printf "%.2f", $1 / 3600 * r }' "$(ledger)"
}
