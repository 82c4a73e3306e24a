#!/usr/bin/env bash
# Runs subjax under SLURM on one or more nodes, and requeues itself when it is interrupted.
#
#   sbatch --nodes=2 --cpus-per-task=16 --mem=0 --time=12:00:00 launch/slurm.sh \
#       --config=configs/x.py --workdir=/shared/x
#   sbatch --nodes=2 --cpus-per-task=96 --gpus-per-node=8 launch/slurm.sh ...   one task per node
#   sbatch --nodes=2 --cpus-per-task=12 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh ...
#                                                                               one task per GPU
#
# Set --cpus-per-task: without it a task gets one core, for compiling, loading and batches. Do not set
# --gpus-per-task: under SLURM jax expects that a task sees all GPUs of its node.
# Submit it in the repository root, which all nodes must see. --workdir is an absolute path that all
# nodes share, such as one on the cluster's NFS or Lustre; or gs://BUCKET/x, with gcsfs installed.
# Make the environment first, on a machine with a network (without SUBJAX_DEVICE=gpu on clusters
# without GPUs). If nodes have no network, also download a model of the hub there:
#
#   SUBJAX_DEVICE=gpu bash launch/local.sh --install
#   .venv/bin/hf download ORGANISATION/MODEL --local-dir=/shared/model
#
# and add the argument --config.bases.NAME.path=/shared/model, with NAME as in the config.
# PYTHON=/path/to/python chooses another environment.
# Options of sbatch go before launch/slurm.sh, arguments of subjax.main after it. Two minutes before
# the time limit, or when a higher priority needs the nodes, the tasks get SIGTERM, save and stop
# with exit code 75; then the job requeues itself and resumes. It also requeues itself if a task is
# lost without a signal, up to the hundredth start, and if a task was killed or crashed (128 and
# above: by hand, by the memory limit), up to the fourth. It does not retry after a user's mistake (1)
# or a bug (70). The job's exit code is the one of subjax.main.
#
# Tested with two tasks on one node without GPUs. Not tested with GPUs or on several nodes.
#SBATCH --job-name=subjax
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=subjax-%j.log
#SBATCH --signal=B:TERM@120
set -euo pipefail

# SLURM runs a copy of this file, so its path is not in the repository.
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

# With one task per node jax would only use GPU 0, the number of the task on its node.
if [ "${SLURM_NTASKS_PER_NODE:-1}" = 1 ] && [ "${SLURM_GPUS_ON_NODE:-0}" -gt 1 ]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi

# The signal goes to the step, since srun kills its tasks at once if it gets the signal itself. A task
# that stops waits for the others, since they all save together; if a task is lost, srun ends the
# others after the time of --wait.
#
# srun's exit code is the highest one of its tasks. If one task ends with a user's mistake (1) or a
# bug (70), the others lose it and stop with 75, which is higher: so 1 and 70 become 102 and 101. The
# signal reaches every process of a task, also its shell, which must outlive the run.
# shellcheck disable=SC2016 # the task's shell expands it
task='trap : TERM; "$@"; code=$?; case $code in 1) exit 102 ;; 70) exit 101 ;; *) exit $code ;; esac'
interrupted=""
srun --kill-on-bad-exit=0 --wait=300 bash -c "$task" task \
  "$python" -m subjax.main --distributed "$@" &
step=$!
trap 'interrupted=yes; scancel --signal=TERM "$SLURM_JOB_ID.0" || true' TERM

code=0
wait "$step" || code=$?
# A signal ends `wait`, but not yet the step.
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
# A task that was killed before it saved resumes from the last checkpoint. Repeated kills, such as by
# the memory limit, must end the job.
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
