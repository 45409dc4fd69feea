"""How long a run is, and how many checkpoints it keeps, as its configuration and the number of its rows say.

Used by maths_finetuning.py and maths_grid.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282).
"""

import math


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
