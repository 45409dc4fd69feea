"""Prompts with worked examples and without a chat template: what is read, where an answer ends, what is never mixed."""

import json
import shutil
import sys

import pytest

import maths_evaluations
from common.datasets import load_examples, load_maths_dataset
from common.files import DEMO_DIR, BadInput
from common.models import load_tokenizer
from common.prompts import PlainText, Template
from evaluation import engines
from evaluation.engines import holds_stop, read_completion
from evaluation.settings import read_settings
from sampling.tokens import LOOK_TOKENS

EXAMPLES = [("What is 1 + 1?", "1 + 1 = 2\n#### 2"), ("What is 2 + 3?", "2 + 3 = 5\n#### 5")]
FLAGS = "--datasets demo --temperatures 0 --limit 2 --max_new_tokens 12 --batch_size 4".split()


@pytest.fixture
def tokenizer():
    return load_tokenizer([DEMO_DIR / "model"])


@pytest.fixture
def evaluate(monkeypatch):
    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["maths_evaluations.py", *map(str, argv)])
        return maths_evaluations.main()

    return run


def test_plain_text_is_what_lm_eval_writes_for_gsm8k(tokenizer):
    """As its gsm8k.yaml: doc_to_text, target_delimiter " ", fewshot_delimiter of two line ends, the target."""
    text = PlainText(tokenizer, EXAMPLES).prompt("What is 9 - 4?")
    assert text == (
        "Question: What is 1 + 1?\nAnswer: 1 + 1 = 2\n#### 2\n\n"
        "Question: What is 2 + 3?\nAnswer: 2 + 3 = 5\n#### 5\n\n"
        "Question: What is 9 - 4?\nAnswer:"
    )
    [ids] = PlainText(tokenizer).encode(["Question: 1?\nAnswer:"])
    assert tokenizer.decode(ids) == "Question: 1?\nAnswer:"


def test_with_a_chat_template_examples_are_turns(tokenizer):
    messages = Template(tokenizer, examples=EXAMPLES).prompt("What is 9 - 4?")
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [m["content"] for m in messages[1:]] == [*EXAMPLES[0], *EXAMPLES[1], "What is 9 - 4?"]


def test_without_a_system_role_the_system_prompt_stands_before_the_first_example(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    )
    template = Template(tokenizer, examples=EXAMPLES)
    text = template.write(template.prompt("What is 9 - 4?"))
    assert text.startswith("user: Solve the problem") and text.count("Solve the problem") == 1
    assert text.index("What is 1 + 1?") < text.index("What is 9 - 4?")


def test_a_completion_ends_where_the_next_question_begins(tokenizer):
    answer = " 9 - 4 = 5\n#### 5\n\n"
    ids = tokenizer(answer + "Question: What is 1?")["input_ids"]
    text, count, reason = read_completion(tokenizer, ids, [2], "Question:")
    assert (text, reason) == (answer, "stop")
    assert "Question:" in tokenizer.decode(ids[:count]) and "Question:" not in tokenizer.decode(ids[: count - 1])
    assert read_completion(tokenizer, ids, [2]) == (answer + "Question: What is 1?", len(ids), "length")
    assert read_completion(tokenizer, [*ids, 2], [2])[2] == "stop"


def test_the_stop_is_found_in_the_newest_tokens_however_they_cut_it(tokenizer):
    answer = " 9 - 4 = 5\n#### 5\n\n" * 4
    ids = tokenizer(answer + "Question: What is 1?")["input_ids"]
    _, count, _ = read_completion(tokenizer, ids, [2], "Question:")
    assert count > 2 * LOOK_TOKENS
    found = [holds_stop(tokenizer, "Question:", ids[:made]) for made in range(count + LOOK_TOKENS)]
    assert found == [made >= count for made in range(count + LOOK_TOKENS)]


def test_rows_are_what_they_would_be_if_nothing_stopped_early(evaluate, tmp_path, monkeypatch):
    """The end of a text that this model writes stops it, on one side as soon as it is seen, on the other not."""
    monkeypatch.setattr(PlainText, "stop", " = ")
    flags = "--datasets demo --temperatures 0 0.8 --limit 6 --max_new_tokens 60 --batch_size 4".split()
    flags += ["--model_path", "demo", "--apply_chat_template", "false", "--num_fewshot", "1"]
    made = {}
    for name, is_over in (("early", holds_stop), ("late", lambda *_: False)):
        monkeypatch.setattr(engines, "holds_stop", is_over)
        read = made.setdefault(name, [])

        def count(tokenizer, ids, read=read, **kwargs):
            read.append(len(ids))
            return read_completion(tokenizer, ids, **kwargs)

        monkeypatch.setattr(maths_evaluations, "read_completion", count)
        evaluate(*flags, "--output_dir", tmp_path / name)
    rows = {name: sorted((tmp_path / name / "demo.jsonl").read_text().splitlines()) for name in made}
    assert rows["early"] == rows["late"]
    assert sum(made["early"]) < sum(made["late"])


def test_examples_are_training_rows_that_the_seed_chooses(tmp_path):
    rows = load_maths_dataset("demo", "train", tmp_path)
    solutions = dict(zip(rows["question"], rows["solution"], strict=True))
    chosen = load_examples("demo", 3, 0, tmp_path)
    assert len(chosen) == 3 and all(solutions[question] == solution for question, solution in chosen)
    assert load_examples("demo", 2, 0, tmp_path) == chosen[:2]
    assert load_examples("demo", 3, 1, tmp_path) != chosen
    with pytest.raises(BadInput, match="MATH-500 has no training rows"):
        load_examples("MATH-500", 3, 0, tmp_path)
    with pytest.raises(BadInput, match="demo has 3000 training rows"):
        load_examples("demo", 3001, 0, tmp_path)


def test_a_model_without_a_chat_template_is_evaluated_and_never_mixed(evaluate, tmp_path, monkeypatch):
    model = tmp_path / "model"
    shutil.copytree(DEMO_DIR / "model", model)
    (model / "chat_template.jinja").unlink()
    with pytest.raises(BadInput, match="--apply_chat_template false"):
        evaluate("--model_path", model, *FLAGS)
    plain = ["--apply_chat_template", "false", "--num_fewshot", "2"]
    out = tmp_path / "out"
    monkeypatch.setattr(PlainText, "stop", " = ")  # which this model writes, unlike "Question:"
    assert evaluate("--model_path", model, *FLAGS, *plain, "--output_dir", out) == 0
    settings = read_settings(out)
    assert (settings.apply_chat_template, settings.num_fewshot) == (False, 2)
    assert settings.basis.prompt.count("Question:") == 3 and settings.basis.prompt.endswith("QUESTION\nAnswer:")
    rows = [json.loads(line) for line in (out / "demo.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all("=" not in row["completion"] and row["finish_reason"] == "stop" for row in rows)
    for other in (["--apply_chat_template", "false"], ["--num_fewshot", "2"], []):
        with pytest.raises(BadInput, match="holds results of another .*(apply_chat_template|num_fewshot)"):
            evaluate("--model_path", DEMO_DIR / "model", *FLAGS, *other, "--output_dir", out)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--num_fewshot", "-1"], "--num_fewshot -1"),
        (["--fewshot_dataset", "gsm8k"], "--num_fewshot"),
        (["--fewshot_dataset", "gsm9k", "--num_fewshot", "1"], "gsm9k"),
        (["--fewshot_dataset", "MATH-500", "--num_fewshot", "1"], "MATH-500 has no training rows"),
        (["--chat_template_kwargs", '{"a": 1}', "--apply_chat_template", "false"], "no chat template"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(evaluate, flags, named):
    with pytest.raises(BadInput, match=named):
        evaluate("--model_path", "demo", *FLAGS, *flags)


def test_problems_that_are_evaluated_are_no_examples(evaluate, tmp_path):
    problems = tmp_path / "mine.jsonl"
    shutil.copy(DEMO_DIR / "data" / "test.jsonl", problems)
    flags = ["--datasets", problems, "--num_fewshot", "2", "--fewshot_dataset", problems]
    with pytest.raises(BadInput, match="its problems are evaluated"):
        evaluate("--model_path", "demo", *flags, "--output_dir", tmp_path / "out")
