"""Figures: the training curves of one run, and what a report shows of many; a PNG and an SVG each.

Used by maths_finetuning.py and maths_page.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282). The curves
of some runs by themselves, one colour a method, one line a seed:

    python -c "from maths_figures import plot_training; plot_training(['runs/demo/pspo/seed0'], 'curve.png')"
"""

import math
from collections import defaultdict
from itertools import cycle
from pathlib import Path

from maths_common import BadInput
from maths_runs import read_log, read_record

# Colours that stay apart for colour-blind readers: Okabe and Ito, https://jfly.uni-koeln.de/color/
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = "osD^vPX*"
# Beyond six methods a colour comes again with another line.
LINES = [line for line in ("-", "--", ":", "-.") for _ in COLOURS]
STYLE = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "legend.frameon": False, "savefig.dpi": 150}
STYLE |= {"axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}
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

    runs = [read_run(Path(path)) for path in paths]
    styles = make_styles({method for method, _ in runs})
    shown = {key: CURVE_TITLES[key] for key in ("reward", "trust_region/approx_kl")}
    shown = {"loss": "loss"} if set(styles) == {"sft"} else shown
    rows = [{"title": title, "curve": (log, key, method)} for key, title in shown.items() for method, log in runs]
    with matplotlib.rc_context(STYLE):
        panels = make_panels(rows, ("title",), 1, 1.8, 7)
        for axes, part in panels:
            for log, key, method in (row["curve"] for row in part):
                draw_curve(axes, log, key, styles[method]["color"], method)
        save_figure(finish(panels, "optimiser step   (line: running mean, dots: validation)", ""), Path(output), "png")


# ---- what every figure has


def make_styles(labels):
    """{label: its colour, marker and line}, the same in every figure."""
    looks = zip(sorted(labels), cycle(COLOURS), cycle(MARKERS), cycle(LINES))
    return {label: {"color": colour, "marker": marker, "linestyle": line} for label, colour, marker, line in looks}


def save_figure(figure, path, kind):
    """Write a figure as PNG or SVG through a rename."""
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)
    temporary.replace(path)


def make_panels(rows, keys=PLACE, columns=3, height=2.6, width=3.6):
    """A figure with a panel for each value of `keys` in the rows, the first two on one line -> [(axes, its rows)]."""
    from matplotlib.figure import Figure

    parts = defaultdict(list)
    for row in rows:
        parts[tuple(row[key] for key in keys)].append(row)
    if not parts:
        return []
    across = min(columns, len(parts))
    down = -(-len(parts) // across)
    figure = Figure(figsize=(width * across + 0.8, height * down + 0.9), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid[len(parts) :]:
        axes.set_axis_off()
    for axes, place in zip(grid, parts, strict=False):
        axes.set_title("\n".join(filter(None, (", ".join(filter(None, place[:2])), *place[2:]))), fontsize=8)
    return list(zip(grid, parts.values(), strict=False))


def finish(panels, x, y):
    """Name the axes, put one legend below the panels and lay the figure out -> the figure, None without panels."""
    if not panels:
        return None
    figure, handles = panels[0][0].figure, {}
    for axes, _ in panels:
        axes.set_xlabel(x)
        handles |= {text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[0][0].set_ylabel(y)
    if handles:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(4, len(handles)))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, for PNG and SVG: that takes most of the time
    return figure


# ---- what a report shows


def draw_figures(tables, output):
    """Draw every figure that the tables have something for, as PNG and SVG; returns [(name, caption, SVG text)]."""
    import matplotlib

    styles, drawn = make_styles({row["method"] for table in tables.values() for row in table}), []
    for draw in (draw_temperature, draw_pass, draw_curves, draw_rates, draw_staleness, draw_groups, draw_stability):
        name, caption = draw.__name__.removeprefix("draw_"), " ".join(draw.__doc__.split())
        files = {kind: output / f"{name}.{kind}" for kind in ("png", "svg")}
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
            figure = draw(tables, styles)
            for kind, path in files.items():
                if figure is None:
                    path.unlink(missing_ok=True)  # of an earlier report
                else:
                    save_figure(figure, path, kind)
        if figure is not None:
            drawn.append((name, caption, files["svg"].read_text(encoding="utf-8")))
    return drawn


def in_every_setting(rows):
    """Rows with those that have no setting, of a base model say, repeated in each setting of their model."""
    known, repeated = dict.fromkeys((r["model"], r["setting"]) for r in rows if r["setting"]), []
    for r in rows:
        here = [s for model, s in known if model == r["model"] and r["setting"] in ("", s)]
        repeated += [r | {"setting": s} for s in here or [""]]
    return repeated


def at_lowest(rows):
    """The rows that have a result, each data set at the lowest temperature it was evaluated at."""
    lowest, rows = {}, [r for r in rows if r.get("data_set")]
    for r in rows:
        lowest[r["data_set"]] = min(r["temperature"], lowest.get(r["data_set"], math.inf))
    return [r for r in rows if r["temperature"] == lowest[r["data_set"]]]


def mean_accuracy(rows, *keys):
    """{values of the columns `keys`: mean accuracy in %, over seeds}, in the values' order."""
    groups = defaultdict(list)
    for r in rows:
        groups[tuple(r[key] for key in keys)].append(100 * r["accuracy"])
    return {place: sum(values) / len(values) for place, values in sorted(groups.items())}


def by_method(rows):
    """[(label, its rows)], in the labels' order."""
    return [(label, [r for r in rows if r["method"] == label]) for label in sorted({r["method"] for r in rows})]


def error_bar(row):
    """What an error bar reaches below and above an accuracy, in points: over seeds and problems where that is known."""
    low, high = (row["low"], row["high"]) if row["low"] is not None else (row["low_problems"], row["high_problems"])
    known = low is not None and high is not None
    return (100 * max(0, row["accuracy"] - low), 100 * max(0, high - row["accuracy"])) if known else (0, 0)


def set_ticks(axes, values):
    """Ticks at the values that were tried, and no others."""
    axes.set_xticks(sorted(values), [f"{value:g}" for value in sorted(values)])
    axes.set_xticks([], minor=True)


def draw_temperature(tables, styles):
    """Accuracy against sampling temperature. Dots: seeds. Bars: 95 % intervals over seeds and problems, or, with fewer
    than three seeds, over problems alone."""
    panels = make_panels(in_every_setting(tables["results"]))
    for axes, part in panels:
        lines = by_method(part)
        spread = 0.012 * (1 + max(r["temperature"] for r in part))
        for i, (label, points) in enumerate(lines):
            x = [r["temperature"] + spread * (i - (len(lines) - 1) / 2) for r in points]
            y = [100 * r["accuracy"] for r in points]
            bars = list(zip(*map(error_bar, points), strict=True))
            axes.errorbar(x, y, yerr=bars, markersize=4, linewidth=1, capsize=2, label=label, **styles[label])
            dots = [(place, 100 * v) for place, r in zip(x, points, strict=True) for v in r["per_seed"]]
            axes.plot(*zip(*dots, strict=True), ".", color=styles[label]["color"], alpha=0.5)
        set_ticks(axes, {r["temperature"] for r in part})
    return finish(panels, "temperature", "accuracy, %")


def draw_pass(tables, styles):
    """Pass@k (lines) and maj@k (dashed), means over seeds, at the highest temperature evaluated."""
    rows = in_every_setting([r for r in tables["results"] if "pass@2" in r])
    top = max((r["temperature"] for r in rows), default=0)
    panels = make_panels([r for r in rows if r["temperature"] == top])
    for axes, part in panels:
        for r in part:
            for kind, line, label in (("pass@", "-", r["method"]), ("maj@", "--", None)):
                points = sorted((int(k.removeprefix(kind)), 100 * v) for k, v in r.items() if k.startswith(kind))
                style = styles[r["method"]] | {"linestyle": line, "markersize": 4, "label": label}
                axes.plot(*zip(*points, strict=True), **style)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    return finish(panels, f"k, at temperature {top:g}", "share of problems, %")


def draw_curves(tables, styles):
    """Training, at the learning rate that validation chose. Lines: means over seeds; bands: least to greatest seed."""
    acted = {r["metric"] for r in tables["curves"]} & {"trust_region/active_ratio"}
    hidden = {"trust_region/outside_ratio"} if acted else set()
    rows = [r | {"title": CURVE_TITLES[r["metric"]]} for r in tables["curves"] if r["metric"] not in hidden]
    across = len({r["metric"] for r in rows}) if len({(r["model"], r["setting"]) for r in rows}) > 1 else 3
    panels = make_panels(rows, ("model", "setting", "title"), across, 2.2)
    for axes, part in panels:
        for label, points in by_method(part):
            x, y, low, high = ([r[k] for r in points] for k in ("step", "mean", "low", "high"))
            axes.plot(x, y, linewidth=1.4, label=label, **styles[label] | {"marker": ""})
            axes.fill_between(x, low, high, color=styles[label]["color"], alpha=0.15, linewidth=0)
    return finish(panels, "optimiser step", "")


def draw_means(rows, key, styles, name, **scale):
    """Accuracy against a column of the runs' table: a line of means over seeds, a dot for each; None for one value."""
    panels = make_panels(rows if len({r[key] for r in rows}) > 1 else [])
    for axes, part in panels:
        axes.set_xscale("log", **scale)
        for label, points in by_method(part):
            means = mean_accuracy(points, key)
            axes.plot([x for (x,) in means], means.values(), markersize=4, label=label, **styles[label])
            dots = [(r[key], 100 * r["accuracy"]) for r in points]
            axes.plot(*zip(*dots, strict=True), ".", color=styles[label]["color"], alpha=0.4)
        set_ticks(axes, {r[key] for r in part})
    return finish(panels, name, "accuracy, %")


def draw_rates(tables, styles):
    """Accuracy against learning rate, lowest temperature. Lines: means over seeds; dots: seeds. Validation, not this
    figure, chose the rates of the table."""
    rows = [r for r in at_lowest(tables["runs"]) if r["learning_rate"]]
    return draw_means(rows, "learning_rate", styles, "learning rate")


def with_updates(rows):
    """Rows at their lowest temperature that have a setting, with the updates that a generation is used for."""
    return [r | {"updates": r["setting_key"][1]} for r in at_lowest(rows) if r["setting_key"]]


def draw_staleness(tables, styles):
    """Accuracy against staleness, the updates that a generation is used for, each method at the learning rate that
    validation chose there; lowest temperature."""
    rows = [r | {"setting": ""} for r in with_updates(tables["runs"]) if r["chosen"]]
    return draw_means(rows, "updates", styles, "updates a generation", base=2)


def draw_heat(axes, values, rows, columns, centred=False, top=100):
    """A heat map of {(row, column): percent}, each cell with its number. top: where the colours end."""
    table = [[values.get((r, c), math.nan) for c in columns] for r in rows]
    limit = max([5, *(abs(v) for v in values.values() if not math.isnan(v))]) if centred else top
    colours = ("RdBu", -limit, limit) if centred else ("cividis", 0, limit)
    axes.imshow(table, cmap=colours[0], vmin=colours[1], vmax=colours[2], aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    for (row, column), v in values.items():
        if not math.isnan(v):
            dark = abs(v) > 0.6 * limit if centred else v < limit / 2
            style = {"ha": "center", "va": "center", "fontsize": 7, "color": "white" if dark else "black"}
            axes.text(columns.index(column), rows.index(row), f"{v:+.1f}" if centred else f"{v:.0f}", **style)


def draw_groups(tables, styles):
    """Accuracy in % by category and difficulty, and its difference from the baseline in points (blue is better);
    lowest temperature."""
    shown = []
    for r in at_lowest(tables["groups"]):
        where = r | {"where": f"{r['data_set']} by {r['by']}"}
        shown.append(where | {"what": "accuracy, %", "shown": 100 * r["accuracy"]})
        shown.append(where | {"what": "difference, points", "shown": 100 * r["difference"]})
    height = 1.4 + 0.22 * len({r["method"] for r in shown})
    panels = make_panels(shown, ("model", "setting", "where", "what"), 2, height)
    for axes, part in panels:
        values = {(r["method"], r["group"]): r["shown"] for r in part}
        labels, groups = (sorted({key[i] for key in values}) for i in (0, 1))
        draw_heat(axes, values, labels, groups, part[0]["what"].startswith("difference"))
    return finish(panels, "", "")


def draw_stability(tables, styles):
    """Stability map: mean accuracy in % of a method by learning rate and updates a generation; lowest temperature."""
    rows = [r for r in with_updates(tables["runs"]) if r["learning_rate"]]
    rates, updates = (sorted({r[k] for r in rows}) for k in ("learning_rate", "updates"))
    top = max((100 * r["accuracy"] for r in rows), default=0)
    wide = min(len(rates), len(updates)) > 1
    panels = make_panels(rows if wide else [], ("model", "data_set", "method"), 4, 2.3)
    for axes, part in panels:
        means = {(f"{u:g}", f"{rate:g}"): v for (u, rate), v in mean_accuracy(part, "updates", "learning_rate").items()}
        draw_heat(axes, means, [f"{u:g}" for u in updates], [f"{r:g}" for r in rates], top=max(top, 1))
    return finish(panels, "learning rate", "updates a generation")
