"""What maths_grid.py needs of SLURM: the site's values, the queue, sbatch lines, requeueing, ranks.

For the experiments of Probability Smoothing Policy Optimisation (arXiv 2509.21282). Nothing here knows what a job
computes, and nothing is kept: squeue, sinfo and sbatch themselves are asked each time.

    from slurm.queue import list_jobs, read_site
    site, environment = read_site({"partition": "a100"})
"""

import itertools
import os
import re
import shutil
import subprocess
import sys

from common.files import ROOT, BadInput

SITE = {  # slurm/env.sh's values, which the environment (GRID_PARTITION) and flags (--partition) override
    "partition": "where the cells run",
    "gres": "what a node must have for a cell, as in gpu:a100:1",
    "time": "walltime of a cell before it is requeued",
    "account": "who pays",
    "qos": "quality of service",
    "nodes": "nodes of a cell",
    "ntasks_per_node": "processes on a node, one for each GPU",
    "cpus_per_task": "processors of a process",
    "mem": "memory of a node",
    "report_mem": "memory of the report",
    "report_time": "walltime of the report",
    "throttle": "cells that run at the same time",
    "max_requeues": "how often a cell goes back into the queue",
}
NUMBERS = ("nodes", "ntasks_per_node", "cpus_per_task", "throttle", "max_requeues")
COMMENT = "maths_grid:"  # marks our jobs in the queue; the path of their grid follows
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")  # the job states of squeue(1)


def ask(*command, env=None):
    """What a command prints; raises BadInput with the last line of its complaint if it fails."""
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    except FileNotFoundError:
        raise BadInput(f"{command[0]} is not installed: this is for a login node of a cluster with SLURM") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise BadInput(f"{command[0]}: {lines[-1].removeprefix(f'{command[0]}: ').removeprefix('error: ')}")
    return done.stdout


def read_site(flags):
    """({name of SITE: text}, environment for jobs) by slurm/env.sh; `flags` go before it and the environment."""
    env = os.environ | {f"GRID_{name.upper()}": str(flags[name]) for name in SITE if flags.get(name) is not None}
    text = ask("bash", "-c", '. "$0" && env -0', ROOT / "slurm/env.sh", env=env)
    env = dict(item.split("=", 1) for item in text.split("\0") if "=" in item)
    site = {name: env.get(f"GRID_{name.upper()}", "") for name in SITE}
    for name in NUMBERS:
        if not re.fullmatch(r"\d{1,5}", site[name]) or (int(site[name]) == 0 and name != "max_requeues"):
            raise BadInput(f"--{name} must be a whole number, got {site[name]!r}")
    return site, env


# ---- the queue


def list_jobs():
    """(path of its grid, index, "queued" or "running", reason, array job) of each of our cells in the queue, if any."""
    if shutil.which("squeue") is None:
        return []
    lines = ask("squeue", "--me", "--noheader", "--array", "--format=%F|%K|%T|%r|%k").splitlines()
    rows = [line.split("|", 4) for line in lines if f"|{COMMENT}" in line]
    return [
        (path.removeprefix(COMMENT), int(index), "queued" if state in WAITING else "running", reason, job)
        for job, index, state, reason, path in rows
    ]


def to_ranges(numbers):
    """[0, 1, 2, 5] -> "0-2,5", as sbatch --array has it."""
    runs = itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in run] for _, run in runs]
    return ",".join(f"{run[0]}-{run[-1]}" if run[1:] else str(run[0]) for run in runs)


def array_line(site, frozen, indices):
    """The sbatch line of an array of cells; `frozen` is the file of the grid they are read from."""
    names = ("gres", "time", "nodes", "ntasks_per_node", "cpus_per_task", "mem")
    options = {name.replace("_", "-"): site[name] for name in names}
    options |= {"comment": f"{COMMENT}{frozen}", "array": f"{to_ranges(indices)}%{site['throttle']}"}
    return sbatch_line(site, frozen.stem, options, "cell.sbatch", frozen)


def report_line(site, frozen, jobs):
    """The sbatch line of the report that comes when the last task of the arrays `jobs` has ended, well or badly."""
    options = {
        "dependency": jobs and ":".join(["afterany", *jobs]),
        "mem": site["report_mem"],
        "time": site["report_time"],
    }
    return sbatch_line(site, f"{frozen.stem}-report", options, "report.sbatch", frozen)


def sbatch_line(site, name, options, script, frozen):
    """The sbatch line of a script in slurm/ for a grid; options without a value are left out."""
    options = {"job-name": name, **{key: site[key] for key in ("partition", "account", "qos")}, **options}
    given = [f"--{key}={value}" for key, value in options.items() if value]
    return ["sbatch", "--parsable", *given, str(ROOT / "slurm" / script), sys.executable, str(ROOT), str(frozen)]


def queue_job(command, env):
    """Queue an sbatch line; returns the job's id."""
    return ask(*command, env=env).strip().split(";")[0]


# ---- inside a job


def requeue():
    """Put this array task back into the queue, at most GRID_MAX_REQUEUES times; returns a line that says which."""
    done = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    most = int(os.environ["GRID_MAX_REQUEUES"])
    if done >= most:
        return f"saved, but requeued {done} times already: submit again to go on"
    ask("scontrol", "requeue", f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}")
    return f"saved, requeued for the {done + 1}. time"


def launch_words():
    """What goes before a command to run it once for each task of this job, [] for one task: srun, with the variables
    from which accelerate (PartialState) learns its rank. Rank 0 is on the node that starts the others."""
    nodes, tasks = (int(os.environ.get(f"SLURM_{name}", "1")) for name in ("JOB_NUM_NODES", "NTASKS_PER_NODE"))
    if nodes * tasks == 1:
        return []
    ranks = (
        f"RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE={nodes * tasks} LOCAL_WORLD_SIZE={tasks} "
        f"MASTER_ADDR=$SLURM_LAUNCH_NODE_IPADDR MASTER_PORT={20000 + int(os.environ['SLURM_JOB_ID']) % 20000}"
    )
    cpus = os.environ.get("SLURM_CPUS_PER_TASK", "1")  # srun does not take them over from the job
    srun = ["srun", f"--ntasks={nodes * tasks}", f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1"]
    return [*srun, "bash", "-c", f'{ranks} exec "$@"', "rank"]
