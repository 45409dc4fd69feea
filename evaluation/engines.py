"""What answers an evaluation's prompts: our own sampler or vLLM, how many rows at a time, which prompts fit.

Used by maths_evaluations.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282). An
engine is a function answer(requests, temperature, finished), which calls finished(i, [Completion])
as requests end.

    answer = make_engine(settings, [model_dir], inputs, "transformers")
"""

import os
import sys
from bisect import bisect_left
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from common.files import BadInput
from common.models import causal_lm_class, choose_precision, load_model
from common.prompts import Room, check_vocabulary, find_fitting, positions_of
from evaluation.trial import TRIAL

MAX_BATCH_SIZE = {"cpu": 256, "cuda": 1024}  # rows; on two CPU cores 512 is slower than 256: the cache no longer fits
PROMPT_TOKENS = 1024  # for which there is room; the other half of the memory holds longer ones
SLACK_COLUMNS = 64  # the engine's


def encode_prompts(template, problems, config, max_new_tokens, skip):
    """{data set: {id: token ids}} of the prompts that fit; `skip`: leave out those that do not, else BadInput.

    template: Template. problems: {data set: {id: row}}. config: the model's, see load_config.
    Raises BadInput too if none of a data set fits, or tokenizer and model do not match.
    """
    positions = positions_of(config)
    room = Room(positions, f"the model's {positions} positions", max_new_tokens, "lower --max_new_tokens")
    prompts = {}
    for name, rows in problems.items():
        tokens = template.encode([template.prompt(row["question"]) for row in rows.values()])
        check_vocabulary(template.tokenizer, tokens, config)
        encoded = list(zip(rows, tokens, strict=True))
        lengths = [(row, len(ids)) for row, ids in encoded]
        fitting = find_fitting(name, lengths, room, skip, "they count as wrong")
        prompts[name] = dict(encoded[place] for place in fitting)
    return prompts


def read_completion(tokenizer, ids, eos_token_ids, stop=None):
    """(text, number of tokens, finish reason) of a completion; it ends where the text `stop` begins, if it does."""

    def write(count):
        return tokenizer.decode(ids[:count], skip_special_tokens=True)

    text = write(len(ids))
    if stop and stop in text:
        count = bisect_left(range(len(ids)), True, key=lambda count: stop in write(count))
        return text.partition(stop)[0], count, "stop"
    return text, len(ids), "stop" if ids[-1] in eos_token_ids else "length"


def holds_stop(tokenizer, stop, ids):
    """Whether the text of a completion's token ids holds `stop`; it is enough to ask every LOOK_TOKENS tokens.

    Only where the newest tokens hold it is the whole text read, of which read_completion will take the part before.
    """
    from sampling.tokens import LOOK_TOKENS

    newest = ids[-(LOOK_TOKENS + len(stop)) :]  # every token of `stop` has a character of it, at least
    if stop not in tokenizer.decode(newest, skip_special_tokens=True):
        return False
    return stop in tokenizer.decode(ids, skip_special_tokens=True)


def choose_batch_size(config, max_new_tokens, device, dtype):
    """Rows to decode at once: what fits into half the memory, at most MAX_BATCH_SIZE.

    It follows from model, --max_new_tokens and machine alone, whose whole memory counts and not
    what is free: a resume, or another data set beside those that are evaluated already, gets the
    same.
    """
    import torch

    if device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    columns = min(PROMPT_TOKENS + max_new_tokens, positions_of(config)) + SLACK_COLUMNS
    cache = 2 * config.num_hidden_layers * heads * head_size * columns * dtype.itemsize
    logits = 4 * 4 * config.vocab_size  # float32: logits, probabilities, their sums, one temporary
    fitting = memory // 2 // (cache + logits)
    return int(max(1, min(fitting, MAX_BATCH_SIZE[device])))


def choose_backend(name, dirs, stored):
    """The backend to use, or TRIAL. Raises BadInput if it cannot be used.

    stored: of the results that are there already, or None. `auto` stays with it; else it is a trial on a GPU where vllm
    is installed, and our own sampler elsewhere.
    """
    if name == "auto" and stored is None:
        both = find_spec("vllm") and choose_precision()[0] == "cuda" and len(dirs) == 1
        return TRIAL if both else "transformers"
    name = stored if name == "auto" else name
    if name == "vllm" and not find_spec("vllm"):
        raise BadInput("vllm is not installed: pip install vllm, or use --backend transformers")
    if name == "vllm" and len(dirs) > 1:
        raise BadInput(f"{dirs[0]} is an adapter: merge it first (--merge_adapter), or use --backend transformers")
    return name


def check_own_sampler(config, longest):
    """Raises BadInput for a model that the project's sampler cannot drive, before it is loaded.

    config: of its text part. longest: tokens of the longest prompt and completion together.
    """
    from sampling.engine import CANNOT_DRIVE, OTHER_SAMPLERS, find_obstacle

    if obstacle := find_obstacle(causal_lm_class(config), config, longest):
        raise BadInput(f"{CANNOT_DRIVE}: {obstacle}; {OTHER_SAMPLERS}")


@dataclass
class EngineInputs:
    """What every engine is given, whichever it is."""

    template: object  # Template or PlainText: writes the prompts, and knows the text that ends a completion, if any
    prompts: dict  # {data set: {id: token ids}}
    eos_token_ids: list
    max_new_tokens: int

    @property
    def all_prompts(self):
        """The token ids of every data set's prompts, in their order."""
        return [ids for rows in self.prompts.values() for ids in rows.values()]

    @property
    def longest(self):
        """Tokens of the longest prompt and completion together."""
        return max(map(len, self.all_prompts), default=1) + self.max_new_tokens


def make_engine(protocol, dirs, inputs, backend):
    """answer(requests, temperature, finished) of a backend, its model loaded. protocol: the evaluation's Settings."""
    eos = inputs.eos_token_ids
    if backend == "vllm":
        return make_vllm_engine(protocol, dirs, eos, inputs.longest)
    tokenizer = inputs.template.tokenizer
    stop = inputs.template.stop
    pad = tokenizer.pad_token_id or eos[0]
    is_over = partial(holds_stop, tokenizer, stop) if stop else None
    return make_transformers_engine(protocol, dirs, eos, pad, inputs.all_prompts, is_over)


def make_transformers_engine(protocol, dirs, eos_token_ids, pad_token_id, prompts, is_over=None):
    """answer(requests, temperature, finished), which calls finished(i, [Completion]) as requests end: our own sampler.

    protocol: the evaluation's Settings. prompts: token ids; the first of them test the sampler. is_over: see Sampling.

    Raises BadInput if its answers to the first prompts disagree with a forward pass.
    """
    from transformers.utils import logging

    from sampling.check import check_sampler
    from sampling.engine import Request, generate
    from sampling.graphs import Decoder
    from sampling.tokens import Sampling

    logging.disable_progress_bar()
    device, dtype = choose_precision()
    model = load_model(dirs, dtype).to(device).eval()
    decoder = Decoder()

    def answer(requests, temperature, finished):
        new = protocol.max_new_tokens
        sampling = Sampling(temperature, protocol.top_p, 0, new, eos_token_ids, pad_token_id, is_over)
        return generate(model, requests, sampling, protocol.batch_size, finished, decoder)

    probe = [Request(ids, 0, range(1)) for ids in prompts[:8]]
    difference = check_sampler(model, probe, answer(probe, 1.0, None), 1.0)
    print(f"sampler: own; its log-probabilities are within {difference:.1g} of a forward pass", file=sys.stderr)
    return answer


def make_vllm_engine(protocol, dirs, eos_token_ids, longest):
    """The same of vLLM; longest: tokens of the longest prompt and completion together."""
    from vllm import LLM, SamplingParams

    from sampling.tokens import Completion

    device, dtype = choose_precision()
    if device == "cpu":
        print("vLLM has no seed per prompt on a CPU: one for the run; a resume may draw other samples", file=sys.stderr)
    # generation_config="vllm": a model's own sampling defaults (a repetition penalty, say) are no part of the protocol
    llm = LLM(
        model=str(dirs[0]),
        seed=protocol.seed,
        max_model_len=longest,
        generation_config="vllm",
        dtype=str(dtype).removeprefix("torch."),
    )

    def answer(requests, temperature, finished):
        alike = {
            "temperature": temperature,
            "top_p": protocol.top_p,
            "max_tokens": protocol.max_new_tokens,
            "n": len(requests[0].samples),
            "stop_token_ids": eos_token_ids,
            "detokenize": False,
        }
        params = [SamplingParams(seed=None if device == "cpu" else r.seed, **alike) for r in requests]
        outputs = llm.generate([{"prompt_token_ids": r.ids} for r in requests], params, use_tqdm=False)
        for i, output in enumerate(outputs):
            finished(i, [Completion(list(c.token_ids), []) for c in output.outputs])

    return answer
