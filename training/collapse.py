"""When did a run collapse: from which update on was its reward below half of its best, for good?

Asked by maths_finetuning.py after every row of the log (Probability Smoothing Policy Optimisation, arXiv 2509.21282).
The definition is this project's own: "below half of the best moving average, by more than chance, and stays".

    python -m training.collapse runs/demo/noclip/seed0
"""

import sys
from pathlib import Path

import numpy as np

from common.files import make_parser, run_script
from common.runs import LOG_FILE, read_log

# Generations in a moving average: a twentieth of those of the run, within these bounds.
SHORTEST = 3
LONGEST = 20
SHARE = 0.5  # of the best moving average
ERRORS = 3  # standard errors that a fall must exceed: the best of many averages is high by chance too


def find_collapse(steps, rewards):
    """The step at which a run collapsed, or None.

    steps, rewards: (n,) each, the updates whose rows of the log carry a reward, and these rewards. The moving average
    m is over a twentieth of the rewards, SHORTEST to LONGEST of them. A run has collapsed where m is below SHARE times
    the largest m so far, and below it by ERRORS standard errors of a difference of two such averages, as consecutive
    rewards differed so far; and where it stays there to the end, for so many rewards at least that the last m holds
    none from before. The step is the first such one. A run whose reward never was above 0 has not collapsed: it never
    learnt.
    """
    window = min(max(len(rewards) // 20, SHORTEST), LONGEST)
    if len(rewards) < 2 * window:
        return None
    sums = np.cumsum([0.0, *rewards])
    means = (sums[window:] - sums[:-window]) / window  # means[i] is over rewards[i : i + window]
    best = np.maximum.accumulate(means)
    squares = np.cumsum(np.diff(rewards) ** 2) / np.arange(1, len(rewards))  # twice the variance of a single reward
    by_chance = ERRORS * np.sqrt(squares[window - 2 :] / window)
    is_low = (best > 0) & (means < SHARE * best) & (means < best - by_chance)
    low_to_the_end = int(is_low[::-1].argmin())  # the first mean is the best so far, so never low
    return None if low_to_the_end < window else int(steps[len(steps) - low_to_the_end])


def collapse_of(rows):
    """`find_collapse` of the rows of a log: dicts with a "step" and, where completions were graded, a "reward"."""
    graded = [row for row in rows if "reward" in row]
    return find_collapse([row["step"] for row in graded], [row["reward"] for row in graded])


def main():
    parser = make_parser(__doc__)
    parser.add_argument("run_dir", type=Path, nargs="+", help="run directories")
    for path in parser.parse_args().run_dir:
        step = collapse_of(read_log(path / LOG_FILE))
        print(f"{path}: {'no collapse' if step is None else f'collapsed at step {step}'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
