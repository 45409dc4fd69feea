"""common/prompts.py: which template writes the system prompt, what fits a model, in the same words everywhere."""

import math

import pytest

from common.datasets import SYSTEM_PROMPT
from common.files import DEMO_DIR, BadInput
from common.models import load_config, load_tokenizer
from common.prompts import Room, Template, check_vocabulary, find_fitting, positions_of

MESSAGES = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
ANSWER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
PASSES_OVER = MESSAGES.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
SWITCH = "{% if enable_thinking is defined and enable_thinking is false %}THINKOFF{% endif %}"


@pytest.fixture
def tokenizer():
    return load_tokenizer([DEMO_DIR / "model"])


@pytest.fixture
def with_template(tokenizer):
    def change(template):
        tokenizer.chat_template = template
        return tokenizer

    return change


def test_a_template_with_a_system_role_gets_the_system_prompt_in_it(tokenizer):
    template = Template(tokenizer)
    assert [message["role"] for message in template.prompt("How many?")] == ["system", "user"]
    text = template.write(template.prompt("How many?"))
    assert text.count(SYSTEM_PROMPT) == 1 and text.index(SYSTEM_PROMPT) < text.index("How many?")


@pytest.mark.parametrize("refusing", [REFUSES + MESSAGES + ANSWER, PASSES_OVER + ANSWER])
def test_a_template_without_one_gets_it_in_front_of_the_question(with_template, refusing):
    template = Template(with_template(refusing))
    prompt = template.prompt("How many?")
    assert [message["role"] for message in prompt] == ["user"]
    (ids,) = template.encode([prompt])
    text = template.tokenizer.decode(ids)
    assert text.count(SYSTEM_PROMPT) == 1 and text.index(SYSTEM_PROMPT) < text.index("How many?")
    assert text.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    "broken", ["{{ raise_exception('never') }}", "{{ messages | foo }}", "{% for %}", "{{ 1 / 0 }}"]
)
def test_a_template_that_writes_nothing_is_refused_in_a_line(with_template, broken):
    with pytest.raises(BadInput, match="cannot write a prompt"):
        Template(with_template(broken))


def test_the_templates_arguments_reach_every_prompt(with_template):
    tokenizer = with_template(MESSAGES + ANSWER + SWITCH)
    off, on = Template(tokenizer, {"enable_thinking": False}), Template(tokenizer)
    texts = [tokenizer.decode(t.encode([t.prompt("?")])[0]) for t in (off, on)]
    assert texts[0] == texts[1] + "THINKOFF"


@pytest.mark.parametrize("name", ["tokenize", "add_generation_prompt", "chat_template", "return_dict", "tools"])
def test_arguments_that_are_not_the_templates_are_refused(tokenizer, name):
    with pytest.raises(BadInput, match=f"chat_template_kwargs: {name} "):
        Template(tokenizer, {name: True})


def test_no_conversation_makes_no_ids(tokenizer):
    assert Template(tokenizer).encode([]) == []


# ---- what fits

LENGTHS = [("a", 10), ("b", 30), ("c", 20)]
ROOM = Room(limit=28, what="the model's 28 positions", completion=8, way_out="lower --max_new_tokens")


def test_all_that_fit_and_not_one_token_more(capsys):
    assert find_fitting("mine", [("a", 20), ("a", 20)], ROOM, skip=False, left_out="") == [0, 1]
    with pytest.raises(BadInput):
        find_fitting("mine", [("a", 20), ("b", 21)], ROOM, skip=False, left_out="")
    assert find_fitting("mine", LENGTHS, Room(math.inf, "", 8, ""), skip=False, left_out="") == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_what_does_not_fit_is_refused_with_the_way_out_or_left_out_and_said(capsys):
    with pytest.raises(BadInput) as error:
        find_fitting("mine", [*LENGTHS[::2], ("b", 25)], ROOM, skip=False, left_out="they count as wrong")
    assert str(error.value) == (
        "mine: 1 of 3 prompts (b for one; the longest has 25 tokens) exceed the model's 28 positions with their "
        "completions: lower --max_new_tokens, or --skip_long_prompts leaves them out, and they count as wrong"
    )
    with pytest.raises(BadInput, match="completions: --skip_long_prompts"):  # 30 tokens fit with no completion at all
        find_fitting("mine", LENGTHS, ROOM, skip=False, left_out="they count as wrong")
    assert find_fitting("mine", LENGTHS, ROOM, skip=True, left_out="they count as wrong") == [0, 2]
    assert "mine: 1 of 3 prompts" in capsys.readouterr().err


def test_nothing_that_fits_is_refused_though_long_prompts_are_skipped():
    with pytest.raises(BadInput, match="so none is left"):
        find_fitting("mine", [("a", 40), ("b", 30)], ROOM, skip=True, left_out="they count as wrong")


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer):
    config = load_config(DEMO_DIR / "model")[0]
    check_vocabulary(tokenizer, [[0, config.vocab_size - 1], []], config)
    with pytest.raises(BadInput, match=f"token {config.vocab_size}"):
        check_vocabulary(tokenizer, [[1], [0, config.vocab_size]], config)
    tokenizer.pad_token = "<|im_end|>"
    config.vocab_size = tokenizer.pad_token_id
    with pytest.raises(BadInput, match="do not match"):  # batches are padded with it
        check_vocabulary(tokenizer, [[0]], config)


def test_positions_of_models():
    assert positions_of(load_config(DEMO_DIR / "model")[0]) == 512
    from transformers import BloomConfig, GPT2Config

    assert positions_of(GPT2Config(n_positions=128)) == 128
    assert positions_of(BloomConfig()) == math.inf
