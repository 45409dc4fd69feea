"""The run directory of a training run: what makes a run this run, made, locked, continued, looked at.

Used by training, evaluation, the grid and the report (Probability Smoothing Policy Optimisation, arXiv 2509.21282). A
run directory holds

    run.json           status, configuration, what decides its numbers (code, data, versions, device), host, wall time
    metrics.jsonl      one object a log step, validation included
    completions.jsonl  a few completions now and then, with what was read in them and paid for them
    checkpoint-N/      complete, with a seal, or not continued from; always at the end of a generation cycle
    model.safetensors  (or an adapter), tokenizer and configs: the finished model, best by validation
    reward_curve.png   the training curve
    evaluations/       what maths_evaluations.py found

    python -m common.runs runs/demo/pspo/seed0     # what state is it in? Looking changes nothing.
"""

import json
import os
import shutil
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from common.basis import as_stored, list_changes
from common.files import LOCK, BadInput, hold_lock, make_parser, run_script, write_json, write_text
from common.record import RECORD_FILE, RunRecord, compare_to_continue, read_record, write_record

EXIT_SAVED = 75  # EX_TEMPFAIL of sysexits.h: saved, not finished; a batch system may start the same command again
SEAL = "sealed.json"
LOG_FILE = "metrics.jsonl"


# ---- the directory


@dataclass
class OpenRun:
    """A run directory that this process may write: what is in it, and the checkpoint to continue from, or None."""

    path: Path
    record: RunRecord
    checkpoint: Path | None


@contextmanager
def open_run(path, fresh, args, processes):
    """Lock and prepare a run directory, on the main process first; gives an OpenRun while the lock is held.

    fresh: the record of a run that begins. Raises BadInput as lock_run_dir and accept_changes do.
    """
    if not processes.is_main_process:
        processes.wait_for_everyone()
        yield OpenRun(path, read_record(path), find_checkpoint(path))
        return
    with lock_run_dir(path, args.overwrite):
        record = read_record(path) or fresh
        check_same_run(path, record, fresh, args.accept_changes)
        if record.outcome.status != "finished":
            write_record(path, record)
            rewind(path)
        processes.wait_for_everyone()
        yield OpenRun(path, record, find_checkpoint(path))


def check_same_run(path, record, fresh, accept):
    """Raises BadInput unless the command whose run would begin with `fresh` may continue the run of `record`.

    With `accept` (--accept_changes) what differs beside the configuration is put into the record and the run goes on.
    """
    found = compare_to_continue(record, fresh)
    if found.refused:
        first, *others = found.refused
        more = f" and {len(others)} more" if others else ""
        raise BadInput(
            f"{path} holds a run with {first.name}={first.was!r}, not {first.now!r}{more}; --output_dir or --overwrite"
        )
    if record.outcome.status == "finished":
        return
    if found.to_accept and not accept:
        raise BadInput(
            f"{path} was begun with other code, data or hardware: {list_changes(found.to_accept)}; --accept_changes "
            "goes on and records it in run.json, --overwrite starts afresh"
        )
    if found.to_accept:
        record.changes.append(as_stored(found.to_accept))
        print(f"{path} goes on with {list_changes(found.to_accept)}")
    record.adopt(fresh)


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
    if not (path / RECORD_FILE).exists() and any(p.name != LOCK for p in path.iterdir()):
        raise BadInput(f"{path} is not empty and holds no run.json: choose another --output_dir, or --overwrite")
    return lock


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


def describe_continuation(path):
    """'the same command goes on from checkpoint-40', or that it begins again."""
    checkpoint = find_checkpoint(path)
    if checkpoint is None:
        return "the same command begins again: there is no checkpoint"
    return f"the same command goes on from {checkpoint.name}"


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
    rows = [row for row in read_log(path / LOG_FILE) if kept and row["step"] <= step_of(kept)]
    write_text(path / LOG_FILE, "".join(json.dumps(row) + "\n" for row in rows))


def step_of(checkpoint):
    """The step a checkpoint was saved at, from its name."""
    return int(checkpoint.name.split("-")[1])


def read_log(path):
    """Rows of metrics.jsonl, [] without one; a torn last line is left out. Raises BadInput for a damaged line."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
            rows[-1]["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            if number < len(lines):
                raise BadInput(f"{path}, line {number} is damaged: delete the line") from None
            del rows[number - 1 :]
    return rows


def describe_progress(path, record):
    """'step n of m, 3 min left' by a run's log and record, as far as they say it."""
    file = path / LOG_FILE
    with suppress(OSError, ValueError, KeyError, TypeError, ZeroDivisionError, IndexError, AttributeError):
        row = read_log(file)[-1]
        step = row["step"]
        total = record.config.get("max_steps", -1)
        if total <= 0:
            total = round(step * record.config["num_train_epochs"] / row["epoch"])
        done = record.outcome.finished_steps
        seconds = record.outcome.wall_seconds
        if not done:
            done = step
            seconds = file.stat().st_mtime - datetime.fromisoformat(record.origin.started).timestamp()
        left = (total - step) * seconds / done
        shown = f"{left / 3600:.1f} h" if left > 5400 else f"{left / 60:.0f} min"
        return f"step {step} of {total}, {shown} left"
    return "starting"


def describe_state(path):
    """One line on a run: where it stands, and whether a process is at it. Raises BadInput where there is no run."""
    record = read_record(path)
    if record is None:
        state = f"holds no {RECORD_FILE}" if path.exists() else "does not exist"
        raise BadInput(f"{path} {state}")
    outcome = record.outcome
    rows = read_log(path / LOG_FILE)
    status = outcome.status
    if status == "running" and not is_live(path):
        status = f"stopped, {describe_continuation(path)}"
        if outcome.failure:
            status = f"failed, {outcome.failure}"
    if outcome.collapsed_at is not None:
        status += f", collapsed at step {outcome.collapsed_at}"
    changes = "".join(f"; went on with {', '.join(entry['changed'])} changed" for entry in record.changes)
    return f"{path}: {status}, step {rows[-1]['step'] if rows else 0}, {outcome.wall_seconds:.0f} s{changes}"


def main():
    parser = make_parser(__doc__)
    parser.add_argument("run_dir", type=Path, nargs="+", help="run directories")
    for path in parser.parse_args().run_dir:
        print(describe_state(path))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
