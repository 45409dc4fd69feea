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

import os
import sys
import warnings
from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from apply_patches import require_patched_trl, trust_region_methods
from common import files
from common.datasets import find_dataset
from common.files import BadInput, get_cache_dir, go_offline, hash_value, run_script
from common.model_card import write_model_card
from common.models import check_weights, find_model, get_eos_token_ids, is_demo, load_config, load_model, load_tokenizer
from common.progress import label_run, note_begin
from common.prompts import Template
from common.record import make_record, read_record, validation_at, write_record
from common.runs import EXIT_SAVED, LOG_FILE, describe_continuation, open_run, read_log, step_of
from common.values import add_switch, at_least, check_ranges, kinds_of_parser, read_values, to_words
from maths_rewards import REWARDS
from training.checks import check_adapter, check_device, check_model_takes, check_together, describe_unread
from training.continuing import check_can_continue, find_sharding, sum_in_one_order
from training.data import load_training_data
from training.hyperparameters import check_names, check_spelling, find_recipe, print_config, read_recipe, resolve_config
from training.options import RANGES, TRL_SAMPLES, read_field_kinds
from training.schedule import check_plan, checkpoints_kept, describe
from training.trackers import check_trackers, name_curve

OUR_RANGES = {"seed": RANGES["seed"], "log_completions_steps": at_least(0)}


# ---- configuration


def methods():
    """The trust regions of the patches, and sft; raises BadInput where the patches are missing."""
    try:
        return [*trust_region_methods(), "sft"]
    except ValueError as error:
        raise BadInput(str(error)) from None


@dataclass
class Command:
    """A command line, as far as it can be read without importing TRL."""

    args: Namespace  # our own flags
    rest: list  # the words that are TRL's
    recipe: dict  # {field of TRL: value} of --config
    dataset: str  # --dataset, or what follows from the model


@dataclass
class Plan:
    """What a command line asks for: every value of the run and the layer that set it."""

    command: Command
    config: object  # GRPOConfig, or SFTConfig for sft
    model_config: object  # TRL's ModelConfig
    values: dict  # {field: (value, layer)}


def make_parser():
    """The parser of the flags that are not TRL's."""
    parser = files.make_parser(__doc__, allow_abbrev=False)
    add_argument = parser.add_argument
    add_argument("--model", required=True, help="demo, a name in the cache, or a model directory")
    add_argument("--trust_region_method", choices=methods(), required=True, help="the ratio's constraint, or sft")
    add_argument("--seed", type=int, default=0, help="of data order, sampling and initialisation (default: 0)")
    add_argument("--dataset", help="or FILE.jsonl (default: demo for the demo model, else gsm8k)")
    add_argument("--config", help="recipe: a YAML mapping of flags to values")
    add_argument("--cache_dir", help="default: $GRPSPO_CACHE, else ./cached_files")
    add_argument("--output_root", default="runs", help="runs go to <root>/<model>/<method>/seed<N>")
    add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one")
    add_switch(parser, "--stop_on_collapse", "end a run whose reward fell below half of its best")
    add_argument("--sampler", choices=["auto", "own", "trl"], default="auto", help="default: own; on a GPU the faster")
    every = "write a few completions into completions.jsonl every so many steps; 0: never (default: 10)"
    add_argument("--log_completions_steps", type=int, default=10, help=every)
    add_switch(parser, "--skip_long_prompts", "leave out rows that do not fit the model or SFT's max_length")
    add_switch(parser, "--merge_adapter", "with LoRA: also fold the adapter into the model")
    add_switch(parser, "--overwrite", "start afresh; an existing run is moved aside")
    add_switch(parser, "--accept_changes", "go on though code, data or device differ; see run.json")
    add_switch(parser, "--print_config", "show every value and its origin, start nothing")
    return parser


def parse(argv):
    """A command line -> Command; raises BadInput for a flag or a recipe's key that nothing has, or a wrong value."""
    parser = make_parser()
    kinds = kinds_of_parser(parser)
    path = find_recipe(argv)
    recipe = read_recipe(path) if path else {}
    ours = {key: value for key, value in recipe.items() if key in kinds}  # a recipe may hold our own flags too
    said = {key: value for key, value in read_values(ours, kinds, OUR_RANGES, path).items() if value is not None}
    try:
        args, rest = parser.parse_known_args([*to_words(said), *argv])
    except BadInput:
        check_spelling(argv, kinds)
        raise
    check_ranges(vars(args), OUR_RANGES)
    dataset = str(args.dataset or ("demo" if is_demo(args.model) else "gsm8k"))
    find_dataset(dataset)
    command = Command(args, rest, {key: value for key, value in recipe.items() if key not in kinds}, dataset)
    check_names(command)
    command.recipe = read_values(command.recipe, read_field_kinds(args.trust_region_method), RANGES, path)
    return command


def resolve(command):
    """A Command -> Plan; raises BadInput for whatever its configuration alone shows to be wrong. Starts nothing."""
    try:
        if command.args.trust_region_method != "sft":
            require_patched_trl(command.args.trust_region_method)
    except ValueError as error:
        raise BadInput(str(error)) from None
    plan = Plan(command, *resolve_config(command))
    check_config(plan)
    choose_sampler(plan)
    return plan


def check_model(args):
    """The model's directory; raises BadInput for what is wrong with it, at the cost of reading a header."""
    model_path = find_model(args.model, get_cache_dir(args.cache_dir))
    if (model_path / "adapter_config.json").is_file() and not (model_path / "config.json").is_file():
        raise BadInput(f"{model_path} is an adapter; train from a full model (--merge_adapter writes one)")
    check_weights(model_path)
    return model_path


def check_config(plan):
    """Raises BadInput for what TRL would find only after the model is loaded, or never."""
    args = plan.command.args
    config = plan.config
    model_config = plan.model_config
    check_trackers(config.report_to)
    check_together(plan)
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
    check_can_continue(config)


# ---- run


def load_data(plan, model_path, tokenizer):
    """The rows to train and validate on; raises BadInput for what the model cannot take in, before weights are read."""
    template = Template(tokenizer, getattr(plan.config, "chat_template_kwargs", None))
    return load_training_data(plan, template, load_config(model_path)[0])


def prepare_rows(plan, model_path):
    """(tokenizer, {"train", "validation"}); raises BadInput for what this model cannot follow or take in."""
    tokenizer = load_tokenizer([model_path])
    check_model_takes(plan.config, tokenizer, load_config(model_path)[0])
    check_adapter(plan.model_config, load_config(model_path)[0])
    return tokenizer, load_data(plan, model_path, tokenizer)


def load_policy(model_path, model_config, tokenizer):
    """The policy, in fp32 unless --dtype says otherwise; its end tokens include ChatML's, which base models lack."""
    from trl import get_quantization_config

    attention = {"attn_implementation": model_config.attn_implementation} if model_config.attn_implementation else {}
    quantization = get_quantization_config(model_config)
    model = load_model([model_path], model_config.dtype, quantization_config=quantization, **attention)
    model.generation_config.eos_token_id = get_eos_token_ids(tokenizer, model.generation_config)
    return model


@dataclass
class SamplerChoice:
    """What completes the prompts: "own", "trl", "trial" (the faster of both on the first batch) or None, and why."""

    sampler: str | None
    why: str

    def settled(self, sampler):
        """The choice of a run that may have made its trial already, with this outcome."""
        if self.sampler == "trial" and sampler:
            return SamplerChoice(sampler, "it was the faster one when the run began")
        return self


def choose_sampler(plan, obstacle=None):
    """The SamplerChoice of a run. Raises BadInput where --sampler own cannot do what is asked.

    obstacle: why our sampler cannot drive the model, None where it can, see find_rollout_obstacle.
    """
    args = plan.command.args
    config = plan.config
    if args.trust_region_method == "sft":
        return SamplerChoice(None, "")
    fields = type(config).__dataclass_fields__
    obstacles = {f"--{name}": getattr(config, name) != fields[name].default for name in TRL_SAMPLES}
    obstacles["--attn_implementation"] = plan.model_config.attn_implementation not in (None, "sdpa", "eager")
    if sharding := find_sharding(config):
        obstacles[sharding] = True
    found = ", ".join(name for name, there in obstacles.items() if there)
    if args.sampler == "own" and obstacle:
        raise BadInput(f"--sampler own cannot drive this model: {obstacle}; leave it out, or use --sampler trl")
    if args.sampler == "own" and found:
        raise BadInput(f"--sampler own cannot do {found}: leave it out, or use --sampler trl")
    if args.sampler == "trl" or found:
        why = "asked for" if args.sampler == "trl" else f"{found} needs it"
        if config.use_vllm:
            why += "; vLLM's random state is in no checkpoint: a continued run draws other samples"
        return SamplerChoice("trl", why)
    if obstacle:
        return SamplerChoice("trl", f"ours cannot drive this model: {obstacle}")
    if args.sampler == "own" or config.use_cpu:
        return SamplerChoice("own", "held against a forward pass at its first batch")
    return SamplerChoice("trial", "ours and TRL's own path answer the first batch, the faster one stays")


def find_obstacle(plan, model_path, tokenizer, data):
    """Why our sampler cannot complete the prompts of this run, None where it can and for sft."""
    if plan.command.args.trust_region_method == "sft":
        return None
    from training.rollout import find_rollout_obstacle  # imports torch

    return find_rollout_obstacle(load_config(model_path)[0], tokenizer, data, plan.config)


def settle_sampler(run, config, seconds):
    """The faster of {"own": seconds, "trl": seconds}, written into the record: a continued run keeps to it."""
    outcome = run.record.outcome
    outcome.sampler = min(seconds, key=seconds.get)
    if config.distributed_state.is_main_process:
        write_record(run.path, run.record)
        print(f"sampler: {outcome.sampler} (first batch: own {seconds['own']:.1f} s, trl {seconds['trl']:.1f} s)")
    return outcome.sampler


def make_trainer(plan, sampler, model, tokenizer, data, settle=None):
    """TRL's GRPOTrainer or SFTTrainer for this run. sampler: "own", "trl" or "trial"; settle: see make_rollout."""
    from trl import SFTTrainer, get_peft_config

    from training.trainer import ThriftyGRPOTrainer, construct

    common = {
        "model": model,
        "args": plan.config,
        "processing_class": tokenizer,
        "train_dataset": data["train"],
        "eval_dataset": data["validation"],
        "peft_config": get_peft_config(plan.model_config),
    }
    if plan.command.args.trust_region_method == "sft":
        if plan.config.distributed_state.is_main_process:
            rows = f"{len(data['train'])} rows to train and {len(data['validation'])} to validate on"
            note_begin(label_run(plan.config.output_dir), f"tokenising {rows}")
        return construct(SFTTrainer, common)
    from training.rollout import make_rollout  # imports torch

    rollout = None if sampler == "trl" else make_rollout(plan.config.seed, tokenizer, settle)
    return construct(ThriftyGRPOTrainer, {**common, "reward_funcs": list(REWARDS), "rollout_func": rollout})


def check_sharding(trainer):
    """Raises BadInput where FSDP was asked for and accelerate holds a whole model in each process, as on a CPU."""
    if find_sharding(trainer.args) == "FSDP" and not trainer.is_fsdp_enabled:
        raise BadInput("accelerate does not shard a model over CPUs or one process: use recipes/ddp.yaml, or GPUs")


def train(trainer, watcher, checkpoint):
    """Run the loop; a full disk or a failed write stops it with one line. Returns whether it came to its end."""
    from safetensors import SafetensorError
    from torch import OutOfMemoryError

    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except OutOfMemoryError:
        start_again_with_fewer_rows(trainer.args, watcher)
    except KeyboardInterrupt:
        step = trainer.state.global_step
        say(trainer.args, f"\ninterrupted at step {step}: {describe_continuation(watcher.path)}")
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        full = any(word in str(error) for word in ("PytorchStreamWriter", "inline_container"))  # torch.save's words
        if isinstance(error, RuntimeError) and not full:
            raise
        reason = "the disk is full" if full else error
        raise SystemExit(f"cannot write to {watcher.path}: {reason}; the last checkpoint is intact") from None
    return watcher.signal is None or trainer.state.global_step >= trainer.state.max_steps


def main(argv=None):
    command = parse(sys.argv[1:] if argv is None else argv)
    go_offline()
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func is experimental; TRL is pinned
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")  # their own use of old names
    if command.args.print_config:
        print_config(resolve(command).values)
        return 0
    model_path = check_model(command.args)  # before TRL, whose import takes seconds
    return run_training(resolve(command), model_path)


def quieten():
    """Switch off what the libraries print beside our own progress and errors."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def run_training(plan, model_path):
    """From a checked configuration to a finished run directory; returns the exit code."""
    from training.callbacks import check_room
    from training.memory import keep_freed_memory

    quieten()
    keep_freed_memory()
    args = plan.command.args
    config = plan.config
    processes = config.distributed_state
    check_device(config)
    sum_in_one_order(config)
    tokenizer, data = prepare_rows(plan, model_path)
    check_plan(config, len(data["train"]))
    path = Path(config.output_dir)
    if not plan.model_config.use_peft:
        check_room(path, model_path, checkpoints_kept(config, len(data["train"]), processes.num_processes) + 1)
    hashes = {part: f"{len(rows)} rows, {hash_value(rows.to_list())[:16]}" for part, rows in data.items()}
    choice = choose_sampler(plan, find_obstacle(plan, model_path, tokenizer, data))
    fit_to_memory(plan, model_path, tokenizer, data)
    fresh = make_record(plan.command, plan.values, processes.num_processes, model_path, hashes, REWARDS)
    with open_run(path, fresh, args, processes) as run:
        if run.record.outcome.status == "finished":
            say(config, f"{path} is finished; --overwrite starts it afresh")
            return 0
        say(config, *describe(config, plan.model_config.dtype, len(data["train"]), processes.num_processes))
        if unread := describe_unread(plan):
            say(config, *unread)
        choice = choice.settled(run.record.outcome.sampler)
        if choice.sampler:
            say(config, f"sampler: {choice.sampler} ({choice.why})")
        say(config, f"continuing from {run.checkpoint}" if run.checkpoint else f"starting {path}")
        name_curve(config, run.record.origin.started)
        policy = load_policy(model_path, plan.model_config, tokenizer)
        settle = partial(settle_sampler, run, config) if choice.sampler == "trial" else None
        run.record.outcome.sampler = choice.sampler if settle is None else None
        trainer = make_trainer(plan, choice.sampler, policy, tokenizer, data, settle)
        check_sharding(trainer)
        if choice.sampler:
            say(config, f"prompts: {trainer.describe_prompts()}")
        return finish_training(plan, trainer, run)


def fit_to_memory(plan, model_path, tokenizer, data):
    """Split the sequences of an update into as few micro-batches as a card's memory takes, unless somebody said how.

    A run that is continued keeps to the split in its record. Raises nothing: what is too large is halved in training.
    """
    from training.memory import (
        SPLIT,
        choose_split,
        describe_work,
        find_splits,
        get_split,
        measure_free_bytes,
        set_split,
    )

    config = plan.config
    values = plan.values
    is_said = any(values.get(name, ("", ""))[1] in ("flag", "recipe") for name in SPLIT)
    is_whole = plan.command.args.trust_region_method == "m2po"  # looks at all tokens of an update in one micro-batch
    if config.use_cpu or is_said or is_whole or find_sharding(config):
        return
    sequences = config.per_device_train_batch_size * config.gradient_accumulation_steps
    splits = find_splits(sequences, *get_split(config)[1:])
    record = None if plan.command.args.overwrite else read_record(Path(config.output_dir))
    kept = [split for split in splits if record and split[0] == record.computed.get(SPLIT[0])]
    work = describe_work(config, plan.model_config, model_path, tokenizer, data["train"])
    if not kept and work is None:
        return
    split = kept[0] if kept else choose_split(splits, work, measure_free_bytes(config))
    set_split(config, split)
    values.update({name: (getattr(config, name), "machine") for name in SPLIT if name in values})
    why = "as the run began" if kept else "as the memory allows"
    say(config, f"micro-batches: {split[1]} of {split[0]} rows, {why}")


def start_again_with_fewer_rows(config, watcher):
    """The card ran out of memory: the same command again, with half the rows in a forward, from the last checkpoint.

    A process of its own has the card's memory to itself. Raises SystemExit where the number of rows is not ours to
    change, or other processes wait for this one.
    """
    from training.memory import SPLIT, halve_rows

    record = watcher.record
    rows = config.per_device_train_batch_size
    half = halve_rows(config, record.computed)
    if half is None or record.said.get(SPLIT[0]) != "machine" or config.distributed_state.num_processes > 1:
        way_out = f"--{SPLIT[0]} {half[0]} --{SPLIT[1]} {half[1]}" if half else "--gradient_checkpointing True"
        raise SystemExit(
            f"out of memory with {rows} rows in a forward; the last checkpoint in {watcher.path} is intact, and the "
            f"same command with {way_out} --accept_changes goes on from it"
        )
    watcher.write_record("running")
    print(f"out of memory with {rows} rows in a forward: going on with {half[0]} from the last checkpoint", flush=True)
    os.execv(sys.executable, [sys.executable, *sys.argv])


def say(config, *lines):
    """Print lines, on the main process only."""
    if config.distributed_state.is_main_process:
        print(*lines, sep="\n")


def finish_training(plan, trainer, run):
    """Train, then put the finished model, its record and its curve in place; returns the exit code."""
    from training.callbacks import save_final, watch
    from training.completions import CompletionsLog

    watcher = watch(trainer, run, plan.command.args.stop_on_collapse)
    if plan.command.args.log_completions_steps and plan.command.args.trust_region_method != "sft":
        trainer.add_callback(CompletionsLog(trainer, run.path, plan.command.args.log_completions_steps))
    if not train(trainer, watcher, run.checkpoint):
        step = trainer.state.global_step
        say(trainer.args, f"saved at step {step}, not finished: the same command goes on from here")
        return EXIT_SAVED
    save_final(trainer, run.path, plan.command.args.merge_adapter)
    if trainer.accelerator.is_main_process:
        run.record.outcome.validation = validation_of_kept(trainer, run.path)
        watcher.write_record("finished")
        write_model_card(run.path, run.record)
        collapse = run.record.outcome.collapsed_at
        note = "" if collapse is None else f", its reward collapsed at step {collapse}"
        print(f"finished: {run.path} ({run.record.outcome.wall_seconds:.0f} s){note}")
        draw_curve(run.path)
    return 0


def validation_of_kept(trainer, path):
    """The Validation of the weights that are kept: the best checkpoint's where it was loaded, else the last step's."""
    config = trainer.args
    state = trainer.state
    step = state.global_step
    if config.load_best_model_at_end and state.best_model_checkpoint:
        step = step_of(Path(state.best_model_checkpoint))
    metric = config.metric_for_best_model or "loss"
    metric = metric if metric.startswith("eval_") else f"eval_{metric}"
    return validation_at(read_log(path / LOG_FILE), metric, step, bool(config.greater_is_better))


def draw_curve(path):
    """Draw the training curve of a finished run; a failure costs nothing but the picture."""
    from reporting.figures import plot_training

    try:
        plot_training([path], path / "reward_curve.png")
    except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
        print(f"warning: no reward_curve.png ({error}); the run is finished", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_script(main))
