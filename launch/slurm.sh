#!/usr/bin/env bash
# Runs subjax under SLURM on one or more nodes, and puts itself back into the queue when it is
# interrupted.
#
#   sbatch --nodes=2 --cpus-per-task=16 --mem=0 --time=12:00:00 launch/slurm.sh \
#       --config=configs/x.py --workdir=/shared/x
#   sbatch --nodes=2 --cpus-per-task=96 --gpus-per-node=8 launch/slurm.sh ...   a task a node, all GPUs
#   sbatch --nodes=2 --cpus-per-task=12 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh ...
#                                                                               a task a GPU
#
# (Without --cpus-per-task a task gets one core; it compiles, loads and lays out rows on them. Without
# --gpus-per-task: a task that sees one GPU alone is not what jax expects under SLURM.)
# Submit it in the repository root, which all nodes must see. --workdir is an absolute path that all
# nodes share, such as one on the cluster's NFS or Lustre; or gs://BUCKET/x, with gcsfs installed.
# The environment is made before, where there is a network; clusters without GPUs leave
# SUBJAX_DEVICE=gpu out. Where nodes have none, a model of the hub is fetched then, too:
#
#   SUBJAX_DEVICE=gpu bash launch/local.sh --install
#   .venv/bin/hf download ORGANISATION/MODEL --local-dir=/shared/model
#
# and --config.bases.NAME.path=/shared/model stands among the arguments, NAME as in the config.
# PYTHON=/path/to/python chooses another environment.
# Options of sbatch stand before launch/slurm.sh, arguments of subjax.main after it. Two minutes
# before the time limit, or when a higher priority needs the nodes, the tasks get SIGTERM, save and
# leave with exit code 75; then the job requeues itself and goes on from there. So it does where a task
# is lost that no signal explains, up to the hundredth start; where one was killed or crashed (128 and
# above: by hand, by the memory limit), up to the fourth. A user's mistake (1) and a defect (70) are
# not tried again. The job's exit code is subjax.main's.
#
# Run with two tasks on one node without GPUs, which is what its test does. Not run with GPUs, nor on
# more than one node.
#SBATCH --job-name=subjax
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=subjax-%j.log
#SBATCH --signal=B:TERM@120
set -euo pipefail

# SLURM runs a copy of this file, so its own place says nothing.
cd -- "${SLURM_SUBMIT_DIR:?launch/slurm.sh is for sbatch: sbatch --nodes=2 launch/slurm.sh --config=...}"
if [ ! -f launch/environment.sh ]; then
  printf 'subjax: error: %s is not the repository root: submit the job there\n' "$PWD" >&2
  exit 1
fi
# shellcheck source=launch/environment.sh
. launch/environment.sh
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] ||
  fail "no $python: make the environment before submitting: bash launch/local.sh --install" \
    "(for GPUs: SUBJAX_DEVICE=gpu bash launch/local.sh --install)"
if [ "${SLURM_GPUS_ON_NODE:-0}" -gt 0 ] && [ -z "${JAX_PLATFORMS:-}" ]; then
  cuda="import importlib.util as u; assert any(u.find_spec(f'jax_cuda{n}_plugin') for n in (12, 13))"
  "$python" -c "$cuda" 2>/dev/null ||
    fail "the job has GPUs, and the jax of $python is for CPUs: before submitting," \
      "SUBJAX_DEVICE=gpu bash launch/local.sh --install (or set JAX_PLATFORMS=cpu)"
fi
# What was asked for does not reach srun by itself.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi

# With one task a node jax would use one GPU of it: that of the task's number, which is 0.
if [ "${SLURM_NTASKS_PER_NODE:-1}" = 1 ] && [ "${SLURM_GPUS_ON_NODE:-0}" -gt 1 ]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi

# The signal goes to the step, since srun, told to end, kills its tasks at once. A task that leaves
# waits for the others, since they all save together; one that is lost ends them after the minutes
# that --wait grants.
#
# srun's exit code is the highest of its tasks'. Where one task makes a mistake (1) or meets a defect
# (70), the others lose it and leave with 75, which is higher: so these two become 102 and 101. The
# signal reaches every process of a task; its shell only has to outlive it.
# shellcheck disable=SC2016 # the task's shell expands it
task='trap : TERM; "$@"; code=$?; case $code in 1) exit 102 ;; 70) exit 101 ;; *) exit $code ;; esac'
interrupted=""
srun --kill-on-bad-exit=0 --wait=300 bash -c "$task" task \
  "$python" -m subjax.main --distributed "$@" &
step=$!
trap 'interrupted=yes; scancel --signal=TERM "$SLURM_JOB_ID.0" || true' TERM

code=0
wait "$step" || code=$?
# A signal ends `wait` before the step.
while kill -0 "$step" 2>/dev/null; do
  code=0
  wait "$step" || code=$?
done

case "$code" in
  101) code=70 ;;
  102) code=1 ;;
esac

if [ "$code" != 75 ] && [ "$code" -lt 128 ]; then
  exit "$code"
fi
# A task that was killed before it had saved goes on from the checkpoint before. What kills it again
# and again, such as the memory limit, must end.
most=100
if [ "$code" != 75 ]; then most=3; fi
if [ -z "$interrupted" ] && [ "${SLURM_RESTART_COUNT:-0}" -ge "$most" ]; then
  say "lost a task again, at start $((SLURM_RESTART_COUNT + 1)) of job $SLURM_JOB_ID: see what it said"
elif [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
  # A job that is no longer running was cancelled, or requeued by SLURM.
  say "interrupted: requeueing job $SLURM_JOB_ID"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
