"""The page of a report: one HTML file with its tables, figures and a browser of problems, which needs no network.

Used by maths_report.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282); its template,
style and script lie beside it. Completions are packed by problem (gzip, base64) and unpacked by the
reader's browser where one is opened, so that 160,000 of them load at once. How an unpacked part
looks:

    python -c "from reporting.page.page import pack; print(pack({'a': 1}))"
"""

import base64
import gzip
import hashlib
import json
import math
import re
from collections import defaultdict
from pathlib import Path

from common.datasets import find_dataset, load_maths_dataset
from common.files import BadInput, get_cache_dir, go_offline, write_text
from evaluation.rows import read_rows
from reporting.methods import show_setting
from reporting.runs import find_evaluation

PAGE = Path(__file__).resolve().parent
MAX_COMPLETIONS = 200_000  # in the page; beyond, the first samples of each problem, then every n-th problem
MAX_CHARACTERS = 200_000_000  # of them all


def write_page(report, tables, figures, path, cache_dir):
    """Write the page to `path`; returns what its reader should know. figures: [(name, caption, SVG text)]."""
    import jinja2
    from markupsafe import Markup

    problems, notes = read_questions(report.question.keys, cache_dir)
    index, answers, note = make_browser(report, problems)
    names = ("results", "controls", "failures", "runs")
    shown = {name: json.loads(tables[name].to_json(orient="records")) for name in names}
    title = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(PAGE), autoescape=True, trim_blocks=True)
    text = environment.get_template("index.html.j2").render(
        css=Markup((PAGE / "page.css").read_text(encoding="utf-8")),
        js=Markup((PAGE / "page.js").read_text(encoding="utf-8")),
        data=Markup(to_script({**shown, "title": title})),
        index=pack(index),
        answers={place: pack(methods) for place, methods in answers.items()},
        figures=[(name, caption, Markup(svg[svg.index("<svg") :])) for name, caption, svg in figures],
        answer=report.answer,
        rules=report.rules,
        notes=report.notes + notes,
        count=len(report.runs),
        models=", ".join(sorted({run.model for run in report.runs})),
        baseline=report.question.baseline,
        primary=report.question.primary,
        controls=len(tables["controls"]) > 0,
        browser_note=note,
    )
    write_text(path, text)
    return notes


def to_script(value):
    """JSON for a script element, which nothing in it can end."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def pack(value):
    """JSON, gzip, base64; the same bytes for the same value."""
    return base64.b64encode(gzip.compress(json.dumps(value).encode(), 6, mtime=0)).decode()


# ---- the problems


def read_questions(keys, cache_dir):
    """({data set: {id: its row}}, notes): questions for the page, without those of a data set that is not at hand."""
    go_offline()
    found = {}
    notes = []
    for name in sorted({name for name, _ in keys}):
        try:
            rows = load_maths_dataset(name, find_dataset(name)[1].eval_split, get_cache_dir(cache_dir)).to_list()
            found[name] = {row["id"]: row for row in rows}
        except BadInput as error:
            notes.append(f"the page shows the problems of {name} without their questions: {error}")
    return found, notes


def choose_samples(methods, keys):
    """What the page can hold: (samples of a problem, the first ones; n, for every n-th problem; characters of each)."""
    having = [(run, key) for key in keys for m in methods for run in m.runs if key in run.accuracy]
    given = [1 if key[1] == 0 else run.settings.samples_per_prompt for run, key in having]
    sizes = [(len(run.accuracy[key]), most) for (run, key), most in zip(having, given, strict=True)]
    total = 0
    for samples in range(max((most for _, most in sizes), default=1), 0, -1):
        total = sum(problems * min(samples, most) for problems, most in sizes)
        if total <= MAX_COMPLETIONS:
            break
    limit = max(200, MAX_CHARACTERS // max(1, min(total, MAX_COMPLETIONS)))
    return samples, max(1, math.ceil(total / MAX_COMPLETIONS)), limit


def make_browser(report, questions):
    """(index, {"view-problem": {method's index: completions}}, what the reader should know)."""
    keys = report.question.keys
    methods = [m for m in report.methods if any(run.accuracy for run in m.runs)]
    samples, step, limit = choose_samples(methods, keys)
    several = len({(m.model, m.setting) for m in methods}) > 1
    index = {"methods": [describe(m, several) for m in methods], "problems": {}, "views": []}
    answers = defaultdict(dict)
    for name in sorted({name for name, _ in keys}):
        tables = [t for m in methods for run in m.runs for key, t in run.accuracy.items() if key[0] == name]
        ids = sorted({i for table in tables for i in table}, key=natural)
        rows = questions.get(name, {})
        columns = ("question", "gold", "category", "difficulty")
        index["problems"][name] = [{"id": i} | {c: rows.get(i, {}).get(c, "") for c in columns} for i in ids]
        temperatures = [t for known, t in keys if known == name]
        shown = {p: i for p, i in enumerate(ids) if p % step == 0}
        places = {(i, t): f"{v}-{p}" for v, t in enumerate(temperatures, len(index["views"])) for p, i in shown.items()}
        index["views"] += [make_view(methods, (name, t), ids) for t in temperatures]
        for place, method, answer in read_answers(methods, name, places, (samples, limit)):
            answers[place].setdefault(method, []).append(answer)
    for completions in (each for place in answers.values() for each in place.values()):
        completions.sort(key=lambda answer: (str(answer[0]), answer[1]))  # by seed and sample
    note = f"In this page: up to {samples} completions of a run for each problem"
    note += f", of one problem in {step}" if step > 1 else ""
    note += f", each up to {limit:,} characters" if answers and limit < 10_000 else ""
    return index, answers, note + ". The files of the evaluation hold them all."


def natural(text):
    """A key that sorts p2 before p10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", text)]


def describe(m, several):
    """What the page says of a method; `several`: there is more than one model or setting to tell apart."""
    setting = show_setting(m.setting)
    group = ", ".join(filter(None, (m.model, setting)))
    name = f"{m.label} ({group})" if several and not setting else m.label
    return {"name": name, "label": m.label, "model": m.model, "setting": setting, "group": group}


def make_view(methods, key, ids):
    """The methods that have a data set and temperature, and their accuracy on each problem."""
    having = [i for i, m in enumerate(methods) if any(key in run.accuracy for run in m.runs)]
    tables = [[run.accuracy[key] for run in methods[i].runs if key in run.accuracy] for i in having]
    problems = [p for p, i in enumerate(ids) if i in tables[0][0]] if tables else []  # the same in all
    accuracy = [[round(sum(t[ids[p]] for t in runs) / len(runs), 3) for runs in tables] for p in problems]
    place = {"data_set": key[0], "temperature": key[1]}
    return {**place, "methods": having, "problems": problems, "accuracy": accuracy}


def read_answers(methods, name, places, limits):
    """Yields (place, method's index, a stored completion as a list) of a data set, as far as `places` has it.

    places: {(problem's id, temperature): where it is shown}. limits: samples of a run, characters
    of each.
    """
    samples, limit = limits
    having = [(i, run) for i, m in enumerate(methods) for run in m.runs if any(key[0] == name for key in run.accuracy)]
    for i, run in having:
        for row in read_rows(find_evaluation(run.path) / f"{name}.jsonl"):
            place = places.get((row["id"], row["temperature"]))
            sample = row.get("sample", 0)
            if place and (name, row["temperature"]) in run.accuracy and sample < samples:
                text = str(row.get("completion", ""))
                text = text if len(text) <= limit else text[:limit] + " […]"
                answer = [run.seed, sample, text, int(row["correct"]), row.get("answer"), row.get("rule")]
                yield place, i, [*answer, int(row.get("finish_reason") == "length"), row.get("tokens")]
