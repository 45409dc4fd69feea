"""Which cells of a grid need not run, since the tuning seeds chose another learning rate.

Used by maths_grid.py and maths_report.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282), for grids
that say only_chosen_rates. The rule is the report's, reporting.methods.choose_rates: validation chooses.

    from reporting.chosen import find_states
    find_states(cells)        # {3: ("left out", "learning rate 1e-5 was chosen"), ...}
"""

from collections import defaultdict
from contextlib import suppress

from common.files import BadInput
from common.record import read_record
from reporting.methods import Rate, choose_rates, show_rate
from reporting.runs import Run, read_run
from slurm.cells import HELD, LEFT_OUT, TO_DO, cell_state


def find_states(cells, queue=None, tried=()):
    """{index of a cell: cell_state's answer, or that it is HELD or LEFT_OUT}.

    queue: see cell_state. tried: indices of cells that are not tried again, so that no other waits for them.
    """
    held = hold_back(cells, tried)
    states = {}
    for cell in cells:
        found = cell_state(cell, queue)
        states[cell.index] = held.get(cell.index, found) if found[0] in TO_DO else found
    return states


def hold_back(cells, tried=()):
    """{index of a judged seed's cell that is not to run: (HELD or LEFT_OUT, why)}.

    Cells of a grid without only_chosen_rates, and of a method with one learning rate, are never in it.
    """
    rivals = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if cell.rivals:
            rivals[cell.rivals][cell.rate].append(cell)
    held = {}
    for by_rate in rivals.values():
        if len(by_rate) > 1:
            held.update(hold_rivals(by_rate, tried))
    return held


def hold_rivals(by_rate, tried):
    """hold_back for the cells {learning rate: cells} of one method."""
    judged = [cell for cells in by_rate.values() for cell in cells if not cell.tuning]
    tuning = [cell for cells in by_rate.values() for cell in cells if cell.tuning]
    left = sum(not has_ended(cell) and cell.index not in tried for cell in tuning)
    if left:
        why = f"for its learning rate: {left} tuning run{'s' * (left > 1)} to go"
        return {cell.index: (HELD, why) for cell in judged}
    rates = [Rate(rate, read_tuning(by_rate[rate])) for rate in sorted(by_rate, key=lambda rate: rate or 0)]
    chosen = [rate.value for rate in choose_rates(rates, "")[0]]
    why = f"learning rate {', '.join(map(show_rate, chosen))} was chosen"
    return {cell.index: (LEFT_OUT, why) for cell in judged if cell.rate not in chosen}


def has_ended(cell):
    """Whether a cell's training came to its end or to one that it will come to again, such as a loss of nan."""
    record = find_record(cell)
    return record is not None and bool(record.outcome.status == "finished" or record.outcome.failure)


def find_record(cell):
    """The record of a cell's run, None where there is none or it is damaged, as cell_state says."""
    with suppress(BadInput):
        return read_record(cell.run_dir)
    return None


def read_tuning(cells):
    """The Runs of the tuning seeds among cells; one that left no record has failed."""
    runs = []
    for cell in cells:
        if cell.tuning and find_record(cell) is not None:
            runs.append(read_run(cell.run_dir, datasets=()))
        elif cell.tuning:
            runs.append(Run(cell.run_dir, cell.method, cell.model, cell.seed, stage="failed"))
    for run in runs:
        run.tuning = True
    return runs
