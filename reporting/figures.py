"""Figures: the training curves of one run, and what a report shows of many; a PNG and an SVG each.

Used by training and the report's page (Probability Smoothing Policy Optimisation, arXiv 2509.21282). The curves
of some runs by themselves, one colour a method, one line a seed:

    python -c "from reporting.figures import plot_training; plot_training(['runs/demo/pspo/seed0'], 'curve.png')"
"""

import math
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd

from common.files import BadInput
from common.record import read_record
from common.runs import LOG_FILE, read_log
from reporting.comparison import CURVES

# Colours that stay apart for colour-blind readers: Okabe and Ito, https://jfly.uni-koeln.de/color/
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = "osD^vPX*"
# Beyond six methods a colour comes again with another line.
LINES = [line for line in ("-", "--", ":", "-.") for _ in COLOURS]
STYLE = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "legend.frameon": False, "savefig.dpi": 150}
STYLE |= {"axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}
PLACE = ("model", "setting", "data_set")


# ---- training curves of runs


def read_run(path):
    """(method, rows of metrics.jsonl); raises BadInput if the directory holds no run."""
    record = read_record(path)
    if record is None or not (path / LOG_FILE).is_file():
        raise BadInput(f"{path} is not the directory of a training run")
    return record.method, read_log(path / LOG_FILE)


def draw_curve(axes, rows, key, colour, label):
    """A training metric: faint as it is, strong its running mean over a twentieth of the run; dots for validation."""
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
        axes.plot(
            steps,
            pd.Series(values).rolling(max(1, len(values) // 20), min_periods=1).mean(),
            color=colour,
            linewidth=1.8,
            label=label,
        )
    checks = [(row["step"], row[f"eval_{key}"]) for row in rows if row.get(f"eval_{key}") is not None]
    if checks and not key.startswith("trust_region/"):  # in validation nothing is updated: every ratio is 1
        axes.plot(*zip(*checks, strict=True), "o", color=colour, markeredgecolor="white", markersize=7)


def plot_training(paths, output):
    """Draw the runs' curves to a PNG file, which appears by a rename; raises BadInput for a directory without a run."""
    import matplotlib

    runs = [read_run(Path(path)) for path in paths]
    styles = make_styles({method for method, _ in runs})
    shown = {key: CURVES[key] for key in ("reward", "trust_region/approx_kl")}
    shown = {"loss": "loss"} if set(styles) == {"sft"} else shown
    rows = pd.DataFrame({"key": key, "title": shown[key], "run": run} for key in shown for run in runs)
    with matplotlib.rc_context(STYLE):
        panels = make_panels(rows, ["title"], 1, 1.8, 7)
        for axes, part in panels:
            for (method, log), key in zip(part["run"], part["key"], strict=True):
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

    if not len(rows):
        return []
    parts = dict(list(rows.groupby(list(keys), sort=False)))
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

    styles, drawn = make_styles({method for table in tables.values() for method in table.get("method", ())}), []
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
    bare, others = rows[rows["setting"] == ""], rows[rows["setting"] != ""]
    settings = others[["model", "setting"]].drop_duplicates()
    return pd.concat([bare.drop(columns="setting").merge(settings, "left").fillna({"setting": ""}), others])


def at_lowest(rows):
    """The rows that have a result, each data set at the lowest temperature it was evaluated at."""
    return rows[rows["temperature"] == rows.groupby("data_set")["temperature"].transform("min")]


def mean_accuracy(rows, *keys):
    """Mean accuracy in %, over seeds, by the columns `keys`."""
    return 100 * rows.groupby(list(keys))["accuracy"].mean()


def error_bars(rows):
    """What error bars reach below and above accuracies, in points: over seeds and problems where that is known."""
    low, high = (rows[end].astype(float).fillna(rows[f"{end}_problems"].astype(float)) for end in ("low", "high"))
    return 100 * np.nan_to_num(np.maximum(0, [rows["accuracy"] - low, high - rows["accuracy"]]))


def set_ticks(axes, values):
    """Ticks at the values that were tried, and no others."""
    axes.set_xticks(sorted(set(values)), [f"{value:g}" for value in sorted(set(values))])
    axes.set_xticks([], minor=True)


def draw_temperature(tables, styles):
    """Accuracy against sampling temperature. Dots: seeds. Bars: 95 % intervals over seeds and problems, or, with fewer
    than three seeds, over problems alone."""
    panels = make_panels(in_every_setting(tables["results"]))
    for axes, part in panels:
        spread, lines = 0.012 * (1 + part["temperature"].max()), part.groupby("method")
        for i, (label, points) in enumerate(lines):
            x, style = points["temperature"] + spread * (i - (len(lines) - 1) / 2), styles[label] | {"markersize": 4}
            bars = {"yerr": error_bars(points), "linewidth": 1, "capsize": 2}
            axes.errorbar(x, 100 * points["accuracy"], label=label, **bars, **style)
            seeds = points.assign(x=x).explode("per_seed")
            axes.plot(seeds["x"], 100 * seeds["per_seed"], ".", color=style["color"], alpha=0.5)
        set_ticks(axes, part["temperature"])
    return finish(panels, "temperature", "accuracy, %")


def draw_pass(tables, styles):
    """Pass@k (lines) and maj@k (dashed), means over seeds, at the highest temperature evaluated."""
    rows = in_every_setting(tables["results"]).dropna(subset=tables["results"].filter(["pass@2"]).columns)
    top = rows["temperature"].max()
    panels = make_panels(rows[rows["temperature"] == top] if "pass@2" in rows else rows[:0])
    for axes, part in panels:
        for method, points in part.groupby("method"):
            for kind, line, label in (("pass@", "-", method), ("maj@", "--", None)):
                shares = points.filter(like=kind).rename(columns=lambda name: int(name.partition("@")[2])).mean()
                style = styles[method] | {"linestyle": line, "markersize": 4, "label": label}
                axes.plot(100 * shares.dropna().sort_index(), **style)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    return finish(panels, f"k, at temperature {top:g}", "share of problems, %")


def draw_curves(tables, styles):
    """Training, at the learning rate that validation chose. Lines: means over seeds; bands: least to greatest seed."""
    rows = tables["curves"]
    if not len(rows):
        return None
    if "trust_region/active_ratio" in set(rows["metric"]):
        rows = rows[rows["metric"] != "trust_region/outside_ratio"]
    several = len(rows[["model", "setting"]].drop_duplicates()) > 1
    titled = rows.assign(title=rows["metric"].map(CURVES))
    panels = make_panels(titled, ("model", "setting", "title"), rows["metric"].nunique() if several else 3, 2.2)
    for axes, part in panels:
        for label, points in part.groupby("method"):
            axes.plot(points["step"], points["mean"], linewidth=1.4, label=label, **styles[label] | {"marker": ""})
            band = {"color": styles[label]["color"], "alpha": 0.15, "linewidth": 0}
            axes.fill_between(points["step"], points["low"], points["high"], **band)
    return finish(panels, "optimiser step", "")


def draw_means(rows, key, styles, name, **scale):
    """Accuracy against a column of the runs' table: a line of means over seeds, a dot for each; None for one value."""
    panels = make_panels(rows if rows[key].nunique() > 1 else rows[:0])
    for axes, part in panels:
        axes.set_xscale("log", **scale)
        for label, points in part.groupby("method"):
            axes.plot(mean_accuracy(points, key), markersize=4, label=label, **styles[label])
            axes.plot(points[key], 100 * points["accuracy"], ".", color=styles[label]["color"], alpha=0.4)
        set_ticks(axes, part[key])
    return finish(panels, name, "accuracy, %")


def draw_rates(tables, styles):
    """Accuracy against learning rate, lowest temperature. Lines: means over seeds; dots: seeds. Validation, not this
    figure, chose the rates of the table."""
    rows = at_lowest(tables["runs"])
    return draw_means(rows[rows["learning_rate"] > 0], "learning_rate", styles, "learning rate")


def with_updates(rows):
    """Rows at their lowest temperature that have a setting, with the updates that a generation is used for."""
    return at_lowest(rows).assign(updates=lambda rows: rows["setting_key"].str[1]).dropna(subset="updates")


def draw_staleness(tables, styles):
    """Accuracy against staleness, the updates that a generation is used for, each method at the learning rate that
    validation chose there; lowest temperature."""
    rows = with_updates(tables["runs"]).assign(setting="")
    return draw_means(rows[rows["chosen"]], "updates", styles, "updates a generation", base=2)


def draw_heat(axes, values, limits, colours, number):
    """A heat map of a table of percentages, each cell with its number. limits: where the colours end."""
    axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(values.shape[1]), values.columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(values.shape[0]), values.index)
    for (row, column), value in np.ndenumerate(values):
        if not math.isnan(value):
            red, green, blue, _ = axes.images[0].to_rgba(value)
            colour = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
            axes.text(column, row, number.format(value), ha="center", va="center", fontsize=7, color=colour)


def draw_groups(tables, styles):
    """Accuracy in % by category and difficulty, and its difference from the baseline in points (blue is better);
    lowest temperature."""
    if not len(tables["groups"]):
        return None
    rows = at_lowest(tables["groups"])
    rows = rows.assign(where=rows["data_set"] + " by " + rows["by"])
    names = {"accuracy": "accuracy, %", "difference": "difference, points"}
    shown = rows.rename(columns=names).melt(["model", "setting", "where", "method", "group"], names.values(), "what")
    place = ["model", "setting", "where", "what"]
    panels = make_panels(shown.sort_values(place), place, 2, 1.4 + 0.22 * shown["method"].nunique())
    for axes, part in panels:
        values = 100 * part.pivot(index="method", columns="group", values="value").sort_index()
        far = max(5, values.abs().max(axis=None))
        if part["what"].iloc[0] == names["accuracy"]:
            draw_heat(axes, values, (0, 100), "cividis", "{:.0f}")
        else:
            draw_heat(axes, values, (-far, far), "RdBu", "{:+.1f}")
    return finish(panels, "", "")


def draw_stability(tables, styles):
    """Stability map: mean accuracy in % of a method by learning rate and updates a generation; lowest temperature."""
    rows = with_updates(tables["runs"])
    rows = rows[rows["learning_rate"] > 0]
    wide = min(rows["learning_rate"].nunique(), rows["updates"].nunique()) > 1
    panels = make_panels(rows if wide else rows[:0], ("model", "data_set", "method"), 4, 2.3)
    axis = [sorted(rows[key].unique()) for key in ("updates", "learning_rate")]
    for axes, part in panels:
        values = mean_accuracy(part, "updates", "learning_rate").unstack().reindex(axis[0]).reindex(columns=axis[1])
        values = values.rename(index="{:g}".format, columns="{:g}".format)
        draw_heat(axes, values, (0, 100 * rows["accuracy"].max()), "cividis", "{:.0f}")
    return finish(panels, "learning rate", "updates a generation")
