"""Is one model better than another? Paired differences of accuracy between evaluated runs, with 95 % intervals.

Reads what maths_evaluations.py wrote; the first run is the one the others are compared with. Pairing by problem removes
the problems' difficulty from the interval, so it is narrower than two separate intervals suggest. Several seeds of a
method should be compared as runs of their own: the interval is over problems, not over training runs. For Probability
Smoothing Policy Optimisation (arXiv 2509.21282) the control is noclip at the same num_iterations.

    python maths_compare.py runs/demo/base runs/demo/pspo/seed0
    python maths_compare.py runs/Qwen2.5-0.5B/noclip/seed0 runs/Qwen2.5-0.5B/{clip,pspo}/seed0 --datasets gsm8k
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from maths_common import BadInput, make_parser, read_json_lines, run_script
from maths_statistics import bootstrap_interval, wilson_interval


def find_evaluations(path):
    """The directory with the rows of a run directory, or of an evaluation directory itself; raises BadInput."""
    for place in (path / "evaluations", path):
        if (place / "summary.json").is_file():
            return place
    raise BadInput(f"{path} has no finished evaluation: run maths_evaluations.py on it")


def read_accuracy(path, names):
    """{(data set, temperature): {problem id: accuracy over its samples}} of an evaluation; names: [] for all."""
    accuracy = {}
    for name in names or sorted(file.stem for file in path.glob("*.jsonl")):
        if not (path / f"{name}.jsonl").is_file():
            continue
        verdicts = defaultdict(list)
        try:
            for row in read_json_lines(path / f"{name}.jsonl"):
                verdicts[name, row["temperature"], row["id"]].append(bool(row["correct"]))
        except KeyError as error:
            raise BadInput(f"{path / name}.jsonl has a row without {error}") from None
        for (name, temperature, problem), values in verdicts.items():
            accuracy.setdefault((name, temperature), {})[problem] = float(np.mean(values))
    return accuracy


def interval(values):
    """Mean and 95 % interval of accuracies [problems]: Wilson where each is 0 or 1, else bootstrap over problems."""
    if np.isin(values, (0, 1)).all():
        return values.mean(), *wilson_interval(values.sum(), len(values))
    low, high = bootstrap_interval(values[:, None])
    return values.mean(), low[0], high[0]


def compare(first, other):
    """Accuracy of both and the paired difference -> ((mean, low, high), (mean, low, high), (mean, low, high)).

    first, other: {problem id: accuracy}. Raises BadInput unless both hold the same problems.
    """
    if first.keys() != other.keys():
        both = len(first.keys() & other.keys())
        raise BadInput(
            f"the runs were evaluated on different problems: {len(first)} and {len(other)}, {both} of them shared"
        )
    a, b = (np.array([values[problem] for problem in first]) for values in (first, other))
    low, high = bootstrap_interval((b - a)[:, None])
    return interval(a), interval(b), ((b - a).mean(), low[0], high[0])


def percent(figures, sign=""):
    """'12.3 (10.1 to 14.5)' from fractions."""
    mean, low, high = (f"{100 * value:{sign}.1f}" for value in figures)
    return f"{mean} ({low} to {high})"


def main():
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run or evaluation directories, the reference first")
    parser.add_argument("--datasets", nargs="+", default=[], help="names, as in the evaluations' files (default: all)")
    args = parser.parse_args()
    if len(args.runs) < 2:
        raise BadInput("give at least two run directories: the reference, then what to compare with it")
    reference, *others = (read_accuracy(find_evaluations(path), args.datasets) for path in args.runs)
    print(f"accuracy in % with 95 % intervals; reference: {args.runs[0]}")
    for path, other in zip(args.runs[1:], others, strict=True):
        shared = sorted(reference.keys() & other.keys())
        if not shared:
            raise BadInput(f"{args.runs[0]} and {path} share no data set at the same temperature")
        print(f"\n{'data set':10} {'T':>4} {'problems':>8}   {'reference':22}   {str(path):22}   difference, paired")
        for name, temperature in shared:
            first = reference[name, temperature]
            a, b, difference = compare(first, other[name, temperature])
            print(
                f"{name:10} {temperature:4g} {len(first):8d}   {percent(a):22}   {percent(b):22}   "
                f"{percent(difference, '+')}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
