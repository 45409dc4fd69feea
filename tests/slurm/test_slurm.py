"""The grid on a real SLURM of this machine: whole, disturbed in every way a cluster knows, refused where it must be.

Needs root and the packages that `tests/slurm/local_slurm.sh install` installs; skipped without. About four minutes.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from forked import run_and_read

from common.record import read_record

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "tests/slurm/local_slurm.sh"
CLUSTER = """
NodeName=gpu01 CPUs=64 RealMemory=480000 Gres=gpu:a100:2
NodeName=gpu02 CPUs=64 RealMemory=480000 Gres=gpu:a100:2
NodeName=swarm01 CPUs=64 RealMemory=480000 Gres=gpu:a100swarm:4
PartitionName=a100 Nodes=gpu01,gpu02 MaxTime=2-12:00:00 PriorityTier=10
PartitionName=swarm_a100 Nodes=swarm01 MaxTime=5-00:00:00 PriorityTier=10
PartitionName=swarm_own Nodes=swarm01 MaxTime=5-00:00:00 PriorityTier=10 AllowAccounts=ecs,orc
PartitionName=scavenger_4a100 Nodes=swarm01 MaxTime=12:00:00 PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
"""
OWN = ["--partition", "swarm_own", "--gres", "gpu:a100swarm:4"]
SCAVENGER = ["--partition", "scavenger_4a100", "--gres", "gpu:a100swarm:4", "--time", "06:00:00"]
TRAIN = {  # a few seconds beside the imports
    "max_steps": 8,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "num_generations": 2,
    "max_completion_length": 8,
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "save_steps": 4,
    "warmup_steps": 0,
}
EVALUATE = {"limit": 10, "temperatures": [0], "max_new_tokens": 8}
ONE = {"model": ["demo"], "method": ["pspo"], "seed": [0]}
LONGER = {**TRAIN, "max_steps": 24, "save_steps": 12}
LONGEST = 900  # seconds, after which something hangs, also on a slow machine

pytestmark = pytest.mark.slow
needs_slurm = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch", "munged"))),
    reason="needs root and SLURM: tests/slurm/local_slurm.sh install",
)


def wait_for(what, condition, *args):
    """Poll until condition(*args) is true; returns its value."""
    end = time.monotonic() + LONGEST
    while not (value := condition(*args)):
        assert time.monotonic() < end, f"waited {LONGEST} s in vain for {what}"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="module")
def slurm():
    """The environment of a SLURM client, and of jobs, with a cluster behind it."""
    place = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # its sockets need a short path
    (place / "cluster.conf").write_text(CLUSTER)
    knobs = {**os.environ, "LOCAL_SLURM_REQUIRE_NODES": "1"}
    try:
        subprocess.run([LOCAL, "start", place / "s", place / "cluster.conf"], env=knobs, check=True, timeout=120)
        text = subprocess.run(
            ["bash", "-c", f'eval "$({LOCAL} env {place}/s)"; env -0'], capture_output=True, text=True, check=True
        ).stdout
        env = dict(item.split("=", 1) for item in text.split("\0") if "=" in item)
        for name in [name for name in env if name.startswith(("GRID_", "GRPSPO_CACHE"))]:
            del env[name]
        yield {**env, "OMP_NUM_THREADS": "1", "GRID_SCRATCH": str(place)}
    finally:
        subprocess.run([LOCAL, "stop", place / "s"], check=True, timeout=120)
        shutil.rmtree(place)


def write_grid(folder, name="grid", **parts):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"axes": ONE, "train": TRAIN, "evaluate": EVALUATE, **parts}, sort_keys=False))
    return path


def maths_grid(slurm, path, *args, **env):
    """Run maths_grid.py where a grid lies, in a process that has TRL imported already."""
    return run_and_read("maths_grid", [path, *args], path.parent, {**slurm, **env}, LONGEST)


def submit(slurm, path, *flags, **env):
    """Submit a grid; returns (id of the array, id of the report)."""
    done = maths_grid(slurm, path, "--submit", *flags, **env)
    assert done.returncode == 0, done.stderr
    return re.findall(r"^job (\d+):", done.stdout, re.M)


def call(slurm, *command):
    return subprocess.run(command, env=slurm, capture_output=True, text=True, check=True).stdout


def queue(slurm):
    """What is in the queue, a line a job: array id, task, state."""
    return call(slurm, "squeue", "--noheader", "--array", "--format=%F %K %T").splitlines()


def read_all(paths):
    """The text of several files, one behind the other."""
    return "".join(path.read_text() for path in sorted(paths))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def freeze(run_dir, rows=4):
    """Wait until a training has done some steps, then stop it there; returns its process id."""
    log = run_dir / "metrics.jsonl"
    wait_for(f"{rows} steps in {run_dir}", lambda: log.exists() and log.read_text().count("\n") >= rows)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            words = (process / "cmdline").read_text().split("\0")
            place = (process / "cwd").readlink() / words[words.index("--output_dir") + 1]
            if words[1].endswith("maths_finetuning.py") and place == run_dir:
                os.kill(int(process.name), signal.SIGSTOP)
                return int(process.name)
    raise AssertionError(f"nobody trains in {run_dir}")


def thaw(pid, number):
    """Let a stopped training go on once a signal waits for it; one that was let go on by SLURM, or is gone, is fine."""

    def reached():
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return True
        pending = re.findall(r"(?:Sig|Shd)Pnd:\s+(\w+)", status)
        return "T (stopped)" not in status or any(int(bits, 16) >> (number - 1) & 1 for bits in pending)

    wait_for(f"{number.name} for {pid}", reached)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


# ---- the whole way


@needs_slurm
def test_a_grid_from_sbatch_to_the_table_equals_the_one_run_here_without_a_network(slurm, tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    axes = {"model": ["demo"], "method": ["noclip", "pspo"], "seed": [0]}
    diverged = {"method": "noclip", "seed": 7, "learning_rate": "1e+30"}
    local = start_without_network(slurm, write_grid(here, axes=axes), here)
    grid = write_grid(there, axes=axes, cells={"diverged": diverged})
    caught = ThreadPoolExecutor().submit(freeze, there / "runs/demo/noclip/seed0", rows=2)
    array, _ = submit(slurm, grid, "--throttle", "2")

    again = maths_grid(slurm, grid, "--submit")
    assert (again.returncode, len(queue(slurm))) == (0, 4) and "nothing to submit" in again.stdout
    listed = maths_grid(slurm, grid, "--list").stdout
    assert re.search(r"^ +2  runs/demo/diverged/seed7 +queued +JobArrayTaskLimit$", listed, re.M), listed
    call(slurm, "scontrol", "hold", f"{array}_2")  # so that the first array is in the queue still when the second comes
    pid = caught.result()
    assert re.search(r"noclip/seed0 +running +step \d of 8, ", maths_grid(slurm, grid, "--list").stdout)
    call(slurm, "scancel", f"{array}_0")
    thaw(pid, signal.SIGTERM)
    wait_for("scancel", lambda: not any(line.startswith(f"{array} 0 ") for line in queue(slurm)))
    assert re.search(r"noclip/seed0 +stopped +saved at step", maths_grid(slurm, grid, "--list").stdout)
    second, report = submit(slurm, grid)
    tasks = [line.split()[:2] for line in queue(slurm) if line.split()[1].isdigit()]
    assert [task for job, task in tasks if job == second] == ["0"] and ["0"] not in [t for j, t in tasks if j == array]
    assert len({task for _, task in tasks}) == len(tasks)
    after = call(slurm, "squeue", "--noheader", "--jobs", report, "--format=%E")
    assert set(re.findall(r"afterany:(\d+)", after)) == {array, second}, after
    call(slurm, "scontrol", "release", f"{array}_2")

    wait_for("the table", lambda: not queue(slurm))
    text = next((there / "logs").glob(f"*report-{report}.out")).read_text()
    assert len(re.findall(r"demo/(?:noclip|pspo)/seed0 +evaluated$", text, re.M)) == 2, text
    assert re.search(r"demo/diverged/seed7 +stopped +loss is nan at step", text), text
    assert re.search(r"^demo +0 pspo +1 .*no difference shown$", text, re.M), text
    assert re.search(r"diverged.*failed: loss is nan", text), text
    assert local.wait(LONGEST) == 0, (here / "out").read_text()[-2000:]
    for method in ("noclip", "pspo"):
        weights = Path("runs/demo") / method / "seed0/model.safetensors"
        assert sha256(here / weights) == sha256(there / weights)
    assert not (here / "reached").exists(), (here / "reached").read_text()


def start_without_network(slurm, path, folder):
    """Begin --run in a name space without a network, with a hook that writes to `reached` who is asked for."""
    (folder / "hook").mkdir()
    (folder / "hook/sitecustomize.py").write_text(
        "import os, sys\n"
        "def hook(event, args):\n"
        "    asks = event.startswith(('socket.getaddrinfo', 'socket.gethostby'))\n"
        "    if asks or event == 'socket.connect' and isinstance(args[1], tuple):\n"
        "        with open(os.environ['REACHED'], 'a') as file: print(sys.argv, event, args, file=file)\n"
        "sys.addaudithook(hook)\n"
    )
    env = {**slurm, "REACHED": str(folder / "reached"), "PYTHONPATH": str(folder / "hook")}
    probe = "import socket; socket.socket().connect(('192.0.2.1', 9))"
    failed = subprocess.run(["unshare", "-n", sys.executable, "-c", probe], env=env, capture_output=True, text=True)
    assert "Network is unreachable" in failed.stderr and (folder / "reached").exists()  # both do their work
    (folder / "reached").unlink()
    del env["SLURM_CONF"]  # its controller could not be reached either
    command = ["unshare", "-n", sys.executable, ROOT / "maths_grid.py", path, "--run", "--jobs", "2"]
    with open(folder / "out", "w") as out:
        return subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT)


# ---- disturbed


@pytest.fixture(scope="module")
def disturbed(slurm, tmp_path_factory):
    """Three arrays of the same cell, disturbed while they run, and the undisturbed cell -> {name: run directory}."""
    folder = tmp_path_factory.mktemp("disturbed")
    grids = {
        name: write_grid(folder, name, train=LONGER, output_root=name) for name in ("wall", "taken", "down", "calm")
    }
    runs = {name: folder / name / "demo/pspo/seed0" for name in grids}
    nodes = ["--gres", "gpu:a100:2"]  # the whole of one, so that each cell has its own
    with ThreadPoolExecutor() as pool:  # each is caught as soon as it trains
        caught = {name: pool.submit(freeze, runs[name]) for name in ("down", "wall", "taken")}
        jobs = {name: submit(slurm, grids[name], *(SCAVENGER if name == "taken" else nodes))[0] for name in caught}
        pids = {name: future.result() for name, future in caught.items()}
    node = call(slurm, "squeue", "--noheader", "--jobs", f"{jobs['down']}_0", "--format=%N").strip()
    call(slurm, "scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    thaw(pids["down"], signal.SIGTERM)
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], env=slurm)  # it may be back by itself
    higher = ["--partition=swarm_a100", "--gres=gpu:a100swarm:4", "--nodes=1", "--output=/dev/null"]
    call(slurm, "sbatch", *higher, "--wrap=true")
    thaw(pids["taken"], signal.SIGTERM)
    calm = maths_grid(slurm, grids["calm"], "--run", "--jobs", "2")
    call(slurm, "scontrol", "update", f"jobid={jobs['wall']}_0", "endtime=now+100")  # in place of 60 hours
    thaw(pids["wall"], signal.SIGUSR1)
    outputs = folder / "logs"
    wait_for("the requeue", lambda: "saved, requeued" in read_all(outputs.glob("wall-*_0.out")))
    call(slurm, "scontrol", "update", f"jobid={jobs['wall']}_0", "timelimit=60:00:00")  # for the second attempt
    assert calm.returncode == 0, calm.stderr
    wait_for("the arrays", lambda: not queue(slurm))
    return runs


@needs_slurm
@pytest.mark.parametrize(("name", "number"), [("wall", "SIGUSR1"), ("taken", "SIGTERM"), ("down", "SIGTERM")])
def test_a_disturbed_cell_is_saved_requeued_and_ends_as_an_undisturbed_one(disturbed, name, number):
    run, folder = disturbed[name], disturbed[name].parents[3]
    log = (folder / f"logs/{name}/demo/pspo/seed0.log").read_text()
    assert f"{number}: saving at the end" in log and "saved at step" in log and "continuing from" in log, log
    assert sha256(run / "model.safetensors") == sha256(disturbed["calm"] / "model.safetensors")
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 25))
    text = read_all((folder / "logs").glob(f"{name}-*_0.out"))
    assert text.count("trust region: pspo") >= 2  # its attempts, in one log
    assert ("saved, requeued" in text) is (name == "wall")  # the others SLURM requeues


@needs_slurm
def test_signals_reach_the_batch_shell_only_where_the_machine_can_do_that(slurm):
    conf = Path(slurm["SLURM_CONF"]).read_text()
    kind = "cgroup" if os.access("/sys/fs/cgroup/freezer/cgroup.procs", os.W_OK) else "pgid"
    assert f"ProctrackType=proctrack/{kind}\n" in conf


@needs_slurm
def test_two_nodes_train_one_run_and_are_saved_together(slurm, tmp_path):
    grid, run = write_grid(tmp_path, train=LONGER), tmp_path / "runs/demo/pspo/seed0"
    array, _ = submit(slurm, grid, "--nodes", "2")
    pid = freeze(run)
    nodes = call(slurm, "squeue", "--noheader", "--jobs", f"{array}_0", "--format=%N").strip()
    call(slurm, "scancel", "--signal=USR1", "--batch", f"{array}_0")
    thaw(pid, signal.SIGUSR1)
    wait_for("the end", lambda: not queue(slurm))
    record = read_record(run)
    log = (tmp_path / "logs/runs/demo/pspo/seed0.log").read_text()
    assert nodes == "gpu[01-02]" and record.computed["processes"] == 2 and record.outcome.status == "finished", log
    assert "cpu, 2 processes" in log and "continuing from" in log
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 25)) and (run / "evaluations/summary.json").exists()
    assert sorted(path.name for path in run.parent.iterdir()) == ["seed0"] and len(list(run.glob("model*"))) == 1


# ---- refused


NO_MODULE = {"BASH_FUNC_module%%": "() { echo no module $2 >&2; return 1; }"}  # a shell function, exported
REFUSED = {
    "partition": (["--partition", "batch"], {}, {}, "partition batch does not exist here; --partition is one of a100"),
    "gres": (["--gres", "gpu:h100:1"], {}, {}, "no node of partition a100 has gres gpu:h100:1; they have gpu:a100:2"),
    "count": (["--gres", "gpu:a100:3"], {}, {}, "has gres gpu:a100:3"),
    "account": ([*OWN, "--account", "nobody"], {}, {}, "is for the accounts ecs, orc"),
    "no account": (OWN, {}, {}, "sbatch: .*(account|Account)"),
    "walltime": (["--time", "3-00:00:00"], {}, {}, "--time 3-00:00:00 is more than 2-12:00:00"),
    "nodes": (["--nodes", "3"], {}, {}, "sbatch: .*[Nn]ode"),
    "module": ([], {"GRID_MODULES": "nothing", **NO_MODULE}, {}, "no module nothing"),
    "model": ([], {}, {"axes": {**ONE, "model": ["Qwen2.5-0.5B"]}}, "Qwen2.5-0.5B is not in .*save_model_locally.py"),
    "data set": ([], {}, {"evaluate": {"datasets": ["SVAMP"]}}, "SVAMP is not in .*save_model_locally.py"),
    "axis": ([], {}, {"axes": {**ONE, "learning_rat": [1]}}, "unknown name 'learning_rat'; did you mean learning_rate"),
    "two in one": ([], {}, {"axes": {**ONE, "seed": [0, 0]}}, "2 cells share the directory runs/demo/pspo/seed0"),
    "flag": ([], {}, {"axes": {**ONE, "smoothing_alpha": [3]}}, "axes: smoothing_alpha must be from 0 to 1"),
}  # fmt: skip


def check_refused(slurm, grid, flags, env, words):
    before = {line.split()[0] for line in queue(slurm)}
    done = maths_grid(slurm, grid, "--submit", *flags, **env)
    assert (done.returncode, done.stdout) == (2, "") and {line.split()[0] for line in queue(slurm)} <= before
    assert done.stderr.count("\n") == 1 and re.search(words, done.stderr), done.stderr
    assert not list(grid.parent.glob("logs/*.yaml"))


@needs_slurm
@pytest.mark.parametrize("case", REFUSED)
def test_refused_on_the_login_node_in_one_line_and_nothing_is_queued(slurm, tmp_path, case):
    flags, env, parts, words = REFUSED[case]
    check_refused(slurm, write_grid(tmp_path, **parts), flags, env, words)


@needs_slurm
def test_refused_with_more_cells_at_a_time_than_the_quality_of_service_allows(slurm, tmp_path):
    stub = tmp_path / "bin/sacctmgr"  # limits are kept in an accounting database, which this SLURM does not have
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\necho 'cpu=96,gres/gpu=2,mem=500G'\n")
    stub.chmod(0o755)
    env = {"PATH": f"{stub.parent}:{slurm['PATH']}"}
    words = "--throttle 3: so many cells of 1 GPUs are more than the 2 that QoS special gives one user; at most 2"
    check_refused(slurm, write_grid(tmp_path), ["--throttle", "3", "--qos", "special"], env, words)


@needs_slurm
def test_refused_with_a_cache_that_was_cut_short(slurm, tmp_path):
    model = tmp_path / "cache/small"
    shutil.copytree(ROOT / "demo/model", model)
    files = {path.name: {"size": path.stat().st_size, "sha256": ""} for path in model.iterdir()}
    item = {"kind": "model", "hub_id": "a/small", "revision": "1", "files": files}
    (tmp_path / "cache/manifest.json").write_text(json.dumps({"items": {"small": item}}))
    with open(model / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    grid = write_grid(tmp_path, axes={**ONE, "model": ["small"], "dataset": ["demo"], "learning_rate": [1e-5]})
    check_refused(slurm, grid, [], {"GRPSPO_CACHE": str(tmp_path / "cache")}, "model.safetensors has 1000 bytes, not")


@needs_slurm
def test_refused_with_a_trl_that_is_not_patched(slurm, tmp_path):
    import importlib.util

    installed = Path(importlib.util.find_spec("trl").origin).parent
    site = tmp_path / "site"
    shutil.copytree(installed, site / "trl", ignore=shutil.ignore_patterns("__pycache__"))
    reverse = [sys.executable, ROOT / "apply_patches.py", "--reverse", "--target", site]
    subprocess.run(reverse, check=True, capture_output=True)
    command = [sys.executable, ROOT / "maths_grid.py", write_grid(tmp_path), "--submit"]
    env = {**slurm, "PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and "TRL is not patched" in done.stderr


@needs_slurm
def test_refused_with_a_scratch_that_is_full_or_not_to_be_written(slurm, tmp_path):
    place = tmp_path / "scratch"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place]).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        grid = write_grid(tmp_path, output_root=str(place / "runs"))
        check_refused(slurm, grid, [], {}, r"1 cells need about [\d.]+ MB under .*scratch/runs, where 1.0 MB are free")
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        check_refused(
            slurm, write_grid(tmp_path), [], {"GRID_SCRATCH": str(place)}, "cannot write in .*scratch: Read-only"
        )
    finally:
        subprocess.run(["umount", place], check=True)


# ---- the scripts


@needs_slurm
@pytest.mark.parametrize("script", ["cell.sbatch", "report.sbatch"])
def test_sbatch_accepts_every_script(slurm, tmp_path, script):
    where = ("--partition=a100", "--nodes=1", f"--chdir={tmp_path}")  # nodes: in env.sh for a cell
    call(slurm, "sbatch", "--test-only", *where, ROOT / "slurm" / script)


def test_every_script_of_slurm_is_tested():
    scripts = {path.name for path in (ROOT / "slurm").iterdir() if path.suffix in (".sbatch", ".sh")}
    assert scripts == {"cell.sbatch", "report.sbatch", "env.sh"}
    for script in (ROOT / "slurm").glob("*.sbatch"):
        lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
        assert len(lines) == 4 and lines[-1].startswith("exec "), lines


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing():
    files = [
        path
        for path in [*ROOT.glob("slurm/*.sbatch"), *ROOT.glob("**/*.sh"), ROOT / ".ci/run"]
        if ".venv" not in path.parts
    ]
    done = subprocess.run(["shellcheck", "--external-sources", *files], capture_output=True, text=True)
    assert done.returncode == 0 and len(files) >= 5, done.stdout
