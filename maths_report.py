"""Which trust region is better, by how much and how sure? An answer and a table here; with --output a page of them.

Reads the directories of runs that maths_finetuning.py made and maths_evaluations.py evaluated, or a grid file of
maths_grid.py, for Probability Smoothing Policy Optimisation (arXiv 2509.21282).

    python maths_report.py runs/demo/base runs/demo/pspo/seed0                    # two runs, paired by problem
    python maths_report.py runs/demo/*/seed* --baseline clip                      # methods over their seeds
    python maths_report.py recipes/study.yaml --output report/study --margin 2    # index.html, tables, figures

What is asked is declared before the results are looked at, by flags or under `report` in the grid file:

Methods. Runs that differ in nothing but the seed are one method. The baseline is noclip at the same num_iterations and
updates a generation, unless --baseline names another.
Learning rates. Where a method was tried at several, validation chooses among them, never the test set, and a rate at
which a run failed is passed over. It looks at the runs with --tuning_seeds (or a grid's tuning_seeds), which are then
not judged; without them at the runs that are judged, and how much that flatters is said.
Failures. Every run that was started counts. One that crashed, lost its finite loss, collapsed or ended below the base
model has failed; failures are counted and tested by themselves. What scores in place of a run without a result is
--failed.
Intervals. Over seeds and problems, from three seeds on; else over problems alone, which speaks of these runs and not of
the method, and is marked with an asterisk. Two methods with the same seeds, from three on, are compared seed by seed.
Tests. --primary DATASET@T, by default the first data set at its lowest temperature, carries the words "better" and
"worse", p by Holm over its methods. All other tests are exploratory, p by Holm over all of them. With --margin 2 a
method can be shown to lie within 2 points of its baseline.

Under --output: index.html, one page that needs no network; figures as PNG and SVG; results.md and results.tex;
results.csv (methods), controls.csv (pspo against noclip at the rate its gradient amounts to), failures.csv, runs.csv,
curves.csv, ends.csv and groups.csv, which hold all that the figures show.
"""

import argparse
import re
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from common.completions import show_completions
from common.files import BadInput, make_parser, run_script
from common.record import read_record
from common.values import check_ranges
from maths_grid import load_grid, read_grid, read_queue
from reporting.answer import conclude_pair, explain_rules, make_answer, print_methods, print_pair
from reporting.chosen import find_states
from reporting.comparison import Question, choose_primary, count_failures, make_results, order_keys
from reporting.methods import fill_in, group_methods, has_name, mark_below_base, show_setting
from reporting.page.page import write_page
from reporting.question import QUESTION_RANGES, add_question
from reporting.runs import (
    Run,
    borrow_record,
    check_problems,
    check_settings,
    find_evaluation,
    list_unfinished,
    read_checkpoints,
    read_directories,
    read_run,
)
from reporting.statistics import MIN_SEEDS
from slurm.cells import HELD, LEFT_OUT, cell_state


@dataclass
class Report:
    """Everything a report says."""

    runs: list
    methods: list
    question: Question
    rows: list  # results, see reporting.comparison
    controls: list
    failures: list
    answer: list  # sentences
    rules: list  # by which the words of the answer were chosen
    notes: list  # what else a reader must know


def make_report(runs, args):
    """The Report on Runs, before it is written.

    args: baseline, primary, margin, failed, as the command line has them. Raises BadInput for runs that cannot be
    compared, or a baseline or a primary family that is named and not there.
    """
    if args.failed == "checkpoint":
        read_checkpoints(runs, args.datasets)
    notes = check_settings(runs) + fill_in(runs, args.failed)
    check_problems(runs)
    keys = order_keys({key for run in runs for key in run.accuracy})
    margin = None if args.margin is None else args.margin / 100
    question = Question(args.baseline or "noclip", keys, choose_primary(args.primary, keys), margin)
    question.families = find_families(runs)
    mark_below_base(runs, question.primary)
    methods, more = group_methods(runs)
    evaluated = [m for m in methods if any(run.scores for run in m.runs)]
    if args.baseline and not any(has_name(m, args.baseline) for m in evaluated):
        labels = ", ".join(m.label for m in evaluated)
        raise BadInput(f"no evaluated run of the baseline {args.baseline}: choose from {labels}")
    rows, controls = make_results(methods, runs, question)
    failures = count_failures(methods, question)
    notes += more + list_unfinished(runs) + find_gaps(methods, rows, question)
    return Report(
        runs=runs,
        methods=methods,
        question=question,
        rows=rows,
        controls=controls,
        failures=failures,
        answer=make_answer(rows, failures, question),
        rules=explain_rules(rows, question, args.failed),
        notes=list(dict.fromkeys(notes)),
    )


def find_families(runs):
    """{data set: {problem id: its family}} as the evaluations' summaries have it, for the sets that have families."""
    families = {}
    for run in runs:
        for name, temperatures in run.summary.items():
            for figures in temperatures.values():
                if "families" in figures:
                    families.setdefault(name, {}).update(figures["families"])
    return families


def find_gaps(methods, rows, question):
    """Notes on what is compared with nothing, with too few seeds, or with a baseline that differs in more."""
    notes = []
    if any(row["over"] == "problems" and row["owner"].first.record for row in rows):
        notes.append(f"fewer than {MIN_SEEDS} seeds somewhere: there the report speaks of runs, not of methods")
    compared = {(row["model"], row["setting"]) for row in rows if "baseline" in row}
    for model, setting in sorted({(m.model, show_setting(m.setting)) for m in methods} - compared):
        where = ", ".join(filter(None, (model, setting)))
        notes.append(f"{where}: nothing is compared with {question.baseline}; --baseline names another method")
    for row in rows:
        if also := row.get("differs_also_in"):
            notes.append(f"{row['method']} differs from {row['baseline']} also in {also.replace(' ', ', ')}")
    return notes


# ---- reading


def is_grid(paths):
    """Whether a grid file is reported on, and no directories."""
    return len(paths) == 1 and paths[0].suffix in (".yaml", ".yml")


def read_runs(paths, datasets=None, tuning_seeds=()):
    """Run directories, or one grid file, -> Runs; a grid's cells are all there, whatever became of them.

    tuning_seeds: seeds that serve to choose a learning rate; a grid may name them too.
    """
    runs = read_grid_runs(paths[0], datasets) if is_grid(paths) else read_directories(paths, datasets)
    for place, run in enumerate(runs):
        run.place = place
        run.tuning = run.tuning or run.seed in tuning_seeds
    if runs and all(run.tuning for run in runs):
        raise BadInput("every run has a tuning seed: name other seeds to judge the methods by")
    return runs


def read_grid_runs(grid, datasets):
    """The Runs of a grid's cells, and of the base model where it is evaluated beside them."""
    cells = read_grid(grid)
    states = find_states(cells, read_queue())
    found = defaultdict(list)  # cells of one name differ in nothing but the seed
    bases = {}
    for cell in cells:
        state, detail = states[cell.index]
        if state == LEFT_OUT and cell_state(cell)[0] == "waiting":
            continue
        found[cell.model, cell.name].append(read_cell(cell, state, detail, datasets))
        base = cell.run_dir.parent.parent / "base"
        if find_evaluation(base) is not None:
            bases[base] = cell.model
    for runs in found.values():
        borrow_record(runs)
    runs = [run for runs in found.values() for run in runs]
    for base, model in bases.items():
        runs.append(read_run(base, datasets))
        runs[-1].model = model
    return runs


def read_cell(cell, state, detail, datasets):
    """The Run of a cell of a grid, which may not have begun. state, detail: as find_states says them."""
    if read_record(cell.run_dir) is not None:
        run = read_run(cell.run_dir, datasets)
    else:
        run = Run(cell.run_dir, cell.method, cell.model, cell.seed)
        run.stage = {"stopped": "failed", "running": "running"}.get(state, "waiting")
    run.name = re.sub(r"-\w+=.*", "", cell.name)  # the flags of further axes are in the configuration
    run.tuning = cell.tuning
    if state in (HELD, LEFT_OUT):  # also one that has begun: it is not judged, or not yet
        run.stage = "waiting"
        run.failure = ""
    if run.stage == "failed" and state in ("running", "queued"):  # on another machine, or to be continued
        run.stage = "running"
        run.failure = ""
    if run.stage == "failed":
        run.failure = detail or run.failure or "stopped"
    if not run.accuracy:
        run.state = ": ".join(filter(None, (state, detail)))
    return run


# ---- what is shown


def print_report(report):
    """The answer, the table, the rules and the notes on the terminal."""
    print(*report.answer, sep="\n")
    if report.rows:
        print("\naccuracy in % with 95 % intervals over seeds and problems; *: over problems, these runs only")
        print_methods(report.rows)
    print("", *report.rules, sep="\n")
    if report.notes:
        print("", *report.notes, sep="\n")


def print_two(first, other):
    """Two runs, paired by problem, a line for each data set and temperature; raises BadInput if they share none."""
    for run in (first, other):
        if not run.accuracy:
            raise BadInput(f"{run.path} has no finished evaluation: run maths_evaluations.py on it")
    shared = order_keys(first.accuracy.keys() & other.accuracy.keys())
    if not shared:
        raise BadInput(f"{first.path} and {other.path} share no data set at the same temperature")
    families = find_families([first, other])
    print(f"accuracy in %, 95 % intervals over problems, for these runs only; reference: {first.path}")
    print(f"\n{'data set':10} {'T':>4} {'problems':>8}   {'reference':22}   {str(other.path):22}   difference, paired")
    intervals = {key: print_pair(first, other, key, families.get(key[0])) for key in shared}
    print(f"\n{conclude_pair(first.path, other.path, intervals)}")
    if left := list_unfinished([first, other]):
        print("", *left, sep="\n")


def write_report(report, output, cache_dir):
    """Write everything under --output: files, figures, the page; returns what the page's reader should know.

    Nothing is there before all of it is made.
    """
    from reporting.figures import DRAWN, draw_figures  # these import pandas
    from reporting.tables import make_tables, write_files

    tables = make_tables(report)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as made:
        made = Path(made)
        write_files(tables, report, made)
        figures = draw_figures(tables, report.question, made)
        notes = write_page(report, tables, figures, made / "index.html", cache_dir)
        output.mkdir(exist_ok=True)
        for name in [*tables, *(draw.__name__.removeprefix("draw_") for draw in DRAWN)]:
            for kind in ("csv", "png", "svg"):
                (output / f"{name}.{kind}").unlink(missing_ok=True)  # of an earlier report
        for path in made.iterdir():
            path.replace(output / path.name)
    return notes


def read_count(word):
    """The number of --completions; argparse gives it the word that follows, a run perhaps."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word} is no number: name the runs first, then --completions 5")
    return int(word)


def parse_args():
    """The command line, over what a grid file declares; raises BadInput for a margin that is none."""
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run or evaluation directories, or one grid file (.yaml)")
    add_question(parser)
    parser.add_argument("--tuning_seeds", nargs="+", type=int, default=[], metavar="SEED", help="they choose the rate")
    parser.add_argument("--output", type=Path, help="directory for the page, figures and files (default: none)")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="default: all that were evaluated")
    parser.add_argument("--cache_dir", help="where the questions are (default: $GRPSPO_CACHE, else ./cached_files)")
    completions = "only show the last N completions that were written while each run trained (default: 8)"
    parser.add_argument("--completions", nargs="?", type=read_count, const=8, metavar="N", help=completions)
    args = parser.parse_args()
    if is_grid(args.runs):
        parser.set_defaults(**load_grid(args.runs[0])["report"])
        args = parser.parse_args()
    if args.completions is not None and args.completions < 1:
        raise BadInput(f"--completions {args.completions}: must be at least 1")
    check_ranges(vars(args), QUESTION_RANGES)
    if args.output and args.output.exists() and not args.output.is_dir():
        raise BadInput(f"--output {args.output} is a file: choose a directory")
    return args


def main():
    args = parse_args()
    if args.completions:
        print(*(show_completions(path, args.completions) for path in args.runs), sep="\n\n")
        return 0
    runs = read_runs(args.runs, args.datasets, args.tuning_seeds)
    if len(args.runs) == 2 and len(runs) == 2 and not args.output and not args.baseline:
        check_settings(runs)
        check_problems(runs)
        print_two(*runs)
        return 0
    report = make_report(runs, args)
    if args.output and not report.rows:
        print(*report.notes, sep="\n")
        raise BadInput(f"no run of {args.runs[0]} is evaluated, so there is no report to write: evaluate them first")
    notes = write_report(report, args.output, args.cache_dir) if args.output else []
    print_report(report)  # last, since its reader may go away, as `| head` does
    if args.output:
        print("", *notes, f"page, figures and files in {args.output}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
