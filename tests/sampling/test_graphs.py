"""The decoder's fixed sizes and what stands in for the model's parts: all but the capture itself, which needs a GPU."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from sampling import graphs
from sampling.engine import Request, generate
from sampling.graphs import FEW_SIZES, TIGHT, Decoder
from sampling.matrices import MatrixCopies, find_matrices
from sampling.norms import computes_rms_norm
from sampling.tokens import LOOK_TOKENS, Sampling

VOCABULARY, END, PAD = 40, 2, 0
SMALL_SIZES = FEW_SIZES._replace(rows=4)  # several sizes of rows in a small test


def make_model(seed=0, vocabulary=VOCABULARY):
    """A random model of two layers whose logits differ enough that completions end and differ."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model.eval()


def make_requests(count=9, samples=3):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (count,), generator=generator).tolist()
    prompts = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return [Request(ids, 100 + i, range(samples)) for i, ids in enumerate(prompts)]


def draw(model, decoder, requests=None, batch_size=8, **changes):
    """Every completion, in order."""
    sampling = Sampling(1.0, 1.0, 0, 60, [END], PAD)._replace(**changes)
    groups = generate(model, requests or make_requests(), sampling, batch_size, decoder=decoder)
    return [completion for group in groups for completion in group]


def assert_same(first, second):
    """The same tokens, and the same log-probabilities bit for bit."""
    assert [c.ids for c in first] == [c.ids for c in second]
    assert [c.logps for c in first] == [c.logps for c in second]


DRAWS = [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"top_k": 5, "top_p": 0.8}]


@pytest.mark.parametrize("changes", DRAWS, ids=str)
def test_a_look_every_few_tokens_decodes_what_one_at_each_does_bit_for_bit(changes):
    """27 rows in batches of 8, refilled at other tokens, in windows of one size: a wider one may round otherwise."""
    model = make_model()
    tight = draw(model, Decoder(TIGHT._replace(rows=8, columns=128)), **changes)
    assert_same(draw(model, Decoder(FEW_SIZES._replace(rows=8, columns=128)), **changes), tight)
    if not changes:  # both ways of ending are in the test
        lengths = {len(completion.ids) for completion in tight}
        assert len(lengths) > 3 and max(lengths) == 60


ENDING = {7, 11, 15, 19, 23, 27}  # tokens after which a completion is over


@pytest.mark.parametrize("changes", DRAWS, ids=str)
@pytest.mark.parametrize("tokens", [TIGHT.tokens, FEW_SIZES.tokens])
def test_a_completion_that_is_over_ends_soon_and_all_tokens_stay_what_they_were(changes, tokens):
    """Over where one of six tokens has come. In windows of one size: a wider one may round otherwise."""
    model = make_model()
    sizes = FEW_SIZES._replace(rows=8, columns=128, tokens=tokens)
    steps = []
    model.register_forward_pre_hook(lambda *_: steps.append(1))
    whole = draw(model, Decoder(sizes), **changes)
    steps_to_the_end = len(steps)
    early = draw(model, Decoder(sizes), is_over=lambda ids: not ENDING.isdisjoint(ids), **changes)
    for long, short in zip(whole, early, strict=True):
        made = len(short.ids)
        needed_tokens = next((place + 1 for place, token in enumerate(long.ids) if token in ENDING), len(long.ids))
        assert needed_tokens <= made < needed_tokens + LOOK_TOKENS
        assert (short.ids, short.logps) == (long.ids[:made], long.logps[:made])
    assert len(steps) - steps_to_the_end < steps_to_the_end


@pytest.mark.parametrize("changes", DRAWS, ids=str)
def test_few_sizes_that_shrink_decode_what_exact_ones_do(changes):
    """Rows and columns of other sizes: the same tokens, and what a matrix product of another size rounds otherwise."""
    model = make_model()
    few, exact = draw(model, Decoder(SMALL_SIZES), **changes), draw(model, Decoder(TIGHT), **changes)
    assert [c.ids for c in few] == [c.ids for c in exact]
    for ours, theirs in zip(few, exact, strict=True):
        assert ours.logps == pytest.approx(theirs.logps, abs=1e-4)


def test_steps_come_in_few_sizes(monkeypatch):
    sizes = []
    step = Decoder._step

    def watched(decoder, rows, columns):
        sizes.append((rows, columns))
        step(decoder, rows, columns)

    monkeypatch.setattr(Decoder, "_step", watched)
    decoder = Decoder(SMALL_SIZES)
    for _ in range(2):
        draw(make_model(), decoder)
    assert {(8, 64), (8, 128)} <= set(sizes) <= {(rows, columns) for rows in (4, 8) for columns in (64, 128)}


@pytest.mark.parametrize("guesses", [(2, 5), (2, VOCABULARY)])
def test_a_nucleus_wider_than_the_guess_changes_nothing(guesses, monkeypatch):
    """Most rows are stuck at once, so that the guess grows; a part of them is stuck on the second guess too."""
    model = make_model()
    expected = draw(model, Decoder(SMALL_SIZES), temperature=1.5, top_p=0.95)
    stuck = []
    decide = Decoder._decide
    monkeypatch.setattr(graphs, "NUCLEUS_GUESSES", guesses)

    def watched(decoder, rows, wide):
        stuck.append(decoder.guess)
        decide(decoder, rows, wide)

    monkeypatch.setattr(Decoder, "_decide", watched)
    for windows in (TIGHT, SMALL_SIZES):
        found = draw(model, Decoder(windows), temperature=1.5, top_p=0.95)
        assert [c.ids for c in found] == [c.ids for c in expected]
    assert {guess for guess in guesses if guess < VOCABULARY} <= set(stuck)


@pytest.mark.slow
def test_a_decoder_that_was_used_before_gives_what_a_fresh_one_does():
    """More rows, fewer, longer completions, another temperature, other weights in the same model, another model."""
    model, decoder = make_model(), Decoder(SMALL_SIZES)
    for batch_size, changes in ((8, {}), (3, {"temperature": 0.7}), (16, {"max_new_tokens": 90}), (8, {"top_p": 0.9})):
        again = draw(model, decoder, batch_size=batch_size, **changes)
        assert [c.ids for c in again] == [c.ids for c in draw(model, Decoder(), batch_size=batch_size, **changes)]
        with torch.no_grad():
            model.lm_head.weight.mul_(1.01)
    other = make_model(seed=1)
    assert [c.ids for c in draw(other, decoder)] == [c.ids for c in draw(other, Decoder())]


def test_a_step_that_cannot_be_captured_is_said_once_and_decoded_without(monkeypatch, capsys):
    """What capturing raises without a GPU stands for what an old card or an exotic model raises."""
    model, decoder = make_model(), Decoder(SMALL_SIZES)
    expected = draw(model, decoder)

    def fail(*args, **kwargs):
        raise RuntimeError("operation not permitted when stream is capturing\nfurther lines")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", fail)
    run = Decoder._run

    def capturing(decoder, rows, columns):
        run(decoder, rows, columns)
        if decoder.captures:
            assert decoder._capture(rows, columns) is None

    monkeypatch.setattr(Decoder, "_run", capturing)
    decoder = Decoder(SMALL_SIZES)
    assert_same(draw(model, decoder), expected)
    line = "sampling without CUDA graphs, several times slower: operation not permitted when stream is capturing\n"
    assert capsys.readouterr().err == line and not decoder.captures


# ---- what stands in for parts of the model


def test_copies_of_the_matrices_are_what_autocast_makes_of_them():
    """Before and after an update, the same bits as with casts at every token; the weights themselves are untouched."""
    model, decoder = make_model(), Decoder()
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            copied = draw(model, decoder)
            without = Decoder()
            without.matrices = NoCopies()
            assert_same(copied, draw(model, without))
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
            weights["model.layers.0.mlp.up_proj.weight"].mul_(1.5)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, weights[name]) and isinstance(weight, torch.nn.Parameter)


class NoCopies(MatrixCopies):
    """Copies nothing, so that autocast casts."""

    def _copy(self, model, dtype):
        pass


def test_embeddings_and_norms_stay_as_autocast_leaves_them():
    model = make_model()
    found = {f"{name}" for module, name in find_matrices(model, torch.bfloat16)}
    kinds = {type(module) for module, _ in find_matrices(model, torch.bfloat16)}
    assert found == {"weight", "bias"} and kinds == {torch.nn.Linear}
    before = model.get_input_embeddings().weight
    with torch.autocast("cpu", torch.bfloat16), MatrixCopies().in_place(model):
        assert model.get_input_embeddings().weight is before
        assert model.lm_head.weight.dtype == torch.bfloat16  # tied to it, and a matrix
    assert model.lm_head.weight is before


def test_a_norm_is_fused_only_where_it_is_the_same():
    ours, gemma = Qwen2RMSNorm(32), GemmaRMSNorm(32)
    torch.nn.init.normal_(ours.weight)
    gemma.variance_epsilon = gemma.eps
    assert computes_rms_norm(ours) and computes_rms_norm(ours.bfloat16())
    assert not computes_rms_norm(gemma)
