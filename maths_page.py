"""The page of a report: one HTML file with its tables, figures and a browser of problems, which needs no network.

Used by maths_report.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282); its template, style and script
lie in page/. Completions are packed by problem (gzip, base64) and unpacked by the reader's browser where one is opened,
so that 160,000 of them load at once. How an unpacked part looks:

    python -c "from maths_page import pack; print(pack({'a': 1}))"
"""

import base64
import gzip
import hashlib
import json
import math
import re
from collections import defaultdict

from maths_common import ROOT, BadInput, get_cache_dir, go_offline, write_text
from maths_comparison import show_setting
from maths_datasets import find_dataset, load_maths_dataset

PAGE = ROOT / "page"
MAX_COMPLETIONS = 200_000  # in the page; beyond, the first samples of each problem, then every n-th problem
MAX_CHARACTERS = 200_000_000  # of them all
CHUNK = 2000  # completions that are packed together, and unpacked when one of their problems is opened


def write_page(report, tables, figures, args, read):
    """Write index.html. figures: [(name, caption, SVG text)]; read(run, data set) yields stored completions (dicts)."""
    import jinja2
    from markupsafe import Markup

    problems, notes = read_questions(report["keys"], args.cache_dir)
    index, chunks, note = make_browser(report, problems, read)
    shown = {name: json.loads(tables[name].to_json(orient="records")) for name in ("results", "controls", "runs")}
    title = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(PAGE), autoescape=True, trim_blocks=True)
    text = environment.get_template("index.html.j2").render(
        css=Markup((PAGE / "page.css").read_text(encoding="utf-8")),
        js=Markup((PAGE / "page.js").read_text(encoding="utf-8")),
        data=Markup(to_script({**shown, "title": title})),
        index=pack(index),
        chunks=[pack(chunk) for chunk in chunks],
        figures=[(name, caption, Markup(svg[svg.index("<svg") :])) for name, caption, svg in figures],
        notes=report["notes"] + notes,
        count=len(report["runs"]),
        models=", ".join(sorted({run.model for run in report["runs"]})),
        baseline=report["baseline"],
        controls=len(tables["controls"]) > 0,
        browser_note=note,
    )
    write_text(args.output / "index.html", text)
    print("\n".join(notes), end="\n" if notes else "")


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
    found, notes = {}, []
    for name in sorted({name for name, _ in keys}):
        try:
            rows = load_maths_dataset(name, find_dataset(name)[1].eval_split, get_cache_dir(cache_dir)).to_list()
            found[name] = {row["id"]: row for row in rows}
        except BadInput as error:
            notes.append(f"the page shows the problems of {name} without their questions: {error}")
    return found, notes


def choose_samples(methods, keys):
    """What the page can hold: (the first so many samples, of every so manieth problem, up to so many characters)."""
    having = [(run, key) for key in keys for m in methods for run in m.runs if key in run.accuracy]
    given = [1 if key[1] == 0 else int(run.settings.get("samples_per_prompt") or 1) for run, key in having]
    sizes = [(len(run.accuracy[key]), most) for (run, key), most in zip(having, given, strict=True)]
    total = 0
    for samples in range(max((most for _, most in sizes), default=1), 0, -1):
        total = sum(problems * min(samples, most) for problems, most in sizes)
        if total <= MAX_COMPLETIONS:
            break
    limit = max(200, MAX_CHARACTERS // max(1, min(total, MAX_COMPLETIONS)))
    return samples, max(1, math.ceil(total / MAX_COMPLETIONS)), limit


def make_browser(report, questions, read):
    """(index, chunks, what the reader should know) of the problems; read as in write_page."""
    methods, keys = report["methods"], report["keys"]
    samples, step, limit = choose_samples(methods, keys)
    several = len({(m.model, m.setting) for m in methods}) > 1
    index = {"methods": [describe(m, several) for m in methods], "problems": {}, "views": []}
    chunks = []
    for name in sorted({name for name, _ in keys}):
        tables = [t for m in methods for run in m.runs for key, t in run.accuracy.items() if key[0] == name]
        ids, rows = sorted({i for table in tables for i in table}, key=natural), questions.get(name, {})
        columns = ("question", "gold", "category", "difficulty")
        index["problems"][name] = [{"id": i} | {c: rows.get(i, {}).get(c, "") for c in columns} for i in ids]
        position = {i: p for p, i in enumerate(ids) if p % step == 0}
        answers = read_answers(methods, name, position, samples, limit, read)
        views = [make_view(methods, key, ids) for key in keys if key[0] == name]
        index["views"] += views
        chunks += make_chunks(answers, len(chunks), views)
    note = f"In this page: up to {samples} completions of a run for each problem"
    note += f", of one problem in {step}" if step > 1 else ""
    note += f", each up to {limit:,} characters" if chunks and limit < 10_000 else ""
    return index, chunks, note + ". The files of the evaluation hold them all."


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
    view = {"data_set": key[0], "temperature": key[1], "methods": having, "problems": problems, "chunks": {}}
    return view | {"accuracy": accuracy}


def read_answers(methods, name, position, samples, limit, read):
    """{(temperature, problem's position): {method's index: [a stored completion as a list]}} of one data set."""
    answers = defaultdict(lambda: defaultdict(list))
    having = [(i, run) for i, m in enumerate(methods) for run in m.runs if any(key[0] == name for key in run.accuracy)]
    for i, run in having:
        for row in read(run, name):
            t, p, sample = row["temperature"], position.get(row["id"]), row.get("sample", 0)
            if p is not None and (name, t) in run.accuracy and sample < samples:
                text = str(row.get("completion", ""))
                text = text if len(text) <= limit else text[:limit] + " […]"
                answer = [run.seed, sample, text, int(row["correct"]), row.get("answer"), row.get("rule")]
                answer += [int(row.get("finish_reason") == "length"), row.get("tokens")]
                answers[t, p][i].append(answer)
    return answers


def make_chunks(answers, begin, views):
    """Parts of about CHUNK completions, [{"temperature|problem": {method: completions}}]; views get where each lies."""
    chunks, size = [], CHUNK
    where = {view["temperature"]: view["chunks"] for view in views}
    for (t, p), methods in sorted(answers.items(), key=lambda item: (item[0][1], item[0][0])):
        if size >= CHUNK:
            chunks.append({})
            size = 0
        for completions in methods.values():
            completions.sort(key=lambda a: (str(a[0]), a[1]))
            size += len(completions)
        chunks[-1][f"{t:g}|{p}"] = methods
        where[t][p] = begin + len(chunks) - 1
    return chunks
