"""The run directory of a training run: what makes a run this run, made, locked, continued, looked at.

Used by training, evaluation, the grid and the report (Probability Smoothing Policy Optimisation, arXiv 2509.21282). A
run directory holds

    run.json           status, configuration, what decides its numbers (code, data, versions, device), host, wall time
    metrics.jsonl      one object a log step, validation included
    checkpoint-N/      complete, with a seal, or not continued from; always at the end of a generation cycle
    model.safetensors  (or an adapter), tokenizer and configs: the finished model, best by validation
    reward_curve.png   the training curve
    evaluations/       what maths_evaluations.py found

    python -m common.runs runs/demo/pspo/seed0     # what state is it in? Looking changes nothing.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from apply_patches import HERE, PATCH_NAMES, sha256
from common.datasets import build_prompt, find_dataset
from common.files import LOCK, BadInput, hold_lock, make_parser, read_json, run_script, write_json, write_text
from common.models import choose_precision, describe_device, hash_model
from grading import GRADER_VERSION

EXIT_SAVED = 75  # EX_TEMPFAIL of sysexits.h: saved, not finished; a batch system may start the same command again
SAMPLER_VERSION = 2  # raised when the same seed draws other tokens in training
SEAL = "sealed.json"
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "numpy", "tokenizers", "math-verify")
# What may differ when a run is continued: where things lie and how they are shown, not what is computed.
NOT_PART_OF_THE_RUN = "output_dir report_to run_name disable_tqdm log_completions project trackio_space_id".split()


# ---- what makes a run this run


def what_decides(model_dirs, data, device, packages):
    """What decides a number beside the command line; two runs are comparable, or one continued, where it is equal.

    model_dirs: as find_model_dirs has them. data: {name: hash of its rows}. device: as describe_device has it.
    packages: {name: version} of the libraries that compute.
    """
    decides = {"model": [hash_model(d) for d in model_dirs], "data": data, "prompt": build_prompt("QUESTION")}
    return {**decides, "grader": GRADER_VERSION, "device": device, "versions": packages}


def find_changes(there, here):
    """[(what, value there, value here)] of two nested dicts where they differ; lists and hashes are named only."""
    changes = []
    for key in sorted({*there, *here}):
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += [(f"{key} {name}", a, b) for name, a, b in find_changes(old, new)]
        elif old != new:
            changes.append((key, old, new))
    return changes


def describe_changes(changes):
    """'torch (2.13.0, now 2.14.0)' of find_changes; values that nobody can read, as hashes are, are left out."""
    short = [(name, str(a), str(b)) for name, a, b in changes]
    return "; ".join(f"{n} ({a}, now {b})" if len(a) < 40 and len(b) < 40 else n for n, a, b in short)


def git_commit():
    """The commit of this checkout, None where there is no git or no checkout."""
    if shutil.which("git") is None:
        return None
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    return git.stdout.strip() or None


def make_record(args, values, processes, model_path, data):
    """What run.json holds of a run that begins: what is run, on what, with which code.

    values: as resolve has them. processes: how many. data: as what_decides has it.
    """
    model, method = args.model, args.trust_region_method
    origins = {key: origin for key, (_, origin) in values.items() if origin != "default"}
    config = {key: values[key][0] for key in origins if key not in NOT_PART_OF_THE_RUN}
    config |= {"model": model, "method": method, "processes": processes, "dataset": find_dataset(args.dataset)[0]}
    config |= {"merge_adapter": args.merge_adapter, "sampler": args.sampler}
    versions = {name: version(name) for name in PACKAGES}
    decides = what_decides([model_path], data, describe_device(*choose_precision(args.device)), versions)
    if method != "sft":
        patches = {name: sha256((HERE / name).read_bytes()) for name in PATCH_NAMES}
        decides |= {"patches": patches, "sampler": SAMPLER_VERSION}
    record = {"status": "running", "model": model, "method": method, "seed": args.seed, "config": config}
    record |= {"origins": origins, "decides": decides, "changes": [], "python": platform.python_version()}
    record |= {"git_commit": git_commit(), "host": platform.node(), "command": sys.argv}
    record |= {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "wall_seconds": 0.0, "finished_steps": 0}
    return json.loads(json.dumps(record, default=str))  # as it is when it is read again


def check_same_run(path, record, fresh, accept):
    """Raises BadInput unless a record has the configuration of a `fresh` one and what decides its numbers is as it was.

    With `accept` (--accept_changes) what differs beside the configuration is put into the record and the run goes on.
    """
    if changed := find_changes(record["config"], fresh["config"]):
        name, there, here = changed[0]
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        raise BadInput(f"{path} holds a run with {name}={there!r}, not {here!r}{more}; --output_dir or --overwrite")
    changes = find_changes(record.get("decides", {}), fresh["decides"])
    if not changes or record["status"] == "finished":
        return
    if not accept:
        raise BadInput(
            f"{path} was begun with other code, data or hardware: {describe_changes(changes)}; --accept_changes goes "
            "on and records it in run.json, --overwrite starts afresh"
        )
    entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "changed": {name: [old, new] for name, old, new in changes}}
    record["changes"] = [*record.get("changes", []), entry]
    record["decides"] = fresh["decides"]
    print(f"{path} goes on with {describe_changes(changes)}")


# ---- the directory


def open_run(path, fresh, args, processes):
    """Lock and prepare a run directory, on the main process first -> (its record, checkpoint, lock).

    fresh: the record of a run that begins. Raises BadInput as lock_run_dir and check_same_run do.
    """
    lock = None
    if processes.is_main_process:
        lock = lock_run_dir(path, args.overwrite)
        record = read_record(path) or fresh
        check_same_run(path, record, fresh, args.accept_changes)
        if record["status"] != "finished":
            write_json(path / "run.json", record)
            rewind(path)
    processes.wait_for_everyone()
    return read_record(path), find_checkpoint(path), lock


def lock_run_dir(path, overwrite):
    """Make a run directory and lock it -> the lock. With `overwrite` the run in it is moved aside, under its lock.

    Raises BadInput if it cannot be written, another process trains in it or evaluates it, or it holds something else.
    """
    busy = f"another process is training in {path}"
    lock = hold_lock(path, busy)
    if overwrite and any(p.name != LOCK for p in path.iterdir()):
        if (path / "evaluations").is_dir():
            with hold_lock(path / "evaluations", f"another process is evaluating {path}"):
                pass
        aside = next(p for n in range(1, 10**6) if not (p := path.with_name(f"{path.name}.old-{n}")).exists())
        with lock:  # of what is moved, until there is a new one
            path.rename(aside)
            print(f"moved {path} to {aside}")
            lock = hold_lock(path, busy)
    if not (path / "run.json").exists() and any(p.name != LOCK for p in path.iterdir()):
        raise BadInput(f"{path} is not empty and holds no run.json: choose another --output_dir, or --overwrite")
    return lock


def read_record(path):
    """run.json, or None where there is none; raises BadInput if it is damaged."""
    return read_json(path / "run.json", "--overwrite starts the run afresh")


def is_live(path):
    """Whether a process of this machine holds a directory's lock.

    The kernel's list is read, since trying the lock, even for an instant, could keep a run from starting. Processes of
    other machines are not in it.
    """
    try:
        return f":{(path / LOCK).stat().st_ino} " in Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return False


def list_files(path):
    """{name: size in bytes} of all files below a checkpoint but its seal."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != SEAL)
    return {str(p.relative_to(path)): p.stat().st_size for p in files}


def seal_checkpoint(path):
    """Flush a checkpoint to disk and record its files' sizes; only a sealed one is ever continued from."""
    for name in list_files(path):
        with open(path / name, "rb") as file:
            os.fsync(file.fileno())
    write_json(path / SEAL, list_files(path))


def is_intact(path):
    """Whether a checkpoint has its seal and every file the sealed size."""
    try:
        return list_files(path) == json.loads((path / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def find_checkpoint(path):
    """The newest checkpoint of a run to continue from, or None: intact, and not of the run's last step.

    From the last step transformers 5.23 would train one step too many; the way there from the checkpoint before is the
    same, bit for bit.
    """
    for checkpoint in filter(is_intact, list_checkpoints(path)):
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        if state["global_step"] < state["max_steps"]:
            return checkpoint
    return None


def list_checkpoints(path):
    """The checkpoints of a run, the newest first."""
    return sorted(path.glob("checkpoint-*"), key=step_of, reverse=True)


def rewind(path):
    """Put an unfinished run back to the checkpoint it continues from, under its lock.

    Later checkpoints are deleted, and so are later rows of metrics.jsonl.
    """
    kept = find_checkpoint(path)
    for checkpoint in list_checkpoints(path):
        if checkpoint == kept:
            break
        state = "the last step's, and the run is not finished" if is_intact(checkpoint) else "incomplete or damaged"
        print(f"{checkpoint} is {state}: it is deleted and trained again")
        shutil.rmtree(checkpoint)
    step = step_of(kept) if kept else 0
    rows = [row for row in read_log(path / "metrics.jsonl") if row["step"] <= step]
    write_text(path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def step_of(checkpoint):
    """The step a checkpoint was saved at, from its name."""
    return int(checkpoint.name.split("-")[1])


def read_log(path):
    """Rows of metrics.jsonl, [] without one; a torn last line is left out. Raises BadInput for a damaged line."""
    if not path.exists():
        return []
    lines, rows = path.read_text(encoding="utf-8", errors="replace").splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
            rows[-1]["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            if number < len(lines):
                raise BadInput(f"{path}, line {number} is damaged: delete the line") from None
            del rows[number - 1 :]
    return rows


def describe_state(path):
    """One line on a run: where it stands, and whether a process is at it. Raises BadInput where there is no run."""
    record = read_record(path)
    if record is None:
        raise BadInput(f"{path} holds no run.json")
    rows, status = read_log(path / "metrics.jsonl"), record["status"]
    if status == "running":
        status = "running" if is_live(path) else "stopped, the same command continues it"
    changes = "".join(f"; went on with {', '.join(entry['changed'])} changed" for entry in record.get("changes", []))
    return f"{path}: {status}, step {rows[-1]['step'] if rows else 0}, {record['wall_seconds']:.0f} s{changes}"


def main():
    parser = make_parser(__doc__)
    parser.add_argument("run_dir", type=Path, nargs="+", help="run directories")
    for path in parser.parse_args().run_dir:
        print(describe_state(path))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
