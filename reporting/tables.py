"""What a report writes: tables of methods, failures, runs, curves and groups, as CSV, Markdown and LaTeX.

Used by maths_report.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282); a table by
itself:

    python -c "from reporting.tables import to_markdown; print(to_markdown(['method', 'p'], [['pspo', '0.5']]))"
"""

import math
import re

import numpy as np
import pandas as pd

from common.files import write_text
from reporting.comparison import describe_part, mean_metrics, percent, show_p
from reporting.methods import accuracy_of, find_setting, label_runs, show_setting
from reporting.runs import CURVES

RATIOS = ["ratio_min", "ratio_max", "outside_ratio", "active_ratio", "approx_kl"]
SAMPLE_SIZE = "trust_region/effective_sample_size"
BINS = 40  # parts of a run that a curve shows
STARRED = (
    "95 % intervals over seeds and problems; with an asterisk over problems alone, where there are fewer than three "
    "seeds: they speak of these runs, not of the method. Intervals are not adjusted; p is, by Holm within its family. "
    "detectable: the smallest true difference that the family's test finds with a power of 0.8, from three seeds on."
)


# ---- tables: what the files and figures hold


def make_tables(report):
    """What the files, the page and the figures show: {name: DataFrame}."""
    tables = {
        "results": report.rows,
        "controls": report.controls,
        "failures": report.failures,
        "runs": make_runs_table(report),
        "curves": make_curves_table(report),
        "ends": make_ends_table(report),
        "groups": make_groups_table(report),
    }
    hidden = ["owner", "theirs"]
    return {name: pd.DataFrame(rows).drop(columns=hidden, errors="ignore") for name, rows in tables.items()}


def describe_run(run, label, chosen):
    """The part of a row of runs.csv that is the same for all data sets. chosen: whether its method is judged by it."""
    names = [f"trust_region/{name}" for name in RATIOS]
    log = pd.DataFrame(run.log, columns=names, dtype=float).set_axis(RATIOS, axis=1)
    furthest = (log[["ratio_min", "ratio_max"]] - 1).abs().max().max()
    setting = find_setting(run)
    row = {
        "run": str(run.path),
        "model": run.model,
        "setting": show_setting(setting),
        "setting_key": setting,
        "method": label,
        "seed": run.seed,
        "learning_rate": run.config.get("learning_rate"),
        "state": run.state,
        "failure": run.failure or None,
        "tuning": run.tuning,
        "chosen": chosen,
        "validation": run.score,
        "inert": None if math.isnan(furthest) else bool(furthest < 1e-6),  # the trust region had nothing to do
        "steps": run.steps or None,
    }
    row |= log.mean().to_dict()
    row |= {"ratio_min": log["ratio_min"].min(), "ratio_max": log["ratio_max"].max()}
    row["collapsed_at"] = run.record.outcome.collapsed_at if run.record else None
    row["effective_sample_size"] = mean_sample_size(run, row["collapsed_at"])
    row["hours"] = run.record.outcome.wall_seconds / 3600 if run.record else None
    row["device"] = str(run.record.basis.device) if run.record else None
    row["sampler"] = run.record.outcome.sampler if run.record else None
    return row


def mean_sample_size(run, last):
    """Mean effective sample size of the ratios, a share of the tokens, over a run's updates until `last`, None for all.

    None where it was not logged.
    """
    rows = [row for row in run.log if last is None or row["step"] <= last]
    sizes = [row[SAMPLE_SIZE] for row in rows if SAMPLE_SIZE in row]
    return float(np.mean(sizes)) if sizes else None


def make_runs_table(report):
    """A row for each run, data set and temperature; one for a run without a result."""
    rows = []
    judged = {id(run) for m in report.methods for run in m.runs}
    for run, label in zip(report.runs, label_runs(report.runs), strict=True):
        fixed = describe_run(run, label, id(run) in judged)
        if not run.accuracy:
            rows.append(fixed)
        for key, accuracy in sorted(run.accuracy.items()):
            values = accuracy_of([run], key)
            figures = {"accuracy": float(values.mean()), "problems": len(accuracy)}
            rows.append({**fixed, "data_set": key[0], "temperature": key[1], **figures, **mean_metrics([run], key)})
    return rows


def make_curves_table(report):
    """Training metrics of each method over its seeds: mean, least and greatest, in at most BINS parts of a run.

    tokens, hours: how many tokens had been generated and how long it had taken by then, a mean over
    seeds.
    """
    tables = {}
    for m in report.methods:
        if not m.runs:  # only its tuning seeds have begun
            continue
        logs = [read_curves(run) for run in m.runs]
        log = pd.concat(logs, keys=range(len(logs)), names=["run"]).reset_index("run")
        last = max(log["step"].max(), BINS)
        log["step"] = np.ceil(log["step"] * BINS / last) * last / BINS
        spent = log.groupby(["step", "run"])[["tokens", "hours"]].max().groupby("step").mean()
        values = log.drop(columns=["tokens", "hours"]).melt(["run", "step"], var_name="metric").dropna()
        parts = values.groupby(["metric", "step", "run"], sort=False)["value"].mean()
        parts = parts.groupby(["metric", "step"], sort=False).agg(seeds="count", mean="mean", low="min", high="max")
        tables[m.model, show_setting(m.setting), m.label] = parts.join(spent, on="step")
    tables = {place: table for place, table in tables.items() if len(table)}
    return pd.concat(tables, names=["model", "setting", "method"]).reset_index() if tables else []


def read_curves(run):
    """A run's log as a table: step, the metrics of CURVES, tokens generated and hours of updates so far.

    A row holds the mean length of its completions; a generation is counted once for each update
    that it is used for, so that the length is divided by them.
    """
    log = pd.DataFrame(run.log, columns=["step", *CURVES, "step_time"], dtype=float)
    log = log[log[list(CURVES)].notna().any(axis=1)]
    rows = run.config.get("sequences_per_step")
    uses = run.record.updates_per_generation if run.record else None
    known = rows is not None and uses
    steps = log["step"].diff().fillna(log["step"])
    generations = rows * steps / run.config.get("num_iterations", 1) if known else math.nan
    log["tokens"] = (log["completions/mean_length"].ffill() * generations).cumsum()
    log["hours"] = (log["step_time"] * steps).cumsum() / 3600
    return log.drop(columns="step_time")


def make_ends_table(report):
    """For each method the share of its runs, at the chosen rate, that have failed by a step: steps of a staircase."""
    rows = []
    for m in report.methods:
        started = [run for run in m.runs if run.record is not None]
        ends = sorted(run.record.outcome.collapsed_at or run.steps for run in started if run.failure)
        last = max((run.steps for run in started), default=0)
        place = {"model": m.model, "setting": show_setting(m.setting), "method": m.label, "runs": len(started)}
        stairs = [(0, 0), *((step, i) for i, step in enumerate(ends, 1)), (last, len(ends))]
        rows += [{**place, "step": step, "failed": failed / len(started)} for step, failed in stairs if started]
    return rows


def make_groups_table(report):
    """Accuracy by category and difficulty of each method, and its difference from the baseline, with 95 % intervals."""
    rows = []
    for result in report.rows:
        place = {name: result[name] for name in ("model", "setting", "data_set", "temperature", "method")}
        for part, group, ids in list_groups(result):
            place |= {"by": part, "group": group}
            rows.append(place | describe_part(result, ids, report.question))
    return rows


def list_groups(result):
    """[("category" or "difficulty", its name, ids of its problems)] as a summary of the result's runs has them."""
    key = result["data_set"], result["temperature"]
    summaries = [run.summary[key[0]][f"{key[1]:g}"] for run in result["owner"].runs if key in run.accuracy]
    groups = []
    for part in ("category", "difficulty"):
        found = summaries[0].get(f"by_{part}", {}) if summaries else {}
        groups += [(part, group, figures["ids"]) for group, figures in found.items() if "ids" in figures]
    return groups


# ---- files


def show_accuracy(row):
    """A result's accuracy with its interval, an asterisk where it is over problems alone."""
    star = "" if row["over"] == "seeds and problems" else " *"
    return percent(row["low"], row["high"], row["accuracy"]) + star


def show_difference(row):
    """A result's difference with its interval, an asterisk where it is over problems alone; "" without a baseline."""
    if "difference" not in row:
        return ""
    star = "" if row["compared"] == "methods" else " *"
    return percent(row["difference_low"], row["difference_high"], row["difference"], "+") + star


def table_cells(rows):
    """The main table's header and lines of text, for Markdown and LaTeX."""
    header = "model,setting,data set,T,method,finished,rate,rates tried,accuracy %,difference,seeds,p (Holm)"
    header = [*header.split(","), "detectable", "verdict"]
    lines = []
    for row in rows:
        seeds = p = limit = ""
        if "difference" in row:
            seeds = "paired" if row["seeds_paired"] else "not paired"
            p = show_p(row["p_holm"])
            limit = "-" if row["detectable"] is None else f"{100 * row['detectable']:.1f}"
        rate = "" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
        tried = f"{row['rates_tried']}" + (f", chose the {row['edge']}" if row["edge"] else "")
        lines.append(
            [
                row["model"],
                row["setting"],
                row["data_set"],
                f"{row['temperature']:g}",
                row["method"],
                f"{row['finished']} of {row['started']}",
                rate,
                tried,
                show_accuracy(row),
                show_difference(row),
                seeds,
                p,
                limit,
                row.get("verdict", ""),
            ]
        )
    return header, lines


def to_markdown(header, lines):
    """A Markdown table."""
    header, *lines = [[re.sub(r"([\\|`*_<\[])", r"\\\1", cell) for cell in line] for line in [header, *lines]]
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, ["---"] * len(header), *lines])


def join_list(value):
    """A list of numbers as a CSV file has it."""
    return " ".join(f"{x:.6g}" for x in value) if isinstance(value, list) else value


def write_files(tables, report, output):
    """The CSV files, results.md and results.tex."""
    for name, table in tables.items():
        if len(table):
            shown = table.drop(columns="setting_key", errors="ignore").map(join_list)
            write_text(output / f"{name}.csv", shown.to_csv(index=False, float_format="%.6g"))
    header, lines = table_cells(report.rows)
    answer = " ".join(report.answer)
    rules = "".join(f"- {line}\n" for line in report.rules)
    write_text(output / "results.md", f"{answer}\n\n{to_markdown(header, lines)}\n{STARRED}\n\n{rules}")
    latex = pd.DataFrame(lines, columns=header).to_latex(index=False, escape=True)
    write_text(output / "results.tex", f"% {answer}\n{latex}% {STARRED}\n")
