#!/usr/bin/env bash
# Runs subjax on a Cloud TPU: creates it, starts the run on every worker, watches it, deletes it.
#
#   bash launch/tpu.sh create owl --zone=us-west4-a --type=v5litepod-16 --spot --queued
#   bash launch/tpu.sh run owl --zone=us-west4-a \
#       -- --config=configs/x.py --workdir=gs://BUCKET/x
#   bash launch/tpu.sh logs owl --zone=us-west4-a [--worker=1] [--follow]
#   bash launch/tpu.sh delete owl --zone=us-west4-a --queued
#
# The arguments after -- are those of subjax.main. `run` copies this repository to all workers
# (tracked and untracked files in their present state, but not ignored ones), installs
# launch/requirements-tpu.txt there, starts the run and exits.
#
# The work directory must outlive the TPU, whose disks are deleted with it: a folder of a bucket that
# the TPU's service account may write to, or an absolute path that all workers share. This command
# allows it to write to a bucket:
#
#   gcloud storage buckets add-iam-policy-binding gs://BUCKET \
#       --member=serviceAccount:ACCOUNT --role=roles/storage.objectAdmin
#
# --setup mounts a path; it runs on every worker before every start, so it must be repeatable. For a
# share of Filestore, or of another NFS:
#
#   --setup='mountpoint -q /mnt/share || { sudo apt-get install -qy nfs-common &&
#     sudo mkdir -p /mnt/share && sudo mount -t nfs ADDRESS:/SHARE /mnt/share; }'
#
# Workers have no HF_TOKEN (--env would show it in their process lists), so copy a gated model, such
# as Llama or Gemma, into the bucket first, with its tokenizer. Do the same with a model that exceeds
# the 100 GiB boot disk of a TPU VM, such as one of 72B (145 GB): from the hub every worker downloads
# all of it, from a bucket each worker reads only its share of the weights. Once, with HF_TOKEN set:
#
#   hf download ORGANISATION/MODEL --local-dir=DIR
#   gcloud storage rsync --recursive DIR gs://BUCKET/model
#
# and then add --config.bases.NAME.path=gs://BUCKET/model after --, with NAME as in the config.
#
# Unattended, from a machine that stays on:
#
#   bash launch/tpu.sh run owl --zone=us-west4-a --type=v5litepod-16 --spot --queued --until-done \
#       --delete-when-done --usd-per-hour=9 --max-usd=60 \
#       -- --config=configs/x.py --workdir=gs://BUCKET/x
#
#   --until-done        creates the TPU if there is none; watches; deletes and recreates it after a
#                       preemption; restarts the run when it was interrupted (exit code 75). Stops at
#                       a user's mistake (exit code 1), at the third bug (70) or crash, and at the
#                       tenth interruption less than ten minutes after the one before. This command
#                       can itself be stopped and started again.
#                       --workdir must be in a bucket, or below /mnt, where --setup mounts it.
#   --delete-when-done  deletes the TPU when the run is done or has failed, and when the watch itself
#                       fails; but not while another run uses the TPU
#   --max-usd=X         saves, stops and deletes before the TPU's hours at --usd-per-hour cost more
#                       than X (the sum is in runs/tpu/NAME.spent until the TPU is deleted). A guard,
#                       not a bill: it does not check while workers install or while a call hangs,
#                       and it does not include disks and traffic.
#   --queued            uses a queued resource, which waits for capacity; pass it to every command
#   --type=TYPE         v5litepod-N and v6e-N have N chips; v5p-N, like v4-N and older ones, has N
#                       cores, two per chip: v5p-32 has 16 chips, topology 2x2x4
#   --poll-s=30         seconds between two checks
#   --timeout-s=180     seconds after which --until-done treats a call of gcloud as failed; ten times
#                       as long for copying, installing, starting, stopping, creating and deleting
#   --version=RUNTIME   software of the TPU; default: guessed from --type
#   --project=PROJECT   default: gcloud's project
#   --service-account=ACCOUNT
#                       e-mail address of the workers' account; default: Compute Engine's; you need
#                       roles/iam.serviceAccountUser on it
#   --network=NETWORK, --subnetwork=SUBNETWORK
#                       default: the project's; firewall rules must allow connections between
#                       workers, and ssh to them
#   --env=NAME=VALUE    an environment variable of the run, such as TMPDIR=/mnt/disk; repeatable; no
#                       effect on a run that has already started
#   --dry-run           prints the gcloud commands, in order, and runs none
#
# A TPU with several workers needs gcloud's ssh key in an agent: eval "$(ssh-agent)", then
# ssh-add ~/.ssh/google_compute_engine (made by the first gcloud compute tpus tpu-vm ssh).
#
# Not run on a TPU. Flags are those of gcloud 528; the tests run it against a fake gcloud that follows
# the documentation, with folders of one machine as workers.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"
# shellcheck source=launch/tpu_node.sh
. "$root/launch/tpu_node.sh"
cd -- "$root"

command="" name="" zone="" type="" version="" project="" worker=0 poll_s=30 timeout_s=180
usd_per_hour="" max_usd="" setup="" service_account="" network="" subnetwork=""
spot="" queued="" until_done="" delete_when_done="" dry_run="" follow=""
main_arguments=() variables=()

parse() {
  local known="create, run, logs, delete"
  command=${1:-}
  case "$command" in
    create | run | logs | delete) shift ;;
    --help | -h) sed -n '2,/^set /{ /^set /d; s/^# \{0,1\}//; p; }' "$root/launch/tpu.sh" && exit 0 ;;
    "") fail "no command: bash launch/tpu.sh COMMAND NAME --zone=ZONE; commands: $known" ;;
    *) fail "unknown command '$command'; commands: $known" ;;
  esac
  name=${1:-}
  [[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
    fail "'$name' is no name of a TPU: give one after '$command', of a-z, 0-9 and -"
  shift
  while [ $# -gt 0 ]; do
    case "$1" in
      --) shift && main_arguments=("$@") && return ;;
      --zone=?* | --type=?* | --version=?* | --project=?* | --worker=?* | --poll-s=?* | \
        --timeout-s=?* | --usd-per-hour=?* | --max-usd=?* | --setup=?* | \
        --service-account=?* | --network=?* | --subnetwork=?*) option "${1%%=*}" "${1#*=}" ;;
      --env=[A-Za-z_]*=*) variables+=("${1#--env=}") ;;
      --spot | --queued | --until-done | --delete-when-done | --dry-run | --follow)
        option "$1" yes
        ;;
      --config* | --workdir*) fail "$1 is for subjax.main: put -- before it" ;;
      *) fail "unknown argument '$1': see the first lines of launch/tpu.sh" ;;
    esac
    shift
  done
}

# --max-usd 5 -> max_usd=5
option() {
  local variable=${1#--}
  printf -v "${variable//-/_}" '%s' "$2"
}

validate() {
  local number='^[0-9]*\.?[0-9]+$' flag
  [ -n "$zone" ] || fail "--zone is missing: give the TPU's, such as --zone=us-west4-a"
  for flag in poll_s timeout_s worker usd_per_hour max_usd; do
    if [ -n "${!flag}" ]; then
      [[ ${!flag} =~ $number ]] || fail "--${flag//_/-}=${!flag} is no number"
    fi
  done
  [[ $timeout_s =~ ^[1-9][0-9]*$ ]] || fail "--timeout-s=$timeout_s is no number of seconds"
  [ -z "$max_usd" ] || [ -n "$usd_per_hour" ] ||
    fail "--max-usd=$max_usd needs --usd-per-hour: what the whole TPU costs in an hour"
  [ -z "$max_usd" ] || [ -n "$until_done" ] ||
    fail "--max-usd=$max_usd needs --until-done: without it nobody watches the time"
  [ -z "$delete_when_done" ] || [ -n "$until_done" ] ||
    fail "--delete-when-done needs --until-done: without it nobody sees the end"
  if [ "$command" = create ] || [ -n "$until_done" ]; then
    [ -n "$type" ] || fail "--type is missing: give the TPU's, such as --type=v5litepod-16"
    [ -n "$version" ] || version=$(runtime_version "$type")
  fi
  [ "$command" != run ] || validate_run
}

validate_run() {
  local all=" ${main_arguments[*]-} " argument workdir=""
  [[ $all == *" --config="* ]] ||
    fail "no --config: after -- come the arguments of subjax.main, such as --config=configs/x.py"
  [[ $all != *" --distributed "* ]] || fail "--distributed is added by launch/tpu.sh: leave it out"
  for argument in "${main_arguments[@]}"; do
    [[ $argument != --workdir=* ]] || workdir=${argument#--workdir=}
  done
  validate_workdir "$workdir"
}

validate_workdir() {
  local way_out="give --workdir=gs://BUCKET/x, or a path below /mnt that all workers share and --setup mounts"
  case "$1" in
    "") fail "no --workdir: a TPU's disks go with it; $way_out" ;;
    gs://?*/?*) return 0 ;;
    *://*) fail "--workdir=$1 is a URL of no bucket's folder; $way_out" ;;
    [!/]*) fail "--workdir=$1 is no absolute path; $way_out" ;;
  esac
  [ -n "$until_done" ] || return 0
  # Mounts of --setup outlive the TPU; other paths may be on the TPU's own disk.
  [[ $1 == /mnt/?* && -n $setup ]] ||
    fail "--workdir=$1 may be on the TPU itself, which --until-done deletes when it is preempted; $way_out"
}

# `run` without --until-done. Does not change code and packages while a run is active.
run_once() {
  local state workers
  if [ -n "$dry_run" ]; then
    launch
    return
  fi
  state=$(node_state) || fail "gcloud does not answer: $(reason)"
  [ "$state" = ready ] ||
    fail "TPU $name in $zone is not ready ($state): create it, or wait; or give --until-done"
  workers=$(worker_states) || fail "cannot reach every worker of $name: $(reason)"
  if [ "$(verdict <<<"$workers")" = running ]; then
    start_workers || fail "cannot start on $name: $(reason)"
  else
    launch || fail "cannot start on $name: $(reason)"
  fi
  say "started on $name; bash launch/tpu.sh logs $name --zone=$zone --follow shows what it says"
}

# One line per change of state, so that a log of several days is readable.
note() {
  [ "$*" = "$noted" ] || say "$*"
  noted=$*
}

run_until_done() {
  local launched="" restarting="" crashes=0 noted="" early=0 since=0
  watching=yes
  trap leave_watch INT TERM HUP
  while :; do
    state=$(node_state) || state=unknown
    [ "$state" != unknown ] || [ -n "$noted" ] || fail "gcloud does not answer: $(reason)"
    if [ "$state" = plain ]; then
      queued=""
      leave_node "$name was made without --queued: leave --queued out, or delete it"
    fi
    within_budget "$state" || give_up "the next look could exceed --max-usd=$max_usd"
    case "$state" in
      none) make_node ;;
      ended)
        note "$name was preempted or failed: deleting it"
        delete_node || note "cannot delete $name yet: $(reason)"
        launched=""
        ;;
      ready) look_at_workers ;;
      unknown) note "gcloud does not say how $name is, trying again: $(reason)" ;;
      *) note "$name is on its way" ;;
    esac
    sleep "$poll_s"
  done
}

leave_watch() {
  watching=""
  say "no longer watching $name, which goes on: the same command watches again"
  exit 130
}

# Creates the node. Without capacity it waits; a failure that created nothing is an error for the
# user. If something exists after a failure, the next check deals with it.
make_node() {
  local why refusal="" after
  local passing='RESOURCE_EXHAUSTED|no more capacity|UNAVAILABLE|ALREADY_EXISTS|did not answer'
  launched="" crashes=0 early=0
  note "creating $name ($type in $zone)"
  create_node && return
  why=$(reason)
  refusal=$(grep -oiE "$passing" "$gcloud_stderr" | head -n 1 || true)
  after=$(node_state) || after=unknown
  if [ "$after" != none ]; then
    note "creating $name failed, but it may exist ($after), going on: $why"
    return
  fi
  case "$refusal" in
    "") watching="" && fail "cannot create $name: $why" ;;
    ALREADY_EXISTS) note "the name $name is still taken, trying again: $why" ;;
    "did not answer") note "creating $name again: $why" ;;
    *) note "no capacity for $name, trying again: $why" ;;
  esac
}

look_at_workers() {
  local verdict
  # A worker that cannot be reached may be disappearing: the next check reads the node's state.
  if ! verdict=$(worker_states | verdict); then
    note "cannot reach every worker of $name, trying again: $(reason)"
    return
  fi
  if [ -z "$launched" ]; then
    begin "$verdict"
    return
  fi
  case "$verdict" in
    done) finish 0 "done: the results are in the work directory" ;;
    mistake) finish 1 "failed: $(last_words)" ;;
    interrupted)
      # Repeated interruptions within minutes on a healthy node mean that the run is broken.
      if ((SECONDS - since < 600)); then early=$((early + 1)); else early=0; fi
      [ "$early" -lt 10 ] || finish 1 "was interrupted $early times within minutes: $(last_words)"
      again "was interrupted"
      ;;
    crashed)
      crashes=$((crashes + 1))
      [ "$crashes" -lt 3 ] || finish 1 "crashed $crashes times: $(last_words)"
      again "crashed: $(last_words)"
      ;;
    new) launched="" ;;
    running) if [ -n "$restarting" ]; then restart; else note "running on $name"; fi ;;
  esac
}

# An active run is only watched; `start` refuses if it is another run. An error of a worker is final
# at the third time; lost connections are retried as long as the node exists.
begin() {
  if [ "$1" = running ]; then
    start_workers && launched=yes && return
    ! grep -q 'another run is going on' "$gcloud_stderr" ||
      leave_node "cannot go on on $name: $(reason)"
  else
    launch && launched=yes && return
    ! grep -q '^subjax: error: ' "$gcloud_stderr" || crashes=$((crashes + 1))
    [ "$crashes" -lt 3 ] || finish 1 "cannot start on $name: $(reason)"
  fi
  note "cannot start on $name, trying again: $(reason)"
}

again() {
  since=$SECONDS
  say "the run on $name $1; starting it again"
  restart
}

# If it fails on some workers, the others wait for them: try those again.
restart() {
  restarting=yes
  if start_workers; then restarting=""; else note "cannot start on $name, trying again: $(reason)"; fi
}

finish() {
  say "$2"
  # If one worker failed, others may still wait for it.
  [ "$1" = 0 ] || stop_workers
  settle
  [ "$1" != 0 ] || [ -z "$delete_when_done" ] || rm -f "$(ledger)"
  exit "$1"
}

give_up() {
  say "$1: saving, stopping and deleting $name ($(spent_usd) USD so far)"
  [ "$state" != ready ] || stop_workers
  watching=""
  [ "$state" = none ] || delete_or_shout
  fail "stopped $name: $1; what was saved is in the work directory, and a larger sum goes on"
}

# Ends the watch of a node of another run, without deleting it.
leave_node() {
  watching=""
  say_it_costs
  fail "$1"
}

# The end of a watch, for any reason: deletes the node, or prints that it still exists.
settle() {
  watching=""
  if [ -n "$delete_when_done" ]; then delete_or_shout; else say_it_costs; fi
}

say_it_costs() {
  say "$name still costs: bash launch/tpu.sh delete $name --zone=$zone${queued:+ --queued}"
}

# With --poll-s=30 it retries for about five hours: a network failure must not leave a TPU running.
delete_or_shout() {
  local try pause
  for try in {1..40}; do
    say "deleting $name"
    if delete_node || grep -q NOT_FOUND "$gcloud_stderr"; then
      close_ledger
      return
    fi
    say "CANNOT DELETE $name, WHICH COSTS UNTIL IT IS DELETED: $(reason)"
    pause=$(awk -v p="$poll_s" -v n="$try" 'BEGIN { print p * (n < 20 ? n : 20) }')
    [ "$try" = 40 ] || sleep "$pause"
  done
  fail "gave up deleting $name, WHICH COSTS UNTIL IT IS DELETED: $(reason)"
}

# For other errors that end the watch (a full disk, a failure to pack the copy).
at_exit() {
  local code=$?
  if [ -n "$watching" ]; then
    if [ "$state" = unknown ]; then
      say "if $name exists, it costs"
    elif [ "$state" != none ]; then
      settle
    fi
  fi
  rm -f "$gcloud_stderr"
  exit "$code"
}

# The commands of run_until_done without failures.
print_until_done() {
  create_node
  launch
  worker_states
  [ -z "$delete_when_done" ] || delete_node
}

parse "$@"
validate
if [ -z "$dry_run" ]; then
  command -v gcloud >/dev/null ||
    fail "gcloud is missing: install it from https://cloud.google.com/sdk/docs/install"
  timeout=$(command -v timeout || command -v gtimeout) || [ -z "$until_done" ] ||
    fail "timeout is missing: install GNU coreutils (on macOS: brew install coreutils)"
fi
gcloud_stderr=$(mktemp)
watching="" state=unknown
trap at_exit EXIT
case "$command${until_done:+ until done}${dry_run:+ dry}" in
  "run until done") run_until_done ;;
  "run until done dry") print_until_done ;;
  run*) run_once ;;
  create*) create_node || fail "cannot create $name: $(reason)" ;;
  logs*) show_log ;;
  delete*)
    delete_node || fail "cannot delete $name: $(reason)"
    [ -n "$dry_run" ] || rm -f "$(ledger)"
    ;;
esac
