"""training/shared_prompts.py: the packed row against a forward of every row by itself, without padding, in float64."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from training import shared_prompts
from training.shared_prompts import find_obstacle, find_prompts, install, pack

VOCABULARY = 50
# [(length of a prompt, the lengths of its completions)]
SHAPES = {
    "groups of 1, 2 and 8": [(5, [4]), (3, [6, 2]), (7, [1, 9, 3, 3, 5, 8, 2, 7])],
    "very unlike lengths": [(20, [1, 30]), (2, [30, 1, 12])],
    "prompts of one token": [(1, [3, 1]), (1, [2])],
    "a completion that is all padding": [(4, [0, 3]), (6, [0])],
    "one row": [(3, [5])],
}


def make_qwen2(**options):
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = Qwen2Config(**shape, num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=128, **options)
    return Qwen2ForCausalLM(config)


def make_llama():
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape, vocab_size=VOCABULARY, max_position_embeddings=128))


def make_gpt2():
    """Learned positions; no dropout, which TRL switches off in a model by `disable_dropout`."""
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 4, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**shape, vocab_size=VOCABULARY, n_positions=128))


MODELS = {"Qwen2": make_qwen2, "Llama": make_llama, "GPT-2": make_gpt2}


def make_batch(shape, interleaved=False, seed=1):
    """(input_ids, attention_mask, completion width) as TRL pads them, the padding filled with tokens that count."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda count: torch.randint(1, VOCABULARY, (count,), generator=generator)  # noqa: E731
    rows = []
    for prompt_length, completion_lengths in shape:
        prompt = draw(prompt_length)
        rows += [(prompt, draw(length)) for length in completion_lengths]
    if interleaved:
        rows = rows[::2] + rows[1::2]
    prompt_width, width = (max(map(len, part)) for part in zip(*rows, strict=True))
    input_ids = draw(len(rows) * (prompt_width + width)).view(len(rows), -1)
    attention_mask = torch.zeros_like(input_ids)
    for row, (prompt, completion) in enumerate(rows):
        columns = slice(prompt_width - len(prompt), prompt_width + len(completion))
        input_ids[row, columns] = torch.cat([prompt, completion])
        attention_mask[row, columns] = 1
    return input_ids, attention_mask, width


def states_row_by_row(model, input_ids, attention_mask, width):
    """[all completion tokens, hidden]: the states that predict them, each row by itself, at TRL's positions."""
    found = []
    for ids, mask in zip(input_ids, attention_mask, strict=True):
        columns = mask.nonzero()[:, 0]
        if count := int(mask[-width:].sum()):
            output = model.base_model(input_ids=ids[columns][None], position_ids=columns[None], use_cache=False)
            found.append(output.last_hidden_state[0, -count - 1 : -1])
    return torch.cat(found)


def states_read_once(model, batch):
    inputs = pack(*batch).model_inputs()
    del inputs["shift_labels"]  # the head's
    return model.base_model(**inputs, use_cache=False).last_hidden_state[0]


def with_gradient(model, states):
    """(states, gradient of a random functional of them)."""
    model.zero_grad()
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2), dtype=states.dtype)
    (states * weights).sum().backward()
    gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return states.detach(), torch.cat(gradients)


@pytest.fixture(params=[0.0, 2 / 3], ids=["one grid", "buckets"])
def share(request, monkeypatch):
    """As on a GPU, and as on a CPU."""
    monkeypatch.setitem(shared_prompts.BUCKET_SHARE, "cpu", request.param)


@pytest.mark.parametrize("make_model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("interleaved", [False, True], ids=["in order", "interleaved"])
def test_states_and_gradient_are_those_of_every_row_by_itself(make_model, shape, interleaved, share):
    model = make_model().double()
    batch = make_batch(shape, interleaved)
    expected, expected_gradient = with_gradient(model, states_row_by_row(model, *batch))
    install(model)
    states, gradient = with_gradient(model, states_read_once(model, batch))
    bound = 1e-12 if make_model is make_gpt2 else 1e-6  # transformers' RMSNorm computes in float32
    assert (states - expected).norm() < bound * expected.norm()
    assert (gradient - expected_gradient).norm() < bound * expected_gradient.norm()


def test_checkpointed_layers_have_the_same_gradient():
    model = make_qwen2().double()
    install(model)
    batch = make_batch(SHAPES["groups of 1, 2 and 8"])
    _, expected = with_gradient(model, states_read_once(model, batch))
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    _, gradient = with_gradient(model, states_read_once(model, batch))
    assert torch.equal(gradient, expected)


def test_a_prompt_is_in_the_row_once():
    shape = SHAPES["groups of 1, 2 and 8"]
    packed = pack(*make_batch(shape, interleaved=True))
    prompts = sum(length - 1 for length, _ in shape)  # its last token begins every segment
    assert len(packed.input_ids) == prompts + sum(sum(lengths) for _, lengths in shape)
    assert packed.prompt_grid[0] == len(shape)


def test_two_groups_with_the_same_prompt_are_one():
    input_ids = torch.tensor([[1, 2], [3, 2], [1, 2], [3, 2]])
    mask = torch.tensor([[1, 1], [0, 1], [1, 1], [1, 1]])
    prompts, first_rows = find_prompts(input_ids, mask)
    assert prompts.tolist() == [0, 1, 0, 2]  # padding is no token, whatever it holds
    assert first_rows.tolist() == [0, 1, 3]


def test_buckets_save_cells_where_lengths_are_unlike(monkeypatch):
    batch = make_batch(SHAPES["very unlike lengths"])
    monkeypatch.setitem(shared_prompts.BUCKET_SHARE, "cpu", 0)
    one_grid = pack(*batch)
    monkeypatch.setitem(shared_prompts.BUCKET_SHARE, "cpu", 2 / 3)
    buckets = pack(*batch)
    assert (len(one_grid.buckets), len(buckets.buckets)) == (1, 3)
    assert len(one_grid.empty_cells) - len(buckets.empty_cells) == 2 * 29 + 18


@pytest.mark.parametrize(
    "mask",
    [[[1, 0, 1, 1]], [[0, 0, 1, 1]], [[1, 1, 0, 1]], [[1, 1, 0, 0]]],
    ids=["hole in a prompt", "no prompt", "hole in a completion", "no completion"],
)
def test_a_batch_of_another_kind_is_not_packed(mask):
    assert pack(torch.ones(1, 4, dtype=torch.long), torch.tensor(mask), 2) is None


def test_without_a_packed_row_a_model_computes_what_it_did():
    input_ids, attention_mask, _ = make_batch(SHAPES["groups of 1, 2 and 8"])
    before = make_qwen2()(input_ids=input_ids, attention_mask=attention_mask).logits
    model = make_qwen2()
    install(model)
    assert torch.equal(model(input_ids=input_ids, attention_mask=attention_mask).logits, before)


def test_what_stands_in_the_way_is_named():
    assert [find_obstacle(make()) for make in MODELS.values()] == [None] * 3
    assert find_obstacle(make_qwen2(attn_implementation="eager")) == "attention eager"
    sliding = make_qwen2(use_sliding_window=True, sliding_window=8, max_window_layers=1)
    assert find_obstacle(sliding) == "layers of type sliding_attention"
