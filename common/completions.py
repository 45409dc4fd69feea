"""What a model wrote while it was trained: the rows of completions.jsonl in a run directory, written, read, shown.

Training writes a few rows now and then (training/completions.py), for people to read: a reward that rises says less
than what it was paid for (Probability Smoothing Policy Optimisation, arXiv 2509.21282).

    python maths_report.py runs/demo/pspo/seed0 --completions
"""

import json
from dataclasses import asdict, dataclass, fields

from common.files import BadInput, write_text

COMPLETIONS_FILE = "completions.jsonl"


@dataclass
class CompletionRow:
    """One completion, what the grader read in it, and what it was paid."""

    step: int  # the optimiser step that was trained with it
    prompt: str  # the question, without the system prompt
    completion: str
    answer: str | None  # that was read
    rule: str | None  # that found it
    rewards: dict  # {reward function: value}
    advantage: float


def append_rows(run_dir, rows):
    """Add CompletionRows to a run's file."""
    with open(run_dir / COMPLETIONS_FILE, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(asdict(row)) + "\n" for row in rows))


def read_completions(run_dir):
    """The CompletionRows of a run, [] without any; a torn last line is left out. Raises BadInput for a damaged line."""
    path = run_dir / COMPLETIONS_FILE
    names = {f.name for f in fields(CompletionRow)}
    rows = []
    if not path.exists():
        return rows
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break  # it is being written, or was when the process was killed
        try:
            stored = json.loads(line)
            whole = stored.keys() == names
        except (ValueError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise BadInput(f"{path}, line {number} is damaged: delete the line")
        rows.append(CompletionRow(**stored))
    return rows


def rewind_completions(run_dir, step):
    """Drop the rows after a step, which a continued run writes again; under the run's lock."""
    if (run_dir / COMPLETIONS_FILE).exists():
        kept = [row for row in read_completions(run_dir) if row.step <= step]
        write_text(run_dir / COMPLETIONS_FILE, "".join(json.dumps(asdict(row)) + "\n" for row in kept))


def show_completions(run_dir, count):
    """The last `count` completions of a run as text, the newest last; raises BadInput where there are none."""
    rows = read_completions(run_dir)
    if not rows:
        raise BadInput(f"{run_dir} holds no {COMPLETIONS_FILE}: train with --log_completions_steps above 0")
    blocks = []
    for row in rows[-count:]:
        rewards = ", ".join(f"{name} {value:g}" for name, value in row.rewards.items())
        read = "no answer read" if row.answer is None else f"answer {row.answer} ({row.rule})"
        head = f"step {row.step}: {read}; {rewards}; advantage {row.advantage:+.3g}"
        blocks.append("\n".join([head, f"  {row.prompt}", *(f"  > {line}" for line in row.completion.splitlines())]))
    return "\n\n".join(blocks)
