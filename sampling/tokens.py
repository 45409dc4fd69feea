"""Which token comes next? Drawn from rows of logits by temperature, top-k and nucleus, from random numbers given.

Used by the sampler of "Probability Smoothing Policy Optimisation" (arXiv 2509.21282). Nothing here waits for the
device but `sample_tokens`: `guess_tokens` can be captured in a CUDA graph, and says which rows it could not decide.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

LARGE_VOCABULARY = 2**14  # from here on a vocabulary is searched in chunks: first which chunk, then where in it
LOOK_TOKENS = 16  # between two questions to is_over: each reads what the device holds
CHUNK = 128  # divides the sizes that models have: 151,936 of Qwen2.5, 49,152 of SmolLM2


class Sampling(NamedTuple):
    """How tokens are drawn: temperature 0 is greedy; top_p 1 and top_k 0 truncate nothing.

    is_over(token ids so far) -> bool: whether a completion needs no more tokens, though no end token has come. It is
    asked every LOOK_TOKENS tokens, so a completion may be that much longer than it needs to be.
    """

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    eos_token_ids: list
    pad_token_id: int
    is_over: Callable | None = None


class Completion(NamedTuple):
    """Token ids, with the end token where one was produced, and the log-probability of each, see `sample_tokens`."""

    ids: list
    logps: list


def draw_uniforms(seed, sample, count):
    """The random numbers of one sample: float32 [count] in [0, 1), a function of (seed, sample) alone."""
    return np.random.default_rng([seed, sample]).random(count, dtype=np.float32)


def sample_tokens(logits, uniforms, sampling):
    """One token for each row by inverting its cumulative distribution -> (int64 [rows], float32 [rows]).

    logits: [rows, vocabulary]. uniforms: [rows], in [0, 1), unused when greedy. Truncation is that of `transformers`:
    temperature, then top-k, then the smallest set of likeliest tokens whose mass reaches top_p. The second value is the
    token's log-probability at the temperature (1 when greedy) before any truncation, which is what TRL compares.
    """
    temperature = torch.tensor([sampling.temperature or 1], dtype=torch.float32, device=logits.device)
    tokens, logps, _ = guess_tokens(logits, uniforms, sampling, temperature, guess=logits.shape[1])
    return tokens, logps


def guess_tokens(logits, uniforms, sampling, temperature, guess):
    """sample_tokens without a look by the host -> (tokens, log-probabilities, wide: bool [rows]).

    wide: the row's nucleus is larger than `guess` tokens; what stands in its place is not drawn from it, and a wider
    guess is to be made. temperature: float32 [1], a tensor, so that one CUDA graph serves every temperature above 0.
    """
    probs = torch.softmax(logits / temperature, -1)  # float32, whatever the logits are
    wide = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    elif sampling.top_p >= 1 and sampling.top_k <= 0:
        tokens = _draw_from_all(probs, uniforms)
    else:
        values, ids = _find_likeliest(probs, min(sampling.top_k or guess, probs.shape[1]))
        cdf = values.cumsum(-1)
        if can_be_wide(sampling, probs.shape[1], guess):
            wide = cdf[:, -1] < sampling.top_p
        tokens = ids.gather(1, _draw_from_nucleus(cdf, uniforms, sampling)[:, None])[:, 0]
    return tokens, probs.gather(1, tokens[:, None])[:, 0].log(), wide


def can_be_wide(sampling, vocabulary, guess):
    """Whether guess_tokens may leave a row undecided."""
    return sampling.temperature > 0 and sampling.top_p < 1 and sampling.top_k <= 0 and guess < vocabulary


def _draw_from_nucleus(cdf, uniforms, sampling):
    """The place of each row's token: cdf [rows, n] is the cumulative mass of its likeliest tokens in falling order."""
    mass = cdf[:, -1:]  # of top-k; the nucleus is a share of what top-k left
    if sampling.top_p < 1:
        reached = sampling.top_p * mass if sampling.top_k > 0 else torch.full_like(mass, sampling.top_p)
        last = torch.searchsorted(cdf, reached).clamp(max=cdf.shape[1] - 1)
        mass = cdf.gather(1, last)
    return _search(cdf, uniforms[:, None] * mass)[:, 0]


def _draw_from_all(probs, uniforms):
    """A token for each row of probs [rows, vocabulary], from the whole of it."""
    chunks = _in_chunks(probs)
    if chunks is None:
        cdf = probs.cumsum(-1)
        return _search(cdf, uniforms[:, None] * cdf[:, -1:])[:, 0]
    cdf = chunks.sum(-1).cumsum(-1)
    target = uniforms[:, None] * cdf[:, -1:]
    chunk = _search(cdf, target)
    before = cdf.gather(1, (chunk - 1).clamp(min=0)).masked_fill(chunk == 0, 0)
    inside = chunks.gather(1, chunk[:, :, None].expand(-1, -1, CHUNK))[:, 0].cumsum(-1)
    # where rounding leaves the target behind this chunk's mass, its last token that can occur
    last = torch.searchsorted(inside, inside[:, -1:].contiguous())
    return (chunk * CHUNK + torch.minimum(_search(inside, target - before), last))[:, 0]


def _search(cdf, target):
    """The first index of each row of cdf [rows, n] whose cumulative mass exceeds target, [rows, 1] both."""
    return torch.searchsorted(cdf, target, right=True).clamp(max=cdf.shape[1] - 1)


def _in_chunks(probs):
    """probs [rows, vocabulary] as [rows, chunks, CHUNK]; None where searching chunk by chunk does not pay or fit."""
    rows, vocabulary = probs.shape
    return probs.view(rows, -1, CHUNK) if vocabulary >= LARGE_VOCABULARY and vocabulary % CHUNK == 0 else None


def _find_likeliest(probs, count):
    """probs.topk(count), [rows, count] each: the likeliest tokens are in the chunks with the largest maxima."""
    chunks = _in_chunks(probs)
    if chunks is None or count > chunks.shape[1]:
        return probs.topk(count)
    best = chunks.amax(-1).topk(count).indices
    candidates = chunks.gather(1, best[:, :, None].expand(-1, -1, CHUNK)).flatten(1)
    values, places = candidates.topk(count)
    return values, best.gather(1, places // CHUNK) * CHUNK + places % CHUNK
