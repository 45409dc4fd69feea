"""What makes a run that was cut off and continued the same run, bit for bit, log included.

A checkpoint of transformers 5.23 with TRL 1.16 lacks some of what a trainer holds in memory, and some settings make a
continued run another one whatever is restored. The first is put back here, the second refused before a run starts.
Used by maths_finetuning.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282).
"""

import os

from common.files import BadInput

REFERENCE = "reference.safetensors"  # of a checkpoint: the reference model where it moves (sync_ref_model)

# Switches that are refused when they are on, each with its reason and the way out.
REFUSED_SWITCHES = {
    "save_only_model": "a checkpoint without the optimiser continues nothing; --save_total_limit 1 needs less room too",
    "ignore_data_skip": "a run that goes on would train on its first rows again; leave it out",
    "auto_find_batch_size": "the batch would follow from the memory that is free; set --per_device_train_batch_size",
    "enable_jit_checkpoint": "SIGTERM and SIGUSR1 save anyway, and only where a run can go on; leave it out",
    "save_on_each_node": "all processes share one run directory; leave it out",
    "dataloader_drop_last": "the rows that fill no batch would never be validated on; leave it out",
    "dataloader_persistent_workers": "its workers' order of the data is in no checkpoint; leave it out",
}
# Options of which only some values continue: their names, then the values that do, the reason and the way out.
ONLY_THESE = {
    "logging_strategy": (["steps"], "a run goes on from a step whose row is in the log; use --logging_steps"),
    "dataloader_in_order": ([True], "the order of the data would follow from the speed of the workers; leave it out"),
}
ONLY_THESE_IN_SFT = {
    "train_sampling_strategy": (["random", "sequential"], "its order of the data is in no checkpoint; use random"),
}
ONLY_THESE_IN_GRPO = {
    "train_sampling_strategy": (["random"], "TRL's GRPOTrainer does not read it; --shuffle_dataset false keeps order"),
    "data_seed": ([None], "TRL's GRPOTrainer does not read it; --seed decides the order of the data"),
}


# ---- what is refused


def check_can_continue(config):
    """Raise BadInput for a setting with which a continued run would differ from an undisturbed one."""
    for name, reason in REFUSED_SWITCHES.items():
        if getattr(config, name):
            raise BadInput(f"--{name}: {reason}")
    of_the_trainer = ONLY_THESE_IN_GRPO if is_grpo(config) else ONLY_THESE_IN_SFT
    for name, (values, reason) in {**ONLY_THESE, **of_the_trainer}.items():
        value = getattr(config, name)
        if value not in values:
            raise BadInput(f"--{name} {getattr(value, 'value', value)}: {reason}")
    if str(getattr(config.optim, "value", config.optim)).endswith(("_layerwise", "lomo")):
        raise BadInput(f"--optim {config.optim}: its state is in no checkpoint; use another")
    if not is_grpo(config) and not config.accelerator_config.use_seedable_sampler:
        raise BadInput("--accelerator_config: without use_seedable_sampler the order of the data is in no checkpoint")
    if getattr(config, "sync_ref_model", False) and find_sharding(config):
        raise BadInput("--sync_ref_model: under FSDP or DeepSpeed the reference model would be in no checkpoint")


def is_grpo(config):
    """Whether a configuration is a GRPOConfig, not an SFTConfig."""
    return hasattr(config, "num_generations")


def find_sharding(config):
    """What spreads a model over processes, "FSDP" or "DeepSpeed"; None if nothing does."""
    if config.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return "FSDP"
    if config.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return "DeepSpeed"
    return None


def sum_in_one_order(config):
    """On a CPU, let no sum depend on which thread comes first: a run is then the same bits at every start.

    PyTorch adds the gradients of elements that were taken several times by as many threads as there are, unless it is
    told not to: https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html.
    """
    import torch

    if config.use_cpu:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing of ours reads what was not written


# ---- what a checkpoint lacks


def save_reference(trainer, checkpoint):
    """Write the moving reference model of sync_ref_model into a checkpoint; nothing where it does not move."""
    from safetensors.torch import save_model

    if getattr(trainer.args, "sync_ref_model", False):
        save_model(trainer.accelerator.unwrap_model(trainer.ref_model), str(checkpoint / REFERENCE))


def restore(trainer, checkpoint, micro_batches_an_epoch):
    """Put back what transformers does not: TRL's counters, the order of later epochs, a moving reference model.

    Called when training begins, after transformers has loaded the checkpoint. Raises BadInput if the checkpoint lacks
    its reference model.
    """
    state = trainer.state
    trainer.args.eval_on_start = False  # it is done, and its row is in the log
    if state.best_global_step:  # the path in the checkpoint is that of the directory as it was called then
        best = checkpoint.with_name(f"checkpoint-{state.best_global_step}")
        state.best_model_checkpoint = str(best) if best.is_dir() else None
    if hasattr(trainer, "_total_train_tokens"):  # of SFT; GRPO's are in the state
        counted = [row["num_tokens"] for row in state.log_history if "num_tokens" in row]
        trainer._total_train_tokens = int(max(counted, default=0))
    if is_grpo(trainer.args):
        trainer._step = round(state.epoch * micro_batches_an_epoch)  # micro-batches trained on so far
    if getattr(trainer.args, "sync_ref_model", False):
        load_reference(trainer, checkpoint)


def load_reference(trainer, checkpoint):
    """Read the moving reference model back from a checkpoint; raises BadInput if it is not there."""
    from safetensors.torch import load_model

    path = checkpoint / REFERENCE
    if not path.is_file():
        raise BadInput(f"{path} is missing, without which the run would be another one; --overwrite starts it afresh")
    load_model(trainer.accelerator.unwrap_model(trainer.ref_model), str(path))


def restore_data_order(dataloader, epochs_done):
    """Let TRL's RepeatSampler draw as if it had drawn the order of so many epochs; it does so once an epoch."""
    import torch
    from trl.trainer.utils import RepeatSampler

    sampler = dataloader
    while sampler is not None and not isinstance(sampler, RepeatSampler):
        sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
    if sampler is not None and sampler.shuffle:
        for _ in range(epochs_done):
            torch.randperm(sampler.num_samples, generator=sampler.generator)
