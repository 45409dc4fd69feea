"""Every hyperparameter of a training run, and which layer sets it: one look says what a run will use.

    flag > recipe (--config FILE.yaml) > run (follows from model, method, seed) > table > machine > TRL's default

The table, from the general to the special: ALL_RUNS, GRPO or SFT, DEMO or DEMO_SFT for the embedded model, PRESETS for
a model and method. Its values are those of the published scripts of Probability Smoothing Policy Optimisation (arXiv
2509.21282), not of the paper's text: a public review of its first version quotes a learning rate of 5e-6 for clip at
0.5B from the text, where the scripts have 1e-6, and neither could be checked here.
"""

import argparse
import re
import warnings
from importlib.util import find_spec
from pathlib import Path

from common.files import BadInput, make_parser, read_yaml, suggest
from common.models import choose_precision, is_demo
from maths_rewards import REWARDS

# ---- the table

# What GRPO and SFT share in every cell of the paper's table (its published scripts); a step is 4 x 16 = 64 sequences.
ALL_RUNS = {
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
}
GRPO = {
    **ALL_RUNS,
    "num_train_epochs": 3,
    "num_generations": 4,
    "max_completion_length": 128,
    "temperature": 0.8,
    "top_p": 0.9,
    "beta": 0.0,
    "loss_type": "dapo",
    "metric_for_best_model": "eval_reward",
    "reward_weights": list(REWARDS.values()),  # ours
}
SFT = {**ALL_RUNS, "num_train_epochs": 20, "learning_rate": 2e-5, "metric_for_best_model": "eval_loss"}  # TRL's rate

# Per model and method, from the published scripts.
PRESETS = {
    "Qwen2.5-0.5B": {
        "clip": {"learning_rate": 1e-6, "epsilon": 0.1, "num_iterations": 2},
        "noclip": {"learning_rate": 1e-6, "num_iterations": 1},
        "pspo": {"learning_rate": 5e-7, "smoothing_alpha": 0.1, "num_iterations": 2},
    },
    "Qwen2.5-1.5B": {
        "clip": {"learning_rate": 5e-7, "epsilon": 0.2, "num_iterations": 2},
        "noclip": {"learning_rate": 1e-6, "num_iterations": 1},
        "pspo": {"learning_rate": 5e-7, "smoothing_alpha": 0.1, "num_iterations": 2},
    },
    "demo": {  # ours: two updates a generation, so that every trust region is live
        "clip": {"learning_rate": 1e-4, "epsilon": 0.2, "num_iterations": 2},
        "noclip": {"learning_rate": 1e-4, "num_iterations": 2},
        "pspo": {"learning_rate": 1e-4, "smoothing_alpha": 0.1, "num_iterations": 2},
        "sft": {"learning_rate": 3e-4, "num_train_epochs": 3},
    },
}
PRESETS["Qwen2.5-3B"] = PRESETS["Qwen2.5-1.5B"]  # not published
# Not in the published scripts: pspo's rate and iterations, and the value of the method's own field in its source.
UNPUBLISHED = {
    "sapo": {},  # TRL's temperatures
    "reinforce": {},
    "cispo": {"epsilon_high": 5.0},  # ScaleRL, arXiv 2510.13786; MiniMax-M1 (arXiv 2506.13585) names no value
    "spo": {"epsilon": 0.2},  # arXiv 2401.16025
    "dppo": {"trust_region_delta": 0.15},  # the authors' script for arXiv 2602.04879
    "topr": {},
    # DPPO's, so that it turns back where dppo masks; its authors' code has 12.5, which takes 8 % of a weight at most.
    "drpo": {"trust_region_delta": 0.15},
    "gmpo": {"epsilon": 0.4, "importance_sampling_level": "sequence", "loss_type": "grpo"},  # arXiv 2507.20673
    "vespo": {},  # TRL's powers, those of arXiv 2602.10693
    "r2vpo": {"trust_region_penalty": 2.5},  # ours: where abs(A) is 1, spo with its epsilon of 0.2
    # AReaL's recipe for arXiv 2510.01161; an update is one micro-batch, of the 64 sequences of all others.
    "m2po": {"trust_region_delta": 0.04, "per_device_train_batch_size": 64, "gradient_accumulation_steps": 1},
}
for _rows in PRESETS.values():
    _shared = {name: _rows["pspo"][name] for name in ("learning_rate", "num_iterations")}
    _rows.update({method: {**_shared, **own} for method, own in UNPUBLISHED.items()})
PRESETS["demo"]["m2po"]["per_device_train_batch_size"] = 128
# What the demo changes in GRPO: 128 completions of 16 prompts a generation, minutes on two CPU cores.
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
DEMO_SFT = {key: DEMO[key] for key in ("per_device_eval_batch_size", "warmup_steps", "eval_steps", "save_steps")}

# Flags of the Hugging Face dataclasses that would be parsed and then ignored, or must not be used here.
REFUSED = {
    "model_name_or_path": "use --model",
    "model_revision": "the cache holds one revision: save_model_locally.py --revision chooses it",
    "trust_remote_code": "checkpoints are data here, code in them is never run",
    "resume_from_checkpoint": "the same command again continues the run",
    "push_to_hub": "compute nodes have no network; upload the finished run directory yourself",
    "use_cpu": "use --device cpu",
}
LIST_THEM = " (--print_config lists the options)"


# ---- from the layers to a configuration


def read_recipe(argv):
    """The mapping in the file after --config, its keys as fields are spelt, {} without one; raises BadInput."""
    parser = make_parser(None, allow_abbrev=False, add_help=False)
    parser.add_argument("--config")
    if not (path := parser.parse_known_args(argv)[0].config):
        return {}
    recipe = read_yaml(path, "recipe")
    if not isinstance(recipe, dict) or "env" in recipe:
        raise BadInput(f"the recipe {path} must be a mapping of flags to values (and has no 'env')")
    return {str(key).replace("-", "_"): value for key, value in recipe.items()}


def make_layers(command):
    """{layer: its values} of all but the flags, the weakest first.

    The table's are the row of PRESETS over what all share, the run's name its directory and are what follows from
    --model, --trust_region_method and --seed alone.
    """
    args = command.args
    name, method = Path(args.model).name, args.trust_region_method
    device, dtype = (str(part).removeprefix("torch.") for part in choose_precision(args.device))
    shared, demo = (SFT, DEMO_SFT) if method == "sft" else (GRPO, DEMO)
    run = {"output_dir": str(Path(args.output_root) / name / method / f"seed{args.seed}"), "seed": args.seed}
    return {
        "machine": {"use_cpu": device == "cpu", "bf16": dtype == "bfloat16", "fp16": dtype == "float16"},
        "table": {**shared, **(demo if is_demo(args.model) else {}), **PRESETS.get(name, {}).get(method, {})},
        "run": run if method == "sft" else {**run, "trust_region_method": method},
        "recipe": command.recipe,
    }


def read_field_names(method):
    """The names of TRL's options, from its source: importing it takes seconds, which a typing error should not."""
    specs = [find_spec(name) for name in ("trl", "transformers")]
    if None in specs:
        raise BadInput("trl or transformers is not installed here: pip install -r requirements.txt")
    trl, transformers = (Path(spec.submodule_search_locations[0]) for spec in specs)
    configs = ("base_config", "model_config", "sft_config" if method == "sft" else "grpo_config")
    files = [*(trl / "trainer" / f"{name}.py" for name in configs), transformers / "training_args.py"]
    return [name for file in files for name in re.findall(r"^    (\w+): ", file.read_text(encoding="utf-8"), re.M)]


def check_names(command):
    """Raise BadInput for a flag, or a key of the recipe, that no option has or that must not be used here."""
    names = read_field_names(command.args.trust_region_method)
    flags = [word.split("=")[0] for word in command.rest if re.match("--?[A-Za-z]", word)]
    for shown in [*flags, *command.recipe]:
        key = shown.removeprefix("--").replace("-", "_")
        if key in REFUSED:
            raise BadInput(f"{key}: {REFUSED[key]}")
        if key not in names and key.removeprefix("no_") not in names:
            raise BadInput(f"unknown option {shown}{suggest(key, names) or LIST_THEM}")


def resolve_config(command):
    """A maths_finetuning.Command -> (GRPOConfig or SFTConfig, ModelConfig, {key: (value, origin)}).

    Raises BadInput for an unknown key or flag, and for what TRL's own validation refuses.
    """
    from trl import GRPOConfig, ModelConfig, SFTConfig, TrlParser

    args, rest = command.args, command.rest
    kind = SFTConfig if args.trust_region_method == "sft" else GRPOConfig
    parser, layers = TrlParser([kind, ModelConfig], allow_abbrev=False, exit_on_error=False), make_layers(command)
    origins = {key: origin for origin, layer in layers.items() for key in layer}
    flags = {word.split("=")[0] for word in rest}
    origins |= {action.dest: "flag" for action in parser._actions if flags & {*action.option_strings}}
    if "learning_rate" not in origins:
        raise BadInput(f"{args.model} has no row in the table of published values: give --learning_rate")
    unknown = parser.set_defaults_with_config(**{k: v for layer in layers.values() for k, v in layer.items()})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of old names of options, which TRL itself uses
            config, model_config, more = parser.parse_args_into_dataclasses(rest, return_remaining_strings=True)
    except (argparse.ArgumentError, ValueError, ImportError) as error:  # the last two: TRL's and transformers' own
        raise BadInput(f"configuration: {error}{LIST_THEM}") from None
    if unknown or more:
        raise BadInput(f"unknown option {[*unknown, *more][0]}{LIST_THEM}")
    both = {**vars(model_config), **vars(config)}
    return config, model_config, {k: (both[k], origins.get(k, "default")) for k in sorted(both) if k[0] != "_"}


def print_config(values):
    """Every value and where it came from, what was chosen first, TRL's defaults last."""
    width = max(map(len, values))
    print(f"{'option':{width}}  {'value':24}  origin (run: from --model, --trust_region_method and --seed)")
    order = ("flag", "recipe", "run", "table", "machine", "default")
    for key, (value, origin) in sorted(values.items(), key=lambda item: order.index(item[1][1])):
        print(f"{key:{width}}  {getattr(value, 'value', value)!r:24}  {origin}")
