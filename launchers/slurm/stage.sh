# Read by the job scripts of this folder once AHN_ROOT is known. Sets `python` (with what comes before it), `cpus` and
# `layout` (srun's options for the CPUs of a process, and for one process per GPU of the job, without GPUs one per Slurm
# task).
#
# AHN_PYTHON: the Python to run, by default the repository's .venv, else `python`.
# AHN_MODULES: names for `module load`, with spaces between.
# AHN_CONTAINER: what to run Python in, one argument a line: apptainer, exec, --nv, image.sif.
# AHN_DATA_CACHE: folder on the node's disk for shards of data behind a URL; %j becomes the job's number.

if [ -n "${AHN_MODULES:-}" ]; then
    set +eu # not written for them
    if ! type module >/dev/null 2>&1; then
        source /etc/profile
    fi
    for module in $AHN_MODULES; do
        module load "$module" || { echo "error: module load $module failed (AHN_MODULES)" >&2; exit 2; }
    done
    set -eu
fi

python=("${AHN_PYTHON:-$AHN_ROOT/.venv/bin/python}")
if [ -z "${AHN_PYTHON:-}" ] && [ ! -x "${python[0]}" ]; then
    python=(python)
fi
if [ -n "${AHN_CONTAINER:-}" ]; then
    mapfile -t container <<<"$AHN_CONTAINER"
    python=("${container[@]}" "${python[@]}")
fi

export PYTHONPATH=$AHN_ROOT${PYTHONPATH:+:$PYTHONPATH}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} # compute nodes seldom have a way out
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_PER_GPU:-1}}}
if [ -n "${AHN_DATA_CACHE:-}" ]; then
    export AHN_DATA_CACHE=${AHN_DATA_CACHE//%j/$SLURM_JOB_ID}
fi

cpus=(${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}) # srun does not take it over from sbatch
layout=("${cpus[@]}")
if [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then
    processes=$((SLURM_GPUS_ON_NODE * SLURM_JOB_NUM_NODES))
    layout=(--ntasks="$processes" --ntasks-per-node="$SLURM_GPUS_ON_NODE" --overcommit)
fi
echo "$(date --iso-8601=seconds) on $SLURM_JOB_NODELIST, requeued ${SLURM_RESTART_COUNT:-0} times"
