"""Fine-tune a causal language model on GSM8K with GRPO under a chosen trust region, or with plain SFT as the baseline.

Reproduces the training runs of Probability Smoothing Policy Optimisation (arXiv 2509.21282) with the values of its
published scripts, which training/hyperparameters.py holds. Departures: fp32 weights under bf16 autocast (bf16 weights
lose updates at such learning rates), all 473 validation rows, a reward without the published one's faults, a sampler
that answers a batch faster.

    python maths_finetuning.py --model demo --trust_region_method pspo --seed 0
    python maths_finetuning.py --model Qwen2.5-0.5B --trust_region_method clip --seed 0 --epsilon 0.2
    python maths_finetuning.py --model Qwen2.5-0.5B --trust_region_method sft --print_config
    accelerate launch --config_file recipes/ddp.yaml maths_finetuning.py --model Qwen2.5-1.5B --trust_region_method pspo

Every field of TRL's GRPOConfig (SFTConfig for sft) and ModelConfig is a flag too, or a key of --config recipe.yaml. A
flag beats the recipe, the recipe beats the table, and the table beats TRL's defaults: see --print_config.

The same command again continues the run, or says that it is finished. SIGTERM and SIGUSR1 save at the end of the
current generation cycle and exit with code 75 ("saved, not finished"); a later signal exits at once.
"""

import math
import os
import sys
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from apply_patches import require_patched_trl, trust_region_methods
from common.datasets import build_prompt, find_dataset, load_training_split
from common.files import BadInput, get_cache_dir, go_offline, hash_value, make_parser, run_script, write_json
from common.models import check_weights, find_model, get_eos_token_ids, load_model, load_tokenizer
from common.runs import EXIT_SAVED, make_record, open_run
from maths_rewards import REWARDS
from training.hyperparameters import check_names, print_config, read_recipe, resolve

# With one of these away from its default only TRL can sample.
TRL_SAMPLES = ("min_p", "repetition_penalty", "generation_kwargs", "cache_implementation", "use_vllm")
INERT = "is inert: every ratio is 1 (one update per generation), so all methods have the same gradient up to a factor"


# ---- configuration


def methods():
    """The trust regions of the patches, and sft; raises BadInput where the patches are missing."""
    try:
        return [*trust_region_methods(), "sft"]
    except ValueError as error:
        raise BadInput(str(error)) from None


def parse_own_flags(argv):
    """The flags that are not TRL's -> (namespace, the rest of argv)."""
    parser = make_parser(__doc__, allow_abbrev=False)
    add_argument = parser.add_argument
    add_argument("--model", required=True, help="demo, a name in the cache, or a model directory")
    add_argument("--trust_region_method", choices=methods(), required=True, help="the ratio's constraint, or sft")
    add_argument("--seed", type=int, default=0, help="of data order, sampling and initialisation (default: 0)")
    add_argument("--dataset", help="or FILE.jsonl (default: demo for the demo model, else gsm8k)")
    add_argument("--config", help="recipe: a YAML mapping of flags to values")
    add_argument("--cache_dir", help="default: $GRPSPO_CACHE, else ./cached_files")
    add_argument("--output_root", default="runs", help="runs go to <root>/<model>/<method>/seed<N>")
    add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one")
    add_argument("--sampler", choices=["auto", "own", "trl"], default="auto", help="default: own; on a GPU the faster")
    add_argument("--merge_adapter", action="store_true", help="with LoRA: also fold the adapter into the model")
    add_argument("--overwrite", action="store_true", help="start afresh; an existing run is moved aside")
    add_argument("--accept_changes", action="store_true", help="go on though code, data or device differ; see run.json")
    add_argument("--print_config", action="store_true", help="show every value and its origin, start nothing")
    recipe = read_recipe(argv)
    own = {action.dest for action in parser._actions}  # a recipe may hold our own flags too
    told = [f"--{k}" if v is True else f"--{k}={v}" for k, v in recipe.items() if k in own and str(v) != "False"]
    args, rest = parser.parse_known_args([*told, *argv])
    if not 0 <= args.seed < 2**32:  # the range NumPy takes
        raise BadInput(f"seed must be a whole number from 0 to 4294967295, got {args.seed}")
    args.recipe = {key: value for key, value in recipe.items() if key not in own}
    check_names(args, rest)
    return args, rest


def check_config(args, config, model_config):
    """Raises BadInput for what TRL would find only after the model is loaded, or never."""
    from transformers.integrations import get_available_reporting_integrations

    if missing := [name for name in config.report_to if name not in get_available_reporting_integrations()]:
        raise BadInput(f"--report_to {missing[0]}: not installed here (pip install {missing[0]}, or --report_to none)")
    if getattr(config, "use_vllm", False) and find_spec("vllm") is None:
        raise BadInput("--use_vllm: vllm is not installed here (pip install vllm, on a machine with a GPU)")
    if getattr(config, "loss_type", "") == "cispo" and config.epsilon_high is None:
        raise BadInput(
            f"--loss_type cispo without --epsilon_high: TRL 1.16 then caps every ratio at epsilon, {config.epsilon:g}, "
            "so that every token weighs that; give --epsilon_high, 5.0 in ScaleRL (arXiv 2510.13786)"
        )
    if args.merge_adapter and not model_config.use_peft:
        raise BadInput("--merge_adapter needs --use_peft: there is no adapter to merge")
    if config.max_steps <= 0 and config.num_train_epochs <= 0:
        raise BadInput("no steps to train: give --max_steps or --num_train_epochs")
    if config.per_device_train_batch_size < 1 or config.gradient_accumulation_steps < 1:
        raise BadInput("per_device_train_batch_size and gradient_accumulation_steps must be at least 1")


# ---- data


def load_training_data(name, method, seed, cache_dir):
    """{"train", "validation"} for TRL: `prompt`, and `gold` and `kind` for the reward or `completion` for SFT."""
    parts = load_training_split(name, seed, cache_dir, need_solution=method == "sft")

    def add(row):
        prompt = {"prompt": build_prompt(row["question"])}
        if method == "sft":
            return {**prompt, "completion": [{"role": "assistant", "content": row["solution"]}]}
        return {**prompt, "gold": row["gold"], "kind": row["kind"]}

    train, validation = (part.map(add, remove_columns=part.column_names) for part in parts)
    return {"train": train, "validation": validation}


# ---- what will happen


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
        steps = math.ceil(rows / batch)  # the last one takes what is left
        return [f"supervised: {min(rows, batch)} rows a step, {steps} step{'s' * (steps > 1)} an epoch", *lines]
    cycle, completions = cycle_steps(config), config.generation_batch_size
    prompts = completions // config.num_generations
    generations = cycle * config.gradient_accumulation_steps // (config.steps_per_generation * config.num_iterations)
    epoch = math.ceil(rows // prompts * cycle / generations)
    acts = INERT if is_inert(config) else "can bind: a generation is used for more than one update"
    return [
        f"trust region: {config.trust_region_method} {acts}",
        f"cycle: {cycle} step{'s' * (cycle > 1)} for {completions * generations} completions of "
        f"{prompts * generations} prompts; an epoch is {epoch} steps and {rows // prompts * completions} completions",
        *lines,
    ]


def check_plan(config, rows):
    """Raises BadInput where the data and the schedule do not fit."""
    cycle = cycle_steps(config)
    for name in ("save_steps", "eval_steps") if config.eval_strategy != "no" else ("save_steps",):
        steps = getattr(config, name)
        if steps and steps % cycle:
            raise BadInput(f"{name} {steps} is not a multiple of the generation cycle of {cycle} steps")
    if config.save_steps % config.logging_steps:
        raise BadInput(f"save_steps {config.save_steps} is not a multiple of logging_steps {config.logging_steps:g}")
    if hasattr(config, "num_generations") and rows * config.num_generations < config.generation_batch_size:
        prompts = config.generation_batch_size // config.num_generations
        raise BadInput(f"{rows} training rows are fewer than the {prompts} prompts of one generation batch")


# ---- run


def load_policy(model_path, model_config, tokenizer):
    """The policy, in fp32 unless --dtype says otherwise; its end tokens include ChatML's, which base models lack."""
    from trl import get_quantization_config

    attention = {"attn_implementation": model_config.attn_implementation} if model_config.attn_implementation else {}
    quantization = get_quantization_config(model_config)
    model = load_model([model_path], model_config.dtype, quantization_config=quantization, **attention)
    model.generation_config.eos_token_id = get_eos_token_ids(tokenizer, model.generation_config)
    return model


def choose_sampler(args, config, model_config):
    """("own", why), ("trl", why) or ("trial", why): what completes the prompts. Raises BadInput where own cannot."""
    fields = type(config).__dataclass_fields__
    obstacles = {f"--{name}": getattr(config, name) != fields[name].default for name in TRL_SAMPLES}
    obstacles |= {
        "--use_transformers_continuous_batching": config.use_transformers_continuous_batching,
        "FSDP": bool(config.fsdp) or os.environ.get("ACCELERATE_USE_FSDP") == "true",
        "DeepSpeed": bool(config.deepspeed) or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true",
        "--attn_implementation": model_config.attn_implementation not in (None, "sdpa", "eager"),
    }
    found = ", ".join(name for name, there in obstacles.items() if there)
    if args.sampler == "own" and found:
        raise BadInput(f"--sampler own cannot do {found}: leave it out, or use --sampler trl")
    if args.sampler == "trl" or found:
        return "trl", "asked for" if args.sampler == "trl" else f"{found} needs it"
    if args.sampler == "own" or config.use_cpu:
        return "own", "held against a forward pass at its first batch"
    return "trial", "ours and TRL's own path answer the first batch, the faster one stays"


def settle_sampler(path, record, processes, seconds):
    """The faster of {"own": seconds, "trl": seconds}, written into run.json: the run keeps to it when continued."""
    record["sampler"] = min(seconds, key=seconds.get)
    if processes.is_main_process:
        write_json(path / "run.json", record)
        print(f"sampler: {record['sampler']} (first batch: own {seconds['own']:.1f} s, trl {seconds['trl']:.1f} s)")
    return record["sampler"]


def make_trainer(args, config, model_config, model, tokenizer, data, settle=None):
    """TRL's GRPOTrainer or SFTTrainer for this run; settle: see make_rollout."""
    from trl import GRPOTrainer, SFTTrainer, get_peft_config

    common = {"model": model, "args": config, "processing_class": tokenizer}
    common |= {"train_dataset": data["train"], "eval_dataset": data["validation"]}
    common |= {"peft_config": get_peft_config(model_config)}
    if args.trust_region_method == "sft":
        return SFTTrainer(**common)
    from training.rollout import make_rollout  # imports torch

    rollout = None if args.sampler == "trl" else make_rollout(config.seed, tokenizer, settle)
    return GRPOTrainer(reward_funcs=list(REWARDS), rollout_func=rollout, **common)


def train(trainer, run, checkpoint):
    """Run the loop; a full disk or a failed write stops it with one line. Returns whether it came to its end."""
    from safetensors import SafetensorError

    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (OSError, SafetensorError, RuntimeError) as error:
        full = any(word in str(error) for word in ("PytorchStreamWriter", "inline_container"))  # torch.save's words
        if isinstance(error, RuntimeError) and not full:
            raise
        reason = "the disk is full" if full else error
        raise SystemExit(f"cannot write to {run.path}: {reason}; the last checkpoint is intact") from None
    return run.signal is None or trainer.state.global_step >= trainer.state.max_steps


def check_model(args):
    """The model's directory; raises BadInput for what is wrong with it, at the cost of reading a header."""
    model_path = find_model(args.model, get_cache_dir(args.cache_dir))
    if (model_path / "adapter_config.json").is_file() and not (model_path / "config.json").is_file():
        raise BadInput(f"{model_path} is an adapter; train from a full model (--merge_adapter writes one)")
    check_weights(model_path)
    return model_path


def main(argv=None):
    args, rest = parse_own_flags(sys.argv[1:] if argv is None else argv)
    go_offline()
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func is experimental; TRL is pinned
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # TRL's own use of old names
    args.dataset = str(args.dataset or ("demo" if Path(args.model).name == "demo" else "gsm8k"))
    find_dataset(args.dataset)
    model_path = None if args.print_config else check_model(args)  # before TRL, whose import takes seconds
    try:
        if args.trust_region_method != "sft":
            require_patched_trl(args.trust_region_method)
    except ValueError as error:
        raise BadInput(str(error)) from None
    config, model_config, values = resolve(args, rest)
    check_config(args, config, model_config)
    if args.print_config:
        print_config(values)
        return 0
    return run_training(args, config, model_config, values, model_path)


def quieten():
    """Switch off what the libraries print beside our own progress and errors."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def run_training(args, config, model_config, values, model_path):
    """From a checked configuration to a finished run directory; returns the exit code."""
    from training.callbacks import check_room

    quieten()
    processes, method = config.distributed_state, args.trust_region_method
    say = print if processes.is_main_process else (lambda *_: None)
    os.environ.setdefault("WANDB_MODE", "offline")  # compute nodes have no network; `wandb sync` uploads later
    tokenizer = load_tokenizer([model_path])
    data = load_training_data(args.dataset, method, config.seed, get_cache_dir(args.cache_dir))
    check_plan(config, len(data["train"]))
    path = Path(config.output_dir)
    if not model_config.use_peft:
        check_room(path, model_path, (config.save_total_limit or 1) + 1)
    args.sampler, why = (None, "") if method == "sft" else choose_sampler(args, config, model_config)
    hashes = {part: f"{len(rows)} rows, {hash_value(rows.to_list())[:16]}" for part, rows in data.items()}
    fresh = make_record(args, values, processes.num_processes, model_path, hashes)
    record, checkpoint, lock = open_run(path, fresh, args, processes)
    if record["status"] == "finished":
        say(f"{path} is finished; --overwrite starts it afresh")
        return 0
    say("\n".join(describe(config, model_config.dtype, len(data["train"]), processes.num_processes)))
    if args.sampler == "trial" and "sampler" in record:
        args.sampler, why = record["sampler"], "it was the faster one when the run began"
    if args.sampler:
        say(f"sampler: {args.sampler} ({why})")
    say(f"continuing from {checkpoint}" if checkpoint else f"starting {path}")
    policy = load_policy(model_path, model_config, tokenizer)
    settle = partial(settle_sampler, path, record, processes) if args.sampler == "trial" else None
    trainer = make_trainer(args, config, model_config, policy, tokenizer, data, settle)
    return finish_training(args, trainer, path, record, checkpoint, say)


def finish_training(args, trainer, path, record, checkpoint, say):
    """Train, then put the finished model, its record and its curve in place; returns the exit code."""
    from transformers import PrinterCallback, ProgressCallback

    from reporting.figures import plot_training
    from training.callbacks import Progress, Run, save_final, write_model_card

    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    run = Run(trainer, path, record)
    trainer.add_callback(run)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(Progress)
    if not train(trainer, run, checkpoint):
        say(f"saved at step {trainer.state.global_step}, not finished: the same command goes on from here")
        return EXIT_SAVED
    save_final(trainer, path, args.merge_adapter)
    if trainer.accelerator.is_main_process:
        write_model_card(path, record)
        run.write_record("finished")
        say(f"finished: {path} ({record['wall_seconds']:.0f} s)")
        try:
            plot_training([path], path / "reward_curve.png")
        except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:  # costs nothing but the picture
            print(f"warning: no reward_curve.png ({error}); the run is finished", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
