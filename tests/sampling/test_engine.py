"""The sampling engine against computations that share no code with it: `generate`, and a loop without cache."""

import types

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from common.files import BadInput, hash_value
from common.record import SAMPLER_VERSION
from sampling import graphs
from sampling import tokens as drawing
from sampling.check import check_sampler, forward_logps
from sampling.engine import Request, generate
from sampling.graphs import Decoder
from sampling.tokens import Sampling, draw_uniforms, sample_tokens
from training.rollout import generation_of_step, rollout_requests, split_groups

VOCABULARY, END, PAD = 40, 2, 0


def make_model(kind="qwen2", seed=0):
    """A random model of two layers whose logits differ enough that completions end and differ."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    grouped = {**sizes, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 256}
    grouped |= {"bos_token_id": None, "eos_token_id": END, "pad_token_id": PAD}
    model = {
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**grouped, tie_word_embeddings=True)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**grouped)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**grouped, sliding_window=20)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=2, n_head=4, eos_token_id=END)
        ),
    }[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model.eval()


def make_prompts(count, longest=30, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, size=rng.integers(1, longest + 1)).tolist() for _ in range(count)]


def ask(model, prompts, num_samples=1, batch_size=8, progress=None, seeds=None, **changes):
    """generate() with defaults -> (requests, sampling, completions)."""
    seeds = seeds or range(100, 100 + len(prompts))
    sampling = Sampling(0, 1.0, 0, 50, [END], PAD)._replace(**changes)
    requests = [Request(ids, seed, range(num_samples)) for ids, seed in zip(prompts, seeds, strict=True)]
    return requests, sampling, generate(model, requests, sampling, batch_size, progress)


def run(model, prompts, **changes):
    """The token ids of every prompt's samples."""
    return [[c.ids for c in group] for group in ask(model, prompts, **changes)[2]]


def sampling(temperature=1.0, top_p=1.0, top_k=0):
    return Sampling(temperature, top_p, top_k, 50, [END], PAD)


def sample_without_cache(model, prompt, seed, sample, temperature, max_new_tokens):
    """One completion by running the whole text through the model for every token."""
    tokens, uniforms = list(prompt), draw_uniforms(seed, sample, max_new_tokens)
    for uniform in uniforms:
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0, -1].double().numpy()
        weights = np.exp((logits - logits.max()) / temperature)
        tokens.append(int(np.argmax(np.cumsum(weights) > uniform * weights.sum())))
        if tokens[-1] == END:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
def test_greedy_completions_are_those_of_transformers(kind):
    model, prompts = make_model(kind), make_prompts(9)
    for prompt, [ours] in zip(prompts, run(model, prompts), strict=True):
        theirs = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=50, eos_token_id=END, pad_token_id=PAD
        )
        assert ours == theirs[0, len(prompt) :].tolist()


@pytest.mark.slow
def test_samples_are_those_of_a_loop_without_cache():
    """Batches of 5 are refilled, moved back to the left and shrunk many times over 30 rows of up to 80 tokens."""
    model, prompts = make_model(), make_prompts(10)
    expected = [
        [sample_without_cache(model, prompt, 100 + i, sample, 0.8, 80) for sample in range(3)]
        for i, prompt in enumerate(prompts)
    ]
    for batch_size in (1, 5, 64):
        assert run(model, prompts, num_samples=3, temperature=0.8, max_new_tokens=80, batch_size=batch_size) == expected
    lengths = [len(s) for group in expected for s in group]
    assert min(lengths) < 20 and max(lengths) == 80  # both ways of ending are in the test


def test_a_prompts_samples_do_not_depend_on_the_other_prompts():
    model, prompts = make_model(), make_prompts(12)
    everything = run(model, prompts, num_samples=2, temperature=1.0)
    alone = [run(model, [p], num_samples=2, temperature=1.0, seeds=[100 + i])[0] for i, p in enumerate(prompts)]
    assert everything == alone


def test_same_arguments_give_the_same_completions_and_another_seed_others():
    model, prompts = make_model(), make_prompts(6)
    first = run(model, prompts, temperature=1.0)
    assert first == run(model, prompts, temperature=1.0)
    assert first != run(model, prompts, temperature=1.0, seeds=range(6))


def test_equal_prompts_have_samples_of_their_own():
    [samples] = run(make_model(), [[5, 6, 7]], num_samples=8, temperature=1.0)
    assert len({tuple(s) for s in samples}) > 1


@pytest.mark.parametrize("temperature", [0.5, 1.3])
@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (0, 0.9), (0, 0.05), (7, 1.0), (7, 0.6), (500, 0.5)])
def test_sample_tokens_draws_from_the_distribution_that_transformers_warps(temperature, top_k, top_p):
    """Over a fine grid of uniforms each token must come up as often as its probability says, to one grid point."""
    grid = 20_000
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(1)) * 3
    warped = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        warped = TopKLogitsWarper(top_k)(None, warped)
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(None, warped)
    uniforms = (torch.arange(grid) + 0.5) / grid
    tokens = sample_tokens(logits.expand(grid, -1), uniforms, sampling(temperature, top_p, top_k))[0]
    share = torch.bincount(tokens, minlength=300) / grid
    assert (share - warped.softmax(-1)[0]).abs().max() < 2 / grid


@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (0, 0.9), (7, 0.6)])
def test_a_large_vocabulary_is_searched_in_chunks_with_the_same_outcome(top_k, top_p, monkeypatch):
    """Half of the tokens cannot occur, whole chunks among them; a uniform on an edge may fall to either side."""
    grid = 20_000
    monkeypatch.setattr(drawing, "CHUNK", 4)
    logits = torch.randn(1, 400, generator=torch.Generator().manual_seed(1)) * 3
    logits[:, 1::2] = -torch.inf
    logits[:, 100:140] = -torch.inf
    uniforms = (torch.arange(grid) + 0.5) / grid
    whole, logps = sample_tokens(logits.expand(grid, -1), uniforms, sampling(0.8, top_p, top_k))
    monkeypatch.setattr(drawing, "LARGE_VOCABULARY", 256)
    chunked, chunked_logps = sample_tokens(logits.expand(grid, -1), uniforms, sampling(0.8, top_p, top_k))
    assert (whole != chunked).sum() <= 2 and chunked_logps.isfinite().all()
    assert (logps - chunked_logps).abs().median() == 0


def test_a_flat_distribution_has_a_nucleus_wider_than_the_first_guess():
    uniforms = (torch.arange(1000) + 0.5) / 1000
    tokens = sample_tokens(torch.zeros(1000, 400), uniforms, sampling(1.0, 0.9))[0]
    assert len(set(tokens.tolist())) == 360


def test_uniforms_at_the_ends_choose_a_token_that_can_occur():
    logits = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]])
    almost_one = torch.tensor([1 - 2**-24])
    for top_p in (1.0, 0.9):
        assert sample_tokens(logits, torch.zeros(1), sampling(1.0, top_p))[0].item() in (0, 2)
        assert sample_tokens(logits, almost_one, sampling(1.0, top_p))[0].item() in (0, 2)


def test_completions_end_with_one_end_token_or_at_the_limit():
    model, prompts = make_model(), make_prompts(10)
    ends = [END, 7, 11]
    for [tokens] in run(model, prompts, temperature=1.0, eos_token_ids=ends, max_new_tokens=12):
        assert not set(tokens[:-1]) & set(ends)
        assert len(tokens) == 12 or tokens[-1] in ends


def test_progress_reports_every_prompt_once_with_all_its_samples():
    seen = {}
    prompts = make_prompts(9)
    completions = run(
        make_model(),
        prompts,
        num_samples=2,
        temperature=1.0,
        progress=lambda i, s: seen.setdefault(i, []).append([c.ids for c in s]),
    )
    assert seen == {i: [samples] for i, samples in enumerate(completions)}


def test_a_prompt_is_read_once_for_all_its_samples():
    model, read = make_model(), []
    model.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True)
    run(model, make_prompts(4, longest=20), num_samples=8, temperature=1.0)
    assert sum(rows for rows, width in read if width > 1) == 4


def test_what_all_prompts_begin_with_is_read_once_and_changes_nothing():
    model, read = make_model(), []
    prompts = [[9, 8, 7, 6, 5, 4, *prompt] for prompt in make_prompts(5, longest=12)]
    expected = [[sample_without_cache(model, p, 100 + i, 0, 0.8, 40)] for i, p in enumerate(prompts)]
    model.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True)
    assert run(model, prompts, temperature=0.8, max_new_tokens=40) == expected
    assert read[0] == (1, 6) and read[1] == (5, max(map(len, prompts)) - 1 - 6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_models_attention_is_put_back(attention):
    model, prompts = make_model(), make_prompts(5)
    model.set_attn_implementation(attention)
    assert run(model, prompts, temperature=0.8) == run(make_model(), prompts, temperature=0.8)
    assert model.config._attn_implementation == attention


def test_finished_rows_make_room_for_waiting_ones():
    """The work done stays within a quarter of what the tokens need: a batch that waits for its longest row does not."""
    model, work = make_model(), []
    model.register_forward_pre_hook(lambda _, args, kwargs: work.append(kwargs["input_ids"].shape), with_kwargs=True)
    completions = run(model, make_prompts(30), num_samples=4, temperature=1.0, max_new_tokens=200, batch_size=16)
    tokens = sum(len(s) for group in completions for s in group)
    assert sum(rows for rows, width in work if width == 1) < 1.25 * tokens


def test_an_idle_row_stays_within_the_positions_of_the_model(monkeypatch):
    """The last of 32 rows ends at once; too few others are idle, then and after the refill, for it to be dropped."""
    steps = []

    def draw(logits, uniforms, sampling, temperature, guess):
        tokens = torch.full((len(logits),), 5)
        tokens[31:] = 5 if steps else END
        steps.append(len(logits))
        return tokens, torch.zeros(len(logits)), torch.zeros(len(logits), dtype=torch.bool)

    monkeypatch.setattr(graphs, "guess_tokens", draw)
    completions = run(make_model("gpt2"), [[3, 4, 5, 6]] * 58, max_new_tokens=100, batch_size=32)  # of 128 positions
    assert sorted(len(tokens) for [tokens] in completions) == [1] + [100] * 57 and steps == [32] * 200


def test_running_out_of_memory_halves_the_batch_and_loses_nothing(capsys):
    """It runs out in the middle, when some samples of a prompt have ended and others have not."""
    model, prompts, steps, finished = make_model(), make_prompts(12), [], []
    expected = run(model, prompts, num_samples=4, temperature=1.0)

    def limited(_, args, kwargs):
        steps.append(kwargs["input_ids"].shape[0])
        if steps[-1] > 5 and len(steps) % 30 == 0:
            raise torch.OutOfMemoryError("no more")

    model.register_forward_pre_hook(limited, with_kwargs=True)
    progress = lambda i, samples: finished.append((i, len(samples)))  # noqa: E731
    assert run(model, prompts, num_samples=4, temperature=1.0, batch_size=20, progress=progress) == expected
    assert sorted(finished) == [(i, 4) for i in range(12)]
    assert capsys.readouterr().err.splitlines() == [
        "out of memory: going on with 10 rows at a time",
        "out of memory: going on with 5 rows at a time",
    ]


def test_a_batch_of_one_that_does_not_fit_is_an_error():
    model = make_model()

    def never(*_):
        raise torch.OutOfMemoryError("no more")

    model.register_forward_pre_hook(never)
    with pytest.raises(torch.OutOfMemoryError):
        run(model, [[5]], batch_size=2)


def test_training_mode_is_put_back_and_dropout_is_off_meanwhile():
    model = make_model("gpt2")  # has dropout by default
    expected = run(model, make_prompts(4), temperature=1.0)
    assert run(model.train(), make_prompts(4), temperature=1.0) == expected
    assert model.training


def test_bf16_autocast_runs():
    model = make_model()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(len(s) == 5 for (s,) in run(model, make_prompts(3), eos_token_ids=[39], max_new_tokens=5))


@pytest.mark.parametrize(
    "change",
    [
        {"num_samples": 0},
        {"max_new_tokens": 0},
        {"batch_size": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
    ],
)
def test_arguments_out_of_range_are_refused(change):
    with pytest.raises(ValueError):
        run(make_model(), [[3], [4]], **change)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        run(make_model(), [[3], []])


def test_a_sliding_window_shorter_than_the_text_is_refused_and_a_longer_one_works():
    model = make_model("mistral")
    assert len(run(model, [[5, 6, 7]], max_new_tokens=10)[0][0]) <= 10
    with pytest.raises(ValueError, match="vllm"):
        run(model, [[5, 6, 7]], max_new_tokens=30)


def test_no_prompts_give_no_completions():
    assert run(make_model(), []) == []


# ---- the sampler's own log-probabilities


@pytest.mark.parametrize("temperature, top_p", [(0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_each_tokens_log_probability_is_that_of_a_forward_pass(temperature, top_p):
    """In batches of 5 that are refilled, moved and shrunk; against a pass of one row at a time in float64."""
    model, prompts = make_model(), make_prompts(8)
    requests, _, completions = ask(model, prompts, num_samples=3, batch_size=5, temperature=temperature, top_p=top_p)
    exact = make_model().double()
    for request, group in zip(requests, completions, strict=True):
        for completion in group:
            logits = exact(torch.tensor([[*request.ids, *completion.ids]])).logits[0, len(request.ids) - 1 : -1]
            logps = torch.log_softmax(logits / (temperature or 1), -1)
            expected = logps[range(len(completion.ids)), completion.ids]
            assert torch.tensor(completion.logps).double() == pytest.approx(expected.detach(), abs=2e-5)


def test_a_forward_pass_over_rows_of_unlike_length_is_that_of_each_alone():
    model = make_model()
    rows = [([5, 6, 7], [8, 9]), ([3], [4, 5, 6, 7, 8]), ([9] * 12, [11])]
    alone = torch.cat([forward_logps(model, [row], 0.8) for row in rows])
    assert torch.allclose(forward_logps(model, rows, 0.8), alone, atol=1e-5)


def test_a_sampler_that_is_wrong_stops_the_run(monkeypatch):
    """The position of every row is shifted by one after it was placed: a fault that only the check can see."""
    model, prompts = make_model(), make_prompts(6)
    requests, _, completions = ask(model, prompts, temperature=1.0)
    assert check_sampler(model, requests, completions, 1.0) < 1e-5
    place = Decoder.place

    def shifted(decoder, rows, waiting):
        place(decoder, rows, waiting)
        decoder.start[rows] += 1

    monkeypatch.setattr(Decoder, "place", shifted)
    requests, _, completions = ask(model, prompts, temperature=1.0)
    with pytest.raises(BadInput, match="disagrees with the model .* --sampler trl"):
        check_sampler(model, requests, completions, 1.0)


def test_what_bf16_rounds_is_within_the_tolerance():
    model = make_model()
    with torch.autocast("cpu", torch.bfloat16):
        requests, _, completions = ask(model, make_prompts(6), temperature=1.0)
        assert 0 < check_sampler(model, requests, completions, 1.0) < 0.1


# ---- groups of completions over processes


def test_a_request_for_a_part_of_the_samples_gives_that_part():
    model, [prompt] = make_model(), make_prompts(1)
    [whole] = generate(model, [Request(prompt, 7, range(8))], sampling(), 8)
    parts = [generate(model, [Request(prompt, 7, range(a, b))], sampling(), 8)[0] for a, b in ((0, 3), (3, 8))]
    assert [c.ids for c in whole] == [c.ids for part in parts for c in part]
    assert len({tuple(c.ids) for c in whole}) == 8


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("num_generations", [1, 2, 4, 8, 24])
def test_a_batch_asks_for_the_same_samples_however_it_is_spread(processes, num_generations):
    batch = [f"prompt {row // num_generations}" for row in range(24)]
    share = len(batch) // processes
    asked = [
        (group, prompt, sample)
        for process in range(processes)
        for group, prompt, samples in split_groups(batch[process * share :][:share], process * share, num_generations)
        for sample in samples
    ]
    assert asked == [(row // num_generations, prompt, row % num_generations) for row, prompt in enumerate(batch)]


def test_a_batch_that_is_not_made_of_groups_is_an_error():
    with pytest.raises(ValueError, match="group 1"):
        split_groups(["a", "a", "b", "c"], 0, 2)


@pytest.mark.parametrize("accumulation", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("per_generation", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("iterations", [1, 2])
def test_no_two_generations_of_a_run_share_random_numbers(accumulation, per_generation, iterations):
    """Epochs of 5 generations, walked through as transformers does: the last step of an epoch takes what is left."""
    config = types.SimpleNamespace(
        gradient_accumulation_steps=accumulation,
        steps_per_generation=per_generation,
        num_iterations=iterations,
        generation_batch_size=8,
        num_generations=4,
    )
    trainer = types.SimpleNamespace(
        args=config, train_dataset=range(11), accelerator=types.SimpleNamespace(num_processes=1), _step=0
    )
    micro_batches = 5 * per_generation * iterations
    seen = []
    step = 0
    for _ in range(4):
        for place in range(micro_batches):
            if trainer._step % (per_generation * iterations) == 0:
                seen.append((step, generation_of_step(trainer)))
            trainer._step += 1
            step += (place + 1) % accumulation == 0 or place + 1 == micro_batches
    assert len(seen) == 20 and len({*seen}) == 20


# The digest of what each SAMPLER_VERSION draws. Version 3 differs from 2 where an epoch ends within an accumulation.
DRAWS = {3: "6567a6734946b7306bbeec4f8b797bb0508ded06fdc193aedb66f53d4a32ee1d"}


def test_the_version_is_raised_when_the_same_seed_draws_other_tokens():
    """Seeds, random numbers, and inversion on probabilities far from any rounding."""
    trainer = types.SimpleNamespace(
        model=types.SimpleNamespace(training=True),
        args=types.SimpleNamespace(
            gradient_accumulation_steps=4,
            steps_per_generation=2,
            num_iterations=1,
            generation_batch_size=12,
            num_generations=4,
        ),
        train_dataset=range(8 * 3),  # an epoch of 8 generations, 16 micro-batches
        state=types.SimpleNamespace(global_step=3),
        accelerator=types.SimpleNamespace(process_index=1, num_processes=2),
        num_generations=4,
        num_generations_eval=2,
        chat_template_kwargs={},
        _step=6,
    )
    tokenizer = types.SimpleNamespace(
        apply_chat_template=lambda chats, add_generation_prompt: {"input_ids": [[len(chat)] for chat in chats]}
    )
    drawn = []
    for trainer.model.training in (True, False):
        requests = rollout_requests(["ab"] * 2 + ["c"] * 4, trainer, tokenizer, seed=5)
        drawn.append([(r.ids, r.seed, list(r.samples)) for r in requests])
    even = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    peaked = torch.arange(64) * -0.3
    large = torch.full((2 * drawing.LARGE_VOCABULARY,), -20.0)  # searched in chunks
    large[torch.arange(8) * 3001] = torch.arange(8) * -0.3
    uniforms = torch.from_numpy(draw_uniforms(7, 3, 48))
    for logits in (even, peaked, large):
        for p, k in ((1.0, 0), (0.8, 0), (1.0, 2)):
            drawn.append(sample_tokens(logits.expand(48, -1), uniforms, sampling(1.0, p, k))[0].tolist())
    assert hash_value(drawn) == DRAWS.get(SAMPLER_VERSION), f"raise SAMPLER_VERSION and enter {hash_value(drawn)}"
