"""Figures: the training curves of one run, and what a report shows of many; a PNG and an SVG each.

Used by maths_finetuning.py and maths_page.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282). The curves
of some runs by themselves, one colour a method, one line a seed:

    python -c "from maths_figures import plot_training; plot_training(['runs/demo/pspo/seed0'], 'curve.png')"
"""

import math
import os
from collections import defaultdict
from pathlib import Path

from maths_common import BadInput
from maths_runs import read_log, read_record

# Colours that stay apart for colour-blind readers: Okabe and Ito, https://jfly.uni-koeln.de/color/
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":", "-.")  # beyond six methods a colour comes again with another line
OTHER = ("#000000", ".", "-")
STYLE = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "legend.frameon": False, "grid.alpha": 0.3}
PLACE = ("model", "setting", "data_set")
CURVE_TITLES = {
    "reward": "reward",
    "completions/mean_length": "length, tokens",
    "entropy": "entropy",
    "trust_region/approx_kl": "KL from the sampler",
    "trust_region/active_ratio": "share of tokens acted on",
    "trust_region/outside_ratio": "share of tokens outside 1±ε",
}


# ---- training curves of runs


def read_run(path):
    """(method, rows of metrics.jsonl); raises BadInput if the directory holds no run."""
    record = read_record(path)
    if not record or not (path / "metrics.jsonl").is_file():
        raise BadInput(f"{path} is not the directory of a training run")
    return str(record.get("method")), read_log(path / "metrics.jsonl")


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


# ---- what a report shows


def draw_figures(tables, output):
    """Draw every figure that the tables have something for, as PNG and SVG; returns [(name, caption, SVG text)]."""
    import matplotlib

    labels = sorted({row["method"] for row in tables["runs"]})
    cycle = len(COLOURS)
    styles = {
        label: (COLOURS[i % cycle], MARKERS[i % len(MARKERS)], LINES[i // cycle % len(LINES)])
        for i, label in enumerate(labels)
    }
    drawn = []
    for draw in (draw_temperature, draw_pass, draw_curves, draw_rates, draw_staleness, draw_groups, draw_stability):
        name, caption = draw.__name__.removeprefix("draw_"), " ".join(draw.__doc__.split())
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
            figure = draw(tables, styles)
            if figure is not None:
                drawn.append((name, caption, save_figure(figure, output, name)))
        for kind in ("png", "svg") if figure is None else ():
            (output / f"{name}.{kind}").unlink(missing_ok=True)  # of an earlier report
    return drawn


def save_figure(figure, output, name):
    """Write NAME.png and NAME.svg, each through a rename; returns the SVG's text."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once: that takes most of the time
    for kind, metadata in (("png", {}), ("svg", {"Date": None})):
        temporary = output / f"{name}.{kind}.tmp"
        figure.savefig(temporary, dpi=150, format=kind, metadata=metadata)
        os.replace(temporary, output / f"{name}.{kind}")
    return (output / f"{name}.svg").read_text(encoding="utf-8")


def in_every_setting(rows):
    """Rows with those that have no setting, of a base model say, repeated in each setting of their model."""
    settings = {}
    for row in rows:
        if row["setting"]:
            settings.setdefault(row["model"], {})[row["setting"]] = None
    return [
        r | {"setting": s} for r in rows for s in ([r["setting"]] if r["setting"] else settings.get(r["model"], [""]))
    ]


def make_panels(rows, keys, title, columns=3, height=2.6):
    """A grid of panels, one for each value of `keys` in the rows -> (figure, [(axes, rows)]); None without rows."""
    from matplotlib.figure import Figure

    parts = defaultdict(list)
    for row in rows:
        parts[tuple(row[key] for key in keys)].append(row)
    if not parts:
        return None, []
    across = min(columns, len(parts))
    down = -(-len(parts) // across)
    figure = Figure(figsize=(3.6 * across + 0.8, height * down + 0.9), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid[len(parts) :]:
        axes.set_axis_off()
    for axes, place in zip(grid, parts, strict=False):
        axes.set_title("\n".join(filter(None, (title(place), *place[2:]))), fontsize=8)
        axes.grid(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(zip(grid, parts.values(), strict=False))


def name_place(place):
    """'model, setting' of a panel's key."""
    return ", ".join(filter(None, map(str, place[:2])))


def finish(figure, panels, x, y):
    """Name the axes and put one legend below the panels."""
    handles = {}
    for axes, _ in panels:
        axes.set_xlabel(x)
        handles |= {text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[0][0].set_ylabel(y)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(4, max(1, len(handles))))
    return figure


def by_method(rows):
    """[(label, its rows)], in the labels' order."""
    return [(label, [r for r in rows if r["method"] == label]) for label in sorted({r["method"] for r in rows})]


def error_bar(row):
    """What an error bar reaches below and above an accuracy, in points: over seeds and problems where that is known."""
    low, high = (row["low"], row["high"]) if row["low"] is not None else (row["low_problems"], row["high_problems"])
    known = low is not None and high is not None
    return (100 * max(0, row["accuracy"] - low), 100 * max(0, high - row["accuracy"])) if known else (0, 0)


def draw_temperature(tables, styles):
    """Accuracy against sampling temperature. Dots: seeds. Bars: 95 % intervals over seeds and problems, or, with fewer
    than three seeds, over problems alone."""
    figure, panels = make_panels(in_every_setting(tables["results"]), PLACE, name_place)
    if figure is None:
        return None
    for axes, part in panels:
        lines = by_method(part)
        spread = 0.012 * (1 + max(r["temperature"] for r in part))
        for i, (label, points) in enumerate(lines):
            colour, marker, line = styles.get(label, OTHER)
            x = [r["temperature"] + spread * (i - (len(lines) - 1) / 2) for r in points]
            y = [100 * r["accuracy"] for r in points]
            bars = list(zip(*map(error_bar, points), strict=True))
            style = {"color": colour, "marker": marker, "linestyle": line, "label": label}
            axes.errorbar(x, y, yerr=bars, markersize=4, linewidth=1, capsize=2, **style)
            for place, r in zip(x, points, strict=True):
                axes.plot([place] * len(r["per_seed"]), [100 * v for v in r["per_seed"]], ".", color=colour, alpha=0.5)
        set_ticks(axes, {r["temperature"] for r in part})
    return finish(figure, panels, "temperature", "accuracy, %")


def draw_pass(tables, styles):
    """Pass@k (lines) and maj@k (dashed), means over seeds, at the highest temperature evaluated."""
    rows = in_every_setting([r for r in tables["results"] if "pass@2" in r])
    top = max((r["temperature"] for r in rows), default=None)
    figure, panels = make_panels([r for r in rows if r["temperature"] == top], PLACE, name_place)
    if figure is None:
        return None
    for axes, part in panels:
        for r in part:
            colour, marker, _ = styles.get(r["method"], OTHER)
            for kind, line in (("pass@", "-"), ("maj@", "--")):
                points = sorted((int(k.removeprefix(kind)), 100 * v) for k, v in r.items() if k.startswith(kind))
                label = r["method"] if line == "-" else None
                axes.plot(*zip(*points, strict=True), line, color=colour, marker=marker, markersize=4, label=label)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    return finish(figure, panels, f"k, at temperature {top:g}", "share of problems, %")


def draw_curves(tables, styles):
    """Training, at the learning rate that validation chose. Lines: means over seeds; bands: least to greatest seed."""
    acted = {r["metric"] for r in tables["curves"]} & {"trust_region/active_ratio"}
    hidden = {"trust_region/outside_ratio"} if acted else set()
    rows = [r | {"title": CURVE_TITLES[r["metric"]]} for r in tables["curves"] if r["metric"] not in hidden]
    across = len({r["metric"] for r in rows}) if len({(r["model"], r["setting"]) for r in rows}) > 1 else 3
    figure, panels = make_panels(rows, ("model", "setting", "title"), name_place, across, 2.2)
    if figure is None:
        return None
    for axes, part in panels:
        for label, points in by_method(part):
            colour, _, line = styles.get(label, OTHER)
            x, y, low, high = ([r[k] for r in points] for k in ("step", "mean", "low", "high"))
            axes.plot(x, y, line, color=colour, linewidth=1.4, label=label)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    return finish(figure, panels, "optimiser step", "")


def evaluated_at_lowest(tables):
    """The rows of runs that have a result, each data set at the lowest temperature it was evaluated at."""
    rows = [r for r in tables["runs"] if r.get("data_set")]
    lowest = {
        name: min(r["temperature"] for r in rows if r["data_set"] == name) for name in {r["data_set"] for r in rows}
    }
    return [r for r in rows if r["temperature"] == lowest[r["data_set"]]]


def set_ticks(axes, values):
    """Ticks at the values that were tried, and no others."""
    axes.set_xticks(sorted(values), [f"{value:g}" for value in sorted(values)])
    axes.set_xticks([], minor=True)


def draw_means(axes, part, key, styles):
    """A line of means over seeds against a column, a dot for each seed."""
    for label, points in by_method(part):
        colour, marker, line = styles.get(label, OTHER)
        groups = defaultdict(list)
        for r in points:
            groups[r[key]].append(100 * r["accuracy"])
        x = sorted(groups)
        means = [sum(groups[v]) / len(groups[v]) for v in x]
        axes.plot(x, means, line, color=colour, marker=marker, markersize=4, label=label)
        axes.plot([v for v in x for _ in groups[v]], [y for v in x for y in groups[v]], ".", color=colour, alpha=0.4)
    set_ticks(axes, {r[key] for r in part})


def draw_rates(tables, styles):
    """Accuracy against learning rate, lowest temperature. Lines: means over seeds; dots: seeds. Validation, not this
    figure, chose the rates of the table."""
    rows = [r for r in evaluated_at_lowest(tables) if r["learning_rate"]]
    if len({r["learning_rate"] for r in rows}) < 2:
        return None
    figure, panels = make_panels(rows, PLACE, name_place)
    for axes, part in panels:
        axes.set_xscale("log")
        draw_means(axes, part, "learning_rate", styles)
    return finish(figure, panels, "learning rate", "accuracy, %")


def draw_staleness(tables, styles):
    """Accuracy against staleness, the updates that a generation is used for, each method at the learning rate that
    validation chose there; lowest temperature."""
    rows = [
        r | {"updates": r["setting_key"][1]} for r in evaluated_at_lowest(tables) if r["chosen"] and r["setting_key"]
    ]
    if len({r["updates"] for r in rows}) < 2:
        return None
    figure, panels = make_panels([r | {"setting": ""} for r in rows], PLACE, name_place)
    for axes, part in panels:
        axes.set_xscale("log", base=2)
        draw_means(axes, part, "updates", styles)
    return finish(figure, panels, "updates a generation", "accuracy, %")


def draw_heat(axes, values, rows, columns, centred=False, top=100):
    """A heat map of {(row, column): percent}, each cell with its number. top: where the colours end."""
    table = [[values.get((r, c), math.nan) for c in columns] for r in rows]
    limit = max(5, max((abs(v) for v in values.values() if not math.isnan(v)), default=0)) if centred else top
    colours = ("RdBu", -limit, limit) if centred else ("cividis", 0, limit)
    axes.imshow(table, cmap=colours[0], vmin=colours[1], vmax=colours[2], aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    for i, line in enumerate(table):
        for j, v in enumerate(line):
            if not math.isnan(v):
                dark = abs(v) > 0.6 * limit if centred else v < limit / 2
                text = f"{v:+.1f}" if centred else f"{v:.0f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")


def draw_groups(tables, styles):
    """Accuracy in % by category and difficulty, and its difference from the baseline in points (blue is better);
    lowest temperature."""
    rows, doubled = tables["groups"], []
    lowest = {}
    for r in rows:
        lowest[r["data_set"]] = min(r["temperature"], lowest.get(r["data_set"], math.inf))
    for r in rows:
        if r["temperature"] == lowest[r["data_set"]]:
            where = f"{r['data_set']} by {r['by']}"
            doubled.append(r | {"where": where, "what": "accuracy, %", "shown": 100 * r["accuracy"]})
            doubled.append(r | {"where": where, "what": "difference, points", "shown": 100 * r["difference"]})
    count = max((len({r["method"] for r in doubled}), 1))
    figure, panels = make_panels(doubled, ("model", "setting", "where", "what"), name_place, 2, 1.4 + 0.22 * count)
    if figure is None:
        return None
    for axes, part in panels:
        values = {(r["method"], r["group"]): r["shown"] for r in part}
        labels, groups = (sorted({key[i] for key in values}) for i in (0, 1))
        draw_heat(axes, values, labels, groups, part[0]["what"].startswith("difference"))
    return figure


def draw_stability(tables, styles):
    """Stability map: mean accuracy in % of a method by learning rate and updates a generation; lowest temperature."""
    rows = [r | {"updates": r["setting_key"][1]} for r in evaluated_at_lowest(tables) if r["setting_key"]]
    rows = [r for r in rows if r["learning_rate"]]
    if min((len({r[k] for r in rows}) for k in ("updates", "learning_rate")), default=0) < 2:
        return None
    top = max(100 * r["accuracy"] for r in rows)
    figure, panels = make_panels(rows, ("model", "data_set", "method"), name_place, 4, 2.3)
    rates, updates = (sorted({r[k] for r in rows}) for k in ("learning_rate", "updates"))
    for axes, part in panels:
        groups = defaultdict(list)
        for r in part:
            groups[f"{r['updates']:g}", f"{r['learning_rate']:g}"].append(100 * r["accuracy"])
        means = {key: sum(values) / len(values) for key, values in groups.items()}
        draw_heat(axes, means, [f"{u:g}" for u in updates], [f"{r:g}" for r in rates], top=max(top, 1))
        axes.set_xlabel("learning rate")
    panels[0][0].set_ylabel("updates a generation")
    return figure
