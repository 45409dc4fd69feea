"""Decoding one token after another in many rows, on a GPU as a replayed CUDA graph: the one place that knows CUDA.

A decoding step of a deep model is a thousand small kernels, and a GPU waits for their launches: 25 ms a step for
Qwen2.5-0.5B on an H200, whatever the rows. Captured once as a graph the same kernels are one launch. A graph has fixed
shapes and addresses, so everything a step reads or writes stands in buffers that are kept for the whole run, and shapes
come in few sizes: rows in powers of two, columns in steps of 64. Finished rows are looked for every few tokens.

The same step runs without a graph on a CPU, and where a graph cannot be captured. Part of the sampler of "Probability
Smoothing Policy Optimisation" (arXiv 2509.21282).
"""

import sys
from typing import NamedTuple

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from sampling.matrices import MatrixCopies
from sampling.tokens import Completion, can_be_wide, guess_tokens


class Windows(NamedTuple):
    """The sizes that steps come in, and how many tokens are decoded before the host looks what has ended."""

    rows: int  # the smallest number of rows, then twice that, and so on; 0: just those in use
    columns: int  # a multiple of this; 16 keeps vectorised sums and CUDA's masked attention aligned
    tokens: int


TIGHT = Windows(rows=0, columns=16, tokens=1)
NUCLEUS_GUESSES = (64, 4096)  # tokens: most nuclei of a trained model, then most of a random one
WIDE_SHARE = 2  # from half of the rows stuck at one look on, the next guess is the cheaper one
FEW_SIZES = Windows(rows=64, columns=64, tokens=4)  # below 64 rows a step takes no less time


class WindowLayer(DynamicLayer):
    """Keys and values of one layer: a buffer [all rows, heads, all columns, head size], read through a window of it.

    slots: where the new token of each row and head goes, as an index into the buffer's vectors, int64 [rows x heads].
    """

    def __init__(self, keys, values, rows, columns, slots):
        super().__init__()
        self.key_buffer = keys
        self.value_buffer = values
        self.slots = slots
        self.keys = keys[:rows, :, :columns]
        self.values = values[:rows, :, :columns]
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        """Write the new token's key_states and value_states, [rows, heads, 1, head size]; returns the windows."""
        size = key_states.shape[-1]
        for buffer, states in ((self.key_buffer, key_states), (self.value_buffer, value_states)):
            buffer.view(-1, size).index_copy_(0, self.slots, states.reshape(-1, size).to(buffer.dtype))
        return self.keys, self.values


class Decoder:
    """Rows of completions in the making, and what decodes them; kept from call to call, with its graphs.

    kv: [2 x layers, rows, heads, columns, head size]. The token at position p of a row, prompt and completion counted
    as one text, has its keys and values in column p. For each row: `tokens`, the last one, which the next step reads;
    `start`, its position when the completion was empty; `made`, tokens of the completion so far; `ids` and `logps`
    [rows, new + 1], the completion; `uniforms`, alike. A row that is `done`, or `stuck` on a nucleus too wide to guess,
    is decoded with the others and does not advance, so its next step is the same one again.
    """

    def __init__(self, windows=None):
        self.asked_windows = windows
        self.matrices = MatrixCopies()
        self.captures = True
        self.model = self.graphs = self.kv = None

    def release(self):
        """Free the buffers and the graphs."""
        self.model = self.graphs = self.kv = self.logits = None

    # ---- buffers

    def prepare(self, model, store, rows, longest, sampling):
        """Make room for `rows` completions of prompts of up to `longest` tokens; all rows are idle afterwards.

        store: keys and values like those that will be placed, see Waiting. Buffers that suffice are kept.
        """
        on_gpu = store.device.type == "cuda"
        self.windows = self.asked_windows or (FEW_SIZES if on_gpu else TIGHT)
        columns = round_up(longest + sampling.max_new_tokens, self.windows.columns)
        if not self._suffices(model, store, rows, columns, sampling):
            self._allocate(model, store, rows, columns, sampling)
        # Zeros: a masked column is multiplied by 0, and 0 times a stray NaN would be NaN.
        self.kv.zero_()
        self.done.fill_(True)
        self.stuck.fill_(False)
        self.temperature.fill_(sampling.temperature or 1)
        self.sampling = sampling
        self.guess = NUCLEUS_GUESSES[0]
        self.places = {}  # {row: the position of its next token, when last looked at} of the rows in use

    def _suffices(self, model, store, rows, columns, sampling):
        if self.kv is None or model is not self.model or store.dtype != self.kv.dtype:
            return False
        there = (self.sampling.max_new_tokens, self.sampling.eos_token_ids)
        same = there == (sampling.max_new_tokens, sampling.eos_token_ids)
        return same and rows <= self.kv.shape[1] and columns <= self.kv.shape[3]

    def _allocate(self, model, store, rows, columns, sampling):
        device = store.device
        new = sampling.max_new_tokens
        if model is self.model and self.kv is not None:  # grow, so that two sizes in turn do not take turns here
            rows = max(rows, self.kv.shape[1])
            columns = max(columns, self.kv.shape[3])
        self.release()
        self.model = model
        self.graphs = {}
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        kinds, _, heads, _, size = store.shape
        self.kv = torch.zeros(kinds, rows, heads, columns, size, dtype=store.dtype, device=device)
        self.tokens, self.start, self.made = torch.zeros(3, rows, dtype=torch.long, device=device).unbind()
        self.done, self.stuck = torch.zeros(2, rows, dtype=torch.bool, device=device).unbind()
        self.ids = torch.zeros(rows, new + 1, dtype=torch.long, device=device)
        self.logps, self.uniforms = torch.zeros(2, rows, new + 1, device=device).unbind()
        self.first_slots = torch.arange(rows * heads, device=device).view(rows, heads) * columns
        self.numbers = torch.arange(columns, device=device)
        self.ends = torch.tensor(sampling.eos_token_ids, dtype=torch.long, device=device)
        self.temperature = torch.ones(1, device=device)
        self.logits = None  # of the last step [all rows, vocabulary], where a nucleus may be wide

    # ---- rows

    def fit_rows(self, count):
        """The rows of a step that decodes `count`."""
        if self.windows.rows == 0:
            return count
        size = self.windows.rows
        while size < count:
            size *= 2
        return min(size, self.kv.shape[1])

    def place(self, rows, waiting):
        """Start `rows` with as many Waiting of one store; prefixes are padded on the right there, and stay so here."""
        device = self.kv.device
        width = waiting[0].store.shape[3]
        index = torch.tensor(rows, device=device)
        entries = torch.tensor([row.entry for row in waiting], device=device)
        self.kv[:, index, :, :width] = waiting[0].store[:, entries]
        self.start[index] = torch.tensor([row.length for row in waiting], device=device)
        self.tokens[index] = torch.tensor([row.last_token for row in waiting], device=device)
        uniforms = np.stack([row.uniforms for row in waiting])
        self.uniforms[index, :-1] = torch.from_numpy(uniforms).to(device)
        self.made[index] = 0
        self.done[index] = False
        self.stuck[index] = False
        self.places.update((row, prompt.length) for row, prompt in zip(rows, waiting, strict=True))

    def move(self, sources, targets):
        """Give the rows at `sources` the places `targets`, which are idle."""
        device = self.kv.device
        width = max(self.places.values()) + 1
        old = torch.tensor(sources, device=device)
        new = torch.tensor(targets, device=device)
        for buffer in self.kv:  # one layer at a time: the copy in between stays small
            buffer[new, :, :width] = buffer[old, :, :width]
        for buffer in (self.tokens, self.start, self.made, self.done, self.stuck, self.ids, self.logps, self.uniforms):
            buffer[new] = buffer[old]
        self.done[old] = True
        for source, target in zip(sources, targets, strict=True):
            self.places[target] = self.places.pop(source)

    def end_early(self, is_over):
        """End the completions in the making that are over, see Sampling; take_finished hands them out like others."""
        rows = list(self.places)
        index = torch.tensor(rows, device=self.kv.device)
        completions = zip(rows, self.made[index].tolist(), self.ids[index].tolist(), strict=True)
        over = [row for row, made, ids in completions if is_over(ids[:made])]
        self.done[torch.tensor(over, dtype=torch.long, device=self.kv.device)] = True

    def take_finished(self, rows):
        """{row: Completion} of those of the first `rows` rows that have ended, which are idle now."""
        done, stuck, position = self._look(rows)
        if any(stuck):
            self._decide(rows, torch.tensor(stuck, device=self.kv.device, dtype=torch.bool))
            if sum(stuck) * WIDE_SHARE >= len(self.places):
                self.guess = next((guess for guess in NUCLEUS_GUESSES if guess > self.guess), self.logits.shape[1])
            done, _, position = self._look(rows)
        finished = [row for row in self.places if done[row]]
        self.places = {row: position[row] for row in self.places if not done[row]}
        if not finished:
            return {}
        index = torch.tensor(finished, device=self.kv.device)
        parts = (buffer[index].tolist() for buffer in (self.made, self.ids, self.logps))
        completions = [Completion(ids[:made], logps[:made]) for made, ids, logps in zip(*parts, strict=True)]
        return dict(zip(finished, completions, strict=True))

    def _look(self, rows):
        """(done, stuck, position) of the first `rows` rows, as lists: here the host waits for the device."""
        position = self.start + self.made
        return torch.stack((self.done.long(), self.stuck.long(), position))[:, :rows].tolist()

    # ---- steps

    def advance(self, rows):
        """Decode a token, or a few, in each of the first `rows` rows; returns how many."""
        farthest = max(self.places.values()) + self.windows.tokens
        columns = min(round_up(farthest, self.windows.columns), self.kv.shape[3])
        for _ in range(self.windows.tokens):
            self._run(rows, columns)
        return self.windows.tokens

    def _run(self, rows, columns):
        """One step: the replay of its graph, or where there is none yet a real step, which the capture needs anyway."""
        key = (rows, columns, self.guess, self.sampling.temperature > 0, self.sampling.top_p, self.sampling.top_k)
        if graph := self.graphs.get(key):
            graph.replay()
            return
        self._step(rows, columns)
        if self.captures and self.kv.device.type == "cuda":
            self.graphs[key] = self._capture(rows, columns)

    def _capture(self, rows, columns):
        """The step as a CUDA graph; None, with a line that says so, where it cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: other threads, NCCL's among them, may ask the device meanwhile
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                self._step(rows, columns)
        except RuntimeError as error:  # also what CUDA and its memory raise
            self.captures = False
            reason = str(error).strip().partition("\n")[0]
            print(f"sampling without CUDA graphs, several times slower: {reason}", file=sys.stderr)
            return None
        return graph

    def _step(self, rows, columns):
        """Decode one token in each of the first `rows` rows over the first `columns` columns, all on the device."""
        position = (self.start + self.made)[:rows]
        hidden = self.numbers[:columns] > position[:, None]
        bias = torch.zeros(rows, columns, dtype=self.kv.dtype, device=self.kv.device)
        bias.masked_fill_(hidden, float("-inf"))
        column = position.clamp(max=columns - 1)  # only an idle row is beyond the window
        slots = (self.first_slots[:rows] + column[:, None]).view(-1)
        layers = [WindowLayer(k, v, rows, columns, slots) for k, v in self.kv.unflatten(0, (-1, 2))]
        logits = self.model(
            input_ids=self.tokens[:rows, None],
            attention_mask=bias[:, None, None],
            position_ids=position[:, None],
            past_key_values=Cache(layers=layers),
            use_cache=True,
        ).logits[:, -1]
        self._keep(logits)
        uniforms = self.uniforms[:rows].gather(1, self.made[:rows, None])[:, 0]
        tokens, logps, wide = guess_tokens(logits, uniforms, self.sampling, self.temperature, self.guess)
        active = ~self.done[:rows]
        self.stuck[:rows] = active & wide
        self._record(tokens, logps, active & ~wide)

    def _keep(self, logits):
        """Put logits [rows, vocabulary] where _decide finds those of the last step."""
        if can_be_wide(self.sampling, logits.shape[1], self.guess):
            if self.logits is None or self.logits.dtype != logits.dtype:
                shape = self.kv.shape[1], logits.shape[1]
                self.logits = torch.empty(shape, dtype=logits.dtype, device=logits.device)
            self.logits[: len(logits)] = logits

    def _decide(self, rows, stuck):
        """Draw the token of the rows that are `stuck`, bool [rows], from all the logits that they are stuck on."""
        tokens = self.tokens[:rows].clone()
        logps = self.logps[:rows, 0].clone()
        uniforms = self.uniforms[:rows].gather(1, self.made[:rows, None])[:, 0]
        logits = self.logits[:rows][stuck]
        found = guess_tokens(logits, uniforms[stuck], self.sampling, self.temperature, guess=logits.shape[1])
        tokens[stuck], logps[stuck], _ = found
        self._record(tokens, logps, stuck)
        self.stuck[:rows] = False

    def _record(self, tokens, logps, advancing):
        """Append `tokens` to the completions of the rows that are `advancing`, bool [rows].

        What is written for the others stands behind their completion, where it is overwritten or never read.
        """
        rows = len(tokens)
        made = self.made[:rows]
        self.ids[:rows].scatter_(1, made[:, None], tokens[:, None])
        self.logps[:rows].scatter_(1, made[:, None], logps[:, None])
        self.tokens[:rows] = torch.where(advancing, tokens, self.tokens[:rows])
        made += advancing
        ended = (tokens[:, None] == self.ends).any(-1) | (made == self.sampling.max_new_tokens)
        self.done[:rows] |= advancing & ended


def round_up(number, multiple):
    """The smallest multiple that is not below a whole number."""
    return -(-number // multiple) * multiple
