"""The runs that a report speaks of, read from their directories, and whether they may be compared.

Used by maths_report.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282).

    python -c "from reporting.runs import read_run; print(read_run('runs/demo/pspo/seed0').stage)"
"""

import dataclasses
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from common.files import BadInput
from common.record import Outcome, RunRecord, kept_validation, read_record
from common.runs import LOG_FILE, is_intact, is_live, list_checkpoints, read_log
from evaluation.rows import read_results
from evaluation.settings import SETTINGS_FILE, Settings, noted_differences, read_settings, unfair_differences
from evaluation.summary import SUMMARY_FILE, read_summary

# What is shown of a training log.
CURVES = {
    "reward": "reward",
    "completions/mean_length": "length, tokens",
    "entropy": "entropy",
    "trust_region/approx_kl": "KL from the sampler",
    "trust_region/active_ratio": "share of tokens acted on",
    "trust_region/outside_ratio": "share of tokens outside 1±ε",
}
# What is kept of a log, so that hundreds of long runs fit into memory.
LOGGED = {
    *CURVES,
    "step",
    "loss",
    "eval_reward",
    "eval_loss",
    "num_tokens",
    "step_time",
    "trust_region/ratio_min",
    "trust_region/ratio_max",
    "trust_region/effective_sample_size",
}


@dataclass
class Run:
    """One training run, or a model that was only evaluated, as far as its files go."""

    path: Path
    method: str
    model: str
    seed: int | None = None
    name: str = ""  # method, or the grid's name of the cell
    record: RunRecord | None = None  # None for a model that was not trained here
    stage: str = "finished"  # waiting: never started; running; failed: it ended without weights; finished
    state: str = ""  # the same in more words
    failure: str = ""  # why it counts as failed: crashed, lost its finite loss, collapsed, below the base model
    tuning: bool = False  # its seed serves to choose the learning rate, and is not judged
    place: int = 0  # in the order in which runs were given
    settings: Settings | None = None
    summary: dict = field(default_factory=dict)
    accuracy: dict = field(default_factory=dict)  # {(data set, temperature): {problem id: mean over samples}}
    stand_in: dict = field(default_factory=dict)  # the same, of what scores for a run that failed
    checkpoint: Path | None = None  # the last sealed one of a run that failed
    incomplete: list = field(default_factory=list)  # "data set at temperature" that is stored in part
    log: list = field(default_factory=list)

    @property
    def config(self):
        """The run's configuration, {} where there is none."""
        return self.record.config if self.record else {}

    @property
    def scores(self):
        """`accuracy`, and what stands in for what it lacks."""
        return {**self.stand_in, **self.accuracy}

    @property
    def score(self):
        """The validation score of the weights that were kept, more is better; None where there is none."""
        found = kept_validation(self.record, self.log) if self.record and self.stage == "finished" else None
        return found.score if found and math.isfinite(found.score) else None

    @property
    def steps(self):
        """Optimiser steps that were logged."""
        return max((row["step"] for row in self.log), default=0)


# ---- reading


def find_evaluation(path):
    """The directory with the rows of a run directory, or of an evaluation directory itself; None without one."""
    return next((p for p in (path / "evaluations", path) if (p / SUMMARY_FILE).is_file()), None)


def read_run(path, datasets=None):
    """A run directory or an evaluation directory -> Run; raises BadInput for one that is neither.

    datasets: names of those to read; None for all.
    """
    path = Path(path)
    evaluation = find_evaluation(path)
    home = path.parent if evaluation == path and path.name == "evaluations" else path
    record = read_record(home)
    if record is None and evaluation is None:
        raise BadInput(f"{path} has no finished evaluation: run maths_evaluations.py on it")
    names = home.resolve().parts
    run = Run(path, method=names[-1], model=names[-2], name=names[-1], record=record, state="evaluated")
    if record is not None:
        run.method = run.name = record.method
        run.model = record.model
        run.seed = record.seed
    rows = read_log(home / LOG_FILE)
    run.log = [{k: v for k, v in row.items() if k in LOGGED and isinstance(v, int | float)} for row in rows]
    if record is not None:
        find_stage(run, home)
    if evaluation is None:
        run.state += ", not evaluated"
    else:
        read_evaluation(run, evaluation, datasets)
    return run


def find_stage(run, home):
    """Put into a Run what became of its training."""
    outcome = run.record.outcome
    run.state = outcome.status
    lost = next((row["step"] for row in run.log if not math.isfinite(row.get("loss", 0.0))), None)
    if lost is not None:
        run.failure = f"loss not finite at step {lost}"
    if outcome.status == "finished":
        if outcome.collapsed_at is not None and not run.failure:
            run.failure = f"its reward collapsed at step {outcome.collapsed_at}"
        return
    run.stage = "running" if is_live(home) else "failed"
    run.state = run.stage
    if run.stage == "failed":
        run.failure = outcome.failure or run.failure or f"stopped at step {run.steps}"
        run.state = run.failure
        run.checkpoint = next(filter(is_intact, list_checkpoints(home)), None)


def read_evaluation(run, evaluation, datasets):
    """Put what is stored in an evaluation's directory into a Run; raises BadInput for one that is damaged."""
    run.settings = read_settings(evaluation)
    if run.settings is None:
        raise BadInput(f"{evaluation} has no {SETTINGS_FILE}, so nothing says how it was evaluated: evaluate again")
    run.summary = read_summary(evaluation)
    for file in sorted(evaluation.glob("*.jsonl")):
        if datasets is None or file.stem in datasets:
            whole, left = read_accuracy(file, run.summary.get(file.stem, {}))
            run.accuracy |= {(file.stem, t): found for t, found in whole.items()}
            run.incomplete += [f"{file.stem} at {t:g}" for t in left]
    run.state = "evaluated" if run.accuracy else f"{run.state}, no complete evaluation"


def read_accuracy(file, stated):
    """({temperature: {problem id: accuracy}} of what a summary calls complete, temperatures that are not).

    stated: the summary's {temperature as text: its figures}. The rest is left out: the completions
    that end first are the short ones.
    """
    whole = {}
    left = []
    for t, problems in read_results(file).samples.items():
        if stated.get(f"{t:g}", {}).get("prompts") != len(problems):
            left.append(t)
            continue
        whole[t] = {i: sum(s.correct for s in samples.values()) / len(samples) for i, samples in problems.items()}
    return whole, sorted(left)


def read_directories(paths, datasets=None):
    """The Runs of run or evaluation directories, each once; raises BadInput for a path that is none."""
    paths = list({path.resolve(): path for path in paths}.values())
    for path in paths:
        if not path.is_dir():
            raise BadInput(f"{path} is not a directory: give run directories, or one grid file (.yaml)")
    return [read_run(path, datasets) for path in paths]


def borrow_record(runs):
    """Give a cell that ended before it wrote a record that of another seed, so that it is counted with its method."""
    known = next((run.record for run in runs if run.record), None)
    for run in runs:
        if run.record is None and run.stage == "failed" and known is not None:
            run.record = dataclasses.replace(known, seed=run.seed, outcome=Outcome(failure=run.failure))


def read_checkpoints(runs, datasets=None):
    """Let the evaluation of its last sealed checkpoint, where there is one, stand in for a run that failed."""
    for run in runs:
        place = run.path / "evaluations" / run.checkpoint.name if run.checkpoint else None
        if run.stage == "failed" and not run.accuracy and place and find_evaluation(place):
            read = Run(place, run.method, run.model)
            read_evaluation(read, place, datasets)
            run.settings = read.settings
            run.stand_in = read.accuracy


# ---- may these be compared?


def check_settings(runs):
    """Raise BadInput if evaluations differ in what makes a comparison unfair; returns what else differs, as notes."""
    runs = [run for run in runs if run.settings]
    first = {}  # {data set: the first run that has it}; "" for what does not depend on a data set
    notes = []
    for run in runs:
        names = ["", *sorted({name for name, _ in run.scores})]
        earlier = {id(found): found for name in names if (found := first.setdefault(name, run)) is not run}
        for other in earlier.values():
            check_pair(other, run)
            changes = noted_differences(other.settings, run.settings)
            notes += [f"evaluations differ in {change.between_two()}" for change in changes]
    return list(dict.fromkeys(notes))


def check_pair(a, b):
    """Raise BadInput if the evaluations of two Runs cannot be compared, with the way out."""
    both = f"{a.path} and {b.path} were"
    shared = {name for name, _ in a.scores} & {name for name, _ in b.scores}
    for change in unfair_differences(a.settings, b.settings):
        what, _, name = change.name.partition(" ")
        if what == "grader":
            again = "run maths_evaluations.py --regrade on both"
            raise BadInput(f"{both} graded by different versions of the grader: {again}")
        if what == "data" and name not in shared:
            continue
        if what == "data":
            again = "evaluate both again with one version, each with a new --output_dir"
            raise BadInput(f"{both} evaluated on different versions of {name}: {again}")
        again = "evaluate one of them again as the other was, with a new --output_dir"
        raise BadInput(f"{both} evaluated with different {change.between_two()}: {again}")


def check_problems(runs):
    """Raise BadInput unless all runs that have a data set and temperature hold the same problems."""
    first = {}
    for run in runs:
        for key, accuracy in run.scores.items():
            other = first.setdefault(key, run)
            a = other.scores[key].keys()
            b = accuracy.keys()
            if a != b:
                raise BadInput(
                    f"{other.path} and {run.path} were evaluated on different problems of {key[0]}: {len(a)} and "
                    f"{len(b)}, {len(a & b)} of them shared; evaluate both with the same --limit"
                )


def list_unfinished(runs):
    """A line for each run that failed, is not evaluated, or not wholly; many in the same state share one."""
    states = defaultdict(list)
    for run in runs:
        if run.failure:
            states[f"failed: {run.failure}"].append(run.path)
        elif not run.accuracy and not (run.tuning and run.stage == "finished"):  # those are there for their validation
            states[run.state].append(run.path)
    lines = []
    for state, paths in states.items():
        if len(paths) > 5:
            lines.append(f"{len(paths)} runs: {state}: {paths[0]} to {paths[-1]}")
        else:
            lines += [f"{path}: {state}" for path in paths]
    return lines + [f"{run.path}: not complete: {', '.join(run.incomplete)}" for run in runs if run.incomplete]
