"""A prompt is read once in the training forward, for all its completions: P + G R tokens in place of G (P + R).

For the experiments of Probability Smoothing Policy Optimisation (arXiv 2509.21282). The rows of a padded batch become
one packed row without padding: each prompt but its last token, then for each completion a segment that begins with the
prompt's last token and ends before the completion's, so that every token of a segment predicts one of the completion.
Linear layers, norms and the head see no padding. Attention is computed on grids: a prompt attends to itself, a segment
to its prompt and to itself. Positions are the columns of the padded batch, as in TRL's own forward.

    install(model)                                               # once
    packed = pack(input_ids, attention_mask, completion_width)
    output = model(**packed.model_inputs(), fused_lm_head=True)  # TRL's head, added by its GRPOTrainer
    logps = packed.unpack(output.log_probs)                      # [rows, completion_width], 0 on padding
"""

import inspect
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# Segments of unlike length attend in grids of their own: a shorter one begins where a segment has at most this share
# of the longest. On a GPU the launches of more kernels cost more than the padding of one grid.
BUCKET_SHARE = {"cpu": 2 / 3}


# ---- the layout


@dataclass
class Bucket:
    """A grid [segments, width] of segments of similar length, and what each of them sees."""

    first_cell: int
    segments: int
    width: int
    prompts: torch.Tensor  # [segments], the prompt of each
    visible: torch.Tensor  # bool [segments, 1, width, prompt width + width]


@dataclass
class Lengths:
    """How many tokens the packed row holds of each prompt and each segment (0: none), on the CPU."""

    prompts: torch.Tensor  # [prompts]
    segments: torch.Tensor  # [rows]
    prompt_of_row: torch.Tensor  # [rows]


@dataclass
class Packed:
    """Where the tokens of a padded batch stand in the packed row, prompts first, and in the grids of attention."""

    input_ids: torch.Tensor  # [tokens]
    rows: torch.Tensor  # [tokens], of the padded batch
    columns: torch.Tensor  # [tokens], of the padded batch
    labels: torch.Tensor  # [scored tokens], what each token of a segment predicts
    shape: tuple  # of the padded completions: rows, width
    completion_start: int  # the column of the first completion token
    prompt_grid: tuple  # prompts, width
    buckets: list
    cells: torch.Tensor  # [cells of all grids], the token in each; 0 where there is none
    places: torch.Tensor  # [tokens], the cell of each
    empty_cells: torch.Tensor

    def model_inputs(self):
        """What the model is called with; `labels` of TRL's head are shifted already."""
        return {
            "input_ids": self.input_ids[None],
            "position_ids": self.columns[None],
            # a mask of four dimensions is handed through by transformers; attend does not look at it
            "attention_mask": self.columns.new_ones(1, 1, 1, 1),
            "shift_labels": self.labels[None],
            "packed": self,
        }

    def unpack(self, scored):
        """[1, scored tokens] -> [rows, completion width], 0 where the completion has ended."""
        first = len(self.rows) - len(self.labels)
        places = (self.rows[first:], self.columns[first:] + 1 - self.completion_start)
        return scored.new_zeros(self.shape).index_put(places, scored[0])


def find_prompts(prompt_ids, prompt_mask):
    """([rows] the prompt of each row, the first row of each prompt) of a left-padded batch, both on the CPU."""
    keys = [row.tobytes() for row in prompt_ids.masked_fill(prompt_mask == 0, -1).numpy()]
    number = {}
    first_rows = []
    for row, key in enumerate(keys):
        if key not in number:
            number[key] = len(number)
            first_rows.append(row)
    return torch.tensor([number[key] for key in keys]), torch.tensor(first_rows)


def is_packable(prompt_mask, completion_mask):
    """Whether there are completions, prompts are padded on the left alone and completions on the right alone."""
    whole = (prompt_mask.diff() >= 0).all() and (completion_mask.diff() <= 0).all()
    return bool(whole and prompt_mask.any(1).all() and completion_mask.any())


def pack(input_ids, attention_mask, completion_width):
    """The Packed of a padded batch [rows, prompt width + completion_width], None where it is not is_packable."""
    device = input_ids.device
    # one wait for the device, not one an index
    input_ids = input_ids.cpu()
    attention_mask = attention_mask.cpu()
    start = input_ids.shape[1] - completion_width
    prompt_mask = attention_mask[:, :start]
    completion_mask = attention_mask[:, start:]
    if not is_packable(prompt_mask, completion_mask):
        return None
    prompt_of_row, first_rows = find_prompts(input_ids[:, :start], prompt_mask)
    # a prompt's tokens but its last, which a segment begins with; a segment's last is the completion's last but one
    in_prompt = prompt_mask[first_rows, :-1].bool()
    in_segment = completion_mask.bool()
    lengths = Lengths(in_prompt.sum(1), in_segment.sum(1), prompt_of_row)
    buckets, segment_cells = make_buckets(lengths, BUCKET_SHARE.get(device.type, 0), device)
    grid = (len(first_rows), int(lengths.prompts.max()))
    prompt, prompt_columns, prompt_places = list_tokens(in_prompt, torch.arange(grid[0]) * grid[1])
    segment, segment_columns, segment_places = list_tokens(in_segment, segment_cells)
    rows = torch.cat([first_rows[prompt], segment])
    columns = torch.cat([prompt_columns, segment_columns + start - 1])
    places = torch.cat([prompt_places, segment_places])
    cells, empty_cells = invert(places, buckets[-1].first_cell + buckets[-1].segments * buckets[-1].width)
    return Packed(
        input_ids=input_ids[rows, columns].to(device),
        rows=rows.to(device),
        columns=columns.to(device),
        labels=input_ids[segment, segment_columns + start].to(device),
        shape=(len(input_ids), completion_width),
        completion_start=start,
        prompt_grid=grid,
        buckets=buckets,
        cells=cells.to(device),
        places=places.to(device),
        empty_cells=empty_cells.to(device),
    )


def make_buckets(lengths, share, device):
    """(the Buckets, longest segments first, [rows] the first cell of each row's segment) of Lengths.

    Their cells follow those of the prompts. A row without a segment (its completion is all padding) is in no bucket.
    """
    order = lengths.segments.argsort(descending=True, stable=True)[: int((lengths.segments > 0).sum())]
    widths = lengths.segments[order].tolist()
    starts = [0]
    for place, width in enumerate(widths):
        if width <= share * widths[starts[-1]]:
            starts.append(place)
    prompt_width = int(lengths.prompts.max())
    next_cell = len(lengths.prompts) * prompt_width
    first_cells = torch.zeros_like(lengths.segments)
    buckets = []
    for start, end in zip(starts, [*starts[1:], len(widths)], strict=True):
        rows = order[start:end]
        width = widths[start]
        first_cells[rows] = next_cell + torch.arange(end - start) * width
        prompts = lengths.prompt_of_row[rows]
        in_prompt = torch.arange(prompt_width) < lengths.prompts[prompts][:, None]
        in_prompt = in_prompt[:, None].expand(-1, width, -1)
        in_segment = torch.ones(width, width, dtype=torch.bool).tril().expand(end - start, -1, -1)
        visible = torch.cat([in_prompt, in_segment], 2)[:, None]
        buckets.append(Bucket(next_cell, end - start, width, prompts.to(device), visible.to(device)))
        next_cell += (end - start) * width
    return buckets, first_cells


def list_tokens(mask, first_cells):
    """(rows, columns, cells) of the tokens of a mask; those of a row fill the cells of attention from its first on."""
    rows, columns = mask.nonzero(as_tuple=True)
    return rows, columns, first_cells[rows] + (mask.cumsum(1) - 1)[mask]


def invert(places, cell_count):
    """([cells] the token in each cell, 0 in an empty one, the empty cells) of [tokens] the cell of each token."""
    cells = torch.zeros(cell_count, dtype=torch.long)
    is_empty = torch.ones(cell_count, dtype=torch.bool)
    cells[places] = torch.arange(len(places))
    is_empty[places] = False
    return cells, is_empty.nonzero()[:, 0]


# ---- attention


class _ToGrids(torch.autograd.Function):
    """[tokens, features] -> [cells, features]. A token stands in one cell, so that the way back is a look-up too."""

    @staticmethod
    def forward(ctx, tokens, packed):
        ctx.packed = packed
        return tokens.index_select(0, packed.cells)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.index_select(0, ctx.packed.places), None


class _FromGrids(torch.autograd.Function):
    """[cells, features] -> [tokens, features]; what an empty cell holds goes nowhere."""

    @staticmethod
    def forward(ctx, grids, packed):
        ctx.packed = packed
        return grids.index_select(0, packed.places)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.index_select(0, ctx.packed.cells).index_fill_(0, ctx.packed.empty_cells, 0), None


def attend(module, query, key, value, attention_mask, scaling=None, **options):
    """transformers' SDPA attention, and where there is a Packed among the options the attention of its row.

    query: [1, heads, tokens, head size]; key and value: [1, key/value heads, tokens, head size].
    Returns [1, tokens, heads, head size], None.
    """
    packed = options.pop("packed", None)
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    dropout = options.get("dropout", 0.0)
    heads, count, size = query.shape[1:]
    tokens = (states.transpose(1, 2).reshape(count, -1) for states in (query, key, value))
    grids = [_ToGrids.apply(states, packed).unflatten(1, (-1, size)) for states in tokens]
    prompt_cells = packed.buckets[0].first_cell
    prompts = [grid[:prompt_cells].unflatten(0, packed.prompt_grid) for grid in grids]
    outputs = [_attend_grid(*prompts, None, scaling, dropout)]
    for bucket in packed.buckets:
        cells = slice(bucket.first_cell, bucket.first_cell + bucket.segments * bucket.width)
        queries, *own = (grid[cells].unflatten(0, (bucket.segments, bucket.width)) for grid in grids)
        # keys and values of the prompt, then the segment's own
        seen = [torch.cat([p[bucket.prompts], s], 1) for p, s in zip(prompts[1:], own, strict=True)]
        outputs.append(_attend_grid(queries, *seen, bucket.visible, scaling, dropout))
    output = _FromGrids.apply(torch.cat(outputs), packed)
    return output.view(1, count, heads, size), None


def _attend_grid(query, key, value, visible, scaling, dropout):
    """[rows, columns, heads, head size] -> [rows x columns, heads x head size]; causal where `visible` is None."""
    groups = query.shape[2] // key.shape[2]
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    if query.device.type != "cpu" and groups > 1:  # with a mask no fast kernel of a GPU takes grouped heads
        key = key.repeat_interleave(groups, 1)
        value = value.repeat_interleave(groups, 1)
        groups = 1
    options = {"scale": scaling, "dropout_p": dropout, "enable_gqa": groups > 1}
    output = scaled_dot_product_attention(query, key, value, visible, is_causal=visible is None, **options)
    return output.transpose(1, 2).flatten(2).flatten(0, 1)


# ---- the model


def find_obstacle(model):
    """Why a causal language model cannot be given a Packed, None if nothing is known to be in the way."""
    config = model.config.get_text_config()
    attention = config._attn_implementation
    if attention != "sdpa":
        return f"attention {attention}"
    kinds = {*(getattr(config, "layer_types", None) or [])} - {"full_attention"}
    if kinds or (getattr(config, "sliding_window", None) and not hasattr(config, "layer_types")):
        return f"layers of type {', '.join(sorted(kinds)) or 'sliding_attention'}"
    parameters = inspect.signature(model.base_model.forward).parameters.values()
    if not any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return f"{type(model).__name__}"
    return None


def _keep_scored(backbone, args, kwargs, output):
    """Hand on to the head only what predicts a token of a completion."""
    if packed := kwargs.get("packed"):
        output.last_hidden_state = output.last_hidden_state[:, len(packed.rows) - len(packed.labels) :]


def install(model):
    """Make a causal language model take a Packed; without one it computes what it did."""
    AttentionInterface.register("sdpa", attend)
    model.base_model.register_forward_hook(_keep_scored, with_kwargs=True)
