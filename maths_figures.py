"""Figures: the training curves of one run, and what a report shows of many; a PNG and an SVG each.

Used by maths_finetuning.py and maths_page.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282). The curves
of some runs by themselves, one colour a method, one line a seed:

    python -c "from maths_figures import plot_training; plot_training(['runs/demo/pspo/seed0'], 'curve.png')"
"""

import json
from pathlib import Path

from maths_common import BadInput, read_json_lines

# Colours that stay apart for colour-blind readers: Okabe and Ito, https://jfly.uni-koeln.de/color/
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]


def read_run(path):
    """(method, rows of metrics.jsonl); raises BadInput if the directory holds no run."""
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
        return str(record["method"]), read_json_lines(path / "metrics.jsonl")
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"{path} is not the directory of a training run") from None


def smooth(values, width):
    """Running mean over up to `width` values ending at each one."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def draw_curve(axes, rows, key, colour, label):
    """A training metric: faint as it is, strong its running mean over a twentieth of the run; dots for validation."""
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
        axes.plot(steps, smooth(values, max(1, len(values) // 20)), color=colour, linewidth=1.8, label=label)
    checks = [(row["step"], row[f"eval_{key}"]) for row in rows if row.get(f"eval_{key}") is not None]
    if checks and not key.startswith("trust_region/"):  # in validation nothing is updated: every ratio is 1
        axes.plot(*zip(*checks, strict=True), "o", color=colour, markeredgecolor="white", markersize=7)


def plot_training(paths, output):
    """Draw the runs' curves to a PNG file, which appears by a rename; raises BadInput for a directory without a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    runs = [read_run(Path(path)) for path in paths]
    supervised = all(method == "sft" for method, _ in runs)
    panels = (
        [("loss", "loss")] if supervised else [("reward", "reward"), ("trust_region/approx_kl", "KL from the sampler")]
    )
    methods = sorted({method for method, _ in runs})
    figure, grid = plt.subplots(len(panels), 1, figsize=(7, 2.2 + 1.8 * len(panels)), sharex=True, squeeze=False)
    for axes, (key, title) in zip(grid[:, 0], panels, strict=True):
        for number, (method, rows) in enumerate(runs):
            first = method not in [other for other, _ in runs[:number]]
            colour = COLOURS[methods.index(method) % len(COLOURS)]
            draw_curve(axes, rows, key, colour, method if first else None)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_title("training (line: running mean)   validation (dots)", fontsize=10)
    grid[0, 0].legend(frameon=False)
    grid[-1, 0].set_xlabel("optimiser step")
    figure.tight_layout()
    output = Path(output)
    temporary = output.with_name(output.name + ".tmp")
    figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
    temporary.replace(output)
