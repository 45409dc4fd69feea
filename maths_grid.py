"""One grid of runs, the same file here or on a cluster: list it, run it cell after cell, or submit it to SLURM.

For the experiments of Probability Smoothing Policy Optimisation (arXiv 2509.21282). A grid file is YAML:

    axes:                        # cells are every combination; model, method, seed, or any flag of maths_finetuning.py
      model: [Qwen2.5-0.5B]
      method: [clip, noclip, pspo]
      seed: [0, 1, 2]
    cells:                       # named cells that differ: their values in place of the axes'; a list is an axis again
      noclip-mu2: {method: noclip, num_iterations: 2}
    tuning_seeds: [10, 11]       # more seeds, on which the report chooses among learning rates; it judges the others
    only_chosen_rates: true      # the others run once those have chosen, at that rate alone; those are not evaluated
    tuned_at: {num_iterations: 2}    # tuning seeds run at this value of an axis alone, and choose for all others
    train: {save_steps: 50}      # flags of maths_finetuning.py for every cell
    evaluate: {samples_per_prompt: 16}   # flags of maths_evaluations.py
    report: {primary: gsm8k@1}   # what is asked of the runs, declared before they are: flags of maths_report.py
    output_root: runs            # the default

A cell lives in runs/<model>/<method or name>[-<flag>=<value>...]/seed<N>, the flags being those of further axes: the
place follows from the cell's own values, whatever else the file holds. Its output is in logs/<that path>.log.

    python maths_grid.py recipes/demo_grid.yaml --list
    python maths_grid.py recipes/demo_grid.yaml --run --jobs 2
    python maths_grid.py recipes/paper.yaml --submit --dry_run
    python maths_grid.py recipes/paper.yaml --submit --partition a100 --throttle 2

Each command does what is missing and no more. --submit makes one array job of the cells and a report job after it;
slurm/env.sh says what the site is like, and the environment (GRID_PARTITION) or a flag (--partition) overrides it.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import maths_evaluations
import maths_finetuning
from common.datasets import find_dataset, load_training_split
from common.files import (
    ROOT,
    BadInput,
    get_cache_dir,
    go_offline,
    hash_value,
    hold_lock,
    make_parser,
    read_yaml,
    run_script,
    to_yaml,
    write_text,
)
from common.models import find_model
from common.runs import EXIT_SAVED
from common.values import kinds_of_parser, read_values, to_text, to_words
from reporting.chosen import find_states
from reporting.question import QUESTION_RANGES, add_question
from slurm import queue as slurm_queue
from slurm.cells import HELD, LEFT_OUT, LOGS, STATES, TO_DO, Cell, cell_state, describe_cell, pick, run_cell
from slurm.commands import last_line
from slurm.grid_file import (
    GRID_KEYS,
    NAMING,
    add_tuning_seeds,
    check_name,
    check_names,
    check_rivals,
    combine,
    is_asked,
    is_shown,
    read_axes,
    read_tuned_at,
    safe,
)
from slurm.preflight import Needs, check_cluster, check_data, check_machine, check_rows
from slurm.side_by_side import run_side_by_side
from training.data import key_of_rows
from training.options import RANGES, read_field_kinds
from training.schedule import check_plan, checkpoints_kept, keeps_every_checkpoint

MODULES = (  # what the commands import inside their functions, where a run of any kind needs it
    "matplotlib.backends.backend_agg",
    "reporting.figures",
    "training.callbacks",
    "training.completions",
    "training.memory",
    "training.rollout",
    "training.trainer",
    "transformers.models.qwen2.tokenization_qwen2",
    "trl.trainer.sft_trainer",
)


# ---- the grid file


def read_grid(path):
    """The cells of a grid file in its order; raises BadInput for what a cell cannot be made of."""
    grid = load_grid(path)
    axes = grid["axes"]
    named = grid["cells"]
    root = Path(grid["output_root"])
    root = root.relative_to(Path.cwd()) if root.is_relative_to(Path.cwd()) else root
    groups = [(None, {}), *named.items()] if "method" in axes or not named else named.items()
    rows = [(name, own, values) for name, own in groups for values in combine({**axes, **own})]
    rows = [row for row in rows if is_asked(*row[1:], grid)]
    cells = [make_cell(index, *row, root, grid) for index, row in enumerate(rows)]
    if not cells:
        raise BadInput(f"{path} has no cells: give it axes, with model, method and seed")
    check_rivals(cells, path)
    count, where = Counter(cell.run_dir for cell in cells).most_common(1)[0][::-1]
    if count > 1:
        raise BadInput(f"{path}: {count} cells share the directory {where}: give them names, or values that differ")
    return cells


def load_grid(path):
    """The mapping in a grid file, its output_root absolute; raises BadInput naming a part that is misspelt or wrong."""
    grid = read_yaml(path, "grid")
    if not isinstance(grid, dict):
        raise BadInput(f"{path} is not a grid: it must be a mapping with {', '.join(GRID_KEYS)}")
    for key in grid:
        check_name(key, GRID_KEYS, path)
    grid["output_root"] = os.path.abspath(str(grid.get("output_root", "runs")))
    read_parts(grid, path)
    add_tuning_seeds(grid, path)
    grid["tuned_at"] = read_tuned_at(grid, training_kinds(), RANGES, path)
    return grid


def read_parts(grid, path):
    """Put the values of a grid into the types of their flags; raises BadInput naming file, part and key.

    A part that is no mapping, a name that no flag has and a value that its flag cannot take are refused.
    """
    training = training_kinds()
    evaluation = kinds_of_parser(maths_evaluations.make_parser())
    question = kinds_of_parser(add_question(make_parser("")))
    ranges = {"train": RANGES, "evaluate": {}, "report": QUESTION_RANGES}
    parts = {"axes": training, "cells": {}, "train": training, "evaluate": evaluation, "report": question}
    for part, kinds in parts.items():
        if not isinstance(grid.setdefault(part, {}), dict):
            raise BadInput(f"{path}, {part}: must be a mapping of names to values")
        if part == "train" and (named := [key for key in NAMING if key in grid[part]]):
            raise BadInput(f"{path}, train: {named[0]} cannot be given: it is an axis")
        if part in ranges:
            place = f"{path}, {part}"
            check_names(grid[part], kinds, place)
            grid[part] = drop_unsaid(read_values(grid[part], kinds, ranges[part], place))
    grid["axes"] = read_axes(grid["axes"], training, RANGES, f"{path}, axes")
    for name, values in grid["cells"].items():
        grid["cells"][name] = read_axes(values, training, RANGES, f"{path}, cells: {name}")


@cache
def training_kinds():
    """{name: Kind} of maths_finetuning.py's flags, TRL's included, and of what a grid calls by a shorter name."""
    ours = kinds_of_parser(maths_finetuning.make_parser())
    trl = {**read_field_kinds("clip"), **read_field_kinds("sft")}  # loss_type has other choices in each
    return {**trl, **ours, "method": ours["trust_region_method"]}


@cache
def own_flags():
    """The names of both scripts' own flags."""
    return {*kinds_of_parser(maths_finetuning.make_parser()), *kinds_of_parser(maths_evaluations.make_parser())}


def drop_unsaid(flags):
    """Flags without those of our own that are null, which says what leaving them out says."""
    return {key: value for key, value in flags.items() if value is not None or key not in own_flags()}


def make_cell(index, name, own, values, root, grid):
    """A Cell of its values; `own` are those a named cell sets itself, of which only lists show in the directory."""
    if missing := [key for key in NAMING if key not in values]:
        raise BadInput(f"cell {name or index} has no {missing[0]}: add it to the axes")
    method = values["method"]
    model = values["model"]
    seed = values["seed"]
    shown = [key for key in sorted(values) if key not in NAMING and is_shown(key, own)]
    first = method if name is None else name
    parts = {key: f"{key}={to_text(values[key])}" for key in shown}
    name = "-".join([first, *parts.values()])
    run_dir = root / safe(Path(model).name) / safe(name) / safe(f"seed{to_text(seed)}")
    flags = {"model": model, "trust_region_method": method, "seed": seed, "output_dir": str(run_dir)}
    flags |= grid["train"] | {key: value for key, value in values.items() if key not in NAMING}
    train = [sys.executable, str(ROOT / "maths_finetuning.py"), *to_words(drop_unsaid(flags))]
    evaluation = {"model_path": str(run_dir), **grid["evaluate"]}
    evaluate = [sys.executable, str(ROOT / "maths_evaluations.py"), *to_words(evaluation)]
    log = LOGS / run_dir.with_name(run_dir.name + ".log").relative_to(run_dir.anchor)
    cell = Cell(index, name, method, model, seed, run_dir, train, evaluate, log, seed in grid["tuning_seeds"])
    if grid["only_chosen_rates"]:
        same = [part for key, part in parts.items() if key != "learning_rate" and key not in grid["tuned_at"]]
        cell = cell._replace(rate=values.get("learning_rate"), rivals="-".join([model, first, *same]))
    return cell


# ---- what a cell needs


def find_needs(cells, cache_dir=None):
    """The Needs of cells, by what both scripts themselves make of their commands; TRL is imported for it, once.

    cache_dir: of the cells that name none; None: this machine's.
    Raises BadInput for the first cell whose flags one of them refuses, and if TRL is not patched.
    """
    go_offline()  # before TRL
    needs = []
    for cell in cells:
        try:
            plan = maths_finetuning.resolve(maths_finetuning.parse(cell.train[2:]))
            evaluation = maths_evaluations.parse_args(cell.evaluate[2:])
        except BadInput as error:
            raise BadInput(f"{describe_cell(cell)}: {error}") from None
        except ImportError as error:
            raise BadInput(f"{sys.executable} lacks a package ({error}): pip install -r requirements.txt") from None
        needs.append(make_needs(cell, plan, evaluation, cache_dir))
    return needs


def make_needs(cell, plan, evaluation, cache_dir):
    """The Needs of a cell with this Plan of its training and these arguments of its evaluation."""
    trained_on = plan.command.dataset
    names = evaluation.datasets or maths_evaluations.default_datasets(trained_on)
    evaluation = with_values(evaluation, cache_dir=str(get_cache_dir(evaluation.cache_dir or cache_dir)))
    cache_dir = get_cache_dir(plan.command.args.cache_dir or cache_dir)
    args = with_values(plan.command.args, cache_dir=str(cache_dir))
    plan = replace(plan, command=replace(plan.command, args=args))
    rows = None
    if keeps_every_checkpoint(plan.config):  # so many as the rows give steps
        rows = count_training_rows(trained_on, cache_dir)
    return Needs(
        cell=describe_cell(cell),
        run_dir=cell.run_dir,
        model=plan.command.args.model,
        cache_dir=cache_dir,
        data=[(trained_on, "train"), *((name, find_dataset(name)[1].eval_split) for name in names)],
        checkpoints=checkpoints_kept(plan.config, rows),
        adapter=plan.model_config.use_peft,
        find_peaks=partial(find_peaks, plan, cache_dir),
        row_checks=make_row_checks(plan, evaluation, names),
    )


def with_values(args, **values):
    """A command line with some values in place of its own."""
    return Namespace(**{**vars(args), **values})


@cache
def count_training_rows(dataset, cache_dir):
    """How many rows of a data set are trained on; the seed only says which."""
    return len(load_training_split(dataset, 0, cache_dir)[0])


def make_row_checks(plan, evaluation, names):
    """{key: check} of what training and evaluation ask of a cell's rows before they load a model.

    plan, evaluation: of both commands, their cache_dir filled in. names: the data sets that are evaluated.
    """
    kwargs = evaluation.chat_template_kwargs
    if kwargs is None:  # a run is asked as it was trained
        kwargs = getattr(plan.config, "chat_template_kwargs", None) or {}
    evaluation = with_values(evaluation, chat_template_kwargs=kwargs)
    values = {name: value for name, value in vars(evaluation).items() if name != "model_path"}
    return {
        key_of_rows(plan): partial(check_training_rows, plan),
        plan.config.output_dir: partial(check_schedule, plan),  # quick, so asked of every cell
        repr([plan.command.args.model, names, values]): partial(check_evaluation_rows, plan, evaluation, names),
    }


def check_training_rows(plan):
    """Raise BadInput for the rows of a Plan that its training would refuse."""
    maths_finetuning.prepare_rows(plan, maths_finetuning.check_model(plan.command.args))


def check_schedule(plan):
    """Raise BadInput where a Plan's schedule does not fit the number of its rows."""
    if plan.values.get("generation_batch_size", (None, "default"))[1] == "default":  # else it depends on the processes
        rows = count_training_rows(plan.command.dataset, plan.command.args.cache_dir)
        check_plan(plan.config, rows)


def check_evaluation_rows(plan, evaluation, names):
    """Raise BadInput for the prompts that the evaluation of a Plan's model would refuse."""
    maths_evaluations.check_prompts(evaluation, maths_finetuning.check_model(plan.command.args), names)


def find_peaks(plan, cache_dir):
    """What a Plan's training needs of a card, see training.memory.least_peaks; None where several share a model."""
    from training.memory import least_peaks

    if maths_finetuning.find_sharding(plan.config):
        return None
    return least_peaks(plan.config, plan.model_config, find_model(plan.command.args.model, cache_dir))


# ---- where a cell stands


def print_list(cells, queue):
    """A line a cell, then how many cells each method has and where they stand: tuning budgets can be compared."""
    counts = defaultdict(Counter)
    states = find_states(cells, queue)
    found = {state for state, _ in states.values()}
    columns = [*STATES, *(state for state in (HELD, LEFT_OUT) if state in found)]
    width = max(len(str(cell.run_dir)) for cell in cells)
    print(f"cell  {'run':{width}}  state")
    for cell in cells:
        state, detail = states[cell.index]
        counts[re.sub(r"-\w+=.*", "", cell.name)][state] += 1
        if state != LEFT_OUT:
            print(f"{cell.index:4}  {str(cell.run_dir):{width}}  {state:9}  {detail}".rstrip())
    print(f"\n{'method':{width + 6}}  cells  " + "  ".join(columns))
    for name, count in counts.items():
        line = "  ".join(f"{count[state]:{len(state)}}" for state in columns)
        print(f"{name:{width + 6}}  {sum(count.values()):5}  {line}")


# ---- running here


def run_task(cell):
    """Run one cell as an array task does; one that was saved for the walltime's sake goes back into the queue."""
    if cell_state(cell)[0] == "evaluated":
        print(f"{cell.run_dir} is evaluated already")
        return 0
    code, received = run_cell(cell, slurm_queue.launch_words())
    if code == EXIT_SAVED and "SLURM_ARRAY_JOB_ID" in os.environ and signal.SIGTERM not in received:
        # after SIGTERM, SLURM does it itself (preemption) or nobody wants it (scancel)
        print(slurm_queue.requeue(), flush=True)
    return code


def run_grid(grid, cells, jobs=1):
    """Run every cell that is not evaluated, `jobs` at a time, and report; returns 1 if a cell failed.

    What waits for a learning rate runs once the tuning seeds have chosen it.
    """
    queue = read_queue()
    states = find_states(cells, queue)
    needs = find_needs(pick(cells, states, (*TO_DO, HELD)))
    check_data(needs)
    check_rows(needs)
    codes = {}  # of each cell's index, tried once
    while wanted := [cell for cell in pick(cells, states, TO_DO) if cell.index not in codes]:
        stopped = False
        for cell, code, signals in run_cells(wanted, queue, jobs):
            codes[cell.index] = code
            stopped = bool(signals)
        if stopped:
            return EXIT_SAVED
        states = find_states(cells, queue, tried=codes)
    report(grid, cells)
    for cell in cells:
        if codes.get(cell.index):
            print(f"{describe_cell(cell)}: failed: {last_line(cell.log)}", file=sys.stderr)
    return 1 if any(codes.values()) else 0


def run_cells(cells, queue, jobs):
    """Run cells and say how far they are; yields (cell, exit code, signals we were sent so far)."""
    if jobs == 1:
        for cell in cells:
            print(f"{describe_cell(cell)}: {cell_state(cell, queue)[0]}, starting", flush=True)
            code, received = run_cell(cell)
            yield cell, code, received
            if received:
                return
        return
    begun = time.monotonic()
    print(f"{len(cells)} cells, {jobs} at a time; what they print is in {LOGS}", flush=True)
    for done, (cell, code, signals) in enumerate(run_side_by_side(cells, jobs, MODULES), 1):
        minutes = (time.monotonic() - begun) / 60
        left = minutes / done * (len(cells) - done)
        where = f"{done} of {len(cells)}, {minutes:.0f} min, about {left:.0f} to go"
        print(f"{where}: {describe_cell(cell)}: {cell_state(cell)[0]}", flush=True)
        yield cell, code, signals


def report(grid, cells, table=True):
    """Print where every cell stands, then maths_report.py's table of the grid, which names the failed ones too."""
    print_list(cells, read_queue())
    if table and any(cell_state(cell)[0] == "evaluated" for cell in cells):
        print(flush=True)
        subprocess.run([sys.executable, ROOT / "maths_report.py", grid], check=False)


# ---- SLURM


def read_queue(must=False):
    """{absolute run directory: ("queued" or "running", SLURM's reason, array job)} of our cells in its queue, if any.

    Where SLURM does not answer, or the file of a queued grid was deleted, that is a note, or BadInput for one who
    `must` know.
    """
    jobs = []
    read = cache(read_grid)  # each file once: as it was when it was submitted
    try:
        jobs = slurm_queue.list_jobs()
    except BadInput as error:
        if must:
            raise
        print(f"note: what is queued is not known: {error}", file=sys.stderr)
    queue = {}
    for path, index, *found in jobs:
        try:
            queue[read(path)[index].run_dir.resolve()] = found
        except (BadInput, IndexError) as error:
            reason = f"the grid of job {found[2]} cannot be read ({error})"
            if must:
                raise BadInput(f"{reason}: scancel {found[2]}, or put {path} back") from None
            print(f"note: what is queued is not all known: {reason}", file=sys.stderr)
    return queue


def freeze_grid(path):
    """(place in logs/, text) of a grid as it is queued: a later change of its file must not change what a job runs."""
    text = to_yaml(load_grid(path))  # the order of the axes is the numbering of the cells
    return LOGS.absolute() / f"{safe(Path(path).stem)}-{hash_value(text)[:8]}.yaml", text


def submit(cells, args):
    """Queue an array of what is neither done nor under way, and the report after it, once all checks have passed.

    With --preflight only the checks are made, with --dry_run the lines are printed and nothing is checked.
    """
    site, env = slurm_queue.read_site(vars(args))
    queue = read_queue(must=not args.dry_run)
    states = find_states(cells, queue)
    wanted = pick(cells, states, TO_DO)
    rest = Counter(state for state, _ in states.values() if state not in TO_DO)
    rest = ", ".join(f"{count} {state}" for state, count in rest.items()) or "none"
    if not wanted:
        print(f"nothing to submit: {rest}")
        return 0
    frozen, text = freeze_grid(args.grid)
    array = slurm_queue.array_line(site, frozen, [cell.index for cell in wanted])
    others = sorted({queue[place][2] for cell in cells if (place := cell.run_dir.resolve()) in queue})
    if args.dry_run:
        after = slurm_queue.report_line(site, frozen, [*others, "JOBID"])
        print(shlex.join(array), shlex.join(after), sep="\n")
        return 0
    check_cluster(site, env, [array, slurm_queue.report_line(site, frozen, [])])
    check_machine(find_needs(wanted, env["GRPSPO_CACHE"]), site, env, LOGS)
    if args.submit:
        write_text(frozen, text)
        job = slurm_queue.queue_job(array, env)
        print(f"job {job}: {len(wanted)} cells, {site['throttle']} at a time; not submitted: {rest}")
        after = slurm_queue.queue_job(slurm_queue.report_line(site, frozen, [*others, job]), env)
        print(f"job {after}: the table, in {LOGS / frozen.stem}-report-{after}.out")
    return 0


def make_arguments():
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("grid", help="grid file (YAML)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="show the cells and where each stands")
    what.add_argument("--run", action="store_true", help="train and evaluate here, then report")
    what.add_argument("--submit", action="store_true", help="check, then queue array and report with SLURM")
    what.add_argument("--preflight", action="store_true", help="the checks of --submit, and nothing else")
    what.add_argument("--cell", type=int, metavar="N", help="train and evaluate one cell: what an array task runs")
    what.add_argument("--report", action="store_true", help="show the cells and the table: what the report job runs")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="for --run: so many cells at a time (default: 1)"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands that would run, and run nothing")
    site = parser.add_argument_group("SLURM: these go before the environment and slurm/env.sh")
    for name, text in slurm_queue.SITE.items():
        site.add_argument(f"--{name}", help=text)
    return parser


def main():
    args = make_arguments().parse_args()
    if args.jobs < 1 or (args.jobs > 1 and not args.run):
        raise BadInput(f"--jobs {args.jobs}: must be at least 1, and goes with --run")
    cells = read_grid(args.grid)
    if args.list or args.report:
        report(args.grid, cells, table=args.report)
        return 0
    if args.submit or args.preflight:
        with contextlib.nullcontext() if args.dry_run else hold_lock(LOGS, "another --submit is under way here"):
            return submit(cells, args)
    if args.cell is not None:
        if not 0 <= args.cell < len(cells):
            raise BadInput(f"--cell {args.cell}: {args.grid} has cells 0 to {len(cells) - 1}")
        cells = cells[args.cell : args.cell + 1]
    if args.dry_run:
        for cell in cells:
            print(*map(shlex.join, cell.commands), sep="\n")
        return 0
    return run_grid(args.grid, cells, args.jobs) if args.run else run_task(cells[0])


if __name__ == "__main__":
    sys.exit(run_script(main))
