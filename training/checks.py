"""What values of a configuration say together, and TRL or a library finds out only when the model is loaded, or later.

Used by maths_finetuning.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282). Each check raises BadInput,
one line that names the option and the way out.

    from training.checks import check_together
    check_together(plan)        # of maths_finetuning.py
"""

import re
from argparse import Namespace
from importlib.util import find_spec

from common.files import BadInput
from common.models import causal_lm_class
from maths_rewards import REWARDS
from training.options import READ_WITH, TRL_SAMPLES, UNREAD, UNREAD_BY_GRPO, UNREAD_BY_SFT

# What validation logs, as patterns; load_best_model_at_end and some schedulers choose by one of them.
VALIDATED_BY_SFT = ("loss", "entropy", "mean_token_accuracy", "num_tokens")
VALIDATED_BY_GRPO = (
    "loss",
    "reward(_std)?",
    f"rewards/({'|'.join(reward.__name__ for reward in REWARDS)})/(mean|std)",
    "entropy",
    "frac_reward_zero_std",
    "num_tokens",
    "completions/((mean|min|max)_(terminated_)?length|clipped_ratio)",
    "trust_region/((ratio|tv)_(mean|max)|ratio_min|approx_kl|(active|outside)_ratio|effective_sample_size)",
    "trust_region/(log_ratio_second_moment|reward_std_within_groups)",
    "sampling/.+",  # of our sampler, or of vLLM
)
# What torch.utils.checkpoint and transformers' activation_checkpointing_enable take of the kwargs of checkpointing.
CHECKPOINTING = ("use_reentrant preserve_rng_state determinism_check debug early_stop every_n_layers offload").split()

# Which names of ModelConfig are whose, where they are a list.
LORA_NAMES = {
    "lora_target_modules": "module",
    "lora_modules_to_save": "module",
    "lora_target_parameters": "parameter",
}
FLASH_PACKAGES = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn",
}


def check_together(plan):
    """Raise BadInput for the first thing that the values of a Plan cannot be together."""
    config = plan.config
    if hasattr(config, "trust_region_method"):
        check_grpo(config)
        check_unread(plan)
        check_generation(config)
    else:
        check_sft(config)
    for bits in ("load_in_4bit", "load_in_8bit"):
        if getattr(plan.model_config, bits) and find_spec("bitsandbytes") is None:
            raise BadInput(f"--{bits}: bitsandbytes is not installed here (pip install bitsandbytes)")
    if config.use_liger_kernel and find_spec("liger_kernel") is None:
        raise BadInput("--use_liger_kernel: liger-kernel is not installed here (pip install liger-kernel)")
    check_attention(plan.model_config.attn_implementation)
    check_compile(config)
    check_checkpointing(config)
    if config.dataloader_persistent_workers and not config.dataloader_num_workers:
        raise BadInput("dataloader_persistent_workers needs workers: give --dataloader_num_workers")
    check_schedule(config)
    check_metric(config)


def check_grpo(config):
    """What GRPO's trainer finds in its data, its reward or its first step."""
    if config.remove_unused_columns:
        raise BadInput("remove_unused_columns: the reward reads columns that the model does not: leave it false")
    if config.reward_weights is not None and len(config.reward_weights) != len(REWARDS):
        names = ", ".join(reward.__name__ for reward in REWARDS)
        raise BadInput(f"reward_weights: {len(config.reward_weights)} are given, one for each of {names} is needed")
    if config.entropy_coef_min > config.entropy_coef_max:
        raise BadInput("entropy_coef_min is more than entropy_coef_max")
    if config.sync_ref_model and config.beta == 0:
        raise BadInput("sync_ref_model: with beta 0 there is no reference model: give --beta, or leave it out")
    batched = config.use_transformers_continuous_batching or config.use_transformers_paged
    if batched and config.eval_strategy != "no":
        raise BadInput(
            "use_transformers_continuous_batching: TRL 1.16 then logs validation as training, without a reward: give "
            "--eval_strategy no --load_best_model_at_end false, or leave it out"
        )


def check_unread(plan):
    """Raise BadInput for what is said of a way to sample that is not taken: it would be believed to be in force."""
    default = {name: field.default for name, field in type(plan.config).__dataclass_fields__.items()}
    for option, dependent in TRL_SAMPLES.items():
        if getattr(plan.config, option) != default[option]:
            continue
        for name in dependent.split():
            if getattr(plan.config, name) != default[name]:
                raise BadInput(f"{name} has no effect without --{option}: leave it out, or give --{option}")


def describe_unread(plan):
    """A line on each option that somebody gave and that changes nothing as the others stand."""
    said = [name for name, (_, layer) in plan.values.items() if layer in ("flag", "recipe")]
    lines = [f"note: {name} has no effect: {UNREAD[name]}" for name in said if name in UNREAD]
    if plan.config.max_steps > 0 and "num_train_epochs" in said:
        lines.append("note: num_train_epochs has no effect beside max_steps")
    for switch, dependent in READ_WITH.items():
        value, _ = plan.values.get(switch, (False, ""))
        if not value:
            lines += [f"note: {name} has no effect without {switch}" for name in said if name in dependent.split()]
    if hasattr(plan.config, "trust_region_method"):
        return lines + [f"note: {name} has no effect in GRPO" for name in said if name in UNREAD_BY_GRPO]
    return lines + [f"note: {name} has no effect in SFT here" for name in said if name in UNREAD_BY_SFT]


def check_generation(config):
    """What transformers' own generation would refuse once the model is loaded."""
    from transformers import GenerationConfig

    if config.use_vllm or not (config.generation_kwargs or config.cache_implementation):
        return
    own = {"max_new_tokens": config.max_completion_length, "do_sample": True, "temperature": config.temperature}
    own["cache_implementation"] = config.cache_implementation
    try:
        GenerationConfig(**{**own, **(config.generation_kwargs or {})})
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"generation_kwargs, cache_implementation: {error}") from None


def check_sft(config):
    """What SFT's trainer finds once the model is loaded."""
    if config.packing and config.max_length is None:
        raise BadInput("packing needs a --max_length: it is the length of what is packed")
    if config.padding_free and not config.packing and config.max_length is not None:
        raise BadInput("padding_free does not look at max_length: give --packing, or --max_length null")
    if config.assistant_only_loss:
        raise BadInput("assistant_only_loss: the loss is of the answer alone as it is; leave it out")
    if config.dataset_kwargs:
        raise BadInput("dataset_kwargs: the rows are prepared here; leave it out")
    if config.chat_template_path:
        raise BadInput("chat_template_path: put the template into the model's directory, as chat_template.jinja")


def check_attention(name):
    """Raise BadInput for an attention that transformers has not, or whose package is missing; None: its own choice."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name is None:
        return
    known = sorted({"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()})
    if name not in known:  # a kernel of the Hub would be code that is fetched and run
        raise BadInput(f"attn_implementation must be one of {', '.join(known)}, got {name!r}")
    package = FLASH_PACKAGES.get(name.removeprefix("paged|"))
    if package and find_spec(package) is None:
        raise BadInput(f"attn_implementation {name}: {package} is not installed here; use sdpa")


def check_compile(config):
    """Raise BadInput for a backend of torch.compile that accelerate knows by name and this PyTorch has not."""
    if not config.torch_compile or config.torch_compile_backend is None:
        return
    import torch._dynamo

    backend = config.torch_compile_backend.lower()
    if backend == "no":
        return
    known = torch._dynamo.list_backends(exclude_tags=())
    if backend not in known or (backend == "tvm" and find_spec("tvm") is None):
        raise BadInput(f"torch_compile_backend {backend} is not installed here; leave it out for inductor")


def check_checkpointing(config):
    """Raise BadInput for an argument of checkpointing that would be missed at the first forward."""
    kwargs = config.activation_checkpointing_kwargs or {}
    if unknown := sorted(kwargs.keys() - {*CHECKPOINTING}):
        raise BadInput(f"gradient_checkpointing_kwargs: unknown {unknown[0]!r}; it takes {', '.join(CHECKPOINTING)}")


def check_adapter(model_config, text_config):
    """Raise BadInput for an adapter that this model cannot have, by PEFT's own verdict on a model without weights.

    model_config: TRL's ModelConfig. text_config: the model's, see load_config. Every name must be there: PEFT is silent
    about one that is not, as long as another is.
    """
    if not model_config.use_peft:
        return
    import torch
    from peft import get_peft_model
    from trl import get_peft_config

    with torch.device("meta"):
        model = causal_lm_class(text_config)(text_config)
    modules = [name for name, _ in model.named_modules()]
    parameters = [name for name, _ in model.named_parameters()]
    for option, there in LORA_NAMES.items():
        names = getattr(model_config, option)
        known = modules if there == "module" else parameters
        for name in names if isinstance(names, list) else ():
            if not any(f".{full}".endswith(f".{name}") for full in known):
                ends = sorted({end for full in known if (end := full.rpartition(".")[2]) and not end.isdigit()})
                raise BadInput(f"{option}: this model has no {there} {name!r}; it has {', '.join(ends)}")
    adapter = get_peft_config(model_config)
    adapter.use_dora = False  # it needs weights
    try:
        get_peft_model(model, adapter)
    except (ValueError, TypeError, re.error) as error:
        refusal = " ".join(str(error).split())
        raise BadInput(f"lora_target_modules {model_config.lora_target_modules}: {refusal}") from None


def check_model_takes(config, tokenizer, text_config):
    """Raise BadInput for an option that this model or its tokenizer cannot follow.

    config: GRPOConfig or SFTConfig. text_config: the model's, see load_config.
    """
    if config.router_aux_loss_coef and not hasattr(text_config, "router_aux_loss_coef"):
        raise BadInput("router_aux_loss_coef: this model has no experts: leave it out")
    for name in ("eos_token", "pad_token"):
        token = getattr(config, name, None)
        if token is not None and token not in tokenizer.get_vocab():
            raise BadInput(f"{name}: {token!r} is no token of this model's tokenizer")


def check_device(config):
    """Raise BadInput for what a CPU cannot do: asked where a run starts, not where a grid is looked over."""
    if config.use_cpu and config.fp16:
        raise BadInput("fp16: a CPU trains in fp32 or bf16; leave it out, or use a GPU")
    if config.use_cpu and getattr(config, "activation_offloading", False):
        raise BadInput("activation_offloading moves activations from a GPU to the CPU: there is no GPU here")


def check_schedule(config):
    """Raise BadInput for an optimizer that is not installed, and for a scheduler that needs other arguments."""
    import torch
    from transformers import Trainer, get_scheduler

    try:
        _, chosen = Trainer.get_optimizer_cls_and_kwargs(config)
        _, without = Trainer.get_optimizer_cls_and_kwargs(Namespace(**{**vars(config), "optim_args": None}))
    except (ImportError, ValueError) as error:
        raise BadInput(f"optim {config.optim.value}: {error}") from None
    if config.optim_args and chosen == without:
        raise BadInput(f"optim_args: {config.optim.value} reads none of them; leave it out")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    kwargs = config.lr_scheduler_kwargs or {}
    try:
        get_scheduler(config.lr_scheduler_type, optimizer, 1, 10, scheduler_specific_kwargs=kwargs)
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"lr_scheduler_type {config.lr_scheduler_type.value}, lr_scheduler_kwargs: {error}") from None


def check_metric(config):
    """Raise BadInput for a metric_for_best_model that validation does not log: it would be missed at the first one."""
    metric = config.metric_for_best_model
    if metric is None or config.eval_strategy == "no":
        return
    known = VALIDATED_BY_SFT
    if hasattr(config, "trust_region_method"):
        known = [*VALIDATED_BY_GRPO]
        known += ["kl"] if config.beta else []
        known += [r"clip_ratio/.+"] if config.trust_region_method == "clip" else []
    if not any(re.fullmatch(pattern, metric.removeprefix("eval_")) for pattern in known):
        example = "eval_reward" if hasattr(config, "trust_region_method") else "eval_mean_token_accuracy"
        raise BadInput(f"metric_for_best_model {metric}: validation has no such figure; it has eval_loss and {example}")
