"""Batched sampling from a causal language model: the engine that training and evaluation share.

One call answers a list of prompts with `num_samples` completions each (the experiments of "Probability Smoothing Policy
Optimisation", arXiv 2509.21282, draw 4 in training and 1 or more in evaluation). What makes it faster than a loop over
`model.generate`:

- a prompt is read once and its keys and values are shared out to its samples, what all prompts begin with once for all;
- the batch stays full: the row of a finished completion is given to the next waiting one at once, and when none is left
  the batch shrinks, so no step is spent on rows that are done;
- all rows write into one preallocated key/value buffer, so a decoding step copies no cache; on a GPU it is replayed as
  a CUDA graph (graphs.py).

    from sampling.engine import Request, generate
    from sampling.tokens import Sampling
    sampling = Sampling(temperature=0.8, top_p=0.9, top_k=0, max_new_tokens=128, eos_token_ids=[2], pad_token_id=0)
    completions = generate(model, [Request([1, 2, 3], seed=7, samples=range(4))], sampling, batch_size=256)

Every sample owns its random numbers, drawn from (seed of its request, sample index). What a prompt is answered
therefore does not depend on its neighbours, except that a matrix product may round its last bit differently in another
batch. Training and evaluation start with `check_sampler` (check.py), on the device at hand.
"""

import os
import sys
from contextlib import contextmanager
from itertools import chain, groupby, islice
from typing import NamedTuple

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from common.files import BadInput
from sampling.graphs import Decoder
from sampling.norms import fused_norms
from sampling.tokens import LOOK_TOKENS, draw_uniforms

CPU_PREFILL_TOKENS = 1024  # prompt tokens read in one pass: a CPU's cache holds few
GPU_PREFILL_TOKENS = 16384
REFILL_SHARE = 16  # finished rows are replaced once they are a sixteenth of the batch: fewer, larger copies
SHRINK_SHARE = 4  # with none waiting, a quarter of the rows idle pays for the copy that drops them
CANNOT_DRIVE = "the project's sampler cannot drive this model"
OTHER_SAMPLERS = "train with --sampler trl, evaluate with --backend vllm"


class Request(NamedTuple):
    """A prompt's token ids, the seed of its random numbers, and which of its samples are asked for (a range)."""

    ids: list
    seed: int
    samples: range


class Waiting(NamedTuple):
    """A row to decode: its prefix is entry `entry` of `store`, see _read_prompts, `length` tokens long."""

    store: torch.Tensor
    entry: int
    length: int
    last_token: int  # the end of its prompt, what its first step reads
    owner: tuple  # (request, place among its samples)
    uniforms: np.ndarray


def _attend(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention of one new token a row on the CPU: plain products over the key/value heads, with no copy of the cache.

    query: [rows, heads, 1, head size]; key, value: [rows, key/value heads, columns, head size]. Twice as fast there as
    scaled_dot_product_attention, which is called for anything longer. Returns [rows, 1, heads, head size], None.
    """
    rows, heads, length, size = query.shape
    if length > 1 or attention_mask is None or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    grouped = query.reshape(rows, key.shape[1], -1, size) * (size**-0.5 if scaling is None else scaling)
    weights = torch.softmax(grouped @ key.transpose(2, 3) + attention_mask, -1)
    return (weights @ value).reshape(rows, 1, heads, size), None


def _read_prompts(model, prompts, shared, pad_token_id):
    """Keys and values of all but the last token of each prompt: [2 x layers, prompts, heads, width, head size].

    shared: the same for tokens that all prompts begin with, [2 x layers, 1, heads, tokens, head size], or None. Padding
    is on the right, where causal attention never looks at it.
    """
    known = 0 if shared is None else shared.shape[3]
    width = max(1, max(len(p) for p in prompts) - 1 - known)
    ids = [(p[known:-1] + [pad_token_id] * width)[:width] for p in prompts]
    pairs = () if shared is None else shared.expand(-1, len(prompts), -1, -1, -1).unflatten(0, (-1, 2))
    cache = DynamicCache(pairs)
    device = model.get_input_embeddings().weight.device
    model(input_ids=torch.tensor(ids, device=device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values)]
    if len({t.shape for t in tensors}) > 1:
        raise BadInput(f"{CANNOT_DRIVE}: its layers keep caches of different shapes; {OTHER_SAMPLERS}")
    return torch.stack([t.to(tensors[-1].dtype) for t in tensors])


def _waiting_rows(model, requests, order, sampling):
    """Yields a Waiting for every row to decode, in order."""
    prompts = [r.ids for r in requests]
    pad = sampling.pad_token_id
    begin = os.path.commonprefix([prompts[i][:-2] for i in order])  # the system prompt: read once for all
    shared = _read_prompts(model, [[*begin, pad]], None, pad) if begin and len(order) > 1 else None
    limit = CPU_PREFILL_TOKENS if _on_cpu(model) else GPU_PREFILL_TOKENS
    at = 0
    while at < len(order):
        group = order[at : at + max(1, limit // len(prompts[order[at]]))]
        store = _read_prompts(model, [prompts[i] for i in group], shared, pad)
        for entry, i in enumerate(group):
            for place, sample in enumerate(requests[i].samples):
                uniforms = draw_uniforms(requests[i].seed, sample, sampling.max_new_tokens)
                yield Waiting(store, entry, len(prompts[i]) - 1, prompts[i][-1], (i, place), uniforms)
        at += len(group)


def _decode(model, requests, order, sampling, batch_size, decoder):
    """Yields ((request, place), Completion) as completions end. `order` lists the requests, longest prompt first."""
    left = sum(len(requests[i].samples) for i in order)
    longest = max(1, len(requests[order[0]].ids) - 1)
    waiting = _waiting_rows(model, requests, order, sampling)
    first = next(waiting)
    waiting = chain([first], waiting)
    decoder.prepare(model, first.store, min(batch_size, left), longest, sampling)
    del first  # holds the keys and values of the first prompts
    owners = [None] * decoder.fit_rows(min(batch_size, left))  # of each row that is decoded: its (request, place)
    decoded = 0  # tokens in each row since is_over was asked
    while left or any(owners):
        idle = [row for row, owner in enumerate(owners) if owner is None]
        if left and len(idle) * REFILL_SHARE >= len(owners):
            left -= _refill(decoder, owners, idle, waiting)
        elif not left:
            _shrink(decoder, owners, idle)
        decoded += decoder.advance(len(owners))
        if sampling.is_over and decoded >= LOOK_TOKENS:
            decoder.end_early(sampling.is_over)
            decoded = 0
        for row, completion in decoder.take_finished(len(owners)).items():
            yield owners[row], completion
            owners[row] = None


def _refill(decoder, owners, idle, waiting):
    """Give the idle rows to the next waiting ones; returns how many there were."""
    free = iter(idle)
    placed = 0
    for _, group in groupby(islice(waiting, len(idle)), key=lambda row: id(row.store)):
        news = list(group)
        rows = list(islice(free, len(news)))
        decoder.place(rows, news)
        for row, new in zip(rows, news, strict=True):
            owners[row] = new.owner
        placed += len(news)
    return placed


def _shrink(decoder, owners, idle):
    """Drop the last rows where that saves a good part of a step; what is decoded there moves to idle ones."""
    size = decoder.fit_rows(len(owners) - len(idle))
    if (len(owners) - size) * SHRINK_SHARE < len(owners):
        return
    sources = [row for row in range(size, len(owners)) if owners[row]]
    targets = idle[: len(sources)]
    if sources:
        decoder.move(sources, targets)
    for source, target in zip(sources, targets, strict=True):
        owners[target] = owners[source]
    del owners[size:]


def generate(model, requests, sampling, batch_size, progress=None, decoder=None):
    """Sample the completions that Requests ask for; returns completions[request][i], a Completion for samples[i].

    batch_size: rows decoded at once; it is halved, with a line on stderr, when the device runs out of memory.
    progress(request index, its Completions) is called as requests finish. decoder: a Decoder to use again, where there
    are several calls: on a GPU it keeps what a graph took to make. The same arguments on the same machine give
    the same result. The model's generation config is not read, and its training mode is put back afterwards.
    Raises ValueError for an argument out of range, BadInput for a model that this engine cannot drive.
    """
    _check(model, requests, sampling, batch_size)
    decoder = decoder or Decoder()
    samples = [[None] * len(r.samples) for r in requests]
    with _ready(model), torch.inference_mode(), fused_norms(model), decoder.matrices.in_place(model):
        while order := sorted((i for i, s in enumerate(samples) if None in s), key=lambda i: -len(requests[i].ids)):
            for i in order:
                samples[i] = [None] * len(requests[i].samples)  # after running out of memory: again from the start
            try:
                for (i, place), completion in _decode(model, requests, order, sampling, batch_size, decoder):
                    samples[i][place] = completion
                    if progress and None not in samples[i]:
                        progress(i, samples[i])
            except torch.OutOfMemoryError:
                decoder.release()
                if batch_size == 1:
                    raise
                batch_size //= 2
                print(f"out of memory: going on with {batch_size} rows at a time", file=sys.stderr)
                torch.cuda.empty_cache()
    return samples


@contextmanager
def _ready(model):
    """The model in evaluation mode, with the attention that suits a CPU if it is on one; put back at the end."""
    config = model.config.get_text_config()
    was_training = model.training
    attention = config._attn_implementation
    model.eval()
    if attention == "sdpa" and _on_cpu(model):
        AttentionInterface.register("rows_on_cpu", _attend)
        AttentionMaskInterface.register("rows_on_cpu", sdpa_mask)
        config._attn_implementation = "rows_on_cpu"
    try:
        yield
    finally:
        model.train(was_training)
        config._attn_implementation = attention


def _on_cpu(model):
    return model.get_input_embeddings().weight.device.type == "cpu"


def _check(model, requests, sampling, batch_size):
    """Raises ValueError for what `generate` cannot do."""
    if min(sampling.max_new_tokens, batch_size) < 1 or not all(r.ids and r.samples for r in requests):
        raise ValueError("max_new_tokens, batch_size, and each request's tokens and samples must be at least 1")
    if not (0 <= sampling.temperature < float("inf")) or not 0 < sampling.top_p <= 1 or sampling.top_k < 0:
        raise ValueError("temperature must be 0 or more, top_p in (0, 1], top_k 0 or more")
    config = model.config.get_text_config()
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(f"attention {config._attn_implementation!r}: load the model with attn_implementation='sdpa'")
    longest = max((len(r.ids) for r in requests), default=0) + sampling.max_new_tokens
    if obstacle := find_obstacle(model, config, longest):
        raise BadInput(f"{CANNOT_DRIVE}: {obstacle}; {OTHER_SAMPLERS}")


def find_obstacle(model, config, longest):
    """Why this sampler cannot drive a model, None where it can: it keeps the keys and values of every token, no more.

    model: the model or its class. config: of its text part. longest: tokens of a prompt and its completion together.
    """
    if model._is_stateful:
        return "its layers keep a state instead of keys and values"
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    if unknown := sorted(kinds - {"full_attention", "sliding_attention"}):
        return f"it has layers of type {', '.join(unknown)}"
    if "sliding_attention" in kinds and longest > (window or 0):
        return f"its window of {window} tokens is shorter than a prompt with its completion ({longest} tokens)"
    return None
