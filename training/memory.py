"""How many rows one forward of training takes on a card: arithmetic on shapes, checked against measured peaks.

For the experiments of Probability Smoothing Policy Optimisation (arXiv 2509.21282). The published scripts split the 64
sequences of a step into 16 micro-batches of 4, which fits their cards; a card with more memory is faster with fewer and
larger ones. The split is how a step is computed, not which step: the same sequences, the same loss up to rounding.

    python -m training.memory     # the parts, the split and the peak for the paper's models, cards of 24 to 141 GB
"""

import ctypes
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from accelerate.utils import gather_object

from common.models import fp32_bytes, load_config

SHARE = 0.9  # of the free memory: the allocator cannot use all of it
HEAD_TILE = 4096 * 32768 * 2  # bytes: TRL projects that many tokens on that much of the vocabulary, in half precision


class Shape(NamedTuple):
    """Of a decoder with gated MLPs, as Qwen2's."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int


# Qwen2.5 technical report, arXiv 2412.15115, table 1, and the models' config.json; all tie the embeddings.
SHAPES = {
    "Qwen2.5-0.5B": Shape(24, 896, 4864, 14, 2, 151936),
    "Qwen2.5-1.5B": Shape(28, 1536, 8960, 12, 2, 151936),
    "Qwen2.5-3B": Shape(36, 2048, 11008, 16, 2, 151936),
}


@dataclass(frozen=True)
class Work:
    """What a step holds in memory: a model, and sequences of `group` completions a prompt."""

    shape: Shape
    parameters: int
    prompt: int  # tokens of the longest
    completion: int
    group: int
    trained_share: float = 1.0  # of the parameters: an adapter's is near 0
    is_checkpointed: bool = False


def count_parameters(shape):
    """Of a Qwen2 of this shape with tied embeddings, without its biases and norms, a thousandth of all."""
    kv_width = shape.hidden // shape.heads * shape.kv_heads
    attention = 2 * shape.hidden * (shape.hidden + kv_width)
    return shape.vocabulary * shape.hidden + shape.layers * (attention + 3 * shape.hidden * shape.inner)


def activation_bytes(work, rows):
    """What a forward of `rows` keeps for its backward under half precision autocast, each prompt read once.

    A layer keeps of each token: twice a residual (4 bytes), its norm (4) and the norm's half precision copy (2);
    queries before and after the rotary embedding, in the grid and the attention's output (2 bytes each, 8 in all);
    four times the width of the MLP (2 each). For each row it keeps the keys and values that the row sees (2 bytes each,
    one for every query head).
    """
    shape = work.shape
    tokens = rows * work.completion + -(-rows // work.group) * work.prompt
    of_token = 28 * shape.hidden + 8 * shape.inner
    of_layer = tokens * of_token + 4 * rows * (work.prompt + work.completion) * shape.hidden
    if work.is_checkpointed:  # a layer's input, and all of the one that is computed again
        return shape.layers * 4 * tokens * shape.hidden + of_layer
    return shape.layers * of_layer


def list_parts(work, rows):
    """{part: bytes} of a training step with fp32 weights under half precision autocast and AdamW."""
    trained = work.parameters * work.trained_share
    return {
        "weights": 4 * work.parameters,
        "copies": 2 * work.parameters,  # in half precision, as autocast makes them
        "moments": 8 * trained,
        "gradients": 4 * trained,
        "head": HEAD_TILE + 4 * work.shape.vocabulary * work.shape.hidden,  # logits of a tile, and its weight in fp32
        "activations": activation_bytes(work, rows),
    }


def peak_bytes(work, rows, accumulation):
    """The peak of a training step; with one micro-batch there are no gradients yet when all activations are there."""
    part = list_parts(work, rows)
    standing = part["weights"] + part["copies"] + part["moments"]
    forward = part["activations"] + part["head"]
    gradients = part["gradients"]
    return int(standing + (gradients + forward if accumulation > 1 else max(gradients, forward)))


def cache_bytes(work, rows):
    """The sampler's keys and values for so many completions, in half precision: before there are activations."""
    shape = work.shape
    width = shape.hidden // shape.heads * shape.kv_heads
    return 2 * 2 * shape.layers * width * rows * (work.prompt + work.completion)


def find_splits(sequences, published_accumulation, steps_per_generation):
    """[(rows, accumulation, steps per generation)] that `sequences` of an update can be split into, the largest first.

    A generation stays as many updates as it is now: steps_per_generation / published_accumulation of them.
    """
    splits = []
    for accumulation in range(1, sequences + 1):
        steps, rest = divmod(steps_per_generation * accumulation, published_accumulation)
        if sequences % accumulation == 0 and steps and not rest:
            splits.append((sequences // accumulation, accumulation, steps))
    return splits


def choose_split(splits, work, free_bytes):
    """The first of find_splits whose peak fits SHARE of the free memory, the last one where none does."""
    for split in splits:
        rows, accumulation, _ = split
        if peak_bytes(work, rows, accumulation) <= SHARE * free_bytes:
            return split
    return splits[-1]


# ---- of a process


def keep_freed_memory():
    """Let the C library keep what is freed: on a CPU a step else faults the pages of its tensors in again and again.

    By mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html; nothing where the C library has none.
    """
    trim_threshold = -1  # the numbers that glibc's malloc.h gives these names
    mmap_max = -4
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


# ---- of a run

SPLIT = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")


def get_split(config):
    """(rows, accumulation, steps per generation) of a GRPOConfig; a step is a generation in an SFTConfig."""
    rows = config.per_device_train_batch_size
    accumulation = config.gradient_accumulation_steps
    return rows, accumulation, getattr(config, "steps_per_generation", accumulation)


def set_split(config, split):
    """Put a split into a GRPOConfig or SFTConfig."""
    for name, value in zip(SPLIT, split, strict=True):
        if hasattr(config, name):
            setattr(config, name, value)


def find_shape(model_path):
    """The Shape of a model, None where its configuration has none."""
    model, _ = load_config(model_path)
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    if not all(hasattr(model, name) for name in names):
        return None
    layers, hidden, inner, heads, vocabulary = (getattr(model, name) for name in names)
    return Shape(layers, hidden, inner, heads, getattr(model, "num_key_value_heads", heads), vocabulary)


def least_peaks(config, model_config, model_path):
    """(bytes, bytes with an adapter alone trained) that a card must hold even with one sequence in a forward.

    None where that is not known: weights that are not fp32, another optimiser than AdamW, a model without a Shape.
    """
    optimiser = str(getattr(config.optim, "value", config.optim))
    is_usual = optimiser.startswith("adamw_torch") and str(model_config.dtype).removeprefix("torch.") == "float32"
    quantised = model_config.load_in_4bit or model_config.load_in_8bit
    shape = find_shape(model_path)
    if shape is None or quantised or not is_usual:
        return None
    completion = getattr(config, "max_completion_length", 0)
    parts = {"prompt": 0, "completion": completion, "group": 1, "is_checkpointed": True}
    full = Work(shape, fp32_bytes(model_path) // 4, **parts)
    adapter = replace(full, trained_share=0.0)
    return peak_bytes(adapter if model_config.use_peft else full, 1, 2), peak_bytes(adapter, 1, 2)


def describe_work(config, model_config, model_path, tokenizer, data):
    """The Work of a run, None for a model whose configuration has no such shape."""
    shape = find_shape(model_path)
    if shape is None:
        return None

    def count_tokens(column):
        longest = max(data[column], key=lambda messages: sum(len(message["content"]) for message in messages))
        return len(tokenizer.apply_chat_template(longest)["input_ids"])

    is_grpo = hasattr(config, "max_completion_length")
    return Work(
        shape,
        fp32_bytes(model_path) // 4,
        count_tokens("prompt"),
        config.max_completion_length if is_grpo else count_tokens("completion"),
        config.num_generations if is_grpo and model_config.attn_implementation in (None, "sdpa") else 1,
        trained_share=0.0 if model_config.use_peft else 1.0,
        is_checkpointed=config.gradient_checkpointing,
    )


def measure_free_bytes(config):
    """Free memory of the card, of all processes' cards the least."""
    return min(gather_object([torch.cuda.mem_get_info(config.device)[0]]))


def halve_rows(config, values):
    """Half the rows in twice the micro-batches, put into `values` {field: value}; None if that is impossible."""
    rows, accumulation, per_generation = get_split(config)
    if rows % 2:
        return None
    split = (rows // 2, 2 * accumulation, 2 * per_generation)
    values.update({name: value for name, value in zip(SPLIT, split, strict=True) if hasattr(config, name)})
    return split


def main():
    # GSM8K's longest prompts in Qwen's tokens, the published lengths
    prompt = 256
    completion = 128
    group = 4
    works = {name: Work(shape, count_parameters(shape), prompt, completion, group) for name, shape in SHAPES.items()}
    titles = ("weights", "copies", "moments", "gradients", "head", "activations of 64 rows", "of 4", "cache of 64 rows")
    print("| GB | " + " | ".join(titles) + " |")
    print("|" + "---|" * (len(titles) + 1))
    for name, work in works.items():
        sizes = [*list_parts(work, 64).values(), activation_bytes(work, 4), cache_bytes(work, 64)]
        print(f"| {name} | " + " | ".join(f"{size / 1e9:.1f}" for size in sizes) + " |")
    cards = (24, 40, 80, 141)
    print("\n| rows x micro-batches (peak) | " + " | ".join(f"{size} GB" for size in cards) + " |")
    print("|" + "---|" * (len(cards) + 1))
    for name, work in works.items():
        cells = []
        for size in cards:
            rows, accumulation, _ = choose_split(find_splits(64, 16, 16), work, size * 1e9)
            peak = peak_bytes(work, rows, accumulation) / 1e9
            fits = peak <= SHARE * size
            cells.append(f"{rows} x {accumulation} ({peak:.0f} GB)" if fits else f"no ({peak:.0f} GB)")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
