"""What a report writes: tables of methods, runs, curves and groups, as CSV, Markdown and LaTeX.

Used by maths_report.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282); a table by itself:

    python -c "from maths_tables import to_markdown; print(to_markdown(['method', 'p'], [['pspo', '0.5']]))"
"""

import csv
import io
import math
import re
from collections import defaultdict

from maths_common import write_text
from maths_comparison import find_setting, label_runs, mean_metrics, show_setting, validation

CURVES = (
    *("reward", "completions/mean_length", "entropy", "trust_region/approx_kl"),
    *("trust_region/active_ratio", "trust_region/outside_ratio"),
)
BINS = 40  # parts of a run that a curve shows
STARRED = (
    "95 % intervals over seeds and problems; with an asterisk over problems alone, for want of seeds: they speak of "
    "these runs, not of the method. detectable: the smallest difference found with a power of 0.8."
)


# ---- tables: what the files and figures hold


def mean_log(run, key):
    """Mean of a training metric over all rows that have it, None without any."""
    values = [row[key] for row in run.log if isinstance(row.get(key), int | float)]
    return sum(values) / len(values) if values else None


def describe_run(run, label, method):
    """The part of a row of runs.csv that is the same for all data sets. method: the Method it is part of, or None."""
    low, high = ([row[k] for row in run.log if k in row] for k in ("trust_region/ratio_min", "trust_region/ratio_max"))
    inert = all(abs(x - 1) < 1e-6 for x in low + high) if low + high else None  # the trust region had nothing to do
    seconds, setting = run.record.get("wall_seconds"), find_setting(run.config)
    return {
        **{"run": str(run.path), "model": run.model, "setting": show_setting(setting), "setting_key": setting},
        **{"method": label, "seed": run.seed, "learning_rate": run.config.get("learning_rate"), "state": run.state},
        **{"chosen": method is not None, "validation": validation(run), "inert": inert},
        **{"ratio_min": min(low, default=None), "ratio_max": max(high, default=None)},
        **{k: mean_log(run, f"trust_region/{k}") for k in ("outside_ratio", "active_ratio", "approx_kl")},
        **{"hours": None if seconds is None else seconds / 3600, "device": run.record.get("device")},
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
    rows = []
    for m in report["methods"]:
        last = max((row["step"] for run in m.runs for row in run.log), default=0)
        for key in CURVES:
            bins = defaultdict(lambda: defaultdict(list))
            for i, run in enumerate(m.runs):
                for row in run.log:
                    if isinstance(row.get(key), int | float):
                        bins[math.ceil(row["step"] * BINS / max(last, BINS))][i].append(row[key])
            for part, runs in sorted(bins.items()):
                means = [sum(values) / len(values) for values in runs.values()]
                row = {"model": m.model, "setting": show_setting(m.setting), "method": m.label, "metric": key}
                row |= {"step": part * max(last, BINS) / BINS, "seeds": len(means), "mean": sum(means) / len(means)}
                rows.append(row | {"low": min(means), "high": max(means)})
    return rows


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


def percent(low, high=None, value=None, sign=""):
    """'12.3 (10.1 to 14.5)' from fractions; with two values the interval alone."""
    if low is None or high is None or math.isnan(low):
        return "-" if value is None else f"{100 * value:{sign}.1f}"
    ends = f"({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"
    return ends if value is None else f"{100 * value:{sign}.1f} {ends}"


def show_interval(row, name, prefix="", sign=""):
    """A figure of a result with its interval over seeds and problems, or, with an asterisk, over problems alone."""
    over, star = ("", "") if row[f"{prefix}low"] is not None else ("_problems", " *")
    return percent(row[f"{prefix}low{over}"], row[f"{prefix}high{over}"], row[name], sign) + star


def make_tables(report):
    """What the files and figures show: {name: rows (dicts)}."""
    return {
        "results": report["rows"],
        "controls": report["controls"],
        "runs": make_runs_table(report),
        "curves": make_curves_table(report),
        "groups": make_groups_table(report),
    }


def show_value(value):
    """A value as a CSV file has it: numbers with six digits, lists with spaces, nothing for what is not known."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return " ".join(map(show_value, value)) if isinstance(value, list) else "" if value is None else str(value)


def write_csv(path, rows):
    """Rows (dicts) as CSV with a header: every key that any row has."""
    columns = [c for c in dict.fromkeys(key for row in rows for key in row) if c not in ("owner", "setting_key")]
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(columns)
    lines.writerows([show_value(row.get(column)) for column in columns] for row in rows)
    write_text(path, text.getvalue())


def table_cells(rows):
    """The main table's header and lines of text, for Markdown and LaTeX."""
    header = ["model", "setting", "data set", "T", "method", "seeds", "rate", "rates tried", "accuracy, %"]
    header += ["difference", "p (Holm)", "detectable", "verdict"]
    lines = []
    for r in rows:
        line = [r["model"], r["setting"], r["data_set"], f"{r['temperature']:g}", r["method"], str(r["seeds"])]
        line += [show_value(r["learning_rate"]), str(r["rates_tried"]), show_interval(r, "accuracy")]
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


def to_latex(header, lines):
    """A LaTeX table for the booktabs package."""
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {"<": "$<$", ">": "$>$"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special = str.maketrans(special)
    rows = [" & ".join(cell.translate(special) for cell in line) + r" \\" for line in [header, *lines]]
    top, end = rf"\begin{{tabular}}{{{'l' * len(header)}}}", r"\end{tabular}"
    return "\n".join([top, r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule", end, ""])


def write_files(tables, rows, output):
    """The CSV files, results.md and results.tex."""
    for name, table in tables.items():
        if table:
            write_csv(output / f"{name}.csv", table)
        else:
            (output / f"{name}.csv").unlink(missing_ok=True)  # of an earlier report
    header, lines = table_cells(rows)
    write_text(output / "results.md", to_markdown(header, lines) + f"\n{STARRED}\n")
    write_text(output / "results.tex", to_latex(header, lines) + f"% {STARRED}\n")
