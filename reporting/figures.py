"""Figures: the training curves of one run, and what a report shows of many; a PNG and an SVG each.

Used by training and the report's page (Probability Smoothing Policy Optimisation, arXiv
2509.21282). The curves of some runs by themselves, one colour a method, one line a seed:

    python -c "from reporting.figures import plot_training; plot_training(['runs/demo/pspo/seed0'], 'curve.png')"
"""

import math
import textwrap
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd

from common.files import BadInput
from common.record import read_record
from common.runs import LOG_FILE, read_log
from reporting.runs import CURVES

# Colours that stay apart for colour-blind readers: Okabe and Ito, https://jfly.uni-koeln.de/color/
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = "osD^vPX*"
# Beyond six methods a colour comes again with another line.
LINES = [line for line in ("-", "--", ":", "-.") for _ in COLOURS]
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
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
    figure = Figure(figsize=(max(width * across, 4.4) + 0.8, height * down + 0.9), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid[len(parts) :]:
        axes.set_axis_off()
    for axes, place in zip(grid, parts, strict=False):
        axes.set_title("\n".join(filter(None, (", ".join(filter(None, place[:2])), *place[2:]))), fontsize=8)
    return list(zip(grid, parts.values(), strict=False))


def finish(panels, x, y, caption=""):
    """Name the axes, put the caption above and one legend below the panels -> the laid-out figure, None without."""
    if not panels:
        return None
    figure = panels[0][0].figure
    handles = {}
    for axes, _ in panels:
        axes.set_xlabel(axes.get_xlabel() or x)
        handles |= {text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[0][0].set_ylabel(y)
    if handles:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(4, len(handles)))
    if caption:
        lines = textwrap.fill(" ".join(caption.split()), int(figure.get_figwidth() * 17))
        figure.suptitle(lines, x=0.01, ha="left", fontsize=8, color="#444444")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, for PNG and SVG: that takes most of the time
    return figure


# ---- what a report shows


def draw_figures(tables, question, output):
    """Draw every figure that the tables have something for, as PNG and SVG; returns [(name, caption, SVG text)]."""
    import matplotlib

    styles = make_styles({method for table in tables.values() for method in table.get("method", ())})
    primary = pick_primary(tables["results"], question)
    drawn = []
    for draw in DRAWN:
        name = draw.__name__.removeprefix("draw_")
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
            figure = draw(primary if draw is draw_differences else tables, styles)
            if figure is None:
                continue
            for kind in ("png", "svg"):
                save_figure(figure, output / f"{name}.{kind}", kind)
        caption = " ".join(draw.__doc__.split())
        drawn.append((name, caption, (output / f"{name}.svg").read_text(encoding="utf-8")))
    return drawn


def pick_primary(results, question):
    """The rows of results at the primary data set and temperature, with the margin in points as a column."""
    if not len(results):
        return results
    name, temperature = question.primary
    rows = results[(results["data_set"] == name) & (results["temperature"] == temperature)]
    return rows.assign(margin=math.nan if question.margin is None else 100 * question.margin)


def draw_differences(rows, styles):
    """The primary family: difference in accuracy from the baseline. Bars: 95 % intervals, not adjusted, over seeds and
    problems; thin: over problems alone, for these runs only; dotted: of the runs that have a score, where some have
    none and there is no verdict. Dots: seeds, where they are paired. Grey: the margin, where one was given."""
    if "difference" not in rows:
        return None
    rows = rows[rows["family"] == "primary"]
    panels = make_panels(rows, ("model", "setting"), 2, 0.9 + 0.28 * rows["method"].nunique(), 4.6)
    for axes, part in panels:
        for y, (_, row) in enumerate(part[::-1].iterrows()):
            colour = styles[row["method"]]["color"]
            ends = [100 * row["difference_low"], 100 * row["difference_high"]]
            line = {"linewidth": 3 if row["compared"] == "methods" else 1, "linestyle": ":" if row["lost"] else "-"}
            axes.plot(ends, [y, y], color=colour, **line)
            axes.plot(100 * row["difference"], y, "D", color=colour, markersize=5, markeredgecolor="white")
            dots = row["per_seed_difference"] if isinstance(row["per_seed_difference"], list) else []
            axes.plot(100 * np.array(dots), np.full(len(dots), y - 0.25), ".", color=colour, alpha=0.7)
        axes.axvline(0, color="#444444", linewidth=1)
        margin = part["margin"].iloc[0]
        if not math.isnan(margin):
            axes.axvspan(-margin, margin, color="#999999", alpha=0.2, linewidth=0)
        axes.set_yticks(range(len(part)), list(part["method"][::-1]))
        axes.set_ylim(-0.6, len(part) - 0.4)
    baseline = ", ".join(sorted(set(rows["baseline"])))
    return finish(panels, f"points more than {baseline}", "", draw_differences.__doc__)


def in_every_setting(rows):
    """Rows with those that have no setting, of a base model say, repeated in each setting of their model."""
    bare = rows[rows["setting"] == ""]
    others = rows[rows["setting"] != ""]
    settings = others[["model", "setting"]].drop_duplicates()
    return pd.concat([bare.drop(columns="setting").merge(settings, "left").fillna({"setting": ""}), others])


def at_lowest(rows):
    """The rows that have a result, each data set at the lowest temperature it was evaluated at."""
    return rows[rows["temperature"] == rows.groupby("data_set")["temperature"].transform("min")]


def mean_accuracy(rows, *keys):
    """Mean accuracy in %, over seeds, by the columns `keys`."""
    return 100 * rows.groupby(list(keys))["accuracy"].mean()


def error_bars(rows):
    """What error bars reach below and above accuracies, in points."""
    return 100 * np.maximum(0, [rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]])


def set_ticks(axes, values):
    """Ticks at the values that were tried, and no others."""
    axes.set_xticks(sorted(set(values)), [f"{value:g}" for value in sorted(set(values))])
    axes.set_xticks([], minor=True)


def draw_temperature(tables, styles):
    """Accuracy against sampling temperature. Dots: seeds. Bars: 95 % intervals over seeds and problems, or, with fewer
    than three seeds, over problems alone."""
    rows = in_every_setting(tables["results"])
    panels = make_panels(rows, width=max(3.6, 0.45 * rows["method"].nunique()))
    for axes, part in panels:
        spread = 0.012 * (1 + part["temperature"].max())
        lines = part.groupby("method")
        for i, (label, points) in enumerate(lines):
            x = points["temperature"] + spread * (i - (len(lines) - 1) / 2)
            style = styles[label] | {"markersize": 4, "linewidth": 1, "capsize": 2}
            axes.errorbar(x, 100 * points["accuracy"], yerr=error_bars(points), label=label, **style)
            seeds = points.assign(x=x).explode("per_seed")
            axes.plot(seeds["x"], 100 * seeds["per_seed"], ".", color=style["color"], alpha=0.5)
        set_ticks(axes, part["temperature"])
    return finish(panels, "temperature", "accuracy, %", draw_temperature.__doc__)


def draw_pass(tables, styles):
    """Pass@k (lines) and maj@k (dashed), means over seeds, at the highest temperature evaluated. Bands: 95 %
    intervals of pass@k, over problems and, from three seeds on, over seeds."""
    rows = in_every_setting(tables["results"]).dropna(subset=tables["results"].filter(["pass@2"]).columns)
    top = rows["temperature"].max()
    panels = make_panels(rows[rows["temperature"] == top] if "pass@2" in rows else rows[:0])
    for axes, part in panels:
        for method, points in part.groupby("method"):
            for kind, line, label in (("pass@", "-", method), ("maj@", "--", None)):
                shares = by_k(points, kind)
                style = styles[method] | {"linestyle": line, "markersize": 4, "label": label}
                axes.plot(shares["mean"], **style)
                if kind == "pass@":
                    ends = shares["mean"] - shares["half"], shares["mean"] + shares["half"]
                    axes.fill_between(shares.index, *ends, color=style["color"], alpha=0.12, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    return finish(panels, f"k, at temperature {top:g}", "share of problems, %", draw_pass.__doc__)


def by_k(points, kind):
    """pass@k or maj@k of a method's rows by k: a table with mean and half the interval, in points."""
    names = [name for name in points if name.startswith(kind) and "±" not in name]
    shares = pd.DataFrame(
        {"mean": 100 * points[names].mean(), "half": [100 * points[f"{name} ±"].mean() for name in names]}
    )
    shares.index = [int(name.partition("@")[2]) for name in names]
    return shares.dropna(subset="mean").sort_index()


def draw_curves(tables, styles):
    """Training, at the learning rate that validation chose. Lines: means over seeds, of which one that failed is part
    until it ended; bands: least to greatest seed."""
    rows = tables["curves"]
    if not len(rows):
        return None
    if "trust_region/active_ratio" in set(rows["metric"]):
        rows = rows[rows["metric"] != "trust_region/outside_ratio"]
    several = len(rows[["model", "setting"]].drop_duplicates()) > 1
    titled = rows.assign(title=rows["metric"].map(CURVES))
    panels = make_panels(titled, ("model", "setting", "title"), rows["metric"].nunique() if several else 3, 2.2)
    for axes, part in panels:
        draw_lines(axes, part, "step", styles)
    return finish(panels, "optimiser step", "", draw_curves.__doc__)


def draw_budget(tables, styles):
    """Reward against what it cost: tokens generated and hours of updates so far, means over seeds, at the learning
    rate that validation chose. Bands: least to greatest seed."""
    rows = tables["curves"]
    if not len(rows) or "reward" not in set(rows["metric"]):
        return None
    rows = rows[rows["metric"] == "reward"]
    rows = rows.assign(tokens=rows["tokens"] / 1e6)
    costs = {"tokens": "tokens generated, millions", "hours": "hours of updates"}
    shown = [rows.dropna(subset=name).assign(cost=name, title=f"against {title}") for name, title in costs.items()]
    panels = make_panels(pd.concat(shown), ("model", "setting", "title"), 2)
    for axes, part in panels:
        draw_lines(axes, part, part["cost"].iloc[0], styles)
        axes.set_xlabel(costs[part["cost"].iloc[0]])
        axes.locator_params(axis="x", nbins=6)
    return finish(panels, "", "reward", draw_budget.__doc__)


def draw_lines(axes, part, x, styles):
    """A line for each method: means over seeds against a column; a band from the least to the greatest seed."""
    for label, points in part.groupby("method"):
        axes.plot(points[x], points["mean"], linewidth=1.4, label=label, **styles[label] | {"marker": ""})
        band = {"color": styles[label]["color"], "alpha": 0.15, "linewidth": 0}
        axes.fill_between(points[x], points["low"], points["high"], **band)


def draw_failures(tables, styles):
    """Share of a method's runs that have failed by an optimiser step, at the learning rate that validation chose: they
    crashed, lost their finite loss, collapsed, or ended below the base model (counted at their last step)."""
    rows = tables["ends"]
    panels = make_panels(rows if len(rows) and rows["failed"].max() > 0 else rows[:0], ("model", "setting"))
    for axes, part in panels:
        for label, points in part.groupby("method"):
            style = styles[label] | {"marker": ""}
            axes.plot(points["step"], 100 * points["failed"], drawstyle="steps-post", label=label, **style)
        axes.set_ylim(-3, 103)
    return finish(panels, "optimiser step", "runs failed, %", draw_failures.__doc__)


def draw_means(rows, key, styles, words, **scale):
    """Accuracy against a column of the runs' table: a line of means over seeds, a dot for each; None for one value.

    words: the axis's name and the caption.
    """
    panels = make_panels(rows if rows[key].nunique() > 1 else rows[:0])
    for axes, part in panels:
        axes.set_xscale("log", **scale)
        for label, points in part.groupby("method"):
            axes.plot(mean_accuracy(points, key), markersize=4, label=label, **styles[label])
            axes.plot(points[key], 100 * points["accuracy"], ".", color=styles[label]["color"], alpha=0.4)
        set_ticks(axes, part[key])
    return finish(panels, words[0], "accuracy, %", words[1])


def at_several_rates(rows):
    """The rows of runs if some method has several learning rates among them, else none."""
    rows = rows[rows["learning_rate"] > 0]
    rates = rows.groupby(["model", "method"])["learning_rate"].nunique()
    return rows if (rates > 1).any() else rows[:0]


def draw_validation(tables, styles):
    """Validation score against learning rate, of the runs that chose it: those with a tuning seed, or all of a method
    that has none. Lines: means over seeds; dots: seeds."""
    runs = tables["runs"].drop_duplicates("run").dropna(subset="validation")
    tuned = runs.groupby(["model", "setting", "method"])["tuning"].transform("any")
    runs = at_several_rates(runs[runs["tuning"] | ~tuned])
    panels = make_panels(runs, ("model", "setting"))
    for axes, part in panels:
        axes.set_xscale("log")
        for label, points in part.groupby("method"):
            axes.plot(points.groupby("learning_rate")["validation"].mean(), markersize=4, label=label, **styles[label])
            axes.plot(points["learning_rate"], points["validation"], ".", color=styles[label]["color"], alpha=0.4)
        set_ticks(axes, part["learning_rate"])
    return finish(panels, "learning rate", "validation score", draw_validation.__doc__)


def draw_rates(tables, styles):
    """Accuracy against learning rate, lowest temperature. Lines: means over seeds; dots: seeds. Validation, not this
    figure, chose the rates of the table."""
    rows = at_several_rates(at_lowest(tables["runs"]))
    return draw_means(rows, "learning_rate", styles, ("learning rate", draw_rates.__doc__))


def with_updates(rows):
    """Rows that have a setting, with the updates that a generation is used for."""
    return rows.assign(updates=rows["setting_key"].str[1]).dropna(subset="updates")


def draw_staleness(tables, styles):
    """Accuracy against staleness, the updates that a generation is used for, each method at its chosen learning rate;
    lowest and highest temperature. Lines: means over seeds; dots: seeds."""
    rows = with_updates(tables["runs"][tables["runs"]["chosen"]])
    ends = rows.groupby("data_set")["temperature"]
    rows = rows[(rows["temperature"] == ends.transform("min")) | (rows["temperature"] == ends.transform("max"))]
    rows = rows.assign(setting=rows["temperature"].map("temperature {:g}".format))
    return draw_means(rows, "updates", styles, ("updates a generation", draw_staleness.__doc__), base=2)


def draw_heat(axes, values, texts, limits, colours):
    """A heat map of a table of percentages, each cell with its text. limits: where the colours end."""
    axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(values.shape[1]), values.columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(values.shape[0]), values.index)
    for (row, column), value in np.ndenumerate(values):
        if not math.isnan(value):
            red, green, blue, _ = axes.images[0].to_rgba(value)
            colour = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
            text = texts.iloc[row, column]
            axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)


def draw_groups(tables, styles):
    """Accuracy in % by category and difficulty, and its difference from the baseline in points (blue is better), each ±
    half of its 95 % interval, which is over problems and, from three seeds on, seeds, and not adjusted; problems are
    paired, and seeds as in the table. Exploratory; lowest temperature."""
    if not len(tables["groups"]):
        return None
    rows = in_every_setting(at_lowest(tables["groups"]))
    rows = rows.assign(where=rows["data_set"] + " by " + rows["by"])
    place = ["model", "setting", "where", "what"]
    shown = pd.concat([take_figure(rows, "accuracy", "%"), take_figure(rows, "difference", "points", "difference_")])
    shown = shown.sort_values(place)
    panels = make_panels(shown, place, 2, 1.4 + 0.26 * shown["method"].nunique(), 4.6)
    for axes, part in panels:
        values, halves = (100 * pivot_groups(part, name) for name in ("value", "half"))
        sign = "" if part["what"].iloc[0].startswith("accuracy") else "+"
        texts = values.map(f"{{:{sign}.0f}}".format) + halves.map(lambda x: "" if math.isnan(x) else f" ±{x:.0f}")
        if sign:
            far = max(5, values.abs().max(axis=None))
            draw_heat(axes, values, texts, (-far, far), "RdBu")
        else:
            draw_heat(axes, values, texts, (0, 100), "cividis")
    return finish(panels, "", "", draw_groups.__doc__)


def take_figure(rows, name, unit, prefix=""):
    """The rows that have a figure, with what it is called, its value and half its interval as columns."""
    rows = rows.dropna(subset=name) if name in rows else rows[:0].assign(**{name: math.nan})
    half = (rows[f"{prefix}high"] - rows[f"{prefix}low"]) / 2 if len(rows) else math.nan
    return rows.assign(what=f"{name}, {unit}", value=rows[name], half=half)


def pivot_groups(part, name):
    """A column of the groups' table as a table of methods by groups."""
    return part.pivot(index="method", columns="group", values=name).astype(float).sort_index()


def draw_stability(tables, styles):
    """Stability map: mean accuracy in % of a method by learning rate and updates a generation; below it, how many of
    the runs there failed; lowest temperature."""
    rows = at_several_rates(with_updates(at_lowest(tables["runs"])))
    wide = min(rows["learning_rate"].nunique(), rows["updates"].nunique()) > 1
    panels = make_panels(rows if wide else rows[:0], ("model", "data_set", "method"), 4, 2.3)
    updates = sorted(rows["updates"].unique())
    rates = sorted(rows["learning_rate"].unique())
    failures = count_failed(tables["runs"])
    for axes, part in panels:
        values = mean_accuracy(part, "updates", "learning_rate").unstack().reindex(updates).reindex(columns=rates)
        texts = values.map("{:.0f}".format)
        for (model, method, step, rate), (failed, runs) in failures.items():
            if (model, method) == (part["model"].iloc[0], part["method"].iloc[0]) and failed and step in texts.index:
                texts.loc[step, rate] += f"\n{failed}/{runs} failed"
        values = values.rename(index="{:g}".format, columns="{:g}".format)
        draw_heat(axes, values, texts, (0, 100 * rows["accuracy"].max()), "cividis")
    return finish(panels, "learning rate", "updates a generation", draw_stability.__doc__)


def draw_collapses(tables, styles):
    """Effective sample size of the importance ratios, a mean over the updates until a run collapsed (filled) or ended
    (hollow), against that update. All runs, at every learning rate that was tried."""
    runs = tables["runs"].drop_duplicates("run")
    runs = runs.dropna(subset=["effective_sample_size", "steps"])
    panels = make_panels(runs if runs["collapsed_at"].notna().any() else runs[:0], ("model", "setting"))
    for axes, part in panels:
        for label, points in part.groupby("method"):
            collapsed = points["collapsed_at"].notna()
            style = {"linestyle": "", "marker": styles[label]["marker"], "color": styles[label]["color"]}
            for chosen, face in ((collapsed, style["color"]), (~collapsed, "none")):
                shown = points[chosen]
                ends = shown["collapsed_at"].fillna(shown["steps"]).astype(float)
                axes.plot(ends, shown["effective_sample_size"], markerfacecolor=face, **style)
            axes.plot([], [], label=label, **style)
        axes.set_ylim(top=1.02)
    return finish(panels, "update", "effective sample size", draw_collapses.__doc__)


def count_failed(runs):
    """{(model, method, updates a generation, learning rate): (failed, started)} of the runs' table."""
    once = runs[runs["setting_key"].str.len() > 0].drop_duplicates("run")
    once = once.assign(updates=once["setting_key"].str[1])
    keys = ["model", "method", "updates", "learning_rate"]
    return {place: (part["failure"].notna().sum(), len(part)) for place, part in once.groupby(keys)}


DRAWN = (
    draw_differences,
    draw_temperature,
    draw_failures,
    draw_pass,
    draw_curves,
    draw_budget,
    draw_validation,
    draw_rates,
    draw_staleness,
    draw_groups,
    draw_stability,
    draw_collapses,
)
