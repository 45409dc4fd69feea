"""Few-shot prompts of plain text beside lm-evaluation-harness's task gsm8k: the same prompts, the same completions.

LM_EVAL_PYTHON=lm_eval_env/bin/python python -m pytest tests/real/test_few_shot.py
"""

import pytest
from harness import ask_lm_eval, ask_ours, choose_examples, read_lines
from smollm import NAME

from common.files import DEMO_DIR


def test_prompts_and_greedy_completions_are_those_of_lm_evals_gsm8k(call, tmp_path):
    """On the demo's model, whose 512 positions hold two examples; its problems are in GSM8K's schema."""
    data = DEMO_DIR / "data"
    shown = choose_examples("demo", 2, read_lines(data / "train.jsonl"), tmp_path)
    asked = read_lines(data / "test.jsonl")[:10]
    theirs = ask_lm_eval(tmp_path / "lm_eval", DEMO_DIR / "model", shown, asked)
    assert theirs[0][0].count("<<") >= len(shown)
    flags = ["--model_path", "demo", "--datasets", "demo", "--num_fewshot", 2]
    assert ask_ours(call, tmp_path / "ours", asked, *flags) == theirs


@pytest.mark.slow
def test_a_real_model_with_five_examples_answers_as_in_lm_eval(cache, call, shared, tmp_path):
    """The harness's default on real rows of GSM8K: five examples, plain text."""
    shown = choose_examples("gsm8k", 5, read_lines(shared / "data/gsm8k.train.jsonl"), cache)
    asked = read_lines(shared / "data/gsm8k.test.jsonl")[:10]
    theirs = ask_lm_eval(tmp_path / "lm_eval", cache / NAME, shown, asked)
    flags = ["--model_path", cache / NAME, "--datasets", "gsm8k", "--num_fewshot", 5, "--cache_dir", cache]
    ours = ask_ours(call, tmp_path / "ours", asked, *flags)
    assert [prompt for prompt, _ in ours] == [prompt for prompt, _ in theirs]
    assert ours == theirs
