"""What a report writes: tables of methods, runs, curves and groups, as CSV, Markdown and LaTeX.

Used by maths_report.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282); a table by itself:

    python -c "from reporting.tables import to_markdown; print(to_markdown(['method', 'p'], [['pspo', '0.5']]))"
"""

import math
import re

import numpy as np
import pandas as pd

from common.files import write_text
from reporting.comparison import CURVES, find_setting, label_runs, mean_metrics, percent, show_setting, validation

RATIOS = ["ratio_min", "ratio_max", "outside_ratio", "active_ratio", "approx_kl"]
BINS = 40  # parts of a run that a curve shows
STARRED = (
    "95 % intervals over seeds and problems; with an asterisk over problems alone, for want of seeds: they speak of "
    "these runs, not of the method. detectable: the smallest difference found with a power of 0.8."
)


# ---- tables: what the files and figures hold


def describe_run(run, label, method):
    """The part of a row of runs.csv that is the same for all data sets. method: the Method it is part of, or None."""
    names = [f"trust_region/{name}" for name in RATIOS]
    log = pd.DataFrame(run.log, columns=names, dtype=float).set_axis(RATIOS, axis=1)
    furthest = (log[["ratio_min", "ratio_max"]] - 1).abs().max().max()
    inert = None if math.isnan(furthest) else bool(furthest < 1e-6)  # the trust region had nothing to do
    seconds = run.record.outcome.wall_seconds if run.record else None
    device = str(run.record.basis.device) if run.record else None
    setting = find_setting(run)
    return {
        **{"run": str(run.path), "model": run.model, "setting": show_setting(setting), "setting_key": setting},
        **{"method": label, "seed": run.seed, "learning_rate": run.config.get("learning_rate"), "state": run.state},
        **{"chosen": method is not None, "validation": validation(run), "inert": inert},
        **log.mean(),
        **{"ratio_min": log["ratio_min"].min(), "ratio_max": log["ratio_max"].max()},
        **{"hours": None if seconds is None else seconds / 3600, "device": device},
    }


def make_runs_table(report):
    """A row for each run, data set and temperature; one for a run without a result."""
    rows, owner = [], {id(run): m for m in report["methods"] for run in m.runs}
    for run, label in zip(report["runs"], label_runs(report["runs"]), strict=True):
        fixed = describe_run(run, label, owner.get(id(run)))
        rows += [] if run.accuracy else [fixed]
        for key, accuracy in sorted(run.accuracy.items()):
            figures = {"accuracy": sum(accuracy.values()) / len(accuracy)} | mean_metrics([run], key)
            rows.append(fixed | {"data_set": key[0], "temperature": key[1]} | figures)
    return rows


def make_curves_table(report):
    """Training metrics of each method over its seeds: mean, least and greatest, in at most BINS parts of a run."""
    tables = {}
    for m in report["methods"]:
        logs = [pd.DataFrame(run.log, columns=["step", *CURVES], dtype=float) for run in m.runs]
        log = pd.concat(logs, keys=range(len(logs)), names=["run"]).reset_index("run")
        last = max(log["step"].max(), BINS)
        log["step"] = np.ceil(log["step"] * BINS / last) * last / BINS
        values = log.melt(["run", "step"], var_name="metric").dropna().groupby(["metric", "step", "run"], sort=False)
        parts = values["value"].mean().groupby(["metric", "step"], sort=False)
        place = m.model, show_setting(m.setting), m.label
        tables[place] = parts.agg(seeds="count", mean="mean", low="min", high="max")
    return pd.concat(tables, names=["model", "setting", "method"]).reset_index() if tables else []


def make_groups_table(report):
    """Accuracy by category and difficulty of each method, and its difference from the baseline."""
    rows, accuracy = [], {}
    for result in report["rows"]:
        key, runs = (result["data_set"], result["temperature"]), result["owner"].runs
        found = [run.summary[key[0]][f"{key[1]:g}"] for run in runs if key in run.accuracy]
        place = {k: result[k] for k in ("model", "setting", "data_set", "temperature")}
        for part, group in [(p, g) for p in ("category", "difficulty") for g in found[0].get(f"by_{p}", {})]:
            parts = [summary[f"by_{part}"][group] for summary in found]
            row = place | {"method": result["method"], "by": part, "group": group, "problems": parts[0]["prompts"]}
            row |= {"seeds": len(parts), "accuracy": sum(p["accuracy"]["value"] for p in parts) / len(parts)}
            accuracy[*place.values(), result["method"], group] = row["accuracy"]
            theirs = (*place.values(), result.get("baseline"), group)
            rows.append((row, theirs))
    return [row | {"difference": row["accuracy"] - accuracy.get(theirs, math.nan)} for row, theirs in rows]


# ---- files


def show_interval(row, name, prefix="", sign=""):
    """A figure of a result with its interval over seeds and problems, or, with an asterisk, over problems alone."""
    over, star = ("", "") if row[f"{prefix}low"] is not None else ("_problems", " *")
    return percent(row[f"{prefix}low{over}"], row[f"{prefix}high{over}"], row[name], sign) + star


def make_tables(report):
    """What the files, the page and the figures show: {name: DataFrame}."""
    rows = {"results": report["rows"], "controls": report["controls"], "runs": make_runs_table(report)}
    rows |= {"curves": make_curves_table(report), "groups": make_groups_table(report)}
    return {name: pd.DataFrame(table).drop(columns="owner", errors="ignore") for name, table in rows.items()}


def table_cells(rows):
    """The main table's header and lines of text, for Markdown and LaTeX."""
    header = ["model", "setting", "data set", "T", "method", "seeds", "rate", "rates tried", "accuracy, %"]
    header += ["difference", "p (Holm)", "detectable", "verdict"]
    lines = []
    for r in rows:
        line = [r["model"], r["setting"], r["data_set"], f"{r['temperature']:g}", r["method"], str(r["seeds"])]
        rate = "" if r["learning_rate"] is None else f"{r['learning_rate']:g}"
        line += [rate, str(r["rates_tried"]), show_interval(r, "accuracy")]
        gap, p, limit = "", "", ""
        if r.get("difference") is not None:
            gap = show_interval(r, "difference", "difference_", "+")
            p = "-" if r["p_holm"] is None else f"{r['p_holm']:.3f}"
            limit = "-" if r["detectable"] is None else f"{100 * r['detectable']:.1f}"
        lines.append([*line, gap, p, limit, r.get("verdict", "")])
    return header, lines


def to_markdown(header, lines):
    """A Markdown table."""
    header, *lines = [[re.sub(r"([\\|`*_<\[])", r"\\\1", cell) for cell in line] for line in [header, *lines]]
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, ["---"] * len(header), *lines])


def join_list(value):
    """A list of numbers as a CSV file has it."""
    return " ".join(f"{x:.6g}" for x in value) if isinstance(value, list) else value


def write_files(tables, rows, output):
    """The CSV files, results.md and results.tex."""
    for name, table in tables.items():
        (output / f"{name}.csv").unlink(missing_ok=True)  # of an earlier report
        if len(table):
            shown = table.drop(columns="setting_key", errors="ignore").map(join_list)
            write_text(output / f"{name}.csv", shown.to_csv(index=False, float_format="%.6g"))
    header, lines = table_cells(rows)
    write_text(output / "results.md", to_markdown(header, lines) + f"\n{STARRED}\n")
    latex = pd.DataFrame(lines, columns=header).to_latex(index=False, escape=True)
    write_text(output / "results.tex", f"{latex}% {STARRED}\n")
