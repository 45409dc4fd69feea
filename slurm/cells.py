"""A cell of a grid: where it stands and what runs it, here or in an array task.

Used by maths_grid.py and the report (Probability Smoothing Policy Optimisation, arXiv 2509.21282).

    from slurm.cells import cell_state
    state, detail = cell_state(cell)
"""

import contextlib
import signal
from pathlib import Path
from typing import NamedTuple

from common.files import BadInput, read_json, write_json
from common.record import read_record
from common.runs import EXIT_SAVED, describe_progress, is_live
from evaluation.summary import SUMMARY_FILE
from slurm.commands import SIGNALS, last_line, run_command

STATES = ("waiting", "queued", "running", "stopped", "trained", "evaluated")
HELD = "held"  # a state beside those: until the tuning seeds have chosen a learning rate
LEFT_OUT = "left out"  # another learning rate was chosen
TO_DO = ("waiting", "stopped", "trained")
LOGS = Path("logs")
EVALUATED = "evaluations/grid.json"  # in a run directory: the flags of the evaluation that came to its end


class Cell(NamedTuple):
    """One run of a grid. name: method or named cell, with the flags of further axes; seeds of one name are alike."""

    index: int
    name: str
    method: str
    model: str
    seed: int
    run_dir: Path
    train: list  # the command, a list of strings
    evaluate: list
    log: Path
    tuning: bool = False  # its seed serves to choose a learning rate: the report does not judge it
    rate: float | None = None  # its learning rate, where the grid gives one
    rivals: str = ""  # the same in all cells for which one learning rate is chosen; "" where none is

    @property
    def only_chooses(self):
        """Whether it is there for its validation alone, so that it is not evaluated."""
        return self.tuning and bool(self.rivals)

    @property
    def commands(self):
        """What runs it: the command of its training and, unless it only chooses, that of its evaluation."""
        return [self.train] if self.only_chooses else [self.train, self.evaluate]


def describe_cell(cell):
    """A cell in a message: its number in the grid and its place."""
    return f"cell {cell.index}, {cell.run_dir}"


# ---- where it stands


def cell_state(cell, queue=None):
    """(one of STATES, a detail to print); changes nothing and takes no lock. `queue` is read_queue()'s answer."""
    try:
        record = read_record(cell.run_dir)
    except BadInput as error:
        return "stopped", str(error)
    finished = record is not None and record.outcome.status == "finished"
    state, reason, _ = (queue or {}).get(cell.run_dir.resolve(), (None, "", ""))
    if state == "queued":
        return state, reason
    if state == "running" or is_live(cell.run_dir) or is_live(cell.run_dir / "evaluations"):
        return "running", "evaluation" if finished else describe_progress(cell.run_dir, record)
    if finished:
        return ("evaluated", show_end(cell, record)) if is_evaluated(cell) else ("trained", last_line(cell.log))
    if record or cell.log.exists():
        return "stopped", last_line(cell.log) or describe_progress(cell.run_dir, record).partition(",")[0]
    return "waiting", ""


def show_end(cell, record):
    """What else is to be said of a cell that is done: that it was only validated, and at which step it collapsed."""
    collapsed = record.outcome.collapsed_at
    said = ["by validation alone"] if cell.only_chooses else []
    return ", ".join(said + ([] if collapsed is None else [f"collapsed at step {collapsed}"]))


def is_evaluated(cell):
    """Whether the evaluation that the grid asks for, if it does, has come to its end."""
    if cell.only_chooses:
        return True
    with contextlib.suppress(BadInput):
        done = read_json(cell.run_dir / EVALUATED, "delete it")
        return done == {"flags": cell.evaluate[4:]} and (cell.run_dir / "evaluations" / SUMMARY_FILE).is_file()
    return False


def pick(cells, states, wanted):
    """The cells whose state is one of those `wanted`. states: {index: (state, detail)}."""
    return [cell for cell in cells if states[cell.index][0] in wanted]


# ---- running it


def run_cell(cell, launch=(), run=run_command):
    """Train, then evaluate, doing only what is missing -> (exit code, signals received).

    launch: words before the training's command. run: what runs a command, with the arguments of run_command.
    """
    if cell_state(cell)[0] not in ("trained", "evaluated"):
        passed_on = (signal.SIGUSR1,) if launch else SIGNALS  # SLURM sends SIGTERM to srun's
        code, received = run([*launch, *cell.train], cell.log, passed_on)
        if code or received:
            return code or EXIT_SAVED, received
    if cell.only_chooses:
        return 0, []
    code, received = run(cell.evaluate, cell.log)
    if code == 0:
        write_json(cell.run_dir / EVALUATED, {"flags": cell.evaluate[4:]})
    return code, received
