"""What may stand in a grid file: its parts, the names and values of its axes, and what a directory can be called.

Used by maths_grid.py (experiments of Probability Smoothing Policy Optimisation, arXiv 2509.21282), which says what a
grid file is.

    from slurm.grid_file import combine
    combine({"method": ["clip", "pspo"], "seed": 0})        # [{"method": "clip", "seed": 0}, {"method": "pspo", ...}]
"""

import itertools
import re
from collections import defaultdict

from common.files import BadInput, suggest
from common.values import read_values, to_text

GRID_KEYS = "axes cells tuning_seeds only_chosen_rates tuned_at train evaluate report output_root".split()
NAMING = ("model", "method", "seed")  # what every cell has, and what its directory is named by
OURS = {  # flags that no grid can give
    "trust_region_method": "write method",
    "output_dir": "a cell's directory follows from its values",
    "output_root": "it is a part of the grid beside axes",
    "model_path": "a cell evaluates what it trained",
    **dict.fromkeys(("overwrite", "print_config", "regrade"), "it is for one run, by hand"),
}


def add_tuning_seeds(grid, path):
    """Let the seeds of a grid's axis include its tuning_seeds, [] if it has none.

    Raises BadInput for tuning_seeds or only_chosen_rates that are none.
    """
    tuning = grid.setdefault("tuning_seeds", [])
    seeds = grid.get("axes", {}).get("seed", [])
    seeds = seeds if isinstance(seeds, list) else [seeds]
    if not isinstance(tuning, list) or not all(type(seed) is int for seed in tuning):
        raise BadInput(f"{path}: tuning_seeds must be a list of seeds, such as [10, 11]")
    if tuning and not set(seeds) - set(tuning):
        raise BadInput(f"{path}: the seeds of the axes must hold others than tuning_seeds: they are judged")
    only_chosen = grid.setdefault("only_chosen_rates", False)
    if type(only_chosen) is not bool or (only_chosen and not tuning):
        raise BadInput(f"{path}: only_chosen_rates must be true or false, and true only beside tuning_seeds")
    if tuning:
        grid["axes"]["seed"] = [*seeds, *(seed for seed in tuning if seed not in seeds)]


def check_rivals(cells, path):
    """Raise BadInput where cells are to run at a chosen learning rate alone, and nothing can be chosen."""
    rates = defaultdict(set)
    tuned = set()
    for cell in cells:
        if cell.rivals:
            rates[cell.rivals].add(cell.rate)
        if cell.only_chooses:
            tuned.add(cell.rivals)
    if rates and all(len(found) == 1 for found in rates.values()):
        raise BadInput(f"{path}: only_chosen_rates: no method has several learning rates to choose from")
    for rivals, found in rates.items():
        if len(found) > 1 and rivals not in tuned:
            raise BadInput(f"{path}: only_chosen_rates: {rivals} has no tuning seed")


def check_names(part, kinds, place):
    """Raise BadInput for a key of a part that no flag has."""
    for key in part:
        check_name(key, kinds, place)


def check_name(key, known, place):
    """Raise BadInput for a name that is not known, with the closest one that is."""
    if key in OURS and known is not GRID_KEYS:
        raise BadInput(f"{place}: {key} cannot be given: {OURS[key]}")
    if key not in known:
        raise BadInput(f"{place}: unknown name {key!r}{suggest(str(key), known)}")


def read_axes(axes, kinds, ranges, place):
    """{name: typed value, or a list of them} of a mapping of axes; raises BadInput for what is none.

    kinds, ranges: see read_values.
    """
    if not isinstance(axes, dict):
        raise BadInput(f"{place}: must be a mapping of names to values")
    check_names(axes, kinds, place)
    typed = {}
    for key, value in axes.items():
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, list) for item in items):
            raise BadInput(f"{place}: {key} has a list for a value: put it in train")
        read = [read_values({key: item}, kinds, ranges, place)[key] for item in items]
        typed[key] = read if isinstance(value, list) else read[0]
    return typed


def read_tuned_at(grid, kinds, ranges, path):
    """{axis: value} at which the tuning seeds run; raises BadInput for what is no value of an axis."""
    tuned_at = read_axes(grid.get("tuned_at", {}), kinds, ranges, f"{path}, tuned_at")
    if tuned_at and not grid["only_chosen_rates"]:
        raise BadInput(f"{path}, tuned_at: it goes with only_chosen_rates")
    for key, value in tuned_at.items():
        if key in (*NAMING, "learning_rate") or key not in grid["axes"]:
            raise BadInput(f"{path}, tuned_at: {key} is no axis at one value of which one could tune")
        for values in [grid["axes"], *grid["cells"].values()]:
            if key in values and isinstance(values[key], list) and value not in values[key]:
                raise BadInput(f"{path}, tuned_at: {key} {to_text(value)} is not among {values[key]}")
    return tuned_at


def combine(axes):
    """Every combination of the axes' values, the first axis slowest; a value that is no list is an axis of one."""
    values = [value if isinstance(value, list) else [value] for value in axes.values()]
    return [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*values)] if axes else []


def is_asked(own, values, grid):
    """Whether a combination of values is a cell: with a tuning seed, only where tuned_at has it. own: see is_shown."""
    if values.get("seed") not in grid["tuning_seeds"]:
        return True
    return all(values[key] == value for key, value in grid["tuned_at"].items() if is_shown(key, own))


def is_shown(key, own):
    """Whether a value stands in its cell's directory: it is one of several. own: what a named cell sets."""
    return key not in own or isinstance(own[key], list)


def safe(part):
    """A part of a directory's name with `_` for what a shell or a file system takes for something else."""
    part = re.sub(r"[^A-Za-z0-9.,+=_-]", "_", part)
    if not part.strip("."):
        raise BadInput(f"{part!r} cannot be part of a directory's name")
    return part
