"""Batched sampling from a causal language model: the engine that training and evaluation share.

One call answers a list of prompts with `num_samples` completions each (the experiments of "Probability Smoothing Policy
Optimisation", arXiv 2509.21282, draw 4 in training and 1 or more in evaluation). What makes it faster than a loop over
`model.generate`:

- a prompt is read once and its keys and values are shared out to its samples, what all prompts begin with once for all;
- the batch stays full: the row of a finished completion is given to the next waiting one at once, and when none is left
  the batch shrinks, so no step is spent on rows that are done;
- all rows write the same column of one preallocated key/value buffer, so a decoding step copies no cache.

    from sampling.engine import Request, Sampling, generate
    sampling = Sampling(temperature=0.8, top_p=0.9, top_k=0, max_new_tokens=128, eos_token_ids=[2], pad_token_id=0)
    completions = generate(model, [Request([1, 2, 3], seed=7, samples=range(4))], sampling, batch_size=256)

Every sample owns its random numbers, drawn from (seed of its request, sample index). What a prompt is answered
therefore does not depend on its neighbours, except that a matrix product may round its last bit differently in another
batch. Training and evaluation start with `check_sampler` (check.py), on the device at hand.
"""

import os
import sys
from contextlib import contextmanager
from itertools import chain, groupby
from typing import NamedTuple

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from common.files import BadInput

CPU_PREFILL_TOKENS, GPU_PREFILL_TOKENS = 1024, 16384  # prompt tokens read in one pass: a CPU's cache holds few
REFILL_SHARE = 16  # finished rows are replaced once they are a sixteenth of the batch: fewer, larger copies
SHRINK_SHARE = 4  # with none waiting, a quarter of the rows idle pays for the copy that drops them
SLACK_COLUMNS = 64  # columns the window moves through before it is copied back to the left
CANNOT_DRIVE = "the project's sampler cannot drive this model"
OTHER_SAMPLERS = "train with --sampler trl, evaluate with --backend vllm"
NUCLEUS_GUESS = 64  # most nuclei are smaller than this; a row whose nucleus is not is sorted in full


class Sampling(NamedTuple):
    """How tokens are drawn: temperature 0 is greedy; top_p 1 and top_k 0 truncate nothing."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    eos_token_ids: list
    pad_token_id: int


class Request(NamedTuple):
    """A prompt's token ids, the seed of its random numbers, and which of its samples are asked for (a range)."""

    ids: list
    seed: int
    samples: range


class Completion(NamedTuple):
    """Token ids, with the end token where one was produced, and the log-probability of each, see `sample_tokens`."""

    ids: list
    logps: list


def sample_tokens(logits, uniforms, sampling):
    """One token for each row by inverting its cumulative distribution -> (int64 [rows], float32 [rows]).

    logits: [rows, vocabulary]. uniforms: [rows], in [0, 1), unused when greedy. Truncation is that of `transformers`:
    temperature, then top-k, then the smallest set of likeliest tokens whose mass reaches top_p. The second value is the
    token's log-probability at the temperature (1 when greedy) before any truncation, which is what TRL compares.
    """
    probs = torch.softmax(logits.float() / (sampling.temperature or 1), -1)
    chosen = logits.argmax(-1) if sampling.temperature == 0 else _draw(probs, uniforms, sampling.top_p, sampling.top_k)
    return chosen, probs.gather(1, chosen[:, None])[:, 0].log()


def _draw(probs, uniforms, top_p, top_k):
    """A token for each row of probs [rows, vocabulary] from its top-k and nucleus."""
    if top_p >= 1 and top_k <= 0:
        return _invert(probs.cumsum(-1), uniforms)
    size = min(top_k or NUCLEUS_GUESS, probs.shape[-1])
    values, ids = probs.topk(size)
    if top_k <= 0 and size < probs.shape[-1] and bool((values.sum(-1) < top_p).any()):
        values, ids = probs.sort(-1, descending=True)
    cdf = values.cumsum(-1)
    if top_p < 1:
        last = torch.searchsorted(cdf, top_p * (cdf[:, -1:] if top_k > 0 else torch.ones_like(cdf[:, -1:])))
        uniforms = uniforms * cdf.gather(1, last.clamp(max=cdf.shape[1] - 1))[:, 0] / cdf[:, -1]
    return ids.gather(1, _invert(cdf, uniforms)[:, None])[:, 0]


def _invert(cdf, uniforms):
    """The first index of each row [rows, n] whose cumulative mass exceeds uniforms [rows] times the row's total."""
    index = torch.searchsorted(cdf, (uniforms * cdf[:, -1])[:, None], right=True)
    return index[:, 0].clamp(max=cdf.shape[1] - 1)


def draw_uniforms(seed, sample, count):
    """The random numbers of one sample: float32 [count] in [0, 1), a function of (seed, sample) alone."""
    return np.random.default_rng([seed, sample]).random(count, dtype=np.float32)


class _Waiting(NamedTuple):
    """A row to decode: its prefix is entry `entry` of `store`, see _read_prompts, `length` tokens long."""

    store: torch.Tensor
    entry: int
    length: int
    last_token: int  # the end of its prompt, what its first step reads
    owner: tuple  # (request, place among its samples)
    uniforms: np.ndarray


class _WindowLayer(DynamicLayer):
    """Keys and values of one layer: written in place at one column of a shared buffer, read through a window."""

    def __init__(self, key_window, value_window, column):
        super().__init__()
        self.keys, self.values, self.is_initialized = key_window, value_window, True
        self.column = column

    def update(self, key_states, value_states, *args, **kwargs):
        self.keys[:, :, self.column] = key_states[:, :, 0]
        self.values[:, :, self.column] = value_states[:, :, 0]
        return self.keys, self.values


class _Row(NamedTuple):
    """A row being decoded: left is the first column it uses, counted as if the window had never moved."""

    owner: tuple
    left: int
    completion: Completion


class _Batch:
    """The rows being decoded, all at the same column `now` of one key/value buffer.

    kv: [2 x layers, rows, heads, columns, head size]; bias (0 or -inf), uniforms: [rows, columns]; tokens, the last of
    each row, and position_zero: [rows]. rows: a _Row for each, or None where it is idle; an idle row is decoded too.
    moved: the columns the window has been moved by; position_zero is counted as _Row.left is.
    """

    def __init__(self, store, rows, longest, max_new_tokens):
        kinds, _, heads, _, head_size = store.shape
        device, dtype = store.device, store.dtype
        self.align = 16 if device.type == "cuda" else 1  # CUDA's masked attention copies a bias that is not aligned
        columns = -(-(longest + max_new_tokens + SLACK_COLUMNS) // 16) * 16
        # Zeros, not empty: a masked column is multiplied by 0, and 0 times a stray NaN would be NaN.
        self.kv = torch.zeros(kinds, rows, heads, columns, head_size, dtype=dtype, device=device)
        self.bias = torch.full((rows, columns), float("-inf"), dtype=dtype, device=device)
        self.uniforms = torch.zeros(rows, columns + max_new_tokens, device=device)
        self.tokens, self.position_zero = torch.zeros(2, rows, dtype=torch.long, device=device)
        self.rows, self.longest, self.max_new_tokens = [None] * rows, longest, max_new_tokens
        self.now, self.moved = longest, 0

    def place(self, rows, waiting):
        """Start `rows` at the current column with as many _Waiting of one store [2 x layers, prompts, heads, width, _].

        Prefixes are padded on the right there, and end at the current column here.
        """
        store, device = waiting[0].store, waiting[0].store.device
        now, width = self.now, store.shape[3]
        _, entries, lengths, last_tokens, owners, uniforms = zip(*waiting, strict=True)
        index, length = torch.tensor(rows, device=device), torch.tensor(lengths, device=device)
        self.kv[:, index, :, now - width : now] = store[:, torch.tensor(entries, device=device)]
        visible = torch.arange(width, device=device)[None] < length[:, None]
        self.bias[index] = float("-inf")
        self.bias[index, now - width : now] = torch.where(visible, 0.0, float("-inf")).to(self.bias.dtype)
        self.uniforms[index, now : now + self.max_new_tokens] = torch.from_numpy(np.stack(uniforms)).to(device)
        self.tokens[index] = torch.tensor(last_tokens, device=device)
        self.position_zero[index] = self.moved + now - length
        for row, owner in zip(rows, owners, strict=True):
            self.rows[row] = _Row(owner, self.moved + now - width, Completion([], []))

    def low(self):
        """The first column that a row uses."""
        return min(row.left for row in self.rows if row) - self.moved

    def step(self, model, sampling):
        """Decode one token in every row; frees the rows that ended with it, and returns their (owner, Completion)."""
        if self.now == self.kv.shape[3]:
            self.slide()
        now = self.now
        low, high = self.low() // self.align * self.align, -(-(now + 1) // self.align) * self.align
        self.bias[:, now] = 0
        window = self.kv[:, : len(self.rows), :, low:high].unbind(0)
        layers = [_WindowLayer(k, v, now - low) for k, v in zip(window[::2], window[1::2], strict=True)]
        positions = self.moved + now - self.position_zero
        logits = model(
            input_ids=self.tokens[:, None],
            attention_mask=self.bias[:, None, None, low:high],
            # an idle row has no end: it must not leave the positions that a model has
            position_ids=positions.clamp(max=self.longest + self.max_new_tokens - 1)[:, None],
            past_key_values=Cache(layers=layers),
            use_cache=True,
        ).logits[:, -1]
        self.tokens, logps = sample_tokens(logits, self.uniforms[:, now], sampling)
        self.now, finished = now + 1, []
        for r, (row, token, logp) in enumerate(zip(self.rows, self.tokens.tolist(), logps.tolist(), strict=True)):
            if row is not None:
                row.completion.ids.append(token)
                row.completion.logps.append(logp)
                if token in sampling.eos_token_ids or len(row.completion.ids) == self.max_new_tokens:
                    finished.append((row.owner, row.completion))
                    self.rows[r] = None
        return finished

    def slide(self):
        """Move the window in use to the left end of the buffers."""
        low = min(self.low(), self.now - self.longest)
        width, rows = self.now - low, len(self.rows)
        for buffer in self.kv:  # one layer at a time: the copy that an overlapping move needs stays small
            buffer[:rows, :, :width] = buffer[:rows, :, low : self.now].clone()
        self.bias, self.uniforms = self.bias.roll(-low, 1), self.uniforms.roll(-low, 1)
        self.bias[:, width:] = float("-inf")
        self.now, self.moved = width, self.moved + low

    def shrink(self):
        """Drop the idle rows."""
        keep, window = [r for r, row in enumerate(self.rows) if row], slice(self.low(), self.now)
        for buffer in self.kv:
            buffer[: len(keep), :, window] = buffer[keep, :, window]
        self.bias, self.uniforms = self.bias[keep], self.uniforms[keep]
        self.tokens, self.position_zero = self.tokens[keep], self.position_zero[keep]
        self.rows = [self.rows[r] for r in keep]


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
    """Yields a _Waiting for every row to decode, in order."""
    prompts, pad = [r.ids for r in requests], sampling.pad_token_id
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
                yield _Waiting(store, entry, len(prompts[i]) - 1, prompts[i][-1], (i, place), uniforms)
        at += len(group)


def _decode(model, requests, order, sampling, batch_size):
    """Yields ((request, place), Completion) as completions end. `order` lists the requests, longest prompt first."""
    waiting = _waiting_rows(model, requests, order, sampling)
    first = next(waiting)
    waiting = chain([first], waiting)
    left = sum(len(requests[i].samples) for i in order)
    longest = max(1, len(requests[order[0]].ids) - 1)
    batch = _Batch(first.store, min(batch_size, left), longest, sampling.max_new_tokens)
    del first  # holds the keys and values of the first prompts
    while left or any(batch.rows):
        idle = [r for r, row in enumerate(batch.rows) if row is None]
        if left and len(idle) * REFILL_SHARE >= len(batch.rows):
            for _, pairs in groupby(zip(idle, waiting, strict=False), key=lambda pair: id(pair[1].store)):
                rows, news = zip(*pairs, strict=True)
                batch.place(list(rows), news)
            left -= min(left, len(idle))
        elif not left and len(idle) * SHRINK_SHARE >= len(batch.rows):
            batch.shrink()
        yield from batch.step(model, sampling)


def generate(model, requests, sampling, batch_size, progress=None):
    """Sample the completions that Requests ask for; returns completions[request][i], a Completion for samples[i].

    batch_size: rows decoded at once; it is halved, with a line on stderr, when the device runs out of memory.
    progress(request index, its Completions) is called as requests finish. The same arguments on the same machine give
    the same result. The model's generation config is not read, and its training mode is put back afterwards.
    Raises ValueError for an argument out of range, BadInput for a model that this engine cannot drive.
    """
    _check(model, requests, sampling, batch_size)
    samples = [[None] * len(r.samples) for r in requests]
    with _ready(model), torch.inference_mode():
        while order := sorted((i for i, s in enumerate(samples) if None in s), key=lambda i: -len(requests[i].ids)):
            for i in order:
                samples[i] = [None] * len(requests[i].samples)  # after running out of memory: again from the start
            try:
                for (i, place), completion in _decode(model, requests, order, sampling, batch_size):
                    samples[i][place] = completion
                    if progress and None not in samples[i]:
                        progress(i, samples[i])
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size //= 2
                print(f"out of memory: going on with {batch_size} rows at a time", file=sys.stderr)
                torch.cuda.empty_cache()
    return samples


@contextmanager
def _ready(model):
    """The model in evaluation mode, with the attention that suits a CPU if it is on one; put back at the end."""
    config, was_training = model.config.get_text_config(), model.training
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
