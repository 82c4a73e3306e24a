#!/usr/bin/env bash
# Runs subjax on a Cloud TPU: makes it, starts the run on every worker, watches, deletes it.
#
#   bash launch/tpu.sh create owl --zone=us-west4-a --type=v5litepod-16 --spot --queued
#   bash launch/tpu.sh run owl --zone=us-west4-a -- --config=configs/x.py --workdir=gs://BUCKET/x
#   bash launch/tpu.sh logs owl --zone=us-west4-a [--worker=1] [--follow]
#   bash launch/tpu.sh delete owl --zone=us-west4-a --queued
#
# What stands after -- are the arguments of subjax.main. `run` copies this repository to all
# workers (tracked files and new ones, as they are now; not what git ignores), installs
# launch/requirements-tpu.txt there, starts the run and leaves. Unattended, from a machine that
# stays on:
#
#   bash launch/tpu.sh run owl --zone=us-west4-a --type=v5litepod-16 --spot --queued --until-done \
#       --delete-when-done --usd-per-hour=9 --max-usd=60 -- --config=... --workdir=gs://BUCKET/x
#
#   --until-done        makes the TPU where there is none; watches; deletes and makes it anew after a
#                       preemption; starts the run again when it was interrupted (exit code 75). A
#                       user's mistake (exit code 1) ends it. Stopped and started again, it goes on.
#   --delete-when-done  deletes the TPU when the run is over, done or failed
#   --max-usd=X         saves, stops and deletes before the hours that the TPU existed, at
#                       --usd-per-hour, cost more than X (kept in runs/tpu/NAME.spent until it is
#                       done or you delete it). A guard, not a bill: it does not look while workers
#                       install, and disks and traffic are not in it.
#   --queued            asks for a queued resource, which waits for capacity; give it to every command
#   --poll-s=30         seconds between two looks
#   --version=RUNTIME   software of the TPU, where the one guessed from --type is not wanted
#   --project=PROJECT   another project than gcloud's own
#   --dry-run           prints the gcloud commands, in order, and runs none
#
# A TPU of several workers needs gcloud's ssh key in an agent: eval "$(ssh-agent)", then
# ssh-add ~/.ssh/google_compute_engine (made by the first gcloud compute tpus tpu-vm ssh).
#
# Not run on a TPU. Flags are those of gcloud 528; the tests run it against a gcloud that answers as
# the real one is documented to, with workers that are folders of one machine.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"
# shellcheck source=launch/tpu_node.sh
. "$root/launch/tpu_node.sh"
cd -- "$root"

command="" name="" zone="" type="" version="" project="" worker=0 poll_s=30
usd_per_hour="" max_usd=""
spot="" queued="" until_done="" delete_when_done="" dry_run="" follow=""
main_arguments=()

parse() {
  local known="create, run, logs, delete"
  command=${1:-}
  case "$command" in
    create | run | logs | delete) shift ;;
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
        --usd-per-hour=?* | --max-usd=?*) option "${1%%=*}" "${1#*=}" ;;
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
  for flag in poll_s worker usd_per_hour max_usd; do
    if [ -n "${!flag}" ]; then
      [[ ${!flag} =~ $number ]] || fail "--${flag//_/-}=${!flag} is no number"
    fi
  done
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
  local all=" ${main_arguments[*]-} "
  [[ $all == *" --config="* ]] ||
    fail "no --config: after -- come the arguments of subjax.main, such as --config=configs/x.py"
  [[ $all == *" --workdir=gs://"* ]] ||
    fail "no --workdir=gs://...: a TPU's disks go with it, so the results must lie in a bucket"
  [[ $all != *" --distributed "* ]] || fail "--distributed is added by launch/tpu.sh: leave it out"
}

# `run` without --until-done.
run_once() {
  local state
  if [ -n "$dry_run" ]; then
    launch
    return
  fi
  state=$(node_state) || fail "gcloud does not answer: $(reason)"
  [ "$state" = ready ] ||
    fail "TPU $name in $zone is not ready ($state): create it, or wait; or give --until-done"
  launch || fail "cannot start on $name: $(reason)"
  say "started on $name; bash launch/tpu.sh logs $name --zone=$zone --follow shows what it says"
}

# One line a change of state, so that a log of days can be read.
note() {
  [ "$*" = "$noted" ] || say "$*"
  noted=$*
}

run_until_done() {
  local last_verdict="" launched="" crashes=0 noted=""
  trap 'say "no longer watching $name, which goes on: the same command watches again"; exit 130' INT
  while :; do
    state=$(node_state) || state=unknown
    [ "$state" != unknown ] || [ -n "$noted" ] || fail "gcloud does not answer: $(reason)"
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

# Creates the node. No capacity is a reason to wait; anything else has to be mended by the user.
make_node() {
  launched="" crashes=0
  note "creating $name ($type in $zone)"
  create_node && return
  grep -qiE 'RESOURCE_EXHAUSTED|no more capacity|UNAVAILABLE|ALREADY_EXISTS' "$gcloud_stderr" ||
    fail "cannot create $name: $(reason)"
  note "no capacity for $name, trying again: $(reason)"
}

look_at_workers() {
  local verdict
  # A worker that cannot be reached may be about to go: the node's own state tells, next time.
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
    # Twice, since workers may also fail because another one is being preempted.
    mistake) [ "$last_verdict" != mistake ] || finish 1 "failed: $(last_words)" ;;
    interrupted) again "was interrupted" ;;
    crashed)
      crashes=$((crashes + 1))
      [ "$crashes" -lt 3 ] || finish 1 "crashed $crashes times: $(last_words)"
      again "crashed: $(last_words)"
      ;;
    new) launched="" ;;
    running) note "running on $name" ;;
  esac
  last_verdict=$verdict
}

# A run that goes on is only watched; `start` refuses where it is another one.
begin() {
  if [ "$1" = running ]; then
    start_workers || fail "cannot go on on $name: $(reason)"
  elif ! launch; then
    crashes=$((crashes + 1))
    [ "$crashes" -lt 3 ] || finish 1 "cannot start on $name: $(reason)"
    note "cannot start on $name, trying again: $(reason)"
    return
  fi
  launched=yes
}

again() {
  say "the run on $name $1; starting it again"
  start_workers || note "cannot start on $name, trying again: $(reason)"
}

finish() {
  say "$2"
  # Where one worker failed, others may still wait for it.
  [ "$1" = 0 ] || on_workers "$worker_script stop" >/dev/null || true
  if [ -n "$delete_when_done" ]; then
    delete_or_shout
    [ "$1" != 0 ] || rm -f "$(ledger)"
  else
    say "$name still costs: bash launch/tpu.sh delete $name --zone=$zone${queued:+ --queued}"
  fi
  exit "$1"
}

give_up() {
  say "$1: saving, stopping and deleting $name ($(spent_usd) USD so far)"
  on_workers "$worker_script stop" >/dev/null || true
  delete_or_shout
  fail "stopped $name: $1; what was saved is in the work directory, and a larger sum goes on"
}

delete_or_shout() {
  local try
  for try in 1 2 3; do
    say "deleting $name"
    if delete_node || grep -q NOT_FOUND "$gcloud_stderr"; then
      return
    fi
    [ "$try" = 3 ] || sleep "$poll_s"
  done
  fail "CANNOT DELETE $name, WHICH COSTS UNTIL IT IS DELETED: $(reason)"
}

# What run_until_done does where nothing goes wrong.
print_until_done() {
  create_node
  launch
  worker_states
  if [ -n "$delete_when_done" ]; then
    delete_node
  fi
}

parse "$@"
validate
if [ -z "$dry_run" ]; then
  command -v gcloud >/dev/null ||
    fail "gcloud is missing: install it from https://cloud.google.com/sdk/docs/install"
fi
gcloud_stderr=$(mktemp)
trap 'rm -f "$gcloud_stderr"' EXIT
case "$command${until_done:+ until done}${dry_run:+ dry}" in
  "run until done") run_until_done ;;
  "run until done dry") print_until_done ;;
  run*) run_once ;;
  create*) create_node || fail "cannot create $name: $(reason)" ;;
  logs*) show_log ;;
  delete*)
    delete_node || fail "cannot delete $name: $(reason)"
    rm -f "$(ledger)"
    ;;
esac
