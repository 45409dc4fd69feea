"""Fine-tune a causal language model on GSM8K with GRPO under a chosen trust region, or with plain SFT as the baseline.

Reproduces the training runs of Probability Smoothing Policy Optimisation (arXiv 2509.21282); `PRESETS` holds the
published values of every cell. Departures: fp32 weights under bf16 autocast (bf16 weights lose updates at such learning
rates), all 473 validation rows, a reward without the published one's faults, a sampler that answers a batch faster.

    python maths_finetuning.py --model demo --trust_region_method pspo --seed 0
    python maths_finetuning.py --model Qwen2.5-0.5B --trust_region_method clip --seed 0 --epsilon 0.2
    python maths_finetuning.py --model Qwen2.5-0.5B --trust_region_method sft --print_config
    accelerate launch --config_file recipes/ddp.yaml maths_finetuning.py --model Qwen2.5-1.5B --trust_region_method pspo

Every field of TRL's GRPOConfig (SFTConfig for sft) and ModelConfig is a flag too, or a key of --config recipe.yaml. A
flag beats the recipe, the recipe beats the table in this file, and the table beats TRL's defaults: see --print_config.

The same command again continues the run, or says that it is finished. SIGTERM and SIGUSR1 save at the end of the
current generation cycle and exit with code 75 ("saved, not finished"); a second signal exits at once.
"""

import argparse
import difflib
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

from apply_patches import require_patched_trl
from maths_common import BadInput, get_cache_dir, go_offline, make_parser, run_script
from maths_datasets import build_prompt, load_maths_dataset, split_train_validation
from maths_models import find_model, get_eos_token_ids
from maths_rewards import REWARD_WEIGHTS, accuracy_reward, format_reward

ROOT = Path(__file__).resolve().parent
ROLLOUT_ROWS = 256  # completions decoded at once; the key/value cache of so many fits a GPU beside the model of 3B
METHODS = ["clip", "noclip", "pspo", "sapo", "sft"]

# What GRPO and SFT share in every cell of the paper's table (its published scripts); a step is 4 x 16 = 64 sequences.
COMMON = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 16,
    "per_device_eval_batch_size": 64,  # not published; TRL's 8 only makes validation slower
    "warmup_steps": 140,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "save_steps": 100,
    "save_total_limit": 2,  # the newest two: should the newest be damaged, the one before continues the run
    "load_best_model_at_end": True,
    "logging_steps": 1,
    "gradient_checkpointing": False,  # not published; TRL's True pays a third of the time for memory not needed here
    "logging_nan_inf_filter": False,  # a loss that is not finite must be seen, not replaced
    "ddp_find_unused_parameters": False,  # all are used; looking for others costs a walk of the graph each step
    "report_to": "none",
}
SHARED = {
    **COMMON,
    "num_train_epochs": 3,
    "num_generations": 4,
    "max_completion_length": 128,
    "temperature": 0.8,
    "top_p": 0.9,
    "beta": 0.0,
    "loss_type": "dapo",
    "metric_for_best_model": "eval_reward",
    "reward_weights": REWARD_WEIGHTS,  # ours: accuracy_reward, format_reward
}
SHARED_SFT = {
    **COMMON,
    "num_train_epochs": 20,
    "learning_rate": 2e-5,  # TRL's default
    "metric_for_best_model": "eval_loss",
}

# Per model and method, from the published scripts. sapo is not in them: pspo's rate and iterations, TRL's temperatures.
PRESETS = {
    "Qwen2.5-0.5B": {
        "clip": {"learning_rate": 1e-6, "epsilon": 0.1, "num_iterations": 2},
        "noclip": {"learning_rate": 1e-6, "num_iterations": 1},
        "pspo": {"learning_rate": 5e-7, "smoothing_alpha": 0.1, "num_iterations": 2},
        "sapo": {"learning_rate": 5e-7, "num_iterations": 2},
        "sft": {},
    },
    "Qwen2.5-1.5B": {
        "clip": {"learning_rate": 5e-7, "epsilon": 0.2, "num_iterations": 2},
        "noclip": {"learning_rate": 1e-6, "num_iterations": 1},
        "pspo": {"learning_rate": 5e-7, "smoothing_alpha": 0.1, "num_iterations": 2},
        "sapo": {"learning_rate": 5e-7, "num_iterations": 2},
        "sft": {},
    },
    "Qwen2.5-3B": {  # not published: the values of the 1.5B model
        "clip": {"learning_rate": 5e-7, "epsilon": 0.2, "num_iterations": 2},
        "noclip": {"learning_rate": 1e-6, "num_iterations": 1},
        "pspo": {"learning_rate": 5e-7, "smoothing_alpha": 0.1, "num_iterations": 2},
        "sapo": {"learning_rate": 5e-7, "num_iterations": 2},
        "sft": {},
    },
    "demo": {  # ours: two updates a generation, so that every trust region is live
        "clip": {"learning_rate": 1e-4, "epsilon": 0.2, "num_iterations": 2},
        "noclip": {"learning_rate": 1e-4, "num_iterations": 2},
        "pspo": {"learning_rate": 1e-4, "smoothing_alpha": 0.1, "num_iterations": 2},
        "sapo": {"learning_rate": 1e-4, "num_iterations": 2},
        "sft": {"learning_rate": 3e-4, "num_train_epochs": 3},
    },
}
# What the demo changes in SHARED: 128 completions of 16 prompts a generation, minutes on two CPU cores.
DEMO = {
    "max_steps": 160,
    "per_device_train_batch_size": 64,
    "gradient_accumulation_steps": 2,
    "per_device_eval_batch_size": 128,
    "num_generations": 8,
    "num_generations_eval": 1,
    "max_completion_length": 48,
    "temperature": 1.0,
    "top_p": 1.0,
    "warmup_steps": 10,
    "eval_steps": 40,
    "save_steps": 40,
}
DEMO_SFT = {
    k: v for k, v in DEMO.items() if k in ("per_device_eval_batch_size", "warmup_steps", "eval_steps", "save_steps")
}

# Flags of the Hugging Face dataclasses that would be parsed and then ignored, or must not be used here.
REFUSED = {
    "model_name_or_path": "use --model",
    "model_revision": "the cache holds one revision: save_model_locally.py --revision chooses it",
    "trust_remote_code": "checkpoints are data here, code in them is never run",
    "resume_from_checkpoint": "the same command again continues the run",
    "push_to_hub": "compute nodes have no network; upload the finished run directory yourself",
    "use_cpu": "use --device cpu",
}
# What may differ when a run is continued: where things lie and how they are shown, not what is computed.
NOT_PART_OF_THE_RUN = {
    "output_dir",
    "report_to",
    "run_name",
    "disable_tqdm",
    "log_completions",
    "project",
    "trackio_space_id",
}


# ---------------------------------------------------------------------------------------------- configuration


def parse_own_flags(argv):
    """The flags that are not TRL's -> (namespace, the rest of argv)."""
    parser = make_parser(__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="demo, a name in the cache, or a model directory")
    parser.add_argument("--trust_region_method", choices=METHODS, required=True, help="the ratio's constraint, or sft")
    parser.add_argument("--seed", type=int, default=0, help="of data order, sampling and initialisation (default: 0)")
    parser.add_argument("--dataset", choices=["gsm8k", "demo"], help="default: demo for the demo model, else gsm8k")
    parser.add_argument("--config", help="recipe: a YAML mapping of flags to values")
    parser.add_argument("--cache_dir", help="default: $GRPSPO_CACHE, else ./cached_files")
    parser.add_argument("--output_root", default="runs", help="runs go to <root>/<model>/<method>/seed<N>")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one"
    )
    parser.add_argument("--merge_adapter", action="store_true", help="with LoRA: also fold the adapter into the model")
    parser.add_argument("--overwrite", action="store_true", help="start afresh; an existing run is moved aside")
    parser.add_argument("--print_config", action="store_true", help="show every value and its origin, start nothing")
    recipe = read_recipe(argv)
    own = {action.dest for action in parser._actions}
    for action in parser._actions:  # a recipe may hold our own flags too
        if action.dest in recipe:
            action.default, action.required = recipe[action.dest], False
    args, rest = parser.parse_known_args(argv)
    for name in ("trust_region_method", "dataset", "device"):
        check_choice(parser, name, getattr(args, name))
    args.seed = whole_number("seed", args.seed)
    args.recipe = {key: value for key, value in recipe.items() if key not in own}
    return args, rest


def check_choice(parser, name, value):
    """argparse checks choices of flags but not of defaults, which is what a recipe sets. Raises BadInput."""
    choices = next(action.choices for action in parser._actions if action.dest == name)
    if value is not None and value not in choices:
        raise BadInput(f"recipe: {name} is {value!r}; choose from {', '.join(choices)}")


def whole_number(name, value):
    """A seed as an int in [0, 2**32), the range NumPy takes; raises BadInput."""
    if not isinstance(value, int) or not 0 <= value < 2**32:
        raise BadInput(f"{name} must be a whole number from 0 to 4294967295, got {value!r}")
    return value


def read_recipe(argv):
    """The mapping in the file after --config, {} without one; raises BadInput."""
    paths = [b for a, b in zip(argv, argv[1:], strict=False) if a == "--config"]
    paths += [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]
    if not paths:
        return {}
    import yaml

    try:
        recipe = yaml.safe_load(Path(paths[-1]).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"cannot read the recipe {paths[-1]}: {error}") from None
    if not isinstance(recipe, dict) or "env" in recipe:
        raise BadInput(f"the recipe {paths[-1]} must be a mapping of flags to values (and has no 'env')")
    return recipe


def choose_precision(device):
    """fp32 weights always; bf16 autocast where the GPU has it, fp16 autocast on an older GPU, plain fp32 on a CPU."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: PyTorch sees no CUDA device here; use --device cpu, or ask for a GPU node")
    cuda = device != "cpu" and torch.cuda.is_available()
    bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return {"use_cpu": not cuda, "bf16": bf16, "fp16": cuda and not bf16}


def table_values(args):
    """The row of PRESETS for this model and method over what all share."""
    name, method = Path(args.model).name, args.trust_region_method
    shared = SHARED_SFT if method == "sft" else SHARED
    demo = (DEMO_SFT if method == "sft" else DEMO) if name == "demo" else {}
    return {**shared, **demo, **PRESETS.get(name, {}).get(method, {})}


def run_values(args):
    """What follows from --model, --trust_region_method and --seed alone: the run directory is named by these."""
    name, method = Path(args.model).name, args.trust_region_method
    values = {"output_dir": str(Path(args.output_root) / name / method / f"seed{args.seed}"), "seed": args.seed}
    return values if method == "sft" else {**values, "trust_region_method": method}


def resolve(args, rest):
    """The run's configuration -> (GRPOConfig or SFTConfig, ModelConfig, {key: (value, origin)}).

    Raises BadInput for an unknown key or flag, and for what TRL's own validation refuses.
    """
    from trl import GRPOConfig, ModelConfig, SFTConfig, TrlParser

    kinds = [SFTConfig if args.trust_region_method == "sft" else GRPOConfig, ModelConfig]
    flags = explicit_flags(TrlParser(kinds, allow_abbrev=False), rest)
    for key in [*flags, *args.recipe]:
        if key in REFUSED:
            raise BadInput(f"{key}: {REFUSED[key]}")
    layers = {
        "machine": choose_precision(args.device),
        "table": table_values(args),
        "run": run_values(args),
        "recipe": args.recipe,
        "flag": flags,
    }
    if not any("learning_rate" in layers[origin] for origin in ("table", "recipe", "flag")):
        raise BadInput(f"{args.model} has no row in the table of published values: give --learning_rate")
    parser = TrlParser(kinds, allow_abbrev=False)
    parser.error = raise_bad_input
    values = {key: value for layer in ("machine", "table", "run", "recipe") for key, value in layers[layer].items()}
    unknown = [key for key in values if key not in {action.dest for action in parser._actions}]
    if unknown:
        raise BadInput(unknown_key_message(unknown[0], parser))
    parser.set_defaults_with_config(**values)
    try:
        config, model_config = parser.parse_args_into_dataclasses(rest)
    except (ValueError, ImportError) as error:  # TRL's and transformers' own validation
        raise BadInput(f"configuration: {error}") from None
    origins = {key: origin for origin, layer in layers.items() for key in layer}
    both = {**vars(model_config), **vars(config)}
    values = {key: (both[key], origins.get(key, "default")) for key in sorted(both) if key[0] != "_"}
    return config, model_config, values


def explicit_flags(parser, rest):
    """What the command line itself sets, {field: value}; raises BadInput for a flag that TRL does not have."""
    parser.error = raise_bad_input
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    known, unknown = parser.parse_known_args(rest)
    if unknown:
        raise BadInput(unknown_key_message(unknown[0], parser))
    return vars(known)


def raise_bad_input(message):
    """What a parser of TRL's does on an error, in place of printing its 300 options."""
    raise BadInput(f"{message} (--print_config lists the options)")


def unknown_key_message(key, parser):
    """Names the closest known flag."""
    names = [action.dest for action in parser._actions]
    close = difflib.get_close_matches(key.lstrip("-").split("=")[0], names, 1)
    return f"unknown option {key}" + (f"; did you mean {close[0]}?" if close else " (--print_config lists the options)")


def print_config(values):
    """Every value and where it came from, what was chosen first, TRL's defaults last."""
    width = max(map(len, values))
    print(f"{'option':{width}}  {'value':24}  origin (run: from --model, --trust_region_method and --seed)")
    for origin in ("flag", "recipe", "run", "table", "machine", "default"):
        rows = {key: value for key, (value, source) in values.items() if source == origin}
        for key, value in rows.items():
            print(f"{key:{width}}  {getattr(value, 'value', value)!r:24}  {origin}")


def check_config(args, config, model_config):
    """Raises BadInput for what TRL would find only after the model is loaded, or never."""
    from importlib.util import find_spec

    from transformers.integrations import get_available_reporting_integrations

    missing = [name for name in config.report_to if name not in get_available_reporting_integrations()]
    if missing:
        raise BadInput(f"--report_to {missing[0]}: not installed here (pip install {missing[0]}, or --report_to none)")
    if getattr(config, "use_vllm", False) and find_spec("vllm") is None:
        raise BadInput("--use_vllm: vllm is not installed here (pip install vllm, on a machine with a GPU)")
    if args.merge_adapter and not model_config.use_peft:
        raise BadInput("--merge_adapter needs --use_peft: there is no adapter to merge")
    if config.max_steps <= 0 and config.num_train_epochs <= 0:
        raise BadInput("no steps to train: give --max_steps or --num_train_epochs")
    if config.per_device_train_batch_size < 1 or config.gradient_accumulation_steps < 1:
        raise BadInput("per_device_train_batch_size and gradient_accumulation_steps must be at least 1")


def check_room(path, model_path, checkpoints):
    """Raises BadInput if the disk cannot hold so many checkpoints of fp32 weights and AdamW's two moments."""
    weights = sum(file.stat().st_size for file in model_path.glob("*.safetensors"))
    stored = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
    half = stored.get("dtype", stored.get("torch_dtype")) in ("bfloat16", "float16")
    need = checkpoints * 3 * weights * (2 if half else 1)
    free = shutil.disk_usage(next(parent for parent in [path, *path.absolute().parents] if parent.is_dir())).free
    if free < need:
        raise BadInput(f"{path}: {free / 1e9:.2f} GB free, {checkpoints} checkpoints need about {need / 1e9:.2f} GB")


# ------------------------------------------------------------------------------------------------------- data


def load_training_data(name, method, seed, cache_dir):
    """(train, validation) as TRL wants them: `prompt`, and `gold` and `kind` for the reward or `completion` for SFT."""
    rows = load_maths_dataset(name, "train", cache_dir)
    if name == "demo":
        train, validation = rows, load_maths_dataset("demo", "validation", cache_dir)
    else:
        train, validation = split_train_validation(rows, seed)

    def for_grpo(row):
        return {"prompt": build_prompt(row["question"]), "gold": row["gold"], "kind": row["kind"]}

    def for_sft(row):
        answer = {"role": "assistant", "content": row["solution"]}
        return {"prompt": build_prompt(row["question"]), "completion": [answer]}

    add = for_sft if method == "sft" else for_grpo
    return tuple(part.map(add, remove_columns=part.column_names) for part in (train, validation))


def hash_rows(dataset):
    """sha256 of a data set's rows, in order."""
    digest = hashlib.sha256()
    for row in dataset:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------- what will happen


def cycle_steps(config):
    """Optimiser steps after which generation and optimisation are both at a boundary: lcm(G, S mu) / G."""
    if not hasattr(config, "num_iterations"):
        return 1
    accumulation = config.gradient_accumulation_steps
    return math.lcm(accumulation, config.steps_per_generation * config.num_iterations) // accumulation


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
    if not hasattr(config, "trust_region_method"):
        return [f"supervised: {batch} rows a step, {rows // batch} steps an epoch", *lines]
    cycle, completions = cycle_steps(config), config.generation_batch_size
    prompts = completions // config.num_generations
    generations = max(
        1, cycle * config.gradient_accumulation_steps // (config.steps_per_generation * config.num_iterations)
    )
    epoch = rows // prompts * cycle // generations
    inert = (
        "is inert: every ratio is 1 (one update per generation), so all methods have the same gradient up to a factor"
    )
    live = "can bind: a generation is used for more than one update"
    return [
        f"trust region: {config.trust_region_method} {inert if is_inert(config) else live}",
        f"cycle: {cycle} step{'s' * (cycle > 1)} for {completions * generations} completions of "
        f"{prompts * generations} prompts; an epoch is {epoch} steps and {rows // prompts * completions} completions",
        *lines,
    ]


def check_plan(config, rows):
    """Raises BadInput where the data and the schedule do not fit."""
    cycle = cycle_steps(config)
    for name in ("save_steps", "eval_steps"):
        steps = getattr(config, name)
        if steps and (steps != int(steps) or steps % cycle):
            raise BadInput(f"{name} {steps} is not a multiple of the generation cycle of {cycle} steps")
    if config.save_steps % config.logging_steps:
        raise BadInput(f"save_steps {config.save_steps} is not a multiple of logging_steps {config.logging_steps:g}")
    if hasattr(config, "num_generations") and rows * config.num_generations < config.generation_batch_size:
        prompts = config.generation_batch_size // config.num_generations
        raise BadInput(f"{rows} training rows are fewer than the {prompts} prompts of one generation batch")


# -------------------------------------------------------------------------------------------------------- run


def describe_device():
    """The GPU's name, or the CPU's machine type and thread count."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"


def make_record(args, values, chosen, data):
    """What run.json holds: everything needed to say what was run, on what, with which code."""
    from importlib.metadata import version

    packages = ("torch", "transformers", "trl", "datasets", "accelerate", "peft", "numpy")
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    patches = [ROOT / "grpotrainer.patch", ROOT / "grpoconfig.patch"]
    return {
        "status": "running",
        "model": args.model,
        "method": args.trust_region_method,
        "seed": args.seed,
        "config": chosen,
        "origins": {key: origin for key, (_, origin) in values.items() if origin != "default"},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "patches": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in patches},
        "git_commit": git.stdout.strip() or None,
        "data": {name: {"rows": len(rows), "sha256": hash_rows(rows)} for name, rows in data.items()},
        "host": platform.node(),
        "command": sys.argv,
        "device": describe_device(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "wall_seconds": 0.0,
    }


def load_tokenizer(path):
    """The tokenizer; raises BadInput without a chat template, which every prompt needs."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"no usable tokenizer in {path}: {error}") from None
    if tokenizer.chat_template is None:
        raise BadInput(f"the tokenizer in {path} has no chat template: use a model whose tokenizer has one")
    return tokenizer


def load_model(path, model_config, tokenizer):
    """The policy, in fp32 unless --dtype says otherwise; its end tokens include ChatML's, which base models lack.

    Raises BadInput for weights that cannot be read.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from trl import get_quantization_config

    kwargs = {"dtype": model_config.dtype, "attn_implementation": model_config.attn_implementation}
    kwargs["quantization_config"] = get_quantization_config(model_config)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, **kwargs)
    except (OSError, ValueError, SafetensorError) as error:
        raise BadInput(f"cannot load the model in {path}: {error}") from None
    model.generation_config.eos_token_id = get_eos_token_ids(tokenizer, model.generation_config)
    return model


def make_rollout(seed, tokenizer):
    """A rollout_func for GRPOTrainer: the project's own sampler, which reads a prompt once for all its samples.

    A group's completions follow from (seed, step, prompt) alone, not from how prompts are spread over processes.
    """
    from trl.models import unwrap_model_for_generation

    def rollout(prompts, trainer):
        training, config = trainer.model.training, trainer.args
        samples = trainer.num_generations if training else trainer.num_generations_eval
        samples = samples if len(prompts) % samples == 0 else 1
        ids = tokenizer.apply_chat_template(prompts[::samples], add_generation_prompt=True)["input_ids"]
        when = (seed, training, trainer.state.global_step, trainer._step % config.gradient_accumulation_steps)
        rows = range(len(ids)) if samples == 1 else [0] * len(ids)
        with (
            unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model,
            trainer.accelerator.autocast(),
        ):
            completions = generate(
                model,
                ids,
                num_samples=samples,
                max_new_tokens=trainer.max_completion_length,
                temperature=trainer.temperature,
                top_p=trainer.top_p,
                top_k=trainer.top_k,
                eos_token_ids=trainer.eos_token_ids,
                pad_token_id=tokenizer.pad_token_id,
                seeds=[hash_to_int(*when, row, prompt) for row, prompt in zip(rows, ids, strict=True)],
                batch_size=ROLLOUT_ROWS,
            )
        return {
            "prompt_ids": [prompt for prompt in ids for _ in range(samples)],
            "completion_ids": [tokens for group in completions for tokens in group],
            "logprobs": None,
        }

    from maths_generation import generate

    return rollout


def hash_to_int(*key):
    """A 64-bit seed from any key with a stable repr."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest())


def use_own_sampler(config):
    """Whether the project's sampler can do what the configuration asks of generation."""
    plain = config.min_p is None and config.repetition_penalty == 1.0 and not config.generation_kwargs
    other_engine = config.use_vllm or config.use_transformers_continuous_batching or config.cache_implementation
    sharded = config.fsdp or config.deepspeed or os.environ.get("ACCELERATE_USE_FSDP") == "true"
    return plain and not other_engine and not sharded


def make_trainer(args, config, model_config, model, tokenizer, data):
    """TRL's GRPOTrainer or SFTTrainer for this run."""
    from trl import GRPOTrainer, SFTTrainer, get_peft_config

    common = {
        "model": model,
        "args": config,
        "processing_class": tokenizer,
        "train_dataset": data["train"],
        "eval_dataset": data["validation"],
        "peft_config": get_peft_config(model_config),
    }
    if args.trust_region_method == "sft":
        return SFTTrainer(**common)
    rollout = make_rollout(config.seed, tokenizer) if use_own_sampler(config) else None
    return GRPOTrainer(reward_funcs=[accuracy_reward, format_reward], rollout_func=rollout, **common)


def train(trainer, run, checkpoint):
    """Run the loop; a full disk or a failed write stops it with one line. Returns whether it came to its end."""
    from safetensors import SafetensorError

    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (OSError, SafetensorError) as error:
        raise SystemExit(f"cannot write to {run.path}: {error}; the last checkpoint is intact") from None
    except RuntimeError as error:
        if not any(word in str(error) for word in ("PytorchStreamWriter", "inline_container")):  # torch.save's words
            raise
        raise SystemExit(f"cannot write to {run.path}: the disk is full; the last checkpoint is intact") from None
    return run.signal is None or trainer.state.global_step >= trainer.state.max_steps


def identify(args, values, processes):
    """What makes a run this run and no other: every value that was chosen, the data, the method, the process count."""
    chosen = {k: v for k, (v, origin) in values.items() if origin != "default" and k not in NOT_PART_OF_THE_RUN}
    own = {"model": args.model, "method": args.trust_region_method, "dataset": args.dataset, "processes": processes}
    return json.loads(json.dumps({**chosen, **own, "merge_adapter": args.merge_adapter}, default=str))


def check_weights(path):
    """Raises BadInput unless the directory holds safetensors whose headers match the files' sizes; reads no weights."""
    from safetensors import SafetensorError, safe_open

    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise BadInput(f"no safetensors in {path}: fetch the model with save_model_locally.py")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{file} is damaged ({error}): fetch the model again") from None


def check_trl(method):
    """Raises BadInput unless the trainer itself knows the method; SFT needs no patch."""
    try:
        if method != "sft":
            require_patched_trl(method)
    except ValueError as error:
        raise BadInput(str(error)) from None


def check_model(args):
    """The model's directory; raises BadInput for what is wrong with it, at the cost of reading a header."""
    model_path = find_model(args.model, get_cache_dir(args.cache_dir))
    if (model_path / "adapter_config.json").is_file() and not (model_path / "config.json").is_file():
        raise BadInput(f"{model_path} is an adapter; train from a full model (--merge_adapter writes one)")
    check_weights(model_path)
    return model_path


def main():
    args, rest = parse_own_flags(sys.argv[1:])
    go_offline()
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func is experimental; TRL is pinned
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # TRL's own use of old names
    args.dataset = args.dataset or ("demo" if Path(args.model).name == "demo" else "gsm8k")
    check_trl(args.trust_region_method)
    if args.print_config:
        print_config(resolve(args, rest)[2])
        return 0
    model_path = check_model(args)
    config, model_config, values = resolve(args, rest)
    check_config(args, config, model_config)
    return run_training(args, config, model_config, values, model_path)


def open_run(args, config, values, data, processes):
    """Prepare the run directory, on the main process first -> (path, record, checkpoint or None, log rows, lock).

    Raises BadInput as prepare_run_dir does, or where the disk cannot hold what the run will write.
    """
    from maths_runs import cut_log, find_checkpoint, prepare_run_dir, read_record, write_json

    path, chosen, lock = Path(config.output_dir), identify(args, values, processes.num_processes), None
    if processes.is_main_process:
        lock = prepare_run_dir(path, chosen, args.overwrite)
        if read_record(path) is None:
            write_json(path / "run.json", make_record(args, values, chosen, data))
        find_checkpoint(path)  # clears away what cannot be continued
    processes.wait_for_everyone()
    record, checkpoint = read_record(path), find_checkpoint(path)
    step = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    finished = record["status"] == "finished"
    rows = cut_log(path / "metrics.jsonl", step) if processes.is_main_process and not finished else []
    return path, record, checkpoint, rows, lock


def run_training(args, config, model_config, values, model_path):
    """From a checked configuration to a finished run directory; returns the exit code."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    processes = config.distributed_state
    say = print if processes.is_main_process else (lambda *_: None)
    if "wandb" in config.report_to:
        os.environ.setdefault("WANDB_MODE", "offline")  # compute nodes have no network; `wandb sync` uploads later
    tokenizer = load_tokenizer(model_path)
    parts = load_training_data(args.dataset, args.trust_region_method, config.seed, get_cache_dir(args.cache_dir))
    data = dict(zip(("train", "validation"), parts, strict=True))
    check_plan(config, len(data["train"]))
    if not model_config.use_peft:
        check_room(Path(config.output_dir), model_path, (config.save_total_limit or 1) + 1)
    path, record, checkpoint, rows, lock = open_run(args, config, values, data, processes)
    if record["status"] == "finished":
        say(f"{path} is finished; --overwrite starts it afresh")
        return 0
    say("\n".join(describe(config, model_config.dtype, len(data["train"]), processes.num_processes)))
    say(f"continuing from {checkpoint}" if checkpoint else f"starting {path}")
    model = load_model(model_path, model_config, tokenizer)
    trainer = make_trainer(args, config, model_config, model, tokenizer, data)
    return finish_training(args, trainer, path, record, rows, checkpoint, say)


def finish_training(args, trainer, path, record, rows, checkpoint, say):
    """Train, then put the finished model, its record and its curve in place; returns the exit code."""
    from transformers import PrinterCallback, ProgressCallback

    from maths_plots import plot_training
    from maths_runs import EXIT_SAVED, Progress, Run, save_final, write_model_card

    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    run = Run(trainer, path, record, rows)
    trainer.add_callback(run)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(Progress)
    if not train(trainer, run, checkpoint):
        say(f"saved at step {trainer.state.global_step}, not finished: the same command goes on from here")
        return EXIT_SAVED
    save_final(trainer, path, args.merge_adapter)
    if trainer.accelerator.is_main_process:
        plot_training([path], path / "reward_curve.png")
        write_model_card(path, record)
        run.write_record("finished")
        say(f"finished: {path} ({record['wall_seconds']:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
