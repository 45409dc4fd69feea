"""How fast is a training step? Ours against stock TRL on the demo, and a step at a published shape taken apart.

Parts of cpu.py and gpu.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282). Stock TRL is called as its
documentation's quick start does, GRPOTrainer(model, reward_funcs, args, train_dataset), with the demo's 128 completions
a step, lengths and learning rate, and everything else at TRL's defaults: micro-batches of 8, bf16 autocast, gradient
checkpointing ("quick start"). Then with our micro-batches of 64, and with autocast and checkpointing off as well
("tuned by hand"). Runs take turns, each in a process of its own, so that the peak memory is its own.
"""

import argparse
import contextlib
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import DEMO_MODEL, make_row, not_run, save_shape, synchronize

# Changes to the shared settings; the micro-batch times the accumulation is the same 128 in all.
AGAIN = "ours, prompts read again"  # for every completion, as TRL does it: what sharing them is worth
VARIANTS = {
    "ours": {},
    AGAIN: {},
    "quick start": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 16},
    "quick start with 64 rows": {},
    "tuned by hand": {"bf16": False, "gradient_checkpointing": False},
}
TARGETS = {"quick start": ("at least", 3), "tuned by hand": ("at least", 1.8)}
ENOUGH = 20  # seconds that are timed, after which a run ends with its cycle: bf16 is slow where a CPU emulates it
NO_EXTRAS = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "warmup_steps": 0}
# 437 generations an epoch, 3 epochs; clip and pspo take 2 steps for each, noclip 1; 5 seeds
PAPER_STEPS = 437 * 3 * (2 + 2 + 1) * 5
MICRO_BATCHES = ((4, 16), (16, 4), (64, 1))  # rows, accumulation: the paper's and larger ones, 64 completions a step


# ---- ours against stock


def demo_settings(seed, quick):
    """The batch, lengths and schedule that both sides share: the demo's, without validation."""
    from training.hyperparameters import DEMO, PRESETS

    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "max_completion_length")
    settings = {name: DEMO[name] for name in names}
    settings |= {name: PRESETS["demo"]["clip"][name] for name in ("learning_rate", "num_iterations")}
    settings |= {"max_steps": 4 if quick else 12, "seed": seed, "logging_steps": 1, "loss_type": "dapo"}
    return settings | ({"per_device_train_batch_size": 8, "max_completion_length": 8} if quick else {})


def make_stock(settings, folder):
    """GRPOTrainer as the quick start has it, on the demo's model and data."""
    from trl import GRPOConfig, GRPOTrainer

    import maths_finetuning as ours
    from maths_rewards import REWARDS

    fixed = {"use_cpu": True, "save_strategy": "no", "report_to": "none", "reward_weights": list(REWARDS.values())}
    config = GRPOConfig(folder, **fixed, **settings)
    plan = ours.resolve(ours.parse(["--model", "demo", "--trust_region_method", "clip", "--seed", str(config.seed)]))
    data = ours.load_data(plan, DEMO_MODEL, ours.load_tokenizer([DEMO_MODEL]))
    return GRPOTrainer(model=str(DEMO_MODEL), reward_funcs=list(REWARDS), args=config, train_dataset=data["train"])


def make_ours(model_dir, method, device, settings, folder):
    """The trainer that maths_finetuning.py builds for the demo's data."""
    import maths_finetuning as ours
    from training.memory import keep_freed_memory

    keep_freed_memory()
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    flags = [x for key, value in {**NO_EXTRAS, **settings}.items() for x in (f"--{key}", str(value))]
    argv = ["--model", str(model_dir), "--dataset", "demo", "--trust_region_method", method, "--device", device]
    command = ours.parse([*argv, "--output_dir", folder, "--disable_tqdm", "True", *flags])
    plan = ours.resolve(command)
    ours.sum_in_one_order(plan.config)
    ours.quieten()
    tokenizer = ours.load_tokenizer([Path(model_dir)])
    data = ours.load_data(plan, Path(model_dir), tokenizer)
    policy = ours.load_policy(Path(model_dir), plan.model_config, tokenizer)
    return ours.make_trainer(plan, "own", policy, tokenizer, data)


def run_variant(variant, seed, quick):
    """Train -> {"rate": completions a second, "peak_mb", "share": seconds by part}; the first cycle is not timed."""
    from transformers import PrinterCallback, TrainerCallback

    settings = demo_settings(seed, quick)
    ends = []
    spans = {}
    with tempfile.TemporaryDirectory() as folder:
        if variant in ("ours", AGAIN):
            trainer = make_ours(DEMO_MODEL, "clip", "cpu", settings, folder)
            trainer.obstacle = "measured without" if variant == AGAIN else trainer.obstacle
        else:
            changes = VARIANTS[variant]
            if quick:  # as small as can be, and without the bf16 that a CPU may have to emulate
                changes = {key: value for key, value in changes.items() if key not in settings} | {"bf16": False}
            trainer = make_stock({**settings, **changes}, folder)
        trainer.remove_callback(PrinterCallback)
        config = trainer.args
        cycle = config.num_iterations * config.steps_per_generation // config.gradient_accumulation_steps

        class Clock(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                ends.append(time.perf_counter())
                if len(ends) == cycle:
                    spans.clear()
                elif len(ends) % cycle == 0 and ends[-1] - ends[cycle - 1] > ENOUGH:
                    control.should_training_stop = True

        trainer.add_callback(Clock())
        take_apart(trainer, spans, [], "cpu")
        trainer.train()
        seconds = ends[-1] - ends[cycle - 1]
        completions = config.generation_batch_size * (len(ends) - cycle) / cycle
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"rate": completions / seconds, "peak_mb": peak, "share": describe_spans(spans, seconds)}


def compare_with_stock(options):
    """Rows: completions a second of ours and how much slower each variant is, then the peaks of memory."""
    runs = {variant: [] for variant in VARIANTS}
    for seed in range(1 if options.quick else 3):
        for variant in VARIANTS:
            if options.quick:
                runs[variant].append(run_variant(variant, seed, True))
                continue
            command = [sys.executable, __file__, variant, str(seed)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{variant}: {done.stderr[-2000:]}")
            runs[variant].append(json.loads(done.stdout.splitlines()[-1]))
    rates = {variant: [run["rate"] for run in done] for variant, done in runs.items()}
    ours = rates.pop("ours")
    middle = len(runs["ours"]) // 2
    note = f"time: {runs['ours'][0]['share']}"
    yield make_row("training, ours", sorted(ours)[middle], "completions/s", note=note)
    for variant, others in rates.items():
        ratios = [a / b for a, b in zip(ours, others, strict=True)]
        name = f"training, {variant}" if variant == AGAIN else f"training, TRL, {variant}"
        note = f"time: {runs[variant][0]['share']}"
        target = TARGETS.get(variant)
        yield make_row(name, sorted(others)[middle], "completions/s", "ours is faster by", ratios, target, note)
    for variant, done in runs.items():
        yield make_row(f"peak memory of training, {variant}", max(run["peak_mb"] for run in done), "MB")


# ---- the parts of a step


@contextlib.contextmanager
def span(spans, name, device):
    """Add the seconds of the block to spans[name], the device's queue emptied before and after."""
    synchronize(device)
    begun = time.perf_counter()
    yield
    synchronize(device)
    spans[name] = spans.get(name, 0.0) + time.perf_counter() - begun


def watch(owner, method, spans, name, device, when=lambda: True):
    """Time every call of owner.method (where `when()`), under `name`."""
    original = getattr(owner, method)

    def watched(*args, **kwargs):
        with span(spans, name, device) if when() else contextlib.nullcontext():
            return original(*args, **kwargs)

    setattr(owner, method, watched)


def take_apart(trainer, spans, tokens, device):
    """Hook timers into the trainer, and count in `tokens` those of each micro-batch."""
    import torch

    watch(trainer, "_generate", spans, "generation", device)
    watch(trainer, "_calculate_rewards", spans, "rewards", device)
    no_grad = lambda: not torch.is_grad_enabled()  # noqa: E731
    watch(trainer, "_get_per_token_logps_and_entropies", spans, "old log-probabilities", device, no_grad)
    watch(trainer, "_compute_loss", spans, "forward", device)
    watch(trainer.accelerator, "backward", spans, "backward", device)
    trainer.create_optimizer()
    watch(trainer.optimizer, "step", spans, "optimiser", device)
    original = trainer._compute_loss

    def count(model, inputs):
        tokens.append(inputs["prompt_ids"].numel() + inputs["completion_ids"].numel())
        return original(model, inputs)

    trainer._compute_loss = count


def describe_spans(spans, total):
    """'backward 45 %, forward 30 %, ...' of the whole, what is left over as 'rest'."""
    shares = {**spans, "rest": total - sum(spans.values())}
    return ", ".join(f"{name} {100 * s / total:.0f} %" for name, s in sorted(shares.items(), key=lambda x: -x[1]))


def time_step(folder, device, rows, accumulation, quick):
    """(seconds of one step of pspo, {part: seconds of it}, tokens of it), after a generation cycle to warm up."""
    from transformers import PrinterCallback, TrainerCallback

    tokens = []
    spans = {}
    marks = []
    settings = {"learning_rate": 5e-7, "num_iterations": 2, "max_steps": 4}
    settings |= {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
    settings |= {"max_completion_length": 8 if quick else 128, "num_generations": 4}
    trainer = make_ours(folder, "pspo", device, settings, f"{folder}/run")
    trainer.remove_callback(PrinterCallback)

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            synchronize(device)
            marks.append(time.perf_counter())
            if state.global_step == 2:
                spans.clear()
                tokens.clear()

    trainer.add_callback(Clock())
    take_apart(trainer, spans, tokens, device)
    trainer.train()
    return (marks[3] - marks[1]) / 2, {name: seconds / 2 for name, seconds in spans.items()}, sum(tokens) / 2


def describe_step(shape, device, rows, measured, parameters, peak_flops):
    """Rows: a step's seconds and parts, the hours of the paper's grid, on a GPU the peak of its memory."""
    import torch

    seconds, spans, tokens = measured
    # Kaplan et al. 2020, arXiv 2001.08361, section 2.1: 6 floating-point operations a parameter and token, both passes.
    rate = 6 * parameters * tokens / (spans["forward"] + spans["backward"])
    note = f"{describe_spans(spans, seconds)}; forward and backward {rate / 1e12:.3g} TFLOP/s, {rate / peak_flops:.0%}"
    name = f"training step, {shape}, micro-batches of {rows}"
    yield make_row(name, seconds, "s", note=f"{note} of this device's matrix product")
    yield make_row(f"the paper's grid, {shape}, {rows}", seconds * PAPER_STEPS / 3600, "hours", note="no validation")
    if device == "cuda":
        yield make_row(f"peak memory, {shape}, {rows}", torch.cuda.max_memory_allocated() / 1e9, "GB")


def measure_steps(options, peak_flops):
    """describe_step for every shape and micro-batch asked for; one that does not fit the memory says so."""
    import torch

    cuda = options.device == "cuda"
    for shape in options.shape:
        with tempfile.TemporaryDirectory() as folder:
            parameters = save_shape(shape, folder, options.device)
            for rows, accumulation in ((4, 2),) if options.quick else MICRO_BATCHES:
                try:
                    measured = time_step(folder, options.device, rows, accumulation, options.quick)
                    yield from describe_step(shape, options.device, rows, measured, parameters, peak_flops)
                except torch.OutOfMemoryError:
                    yield not_run(f"training step, {shape}, micro-batches of {rows}", "too large for this card")
                if cuda:
                    gc.collect()  # a trainer and its callbacks hold each other
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":  # one variant in a process of its own, for compare_with_stock
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=list(VARIANTS))
    parser.add_argument("seed", type=int)
    args = parser.parse_args()
    print(json.dumps(run_variant(args.variant, args.seed, False)))
