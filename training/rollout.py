"""The sampler inside TRL's GRPOTrainer: which row of a batch is which sample of which group, however it is spread.

Used by maths_finetuning.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282).

    GRPOTrainer(..., rollout_func=make_rollout(seed=0, tokenizer=tokenizer))
"""

import math
import time
from functools import partial
from itertools import groupby

import torch

from common.files import make_seed
from common.models import causal_lm_class
from common.prompts import Template
from sampling.check import check_sampler, logp_difference
from sampling.engine import Request, find_obstacle, generate
from sampling.graphs import Decoder
from sampling.tokens import Sampling
from training.schedule import micro_batches_an_epoch

ROLLOUT_ROWS = 256  # completions decoded at once in training; their key/value cache fits a GPU beside a model of 3B


def split_groups(prompts, first, num_generations):
    """[(group, prompt, its samples)] of one process's rows of a global batch of groups of `num_generations` rows each.

    first: the place of prompts[0] in the global batch. A group may begin in one process and end in another: which
    sample of it a row is follows from the row's place alone. Raises ValueError if a group holds different prompts.
    """
    groups = []
    for group, rows in groupby(range(first, first + len(prompts)), key=lambda row: row // num_generations):
        rows = list(rows)
        prompt = prompts[rows[0] - first]
        if any(prompts[row - first] != prompt for row in rows):
            raise ValueError(f"the rows of group {group} hold different prompts: the batch is not made of groups")
        groups.append((group, prompt, range(rows[0] % num_generations, rows[-1] % num_generations + 1)))
    return groups


def find_rollout_obstacle(text_config, tokenizer, data, config):
    """Why the project's sampler cannot answer the prompts of a run, None where it can.

    text_config: the model's, see load_config. data: {part: rows with a `prompt`}, measured only where the model has a
    window. config: GRPOConfig.
    """
    model_class = causal_lm_class(text_config)
    obstacle = find_obstacle(model_class, text_config, longest=0)
    if obstacle or not getattr(text_config, "sliding_window", None):
        return obstacle
    prompts = [prompt for rows in data.values() for prompt in rows["prompt"]]
    ids = Template(tokenizer, config.chat_template_kwargs).encode(prompts)
    return find_obstacle(model_class, text_config, max(map(len, ids)) + config.max_completion_length)


def generation_of_step(trainer):
    """Which generation of its optimiser step a GRPOTrainer begins now: two of one step never get the same number.

    An epoch begins with a step of its own, though its last step may have had fewer micro-batches than the others.
    """
    config = trainer.args
    an_epoch = micro_batches_an_epoch(config, len(trainer.train_dataset), trainer.accelerator.num_processes)
    in_step = trainer._step % an_epoch % config.gradient_accumulation_steps
    return in_step // config.steps_per_generation


def rollout_requests(prompts, trainer, tokenizer, seed):
    """The Requests of this process for a generation of a GRPOTrainer.

    The seed of a group follows from (seed, step, place in the global batch), in validation from (seed, step, prompt),
    not from how the rows are spread over processes.
    """
    training = trainer.model.training
    step = trainer.state.global_step
    count = trainer.num_generations if training else trainer.num_generations_eval
    generation = generation_of_step(trainer)
    groups = split_groups(prompts, trainer.accelerator.process_index * len(prompts), count)
    conversations = [prompt for _, prompt, _ in groups]
    ids = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, **trainer.chat_template_kwargs)
    return [
        Request(tokens, make_seed(seed, step, generation, group if training else tokens), samples)
        for tokens, (group, _, samples) in zip(ids["input_ids"], groups, strict=True)
    ]


def answer_with_trl(prompts, trainer):
    """What TRL's own generation makes of the prompts, as a rollout_func returns it."""
    ids, images, fields = trainer._tokenize_prompts(prompts)
    count = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    completions, logps = trainer._generate_single_turn(ids, images, fields, count)
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": logps}


def time_paths(paths, accelerator):
    """{name: seconds} of calls, the slowest process's, each made once before; global random numbers are put back.

    A path that runs out of memory takes for ever. All end with token ids on the CPU: the device has nothing left to do.
    """

    def time_second_call(path):
        try:
            path()
            begun = time.perf_counter()
            path()
            return time.perf_counter() - begun
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return math.inf

    with torch.random.fork_rng(devices=[accelerator.device] if accelerator.device.type == "cuda" else []):
        seconds = [time_second_call(path) for path in paths.values()]
    every = accelerator.gather(torch.tensor([seconds], device=accelerator.device))
    return dict(zip(paths, every.amax(0).tolist(), strict=True))


def draw(requests, trainer, pad_token_id, decoder, check=None):
    """(completions of the Requests by the policy as it is now, what check(model, completions) says)."""
    from trl.models import unwrap_model_for_generation

    settings = (trainer.temperature, trainer.top_p, trainer.top_k, trainer.max_completion_length, trainer.eos_token_ids)
    with (
        unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model,
        trainer.accelerator.autocast(),
    ):
        completions = generate(model, requests, Sampling(*settings, pad_token_id), ROLLOUT_ROWS, decoder=decoder)
        return completions, check and check(model, requests, completions, trainer.temperature)


def make_rollout(seed, tokenizer, settle=None):
    """A rollout_func for GRPOTrainer: this sampler, which reads a prompt once for all its samples.

    Raises BadInput if its first generation disagrees with a forward pass. The difference is logged, as vLLM's.

    settle({"own": seconds, "trl": seconds}) -> "own" or "trl" is asked once, about the first batch: on a GPU, where a
    step of a deep model costs the launches of its kernels, TRL's own path may be faster. It then takes over for good.
    """
    checks = [check_sampler]
    trials = [settle] if settle else []
    pad = tokenizer.pad_token_id
    decoder = Decoder()  # its graphs stay valid: training changes the weights where they are

    def rollout(prompts, trainer):
        requests = rollout_requests(prompts, trainer, tokenizer, seed)
        if trials:
            paths = {
                "own": partial(draw, requests, trainer, pad, decoder),
                "trl": partial(answer_with_trl, prompts, trainer),
            }
            if trials.pop()(time_paths(paths, trainer.accelerator)) == "trl":
                trainer.rollout_func = None
                return answer_with_trl(prompts, trainer)
        check = checks.pop() if checks else logp_difference
        completions, difference = draw(requests, trainer, pad, decoder, check)
        difference = trainer.accelerator.gather(torch.tensor([difference], device=trainer.accelerator.device))
        mode = "train" if trainer.model.training else "eval"
        trainer._metrics[mode]["sampling/sampling_logp_difference/mean"].append(difference.mean().item())
        return {
            "prompt_ids": [request.ids for request in requests for _ in request.samples],
            "completion_ids": [completion.ids for group in completions for completion in group],
            "logprobs": None,
        }

    return rollout
