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
from pathlib import Path

from common.files import BadInput, make_parser, read_yaml, suggest
from common.models import choose_precision, is_demo
from common.values import NULL, check_ranges, read_value, show
from maths_rewards import REWARDS
from training.options import RANGES, read_field_kinds

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

# Per model and method. clip, noclip and pspo are from the published scripts. The others are not in them: they take
# pspo's rate and iterations, and the value of the method's own field from its source.
#   sapo        TRL's temperatures
#   cispo       ScaleRL, arXiv 2510.13786; MiniMax-M1 (arXiv 2506.13585) names no value
#   spo         arXiv 2401.16025
#   dppo        the authors' script for arXiv 2602.04879
#   drpo        DPPO's, so that it turns back where dppo masks; its authors' code has 12.5, which takes 8 % of a weight
#               at most
#   gmpo        arXiv 2507.20673
#   vespo       TRL's powers, those of arXiv 2602.10693
#   r2vpo       ours: where abs(A) is 1, spo with its epsilon of 0.2
#   m2po        AReaL's recipe for arXiv 2510.01161; an update is one micro-batch, of the sequences of all others
PRESETS = {
    "Qwen2.5-0.5B": {
        "clip": {"learning_rate": 1e-6, "epsilon": 0.1, "num_iterations": 2},
        "noclip": {"learning_rate": 1e-6, "num_iterations": 1},
        "pspo": {"learning_rate": 5e-7, "smoothing_alpha": 0.1, "num_iterations": 2},
        "sapo": {"learning_rate": 5e-7, "num_iterations": 2},
        "reinforce": {"learning_rate": 5e-7, "num_iterations": 2},
        "cispo": {"learning_rate": 5e-7, "epsilon_high": 5.0, "num_iterations": 2},
        "spo": {"learning_rate": 5e-7, "epsilon": 0.2, "num_iterations": 2},
        "dppo": {"learning_rate": 5e-7, "trust_region_delta": 0.15, "num_iterations": 2},
        "topr": {"learning_rate": 5e-7, "num_iterations": 2},
        "drpo": {"learning_rate": 5e-7, "trust_region_delta": 0.15, "num_iterations": 2},
        "gmpo": {
            "learning_rate": 5e-7,
            "epsilon": 0.4,
            "importance_sampling_level": "sequence",
            "loss_type": "grpo",
            "num_iterations": 2,
        },
        "vespo": {"learning_rate": 5e-7, "num_iterations": 2},
        "r2vpo": {"learning_rate": 5e-7, "trust_region_penalty": 2.5, "num_iterations": 2},
        "m2po": {
            "learning_rate": 5e-7,
            "trust_region_delta": 0.04,
            "num_iterations": 2,
            "per_device_train_batch_size": 64,
            "gradient_accumulation_steps": 1,
        },
    },
    "Qwen2.5-1.5B": {
        "clip": {"learning_rate": 5e-7, "epsilon": 0.2, "num_iterations": 2},
        "noclip": {"learning_rate": 1e-6, "num_iterations": 1},
        "pspo": {"learning_rate": 5e-7, "smoothing_alpha": 0.1, "num_iterations": 2},
        "sapo": {"learning_rate": 5e-7, "num_iterations": 2},
        "reinforce": {"learning_rate": 5e-7, "num_iterations": 2},
        "cispo": {"learning_rate": 5e-7, "epsilon_high": 5.0, "num_iterations": 2},
        "spo": {"learning_rate": 5e-7, "epsilon": 0.2, "num_iterations": 2},
        "dppo": {"learning_rate": 5e-7, "trust_region_delta": 0.15, "num_iterations": 2},
        "topr": {"learning_rate": 5e-7, "num_iterations": 2},
        "drpo": {"learning_rate": 5e-7, "trust_region_delta": 0.15, "num_iterations": 2},
        "gmpo": {
            "learning_rate": 5e-7,
            "epsilon": 0.4,
            "importance_sampling_level": "sequence",
            "loss_type": "grpo",
            "num_iterations": 2,
        },
        "vespo": {"learning_rate": 5e-7, "num_iterations": 2},
        "r2vpo": {"learning_rate": 5e-7, "trust_region_penalty": 2.5, "num_iterations": 2},
        "m2po": {
            "learning_rate": 5e-7,
            "trust_region_delta": 0.04,
            "num_iterations": 2,
            "per_device_train_batch_size": 64,
            "gradient_accumulation_steps": 1,
        },
    },
    "Qwen2.5-3B": {  # not published: the values of 1.5B
        "clip": {"learning_rate": 5e-7, "epsilon": 0.2, "num_iterations": 2},
        "noclip": {"learning_rate": 1e-6, "num_iterations": 1},
        "pspo": {"learning_rate": 5e-7, "smoothing_alpha": 0.1, "num_iterations": 2},
        "sapo": {"learning_rate": 5e-7, "num_iterations": 2},
        "reinforce": {"learning_rate": 5e-7, "num_iterations": 2},
        "cispo": {"learning_rate": 5e-7, "epsilon_high": 5.0, "num_iterations": 2},
        "spo": {"learning_rate": 5e-7, "epsilon": 0.2, "num_iterations": 2},
        "dppo": {"learning_rate": 5e-7, "trust_region_delta": 0.15, "num_iterations": 2},
        "topr": {"learning_rate": 5e-7, "num_iterations": 2},
        "drpo": {"learning_rate": 5e-7, "trust_region_delta": 0.15, "num_iterations": 2},
        "gmpo": {
            "learning_rate": 5e-7,
            "epsilon": 0.4,
            "importance_sampling_level": "sequence",
            "loss_type": "grpo",
            "num_iterations": 2,
        },
        "vespo": {"learning_rate": 5e-7, "num_iterations": 2},
        "r2vpo": {"learning_rate": 5e-7, "trust_region_penalty": 2.5, "num_iterations": 2},
        "m2po": {
            "learning_rate": 5e-7,
            "trust_region_delta": 0.04,
            "num_iterations": 2,
            "per_device_train_batch_size": 64,
            "gradient_accumulation_steps": 1,
        },
    },
    "demo": {  # ours: two updates a generation, so that every trust region is live
        "clip": {"learning_rate": 1e-4, "epsilon": 0.2, "num_iterations": 2},
        "noclip": {"learning_rate": 1e-4, "num_iterations": 2},
        "pspo": {"learning_rate": 1e-4, "smoothing_alpha": 0.1, "num_iterations": 2},
        "sapo": {"learning_rate": 1e-4, "num_iterations": 2},
        "reinforce": {"learning_rate": 1e-4, "num_iterations": 2},
        "cispo": {"learning_rate": 1e-4, "epsilon_high": 5.0, "num_iterations": 2},
        "spo": {"learning_rate": 1e-4, "epsilon": 0.2, "num_iterations": 2},
        "dppo": {"learning_rate": 1e-4, "trust_region_delta": 0.15, "num_iterations": 2},
        "topr": {"learning_rate": 1e-4, "num_iterations": 2},
        "drpo": {"learning_rate": 1e-4, "trust_region_delta": 0.15, "num_iterations": 2},
        "gmpo": {
            "learning_rate": 1e-4,
            "epsilon": 0.4,
            "importance_sampling_level": "sequence",
            "loss_type": "grpo",
            "num_iterations": 2,
        },
        "vespo": {"learning_rate": 1e-4, "num_iterations": 2},
        "r2vpo": {"learning_rate": 1e-4, "trust_region_penalty": 2.5, "num_iterations": 2},
        "m2po": {
            "learning_rate": 1e-4,
            "trust_region_delta": 0.04,
            "num_iterations": 2,
            "per_device_train_batch_size": 128,
            "gradient_accumulation_steps": 1,
        },
        "sft": {"learning_rate": 3e-4, "num_train_epochs": 3},
    },
}
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
DEMO_SFT = {"per_device_eval_batch_size": 128, "warmup_steps": 10, "eval_steps": 40, "save_steps": 40}

# Flags of the Hugging Face dataclasses that would be parsed and then ignored, or must not be used here.
REFUSED = {
    "model_name_or_path": "use --model",
    "model_revision": "the cache holds one revision: save_model_locally.py --revision chooses it",
    "trust_remote_code": "checkpoints are data here, code in them is never run",
    "resume_from_checkpoint": "the same command again continues the run",
    "push_to_hub": "compute nodes have no network; upload the finished run directory yourself",
    "hub_token": "nothing is uploaded from here, and a secret does not belong into the record of a run",
    "use_cpu": "use --device cpu",
    "model_init_kwargs": "the model is loaded here: use --dtype and --attn_implementation",
}
LIST_THEM = " (--print_config lists the options)"


# ---- from the layers to a configuration


def find_recipe(argv):
    """The path after --config, None without one."""
    parser = make_parser(None, allow_abbrev=False, add_help=False)
    parser.add_argument("--config")
    return parser.parse_known_args(argv)[0].config


def read_recipe(path):
    """The mapping in a recipe, its keys as options are spelt; raises BadInput if it is none."""
    recipe = read_yaml(path, "recipe")
    if not isinstance(recipe, dict) or {"env", "config"} & recipe.keys():
        raise BadInput(f"the recipe {path} must be a mapping of flags to values (and has no 'env' or 'config')")
    return {key.replace("-", "_"): value for key, value in recipe.items()}


def make_layers(command):
    """{layer: its values} of all but the flags, the weakest first.

    The table's are the row of PRESETS over what all share, the run's name its directory and are what follows from
    --model, --trust_region_method and --seed alone.
    """
    args = command.args
    name = Path(args.model).name
    method = args.trust_region_method
    device, dtype = (str(part).removeprefix("torch.") for part in choose_precision(args.device))
    shared, demo = (SFT, DEMO_SFT) if method == "sft" else (GRPO, DEMO)
    run = {"output_dir": str(Path(args.output_root) / name / method / f"seed{args.seed}"), "seed": args.seed}
    return {
        "machine": {"use_cpu": device == "cpu", "bf16": dtype == "bfloat16", "fp16": dtype == "float16"},
        "table": {**shared, **(demo if is_demo(args.model) else {}), **find_preset(name, method)},
        "run": run if method == "sft" else {**run, "trust_region_method": method},
        "recipe": command.recipe,
    }


def find_preset(model, method):
    """The row of PRESETS, {} for a model without rows; a method that has none yet trains at pspo's rate and iterations.

    So do all those that the published scripts lack.
    """
    rows = PRESETS.get(model, {})
    if method in rows or method == "sft" or not rows:
        return rows.get(method, {})
    return {name: rows["pspo"][name] for name in ("learning_rate", "num_iterations")}


def check_names(command):
    """Raise BadInput for a flag, or a key of the recipe, that no option has or that must not be used here."""
    names = list(read_field_kinds(command.args.trust_region_method))
    flags = [word.split("=")[0] for word in command.rest if re.match("--?[A-Za-z]", word)]
    for shown in [*flags, *command.recipe]:
        key = shown.removeprefix("--").replace("-", "_")
        if key in REFUSED:
            raise BadInput(f"{key}: {REFUSED[key]}")
        switched_off = shown in flags and key.removeprefix("no_") in names  # --no_FLAG, which a recipe has no need of
        if key not in names and not switched_off:
            raise BadInput(f"unknown option {shown}{suggest(key, names) or LIST_THEM}")


def check_spelling(argv, ours):
    """Raise BadInput for a flag that no option has and that is nearly one of `ours`, the missing one perhaps."""
    known = {*ours, *read_field_kinds("sft"), *read_field_kinds("pspo")}
    for flag in (word.split("=")[0] for word in argv if word.startswith("--")):
        name = flag.removeprefix("--").replace("-", "_")
        meant = suggest(name, ours)
        if name not in known and meant:
            raise BadInput(f"unknown option {flag}{meant}")


def resolve_config(command):
    """A maths_finetuning.Command -> (GRPOConfig or SFTConfig, ModelConfig, {key: (value, origin)}).

    Raises BadInput for an unknown key or flag, a value that its option cannot have, wherever it came from, and for what
    TRL's own validation refuses.
    """
    from trl import GRPOConfig, ModelConfig, SFTConfig, TrlParser

    args = command.args
    config_class = SFTConfig if args.trust_region_method == "sft" else GRPOConfig
    parser = TrlParser([config_class, ModelConfig], allow_abbrev=False, exit_on_error=False)
    kinds = read_field_kinds(args.trust_region_method)
    for action in parser._actions:
        if action.dest in kinds:
            read_as(action, kinds[action.dest])
    layers = make_layers(command)
    origins = {key: origin for origin, layer in layers.items() for key in layer}
    flags = {word.split("=")[0] for word in command.rest}
    origins |= {action.dest: "flag" for action in parser._actions if flags & {*action.option_strings}}
    if origins.get("num_train_epochs") in ("flag", "recipe") and origins.get("max_steps") == "table":
        del layers["table"]["max_steps"]  # TRL would train so many steps, however many epochs somebody asked for
        del origins["max_steps"]
    if "learning_rate" not in origins:
        raise BadInput(f"{args.model} has no row in the table of published values: give --learning_rate")
    parser.set_defaults_with_config(**{key: value for layer in layers.values() for key, value in layer.items()})
    try:
        namespace, unknown = parser.parse_known_args(command.rest)
        check_namespace(vars(namespace), parser, kinds)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of old names of options, which TRL itself uses
            config, model_config = parser.parse_dict(vars(namespace))
    except BadInput:
        raise
    except argparse.ArgumentError as error:
        raise BadInput(f"{error.argument_name.partition('/')[0]}: {error.message}{LIST_THEM}") from None
    except (ValueError, ImportError, OSError, TypeError, LookupError) as error:  # TRL's and transformers' own
        raise BadInput(f"configuration: {error}{LIST_THEM}") from None
    if unknown:
        raise BadInput(f"unknown option {unknown[0]}{LIST_THEM}")
    if re.fullmatch(r"\w+", str(model_config.lora_target_modules or "")):
        # TRL makes text of a list of one, which PEFT takes for a pattern of a module's full name: no word is one
        model_config.lora_target_modules = [model_config.lora_target_modules]
    both = {**vars(model_config), **vars(config)}
    return config, model_config, {k: (both[k], origins.get(k, "default")) for k in sorted(both) if k[0] != "_"}


def read_as(action, kind):
    """Let a parser's action read its words by a Kind, as a recipe's values are read; `null` is a word for null."""
    if action.nargs == 0:  # --no_FLAG takes none
        return
    item = kind.items if "list" in kind.types else kind

    def read(word):
        if word == NULL and kind.optional:
            return None
        try:
            return read_value(item, word, "")
        except BadInput as error:
            raise argparse.ArgumentTypeError(str(error).strip()) from None

    action.type = read
    if "list" in kind.types:
        action.nargs = "+"
    elif "bool" in kind.types:
        action.nargs = "?"
        action.const = True
    if action.choices and kind.optional:
        action.choices = [*action.choices, None]


def check_namespace(values, parser, kinds):
    """Put {option: value}, read from all layers, into the form that TRL takes; raises BadInput for a wrong value."""
    for action in parser._actions:
        name = action.dest
        value = values.get(name)
        if isinstance(value, list) and value == [None]:
            value = values[name] = None
        if isinstance(value, list) and len(value) == 1 and "str" in kinds[name].types:
            values[name] = value[0]  # "all-linear" is no list of one
        if action.choices and value is not None and value not in action.choices:
            raise BadInput(f"{name} must be one of {', '.join(map(str, action.choices))}, got {show(value)}")
    saved, validated = (str(values[name]) for name in ("save_strategy", "eval_strategy"))
    if values["load_best_model_at_end"] and saved not in ("best", validated):
        way_out = "give --load_best_model_at_end false"
        raise BadInput(f"eval_strategy {validated}, save_strategy {saved}: the best model is not known: {way_out}")
    if values["report_to"] is None:
        values["report_to"] = "none"  # transformers would look for an integration called None
    check_ranges(values, RANGES)


def print_config(values):
    """Every value and where it came from, what was chosen first, TRL's defaults last."""
    width = max(map(len, values))
    print(f"{'option':{width}}  {'value':24}  origin (run: from --model, --trust_region_method and --seed)")
    order = ("flag", "recipe", "run", "table", "machine", "default")
    for key, (value, origin) in sorted(values.items(), key=lambda item: order.index(item[1][1])):
        print(f"{key:{width}}  {getattr(value, 'value', value)!r:24}  {origin}")
