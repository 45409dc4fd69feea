"""A run and an evaluation as they were written before run.json and settings.json had a format: real directories.

They were made with one iteration of pspo on the demo's model, rank-1 LoRA, 6 steps; one came to its end and was
evaluated, the other was killed after the checkpoint of step 4.
"""

import json
import shutil
from pathlib import Path

import pytest
from producers import run_record

from common.record import differing_fields, kept_validation, read_record
from common.runs import LOG_FILE, find_checkpoint, read_log
from evaluation.settings import read_settings
from maths_report import read_run

ROOT = Path(__file__).resolve().parents[2]
OLD = Path(__file__).resolve().parent / "first_format"
FLAGS = {
    "max_steps": 6,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "num_generations": 4,
    "max_completion_length": 16,
    "warmup_steps": 0,
    "save_steps": 2,
    "eval_steps": 2,
    "per_device_eval_batch_size": 32,
    "use_peft": True,
    "lora_r": 1,
    "save_total_limit": 1,
}


def test_a_record_of_the_first_format_says_what_it_said():
    record = read_record(OLD / "finished")
    assert (record.model, record.method, record.seed, record.dataset) == ("demo", "pspo", 0, "demo")
    assert record.config["lora_r"] == 1 and record.said["lora_r"] == "flag"
    assert record.computed["per_device_train_batch_size"] == 8 and record.housekeeping["save_steps"] == 2
    assert record.basis.device.kind == "cpu" and record.basis.device.number_type == "float32"
    assert record.updates_per_generation == 2


def test_it_is_the_method_of_the_same_command_today():
    assert differing_fields([read_record(OLD / "finished"), run_record(**FLAGS)]) == []
    other = run_record(**{**FLAGS, "smoothing_alpha": 0.3})
    assert differing_fields([read_record(OLD / "finished"), other]) == ["smoothing_alpha"]


def test_the_validation_that_counts_is_the_best_for_it_was_kept():
    rows = read_log(OLD / "finished" / LOG_FILE)
    scores = {row["step"]: row["eval_reward"] for row in rows if "eval_reward" in row}
    assert max(scores, key=scores.get) != 6  # the last one is not the best: the test can tell
    assert kept_validation(read_record(OLD / "finished"), rows).value == max(scores.values())
    assert kept_validation(read_record(OLD / "stopped"), rows) is None


def test_its_evaluation_is_reported():
    run = read_run(OLD / "finished", None)
    stored = json.loads((OLD / "finished/evaluations/summary.json").read_text())["datasets"]["demo"]
    assert {t: sum(run.accuracy["demo", float(t)].values()) / 12 for t in stored} == {
        t: pytest.approx(stored[t]["accuracy"]["value"], abs=1e-6) for t in stored
    }
    assert read_settings(OLD / "finished/evaluations").samples_per_prompt == 2


@pytest.mark.slow
def test_it_continues_where_it_was_killed(call, tmp_path):
    run = tmp_path / "runs/demo/pspo/seed0"
    shutil.copytree(OLD / "stopped", run)
    assert find_checkpoint(run).name == "checkpoint-4"
    words = [word for name, value in FLAGS.items() for word in (f"--{name}", str(value))]
    flags = ["--model", "demo", "--trust_region_method", "pspo", "--output_dir", run, *words]
    done = call("maths_finetuning", *flags, "--accept_changes")
    assert done.code == 0 and "continuing from" in done.text, done.text
    record = read_record(run)
    assert record.complete and record.outcome.status == "finished" and record.changes
    then = {row["step"]: row["reward"] for row in read_log(OLD / "finished" / LOG_FILE) if "reward" in row}
    now = {row["step"]: row["reward"] for row in read_log(run / LOG_FILE) if "reward" in row}
    assert now == pytest.approx(then)
