"""Each family of the table in sampling/README.md is sampled as transformers does it, or refused with the way out."""

from pathlib import Path

import pytest
import torch
from families import FAMILIES, make_family

from common.files import BadInput
from common.models import get_eos_token_ids, load_model, load_tokenizer
from sampling.check import check_sampler
from sampling.engine import Request, generate
from sampling.tokens import Sampling

REFUSED = {
    "a window shorter than the text": "window of 32 tokens",
    "Qwen3.5 (linear attention)": "keep a state",
    "Mamba-2": "keep a state",
}
DRIVEN = [name for name in FAMILIES if name not in REFUSED]
QUESTIONS = ["What is 5 and 7?", "Ann has 3 apples and gets 4. How many apples does she have now?"]
NEW_TOKENS = 24


@pytest.fixture(scope="session")
def family_dir(tmp_path_factory):
    """family_dir(name) -> the model directory of a family, made once."""
    folder, made = tmp_path_factory.mktemp("families"), {}

    def find(name):
        if name not in made:
            made[name] = make_family(name, folder)
        return made[name]

    return find


def load(path):
    """(model, token ids of two prompts of different lengths, end tokens)."""
    tokenizer, model = load_tokenizer([path]), load_model([path], torch.float32).eval()
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
    return model, prompts, get_eos_token_ids(tokenizer, model.generation_config)


@pytest.mark.parametrize("name", DRIVEN)
def test_greedy_tokens_are_those_of_transformers_generate(name, family_dir):
    model, prompts, eos = load(family_dir(name))
    requests = [Request(ids, seed, range(1)) for seed, ids in enumerate(prompts)]
    ours = generate(model, requests, Sampling(0, 1.0, 0, NEW_TOKENS, eos, 0), batch_size=2)
    for ids, [completion] in zip(prompts, ours, strict=True):
        fixed = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": eos, "pad_token_id": 0}
        theirs = model.generate(torch.tensor([ids]), **fixed)[0, len(ids) :].tolist()
        assert completion.ids == theirs
    sampled = generate(model, requests, Sampling(1.0, 1.0, 0, NEW_TOKENS, eos, 0), batch_size=2)
    check_sampler(model, requests, sampled, 1.0)


def test_each_of_several_end_tokens_ends_a_completion(family_dir):
    model, prompts, eos = load(family_dir("Llama-3"))
    assert eos == [2, 7, 9]
    for end in eos:
        with torch.no_grad():  # the head now gives this token whatever the text
            head = model.get_output_embeddings()
            head.weight.zero_()
            head.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(end), head.out_features).float())
        [[completion], _] = generate(
            model, [Request(p, 0, range(1)) for p in prompts], Sampling(0, 1.0, 0, NEW_TOKENS, eos, 0), 2
        )
        assert completion.ids == [end]


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_sampler_cannot_drive_is_refused_with_the_way_out(name, family_dir):
    model, prompts, eos = load(family_dir(name))
    with pytest.raises(BadInput, match=REFUSED[name]) as refused:
        generate(model, [Request(prompts[1], 0, range(1))], Sampling(0, 1.0, 0, NEW_TOKENS, eos, 0), 1)
    assert "--sampler trl" in str(refused.value) and "--backend vllm" in str(refused.value)


TRAIN = (
    "--trust_region_method pspo --dataset demo --learning_rate 1e-4 --max_steps 2 --per_device_train_batch_size 8 "
    "--gradient_accumulation_steps 2 --num_generations 4 --max_completion_length 16 --warmup_steps 0 --save_steps 2 "
    "--eval_strategy no --load_best_model_at_end false"
).split()
EVALUATE = "--datasets demo --limit 10 --temperatures 0 --max_new_tokens 16".split()


@pytest.mark.slow
@pytest.mark.parametrize("name", DRIVEN)
def test_a_family_trains_two_steps_and_is_evaluated_on_ten_problems(name, family_dir, call, tmp_path):
    trained = call("maths_finetuning", "--model", family_dir(name), *TRAIN, "--output_dir", tmp_path / "run")
    assert trained.code == 0, trained.text
    assert "sampler: own" in trained.text
    done = call("maths_evaluations", "--model_path", tmp_path / "run", *EVALUATE)
    assert done.code == 0, done.text
    assert len((tmp_path / "run" / "evaluations" / "demo.jsonl").read_text().splitlines()) == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_the_sampler_cannot_drive_trains_with_trls_and_says_so(name, family_dir, call, tmp_path):
    path = family_dir(name)
    refused = call("maths_finetuning", "--model", path, *TRAIN, "--sampler", "own", "--output_dir", tmp_path / "run")
    assert refused.code == 2 and REFUSED[name].split(" of ")[0] in refused.text
    assert "--sampler trl" in refused.text and not (tmp_path / "run").exists()
    trained = call("maths_finetuning", "--model", path, *TRAIN, "--output_dir", tmp_path / "run")
    assert trained.code == 0, trained.text
    assert "sampler: trl (ours cannot drive this model" in trained.text
    done = call("maths_evaluations", "--model_path", tmp_path / "run", *EVALUATE)
    assert done.code == 2 and len(done.text.strip().splitlines()) == 1, done.text
    assert "--backend vllm" in done.text


def test_the_documents_table_says_of_each_family_what_is_tested():
    lines = (Path(__file__).resolve().parents[2] / "sampling" / "README.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    said = {row[0]: row[1].partition(",")[0].partition(":")[0] for row in rows[1:]}
    assert said == {name: "no" if name in REFUSED else "yes" for name in FAMILIES}
