"""README.md of a finished run: what it says of method, control and figures, and when it is written again."""

import json

import pytest
from producers import evaluation_settings, run_record, write_evaluation, write_run

from common.model_card import CARD_FILE, MARK, renew_model_card, write_model_card
from common.record import write_record
from evaluation.summary import read_summary

VERDICTS = {"a": [True, False, True, True], "b": [False] * 4, "c": [True] * 4, "d": [True, False, False, False]}


@pytest.fixture
def run(tmp_path):
    """A finished run of pspo with its card."""
    path = tmp_path / "run"
    record = run_record("pspo", smoothing_alpha=0.25, learning_rate=1e-5)
    write_run(path, record)
    write_model_card(path, record)
    return path


def read_card(run):
    return (run / CARD_FILE).read_text()


def test_a_card_says_method_control_data_and_commands_and_claims_no_licence(run):
    card = read_card(run)
    assert "`pspo`" in card and "2509.21282" in card and "| trust_region_method | pspo |" in card
    assert "train: 3000 rows" in card and "one run, one seed, 4 steps" in card and "eval_reward 0.5" in card
    assert "The control is `noclip`" in card and "1 - 0.25 times" in card
    assert "Not evaluated yet" in card and f"--model_path {run}" in card
    assert "license" not in card


@pytest.mark.parametrize(
    "method, said", [("noclip", "This is the control"), ("clip", "The control is `noclip`"), ("sft", "no trust region")]
)
def test_the_control_of_each_kind_of_method(method, said, tmp_path):
    write_model_card(tmp_path, run_record(method))
    assert said in read_card(tmp_path)


@pytest.mark.parametrize("said", [["--cache_dir", "my cache"], ["--cache_dir=my cache"]])
def test_the_evaluations_command_reads_the_cache_that_the_run_was_trained_from(said, tmp_path):
    record = run_record("pspo")
    record.origin.command = ["maths_finetuning.py", "--model", "demo", *said, "--seed", "0"]
    write_model_card(tmp_path, record)
    assert f"maths_evaluations.py --model_path {tmp_path} --cache_dir 'my cache'\n" in read_card(tmp_path)


def test_a_collapse_is_said(tmp_path):
    record = run_record("pspo")
    record.outcome.collapsed_at = 3
    write_model_card(tmp_path, record)
    assert "collapsed at step 3" in read_card(tmp_path)


def test_an_evaluation_puts_its_figures_in(run):
    write_evaluation(run / "evaluations", VERDICTS)
    renew_model_card(run, read_summary(run / "evaluations"), evaluation_settings(num_fewshot=2))
    figures = json.loads((run / "evaluations/summary.json").read_text())["datasets"]["demo"]["0.8"]["accuracy"]
    low, high = (f"{100 * figures[side]:.1f}" for side in ("low", "high"))
    assert f"| demo | 0.8 | 4 | 50.0 ({low} to {high}) | 75.0 (N = 4) |" in read_card(run)
    assert "Not evaluated" not in read_card(run) and "2 examples" in read_card(run)


def test_a_card_that_was_edited_is_left_alone_and_so_is_a_run_that_goes_on(run):
    write_evaluation(run / "evaluations", VERDICTS)
    summary = read_summary(run / "evaluations")
    mine = read_card(run).replace(MARK, "") + "My own words."
    (run / CARD_FILE).write_text(mine)
    renew_model_card(run, summary, evaluation_settings())
    assert read_card(run) == mine
    (run / CARD_FILE).unlink()
    write_record(run, run_record("pspo", status="running"))
    renew_model_card(run, summary, evaluation_settings())
    assert not (run / CARD_FILE).exists()
