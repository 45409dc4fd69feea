"""Completions while a model trains: those that TRL's own table has, written once also when the run was killed."""

import json
import time
from pathlib import Path

import pytest

import maths_report
from common.completions import CompletionRow, append_rows, read_completions, rewind_completions, show_completions
from common.files import BadInput
from maths_rewards import REWARDS

FLAGS = (
    "--model demo --trust_region_method pspo --max_steps 8 --per_device_train_batch_size 8 --num_generations 4 "
    "--gradient_accumulation_steps 2 --warmup_steps 0 --learning_rate 1e-3 --save_steps 4 --eval_strategy no "
    "--load_best_model_at_end False --max_completion_length 24 --log_completions_steps 2 --log_completions"
).split()


def make_row(step, answer="5"):
    return CompletionRow(step, "What is 2 and 3?", "2+3=5\n#### 5", answer, "####", {"accuracy_reward": 1.0}, 0.5)


@pytest.mark.slow
def test_a_killed_run_writes_the_rows_of_trls_table_once(begin, call, tmp_path):
    import pyarrow.parquet

    run = tmp_path / "run"
    process = begin("maths_finetuning", [*FLAGS, "--output_dir", run], tmp_path / "log")
    while not (run / "completions.jsonl").exists() or len(read_completions(run)) < 12:  # step 6, after the checkpoint
        assert process.is_alive(), (tmp_path / "log").read_text()
        time.sleep(0.02)
    process.kill()
    process.join()
    done = call("maths_finetuning", *FLAGS, "--output_dir", run)
    assert done.code == 0, done.text
    rows = read_completions(run)
    assert [row.step for row in rows] == [step for step in (2, 4, 6, 8) for _ in range(4)]
    golds = {}
    for line in (Path(__file__).resolve().parents[2] / "demo/data/train.jsonl").read_text().splitlines():
        problem = json.loads(line)
        golds[problem["question"]] = problem["answer"].rpartition("#### ")[2]
    for step in (2, 4, 6, 8):
        table = pyarrow.parquet.read_table(run / f"completions/completions_{step:05d}.parquet").to_pylist()
        theirs = [(r["prompt"][-1]["content"], r["completion"][0]["content"], r["advantage"]) for r in table]
        ours = [(row.prompt, row.completion, row.advantage) for row in rows if row.step == step]
        assert len(theirs) == 16 and ours == theirs[::4]
    for row in rows:
        assert row.rewards.keys() == {reward.__name__ for reward in REWARDS}
        assert row.rewards["accuracy_reward"] == ((row.answer or "").rstrip(".") == golds[row.prompt]), row
    shown = call("maths_report", run, "--completions", "3")
    assert shown.code == 0 and shown.text.count("advantage") == 3 and rows[-1].prompt in shown.text


def test_a_torn_line_is_passed_over_and_rows_after_the_checkpoint_go(tmp_path):
    append_rows(tmp_path, [make_row(2), make_row(4), make_row(6)])
    path = tmp_path / "completions.jsonl"
    path.write_text(path.read_text()[:-20])
    assert [row.step for row in read_completions(tmp_path)] == [2, 4]
    rewind_completions(tmp_path, 2)
    append_rows(tmp_path, [make_row(4)])
    assert [row.step for row in read_completions(tmp_path)] == [2, 4]


def test_what_is_shown_and_what_is_damaged(tmp_path):
    with pytest.raises(BadInput, match="log_completions_steps"):
        show_completions(tmp_path, 3)
    append_rows(tmp_path, [make_row(2), make_row(4, answer=None)])
    assert show_completions(tmp_path, 1).startswith("step 4: no answer read; accuracy_reward 1; advantage +0.5")
    with open(tmp_path / "completions.jsonl", "a") as file:
        file.write('{"step": 5}\n')
    with pytest.raises(BadInput, match="line 3 is damaged"):
        read_completions(tmp_path)


def test_a_run_in_the_place_of_a_number_is_named(monkeypatch):
    monkeypatch.setattr("sys.argv", ["maths_report.py", "--completions", "runs/demo"])
    with pytest.raises(BadInput, match="runs/demo is no number: name the runs first"):
        maths_report.parse_args()
