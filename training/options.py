"""What each option of TRL can be: its type, the range of its numbers, and who can sample with it.

For the experiments of Probability Smoothing Policy Optimisation (arXiv 2509.21282). The values that a run uses are in
training/hyperparameters.py.

    from common.values import read_values
    from training.options import RANGES, read_field_kinds
    read_values({"bf16": "no", "num_iterations": 2}, read_field_kinds("pspo"), RANGES, "recipe.yaml")
"""

import re
from importlib.util import find_spec
from pathlib import Path

from common.files import BadInput
from common.values import FINITE, Range, above, at_least, between, parse_annotation

# ---- numbers and words

# Of every number among the options of TRL and transformers; null has no range.
RANGES = {
    # the schedule
    "num_train_epochs": at_least(0),
    "max_steps": Range("at least 1, or -1 for whole epochs", lambda steps: steps == -1 or steps >= 1),
    "learning_rate": at_least(0),
    "warmup_steps": at_least(0),  # below 1: a share of all steps
    # transformers takes a number below 1 for a share of the run, which no generation cycle can be held against
    "logging_steps": at_least(1),
    "eval_steps": at_least(1),
    "eval_delay": at_least(0),
    "save_steps": at_least(1),
    "save_total_limit": FINITE,  # 0, less and null keep every checkpoint
    # batches
    "per_device_train_batch_size": at_least(1),
    "per_device_eval_batch_size": at_least(1),
    "gradient_accumulation_steps": at_least(1),
    "generation_batch_size": at_least(1),
    "steps_per_generation": at_least(1),
    "num_iterations": at_least(1),
    "num_generations": at_least(2),
    "num_generations_eval": at_least(1),
    "eval_accumulation_steps": at_least(1),
    "pad_to_multiple_of": at_least(1),
    "max_length": at_least(1),
    # sampling
    "max_completion_length": at_least(1),
    "temperature": above(0),  # the loss divides by it
    "top_p": Range("above 0 and at most 1", lambda share: 0 < share <= 1),
    "top_k": at_least(0),
    "min_p": between(0, 1),
    "repetition_penalty": above(0),
    "max_tool_calling_iterations": at_least(0),
    # the objective
    "beta": at_least(0),
    "epsilon": at_least(0),
    "epsilon_high": at_least(0),
    "delta": above(0),
    "smoothing_alpha": between(0, 1),
    "trust_region_delta": at_least(0),
    "trust_region_penalty": at_least(0),
    "sapo_temperature_neg": above(0),
    "sapo_temperature_pos": above(0),
    "vespo_k_pos": at_least(0),
    "vespo_lambda_pos": at_least(0),
    "vespo_k_neg": at_least(0),
    "vespo_lambda_neg": at_least(0),
    "off_policy_mask_threshold": at_least(0),
    "top_entropy_quantile": between(0, 1),
    "entropy_coef": FINITE,
    "entropy_coef_min": FINITE,
    "entropy_coef_max": FINITE,
    "entropy_coef_delta": at_least(0),
    "entropy_target": at_least(0),
    "reward_weights": FINITE,
    "ref_model_mixup_alpha": between(0, 1),
    "ref_model_sync_steps": at_least(1),
    "router_aux_loss_coef": at_least(0),
    "label_smoothing_factor": between(0, 1),
    "neftune_noise_alpha": at_least(0),
    # the optimiser
    "weight_decay": at_least(0),
    "adam_beta1": Range("at least 0 and below 1", lambda beta: 0 <= beta < 1),
    "adam_beta2": Range("at least 0 and below 1", lambda beta: 0 <= beta < 1),
    "adam_epsilon": at_least(0),
    "max_grad_norm": at_least(0),  # 0: no limit
    # LoRA
    "lora_r": at_least(1),
    "lora_alpha": at_least(1),
    "lora_dropout": Range("at least 0 and below 1", lambda share: 0 <= share < 1),
    # the machine
    "seed": between(0, 2**32 - 1),  # what NumPy takes
    "data_seed": between(0, 2**32 - 1),
    "torch_empty_cache_steps": at_least(1),
    "dataset_num_proc": at_least(1),
    "dataloader_num_workers": at_least(0),
    "dataloader_prefetch_factor": at_least(1),
    "ddp_bucket_cap_mb": at_least(1),
    "ddp_timeout": at_least(1),
    "local_rank": at_least(-1),
    "num_completions_to_print": at_least(1),
    "vllm_server_port": between(1, 65535),
    "vllm_group_port": between(1, 65535),
    "vllm_server_timeout": at_least(0),
    "vllm_gpu_memory_utilization": Range("above 0 and at most 1", lambda share: 0 < share <= 1),
    "vllm_max_model_length": at_least(1),
    "vllm_tensor_parallel_size": at_least(1),
    "vllm_importance_sampling_clip_max": at_least(0),
    "vllm_importance_sampling_clip_min": at_least(0),
    "vllm_importance_sampling_cap": at_least(0),
}
# Switches, and what is only read where one is on. Said without it, it changes nothing; a grid may switch along an axis.
READ_WITH = {
    "activation_checkpointing": "activation_checkpointing_kwargs gradient_checkpointing_kwargs",
    "use_liger_kernel": "liger_kernel_config",
    "fsdp": "fsdp_config",
    "use_peft": (
        "lora_r lora_alpha lora_dropout lora_target_modules lora_target_parameters lora_modules_to_save use_rslora "
        "use_dora"
    ),
    "load_in_4bit": "bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage",
    "use_adaptive_entropy": "entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target",
    "sync_ref_model": "ref_model_mixup_alpha ref_model_sync_steps",
}
# Of transformers' options, what no training here reads, and what does instead.
UNREAD = {
    **dict.fromkeys(("do_train", "do_predict"), "this script trains"),
    "do_eval": "eval_strategy says whether to validate",
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), "a validation within training is computed as training is"),
    **dict.fromkeys(
        ("hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"),
        "nothing is uploaded from here",
    ),
    "length_column_name": "rows are not ordered by their length",
    "local_rank": "the launcher sets it",
}
# Of transformers' and TRL's options, what GRPO never reads here: it has no labels, and no tools are given to it.
UNREAD_BY_GRPO = ("label_smoothing_factor", "max_tool_calling_iterations")
UNREAD_BY_SFT = ("dataset_text_field",)  # the rows here are a question and its answer
# Of the text that TRL takes as it comes, and whose misspelling it finds in the first step or never.
CHOICES = {
    "importance_sampling_level": ("token", "sequence"),
    "loss_type": ("grpo", "dapo", "dr_grpo", "bnpo", "luspo", "cispo", "sapo", "vespo"),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("server", "colocate"),
    "vllm_model_impl": ("vllm", "transformers"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "lora_task_type": ("CAUSAL_LM",),
    "include_num_input_tokens_seen": ("all", "non_padding", True, False),  # transformers takes other text for "all"
    "torch_compile_mode": ("default", "lite", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "torch_compile_backend": (
        "no eager aot_eager inductor aot_ts_nvfuser nvprims_nvfuser cudagraphs ofi fx2trt onnxrt tensorrt "
        "aot_torchxla_trace_once torchxla_trace_once tvm hpu_backend neuron"
    ).split(),  # of accelerate's DynamoBackend
}
# Types that allow null where TRL then counts with it.
NEVER_NULL = ("num_generations", "max_completion_length", "dtype")
# A mapping or the path of a file with one; other mappings take text for JSON alone, which they are read from.
MAY_BE_FILES = ("accelerator_config", "deepspeed", "fsdp_config")
# What true and false mean for text.
OFF_IS_NO = {False: "no"}
BOOLEAN_TEXT = {
    "eval_strategy": OFF_IS_NO,
    "save_strategy": OFF_IS_NO,
    "logging_strategy": OFF_IS_NO,
    "scale_rewards": {True: "group", False: "none"},  # TRL's own
    "report_to": {False: "none"},
}

# What of GRPOConfig shapes the completions, and by whom it can be done. What neither table names shapes none of them.
OWN_SAMPLES = (
    "temperature top_p top_k max_completion_length chat_template_kwargs num_generations num_generations_eval "
    "generation_batch_size steps_per_generation cast_lm_head_to_fp32"
).split()
# Each away from its default makes TRL sample; the first name of a row, and what is only read with it.
TRL_SAMPLES = {
    "min_p": "",
    "repetition_penalty": "",
    "generation_kwargs": "",
    "cache_implementation": "",
    "use_transformers_continuous_batching": "transformers_continuous_batching_config use_transformers_paged",
    "use_vllm": (
        "vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_base_url "
        "vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization "
        "vllm_max_model_length vllm_tensor_parallel_size"
    ),
}


def read_field_kinds(method):
    """{option: Kind} of TRL's options, from its source: importing it takes seconds, which a typing error should not."""
    specs = [find_spec(name) for name in ("trl", "transformers")]
    if None in specs:
        raise BadInput("trl or transformers is not installed here: pip install -r requirements.txt")
    trl, transformers = (Path(spec.submodule_search_locations[0]) for spec in specs)
    trainer = "sft_config" if method == "sft" else "grpo_config"
    files = [transformers / "training_args.py"]  # a class after the one it derives from
    files += [trl / "trainer" / f"{name}.py" for name in ("base_config", trainer, "model_config")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    kinds = {name: parse_annotation(kind) for name, kind in re.findall(r"^    (\w+): (.+?) = field\(", text, re.M)}
    for name, kind in kinds.items():
        if "dict" in kind.types and name not in MAY_BE_FILES:
            kinds[name] = kind._replace(types=kind.types - {"str"})
    for name in kinds.keys() & CHOICES.keys():
        if name != "loss_type" or method != "sft":  # SFT's own states its choices
            kinds[name] = kinds[name]._replace(choices=CHOICES[name])
    for name in kinds.keys() & BOOLEAN_TEXT.keys():
        kinds[name] = kinds[name]._replace(booleans=BOOLEAN_TEXT[name])
    for name in kinds.keys() & {*NEVER_NULL}:
        kinds[name] = kinds[name]._replace(optional=False)
    return kinds
