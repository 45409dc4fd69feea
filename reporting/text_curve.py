"""Where the picture of a run's reward lies, and on a terminal the curve itself as a line of characters.

For the experiments of Probability Smoothing Policy Optimisation (arXiv 2509.21282).

    python -m reporting.text_curve runs/demo/pspo/seed0
"""

import sys
from pathlib import Path

from common.files import BadInput, make_parser, run_script
from common.runs import LOG_FILE, read_log

LEVELS = "▁▂▃▄▅▆▇█"
WIDTH = 60  # characters


def draw_levels(values, width=WIDTH):
    """(characters, first mean, last mean): means of equal parts of `values`, from the lowest mean to the highest."""
    width = min(width, len(values))
    bounds = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(bounds, bounds[1:], strict=False)]
    span = max(means) - min(means) or 1.0
    places = [int((mean - min(means)) / span * (len(LEVELS) - 1) + 0.5) for mean in means]
    return "".join(LEVELS[place] for place in places), means[0], means[-1]


def describe_curve(run_dir):
    """The line of a run; raises BadInput where its log holds no reward."""
    rows = [row for row in read_log(run_dir / LOG_FILE) if row.get("reward") is not None]
    if not rows:
        raise BadInput(f"{run_dir} has no log of rewards")
    text, first, last = draw_levels([row["reward"] for row in rows])
    return f"reward {first:.2f} {text} {last:.2f}, steps {rows[0]['step']} to {rows[-1]['step']}"


def can_show(stream):
    """Whether a stream is a terminal that can show the characters."""
    try:
        LEVELS.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return stream.isatty()


def main():
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path, help="directory of a training run")
    run_dir = parser.parse_args().run
    line = describe_curve(run_dir)
    if can_show(sys.stdout):
        print(line)
    print(f"The reward curve: {run_dir}/reward_curve.png")


if __name__ == "__main__":
    sys.exit(run_script(main))
