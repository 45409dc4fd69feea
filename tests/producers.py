"""Records and stored rows of runs that never ran, made by the functions that make the real ones."""

import copy
import dataclasses
import json
from functools import cache
from pathlib import Path

import maths_finetuning
from common.basis import make_basis
from common.record import Validation, make_record, write_record
from common.runs import LOG_FILE
from evaluation.rows import grade_rows, make_row, read_results, to_lines
from evaluation.settings import Settings, write_settings
from evaluation.summary import summarise_results, write_summary
from maths_rewards import REWARDS

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "demo" / "model"


@cache
def begun(words):
    """The RunRecord with which maths_finetuning.py begins a run; its command line is given as a tuple of words."""
    plan = maths_finetuning.resolve(maths_finetuning.parse(list(words)))
    data = {"train": "3000 rows, a", "validation": "128 rows, b"}
    return make_record(plan.command, plan.values, 1, MODEL, data, REWARDS)


def run_record(method="pspo", seed=0, model="demo", status="finished", steps=4, validation=0.5, **flags):
    """The RunRecord of a command line; the outcome is made up. flags: of maths_finetuning.py."""
    words = ["--model", model, "--trust_region_method", method, "--seed", "0"]
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    record = copy.deepcopy(begun(tuple(words)))
    record.seed = record.config["seed"] = seed
    record.outcome.status = status
    record.outcome.finished_steps = steps
    record.outcome.wall_seconds = 36.0
    if status == "finished" and validation is not None:
        metric = "eval_loss" if method == "sft" else "eval_reward"
        record.outcome.validation = Validation(metric, validation, greater_is_better=method != "sft")
    return record


def write_rows(path, rows):
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(path, record, rows=()):
    """A run directory with this record and these rows of its log."""
    path.mkdir(parents=True, exist_ok=True)
    write_record(path, record)
    write_rows(path / LOG_FILE, rows)


@cache
def basis_of_demo():
    return make_basis([MODEL], {"demo": "d"}, ["torch", "transformers"])


def evaluation_settings(**changes):
    """The Settings of an evaluation; changes: of its fields, those of its basis included."""
    in_basis = {f.name for f in dataclasses.fields(basis_of_demo())} & changes.keys()
    basis = dataclasses.replace(basis_of_demo(), **{name: changes.pop(name) for name in in_basis})
    fields = {
        "samples_per_prompt": 4,
        "top_p": 1.0,
        "max_new_tokens": 128,
        "seed": 0,
        "backend": "transformers",
        "batch_size": 256,
    }
    return Settings(**{**fields, **changes}, basis=basis)


def write_evaluation(out, verdicts, temperature=0.8, text="#### 1", data_set="demo", **settings):
    """An evaluation directory. verdicts: {problem: [whether each sample is right]}; a wrong one answers 2."""
    problems = {
        i: {"id": i, "question": "?", "gold": "1", "kind": "integer", "category": "", "difficulty": "hard"}
        for i in verdicts
    }
    rows = []
    for problem, samples in verdicts.items():
        for sample, right in enumerate(samples):
            completion = text if right else text.replace("1", "2")
            rows.append(make_row(problem, temperature, sample, completion, 5, "stop"))
    write_rows(out / f"{data_set}.jsonl", [])
    (out / f"{data_set}.jsonl").write_text(to_lines(grade_rows(rows, problems)))
    complete = {data_set: {f"{temperature:g}": len(verdicts)} if verdicts else {}}
    stored = evaluation_settings(**settings)
    stored.complete = complete
    write_settings(out, stored)
    results = read_results(out / f"{data_set}.jsonl", problems)
    write_summary(out, stored, {data_set: summarise_results(results, problems, complete[data_set])})
