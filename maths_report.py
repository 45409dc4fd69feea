"""Which trust region is better, by how much and how sure? A table here; with --output a page, figures and files.

Reads the directories of runs that maths_finetuning.py made and maths_evaluations.py evaluated, or a grid file of
maths_grid.py, for Probability Smoothing Policy Optimisation (arXiv 2509.21282).

    python maths_report.py runs/demo/base runs/demo/pspo/seed0                    # two runs, paired by problem
    python maths_report.py runs/demo/*/seed* --baseline clip                      # methods over their seeds
    python maths_report.py recipes/study.yaml --output report/study               # index.html, tables, figures

Runs that differ in nothing but the seed are one method. Where a method was tried at several learning rates, validation
chooses among them, never the test set, and the number of tried values stands beside the result. The baseline is noclip
at the same num_iterations and steps_per_generation, unless --baseline names another method. Two intervals are given:
over problems, which speaks of these runs, and over seeds and problems, which speaks of the method and needs three
seeds. p is corrected by Holm's method over the methods that are compared with one baseline.

Under --output: index.html, one page that needs no network; figures as PNG and SVG; results.md and results.tex;
results.csv (methods), controls.csv (pspo against noclip at the rate its gradient amounts to), runs.csv, curves.csv and
groups.csv, which hold all that the figures show.
"""

import itertools
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from common.files import BadInput, make_parser, run_script
from common.record import RECORD_FILE, RunRecord, read_record
from common.runs import LOG_FILE, read_log
from evaluation.rows import read_results, read_rows
from evaluation.settings import SETTINGS_FILE, Settings, noted_differences, read_settings, unfair_differences
from evaluation.summary import SUMMARY_FILE, read_summary
from reporting.comparison import (
    CURVES,
    accuracy_of,
    group_methods,
    make_results,
    percent,
    scaled_controls,
    show_setting,
)
from reporting.page.page import write_page
from reporting.statistics import MIN_SEEDS, compare, summarise_accuracy

# What is kept of a training log, so that hundreds of long runs fit into memory.
LOGGED = {"step", "eval_reward", "eval_loss", "trust_region/ratio_min", "trust_region/ratio_max", *CURVES}


@dataclass
class Run:
    """One training run, or a model that was only evaluated, as far as its files go."""

    path: Path
    method: str
    model: str
    seed: int | None = None
    name: str = ""  # method, or the grid's name of the cell
    record: RunRecord | None = None  # None for a model that was not trained here
    state: str = ""
    settings: Settings | None = None
    summary: dict = field(default_factory=dict)
    accuracy: dict = field(default_factory=dict)  # {(data set, temperature): {problem id: mean over samples}}
    incomplete: list = field(default_factory=list)  # "data set at temperature" that is stored in part
    log: list = field(default_factory=list)

    @property
    def config(self):
        """The run's configuration, {} where there is none."""
        return self.record.config if self.record else {}


# ---- reading


def find_evaluation(path):
    """The directory with the rows of a run directory, or of an evaluation directory itself; None without one."""
    return next((p for p in (path / "evaluations", path) if (p / SUMMARY_FILE).is_file()), None)


def read_run(path, datasets):
    """A run directory or an evaluation directory -> Run; raises BadInput for one that is neither."""
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
        run.state = record.outcome.status
    rows = read_log(home / LOG_FILE)
    run.log = [{k: v for k, v in row.items() if k in LOGGED and isinstance(v, int | float)} for row in rows]
    if evaluation is None:
        run.state += ", not evaluated"
        return run
    run.settings = read_settings(evaluation)
    if run.settings is None:
        raise BadInput(f"{evaluation} has no {SETTINGS_FILE}, so nothing says how it was evaluated: evaluate again")
    run.summary = read_summary(evaluation)
    for file in sorted(evaluation.glob("*.jsonl")):
        if datasets is None or file.stem in datasets:
            run.accuracy |= read_accuracy(file, file.stem, run)
    run.state = "evaluated" if run.accuracy else f"{run.state}, no complete evaluation"
    return run


def read_accuracy(path, name, run):
    """{(data set, temperature): {problem id: accuracy}} of what the run's summary says is complete.

    The rest is named in the run's state: the completions that end first are the short ones.
    """
    stated = run.summary.get(name, {})
    whole = {}
    for t, problems in read_results(path).samples.items():
        if stated.get(f"{t:g}", {}).get("prompts") != len(problems):
            run.incomplete.append(f"{name} at {t:g}")
            continue
        means = {i: sum(s.correct for s in samples.values()) / len(samples) for i, samples in problems.items()}
        whole[name, t] = means
    return whole


def read_runs(paths, datasets):
    """Run directories, or one grid file, -> Runs; a grid's cells are all there, whatever became of them."""
    if len(paths) == 1 and paths[0].suffix in (".yaml", ".yml"):
        from maths_grid import cell_state, read_grid

        runs = []
        for cell in read_grid(paths[0]):
            started = (cell.run_dir / RECORD_FILE).is_file()
            run = read_run(cell.run_dir, datasets) if started else Run(cell.run_dir, cell.method, cell.model, cell.seed)
            run.name = re.sub(r"-\w+=.*", "", cell.name)  # the flags of further axes are in the configuration
            if not run.accuracy:
                run.state = ": ".join(filter(None, cell_state(cell)))
            runs.append(run)
        return runs
    paths = list({path.resolve(): path for path in paths}.values())
    for path in paths:
        if not path.is_dir():
            raise BadInput(f"{path} is not a directory: give run directories, or one grid file (.yaml)")
    return [read_run(path, datasets) for path in paths]


# ---- may these be compared?


def check_settings(runs):
    """Raise BadInput if evaluations differ in what makes a comparison unfair; returns what else differs, as notes."""
    runs = [run for run in runs if run.settings]
    notes = []
    for first, run in itertools.combinations(runs, 2):
        check_pair(first, run)
        notes += [
            f"evaluations differ in {change.between_two()}"
            for change in noted_differences(first.settings, run.settings)
        ]
    return list(dict.fromkeys(notes))


def check_pair(a, b):
    """Raise BadInput if the evaluations of two Runs cannot be compared, with the way out."""
    both = f"{a.path} and {b.path} were"
    shared = {name for name, _ in a.accuracy} & {name for name, _ in b.accuracy}
    for change in unfair_differences(a.settings, b.settings):
        what, _, name = change.name.partition(" ")
        if what == "grader":
            raise BadInput(
                f"{both} graded by different versions of the grader: run maths_evaluations.py --regrade on both"
            )
        if what == "data" and name not in shared:
            continue
        if what == "data":
            raise BadInput(
                f"{both} evaluated on different versions of {name}: evaluate both again with one version, each with a "
                "new --output_dir"
            )
        raise BadInput(
            f"{both} evaluated with different {change.between_two()}: evaluate one of them again as the other was, "
            "with a new --output_dir"
        )


def check_problems(runs):
    """Raise BadInput unless all runs that have a data set and temperature hold the same problems."""
    first = {}
    for run in runs:
        for key, accuracy in run.accuracy.items():
            a, b = first.setdefault(key, run).accuracy[key].keys(), accuracy.keys()
            if a != b:
                raise BadInput(
                    f"{first[key].path} and {run.path} were evaluated on different problems of {key[0]}: {len(a)} and "
                    f"{len(b)}, {len(a & b)} of them shared; evaluate both with the same --limit"
                )


# ---- the terminal


def print_pair(first, other):
    """Two runs, paired by problem: the table of the README."""
    if missing := [run for run in (first, other) if not run.accuracy]:
        raise BadInput(f"{missing[0].path} has no finished evaluation: run maths_evaluations.py on it")
    shared = sorted(first.accuracy.keys() & other.accuracy.keys())
    if not shared:
        raise BadInput(f"{first.path} and {other.path} share no data set at the same temperature")
    print(f"accuracy in % with 95 % intervals; reference: {first.path}")
    print(f"\n{'data set':10} {'T':>4} {'problems':>8}   {'reference':22}   {str(other.path):22}   difference, paired")
    for name, t in shared:
        a, b = (accuracy_of([run], (name, t)) for run in (first, other))
        texts = [percent(s["low_problems"], s["high_problems"], s["value"]) for s in map(summarise_accuracy, (a, b))]
        d = compare(b, a)
        gap = percent(d["difference_low_problems"], d["difference_high_problems"], d["difference"], "+")
        print(f"{name:10} {t:4g} {a.shape[1]:8d}   {texts[0]:22}   {texts[1]:22}   {gap}")


def print_methods(rows):
    """A line for each method, data set and temperature."""
    print("accuracy in % with 95 % intervals over problems / over seeds and problems; p by Holm; rate: of n tried")
    line = "{:10} {:>4} {:{width}} {:>5} {:>12}   {:38}   {:38} {:>6}  {}"
    blocks = defaultdict(list)
    for row in rows:
        blocks[row["model"], row["setting"]].append(row)
    for place, block in blocks.items():
        width = max(len(r["method"]) for r in block)
        print("\n" + ", ".join(filter(None, place)))
        header = ("data set", "T", "method", "seeds", "rate", "accuracy", "difference", "p", "verdict")
        print(line.format(*header, width=width))
        for r in block:
            rate = "" if r["learning_rate"] is None else f"{r['learning_rate']:g} of {r['rates_tried']}"
            own = percent(r["low_problems"], r["high_problems"], r["accuracy"]) + " " + percent(r["low"], r["high"])
            gap, p = "", ""
            if r.get("difference") is not None:
                ends = (r["difference_low_problems"], r["difference_high_problems"], r["difference"])
                gap = percent(*ends, "+") + " " + percent(r["difference_low"], r["difference_high"], sign="+")
                p = "-" if r["p_holm"] is None else f"{r['p_holm']:.3f}"
            words = (r["data_set"], f"{r['temperature']:g}", r["method"], r["seeds"], rate, own, gap, p)
            print(line.format(*words, r.get("verdict", ""), width=width).rstrip())


def list_unfinished(runs):
    """A line for each run that is not evaluated, or not wholly; many in the same state share one."""
    states, lines = defaultdict(list), []
    for run in (run for run in runs if not run.accuracy):
        states[run.state].append(run.path)
    for state, paths in states.items():
        lines += [f"{len(paths)} runs: {state}: {paths[0]} to {paths[-1]}"] if len(paths) > 5 else []
        lines += [f"{path}: {state}" for path in paths if len(paths) <= 5]
    return lines + [f"{r.path}: not complete: {', '.join(i)}" for r in runs if (i := sorted(r.incomplete))]


def make_report(runs, baseline=None):
    """Everything the report says, before it is written: {"runs", "methods", "rows" ...}.

    Raises BadInput for runs that cannot be compared, or a baseline that is named and not there.
    """
    wanted, notes = baseline or "noclip", check_settings(runs)
    check_problems(runs)
    keys = sorted({key for run in runs for key in run.accuracy})
    methods, more = group_methods(runs)
    if baseline and not any(baseline in (m.label, m.runs[0].name, m.runs[0].method) for m in methods):
        labels = ", ".join(m.label for m in methods)
        raise BadInput(f"no evaluated run of the baseline {baseline}: choose from {labels}")
    rows = make_results(methods, keys, wanted)
    notes += more + list_unfinished(runs)
    if any(row["seeds"] < MIN_SEEDS for row in rows):
        notes.append(f"fewer than {MIN_SEEDS} seeds somewhere: there the report speaks of runs, not of methods")
    settings = {(m.model, m.setting) for m in methods}
    compared = {(row["model"], row["setting_key"]) for row in rows if row.get("baseline")}
    for model, setting in sorted(settings - compared):
        where = ", ".join(filter(None, (model, show_setting(setting))))
        notes.append(f"{where}: nothing is compared with {wanted}; --baseline names another method")
    for row in rows:
        if also := row.get("differs_also_in"):
            notes.append(f"{row['method']} differs from {row['baseline']} also in {also.replace(' ', ', ')}")
    controls = scaled_controls(methods, runs, keys)
    said = {"notes": list(dict.fromkeys(notes)), "keys": keys, "baseline": wanted}
    return {"runs": runs, "methods": methods, "rows": rows, "controls": controls, **said}


def write_report(report, args):
    """Everything under --output: files, figures, the page."""
    from reporting.figures import draw_figures  # these import pandas
    from reporting.tables import make_tables, write_files

    args.output.mkdir(parents=True, exist_ok=True)
    tables = make_tables(report)
    write_files(tables, report["rows"], args.output)
    figures = draw_figures(tables, args.output)
    write_page(report, tables, figures, args, lambda run, name: read_rows(find_evaluation(run.path) / f"{name}.jsonl"))


def main():
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run or evaluation directories, or one grid file (.yaml)")
    parser.add_argument("--baseline", help="method to compare with (default: noclip)")
    parser.add_argument("--output", type=Path, help="directory for the page, figures and files (default: none)")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="default: all that were evaluated")
    parser.add_argument("--cache_dir", help="where the questions are (default: $GRPSPO_CACHE, else ./cached_files)")
    args = parser.parse_args()
    runs = read_runs(args.runs, args.datasets)
    if len(args.runs) == 2 and len(runs) == 2 and not args.output and not args.baseline:
        check_settings(runs)
        check_problems(runs)
        print_pair(*runs)
        if left := list_unfinished(runs):
            print("", *left, sep="\n")
        return 0
    report = make_report(runs, args.baseline)
    print_methods(report["rows"])
    print("\n".join(["", *report["notes"]]))
    if args.output:
        write_report(report, args)
        print(f"\npage, figures and files in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
