"""How long a run is, how many checkpoints it keeps, whether its trust region can act.

All of it follows from the configuration and the number of rows.

Used by maths_finetuning.py and maths_grid.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282).
"""

import math

from common.files import BadInput

INERT = (
    "is inert: every ratio is 1 (one update per generation), so all methods have the same gradient up to a factor; "
    "a larger --num_iterations lets them differ"
)


def cycle_steps(config):
    """Optimiser steps after which generation and optimisation are both at a boundary: lcm(G, S mu) / G."""
    if not hasattr(config, "num_iterations"):
        return 1
    accumulation = config.gradient_accumulation_steps
    return math.lcm(accumulation, config.steps_per_generation * config.num_iterations) // accumulation


def micro_batches_an_epoch(config, rows, processes):
    """Micro-batches that one process trains on in an epoch of so many rows; GRPO drops what fills no generation."""
    if not hasattr(config, "num_generations"):
        return math.ceil(rows / (config.per_device_train_batch_size * processes))
    generations = rows // (config.generation_batch_size // config.num_generations)
    return generations * config.steps_per_generation * config.num_iterations


def steps_an_epoch(config, rows, processes):
    """Optimiser steps of an epoch of so many rows; the last one takes the micro-batches that are left."""
    return math.ceil(micro_batches_an_epoch(config, rows, processes) / config.gradient_accumulation_steps)


def planned_steps(config, rows, processes):
    """Optimiser steps of the whole run."""
    if config.max_steps > 0:
        return config.max_steps
    return math.ceil(config.num_train_epochs * steps_an_epoch(config, rows, processes))


def keeps_every_checkpoint(config):
    """Whether none is deleted: what transformers means by a save_total_limit that is None, 0 or less."""
    return config.save_total_limit is None or config.save_total_limit <= 0


def checkpoints_kept(config, rows, processes=1):
    """Checkpoints that lie in a run's directory at its end; rows, those to train on, count where none is deleted."""
    if not keeps_every_checkpoint(config):
        return config.save_total_limit
    if config.save_strategy == "no":
        return 1  # a signal's
    if config.save_strategy == "epoch":
        between = steps_an_epoch(config, rows, processes)
    elif config.save_strategy == "best":
        between = steps_an_epoch(config, rows, processes) if config.eval_strategy == "epoch" else config.eval_steps
    else:
        between = config.save_steps
    return math.ceil(planned_steps(config, rows, processes) / between)


def is_inert(config):
    """Whether every ratio is exactly 1, so that no trust region can act: TRL then skips the old log-probabilities."""
    corrected = config.use_vllm and config.vllm_importance_sampling_correction
    micro_steps = config.steps_per_generation * config.num_iterations
    return config.gradient_accumulation_steps % micro_steps == 0 and not corrected


def describe(config, weights, rows, processes):
    """One line each on the trust region, the cycle, the precision and the device. weights: their dtype, a string."""
    batch = config.per_device_train_batch_size * processes * config.gradient_accumulation_steps
    dtype = "bf16 autocast" if config.bf16 else "fp16 autocast" if config.fp16 else "no autocast"
    device = "cpu" if config.use_cpu else "cuda"
    lines = [f"precision: {weights} weights, {dtype}", f"device: {device}, {processes} process{'es' * (processes > 1)}"]
    epoch = steps_an_epoch(config, rows, processes)
    if not hasattr(config, "trust_region_method"):
        return [f"supervised: {min(rows, batch)} rows a step, {epoch} step{'s' * (epoch > 1)} an epoch", *lines]
    cycle = cycle_steps(config)
    completions = config.generation_batch_size
    prompts = completions // config.num_generations
    generations = cycle * config.gradient_accumulation_steps // (config.steps_per_generation * config.num_iterations)
    acts = INERT if is_inert(config) else "can bind: a generation is used for more than one update"
    left = micro_batches_an_epoch(config, rows, processes) % config.gradient_accumulation_steps
    if left and planned_steps(config, rows, processes) > epoch:
        taken = f"{left} of {config.gradient_accumulation_steps} micro-batches"
        lines.append(f"the last step of an epoch has {taken}: saving and validation then wait for the end of a cycle")
    made = f"{completions * generations} completions of {prompts * generations} prompt{'s' * (prompts > 1)}"
    return [
        f"trust region: {config.trust_region_method} {acts}",
        f"cycle: {cycle} step{'s' * (cycle > 1)} for {made}; an epoch is {epoch} steps and "
        f"{rows // prompts * completions} completions",
        *lines,
    ]


def check_plan(config, rows):
    """Raises BadInput where the data and the schedule do not fit."""
    cycle = cycle_steps(config)
    for name, strategy in (("save_steps", config.save_strategy), ("eval_steps", config.eval_strategy)):
        steps = getattr(config, name)
        if strategy == "steps" and steps and steps % cycle:
            raise BadInput(f"{name} {steps} is not a multiple of the generation cycle of {cycle} steps")
    if config.save_strategy == "steps" and config.save_steps % config.logging_steps:
        raise BadInput(f"save_steps {config.save_steps} is not a multiple of logging_steps {config.logging_steps:g}")
    if hasattr(config, "num_generations") and rows * config.num_generations < config.generation_batch_size:
        prompts = config.generation_batch_size // config.num_generations
        what = f"{rows} training rows are fewer than the {prompts} prompts of one generation batch"
        raise BadInput(f"{what}: lower --per_device_train_batch_size or --steps_per_generation")
