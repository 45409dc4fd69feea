# shellcheck shell=bash
# What a site is like: the only file to edit for another cluster. Filled in for Iridis X (Southampton, 2026).
# The environment goes before these values, and a flag of maths_grid.py (--partition) before the environment.

: "${GRID_PARTITION:=a100}"         # 60 h; also quad_h200, l4, l40; swarm_* (5 d) for the accounts ecs and orc;
                                    # scavenger_* (12 h) is preempted, which costs a cell nothing but time
: "${GRID_GRES:=gpu:a100:1}"        # a100swarm, h100swarm, l4swarm, h200, l4, l40 elsewhere; see: sinfo -O Gres:64
: "${GRID_TIME:=60:00:00}"          # of one stretch: a cell that needs more saves, is requeued and goes on
: "${GRID_ACCOUNT:=}"               # empty: your default
: "${GRID_QOS:=}"                   # empty: the partition's
: "${GRID_THROTTLE:=2}"             # cells at a time; the QoS of a100 gives a user 2 GPUs
: "${GRID_NODES:=1}"
: "${GRID_NTASKS_PER_NODE:=1}"      # one for each GPU of GRID_GRES
: "${GRID_CPUS_PER_TASK:=8}"         # for grading and for the loading of data
: "${GRID_MEM:=48G}"                # of a node; make it empty where a cluster gives memory by itself
: "${GRID_REPORT_MEM:=4G}"          # of the report after the last cell, on one processor
: "${GRID_REPORT_TIME:=00:30:00}"
: "${GRID_MAX_REQUEUES:=20}"        # then a cell waits for the next --submit
: "${GRID_MODULES:=conda/python3}"  # loaded in a job; may be empty
: "${GRID_SCRATCH:=/scratch/${USER:-$(id -un)}}"    # $SCRATCH is not set there, and $USER not always
: "${GRPSPO_CACHE:=$GRID_SCRATCH/cached_files}"     # models and data sets, for save_model_locally.py too
: "${XDG_CACHE_HOME:=$GRID_SCRATCH/.cache}"         # what libraries keep: the home directory has few inodes
: "${TRITON_CACHE_DIR:=$XDG_CACHE_HOME/triton}"
export "${!GRID_@}" GRPSPO_CACHE XDG_CACHE_HOME TRITON_CACHE_DIR

enter_job() { # what a job does first, and the login node once before anything is queued
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
  # shellcheck disable=SC2086 # one word a module
  [ -z "$GRID_MODULES" ] || module load $GRID_MODULES
}
