"""How fast is a training step? Ours against stock TRL on a CPU, and the parts of a step at Qwen2.5's shapes on a GPU.

    python benchmarks/training.py --steps 24 --seeds 0 1 2   # completions a second, curves, peak memory
    python benchmarks/training.py --shape Qwen2.5-0.5B Qwen2.5-1.5B   # split of a step, hours for the grid
    python benchmarks/training.py --shape tiny --device cpu           # the same script at a size for a laptop

Stock TRL is called as its documentation's quick start does, GRPOTrainer(model, reward_funcs, args, train_dataset), with
the demo's 128 completions a step, lengths and learning rate, and everything else at TRL's defaults: micro-batches of
8, bf16 autocast, gradient checkpointing ("stock"). Then with our micro-batches of 64 ("stock, 64 rows"), and with bf16
and checkpointing off as well ("stock, tuned"), to show where the difference comes from. Runs alternate in one call.
The shapes are random weights: time does not depend on what the weights are.
"""

import argparse
import contextlib
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Qwen2.5 technical report, arXiv 2412.15115, table 1, and the models' config.json.
SHAPES = {
    "tiny": (4, 128, 384, 4, 2, 600, True),
    "Qwen2.5-0.5B": (24, 896, 4864, 14, 2, 151936, True),
    "Qwen2.5-1.5B": (28, 1536, 8960, 12, 2, 151936, True),
    "Qwen2.5-3B": (36, 2048, 11008, 16, 2, 151936, True),
}
# Dense bf16 peak, from the vendor's data sheets: H100/H200 SXM 989 TFLOP/s, A100 312, L4 121, L40 181.
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40": 181, "L4": 121}
# Changes to the shared settings; the micro-batch times the accumulation is the same 128 in all.
VARIANTS = {
    "ours": {},
    "stock": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 16},
    "stock, 64 rows": {},
    "stock, tuned": {"bf16": False, "gradient_checkpointing": False},
}


# --------------------------------------------------------------------------------------------- ours against stock


def demo_settings(seed, steps):
    """The batch, lengths and schedule both sides share: the demo's, without validation."""
    from maths_finetuning import DEMO, PRESETS

    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "max_completion_length")
    shared = {name: DEMO[name] for name in names}
    row = {k: v for k, v in PRESETS["demo"]["clip"].items() if k in ("learning_rate", "num_iterations")}
    return {
        **shared,
        **row,
        "max_steps": steps,
        "seed": seed,
        "report_to": "none",
        "logging_steps": 1,
        "loss_type": "dapo",
    }


def make_stock(seed, steps, folder, changes):
    """GRPOTrainer as the quick start has it, on the demo's model and data."""
    from trl import GRPOConfig, GRPOTrainer

    from maths_finetuning import load_training_data
    from maths_rewards import REWARD_WEIGHTS, accuracy_reward, format_reward

    settings = {**demo_settings(seed, steps), **changes}
    config = GRPOConfig(folder, use_cpu=True, save_strategy="no", reward_weights=REWARD_WEIGHTS, **settings)
    train, _ = load_training_data("demo", "clip", seed, None)
    return GRPOTrainer(
        model=str(ROOT / "demo" / "model"),
        reward_funcs=[accuracy_reward, format_reward],
        args=config,
        train_dataset=train,
    )


def make_ours(seed, steps, folder):
    """The trainer that maths_finetuning.py builds, for the same settings."""
    import maths_finetuning as ours

    flags = [x for k, v in demo_settings(seed, steps).items() if k != "seed" for x in (f"--{k}", str(v))]
    flags += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "False"]
    flags += ["--warmup_steps", "0", "--output_dir", folder, "--device", "cpu", "--seed", str(seed)]
    args, rest = ours.parse_own_flags(["--model", "demo", "--trust_region_method", "clip", *flags])
    config, model_config, _ = ours.resolve(args, rest)
    path = ROOT / "demo" / "model"
    tokenizer = ours.load_tokenizer(path)
    data = dict(zip(("train", "validation"), ours.load_training_data("demo", "clip", seed, None), strict=True))
    return ours.make_trainer(
        args, config, model_config, ours.load_model(path, model_config, tokenizer), tokenizer, data
    )


def run_one(variant, seed, steps):
    """Train and return {"seconds", "completions", "rewards", "peak_mb"}; the first generation cycle is not timed."""
    from transformers import TrainerCallback

    with tempfile.TemporaryDirectory() as folder:
        trainer = (
            make_ours(seed, steps, folder) if variant == "ours" else make_stock(seed, steps, folder, VARIANTS[variant])
        )
        ends = []

        class Clock(TrainerCallback):
            def on_step_end(self, *args, **kwargs):
                ends.append(time.perf_counter())

        trainer.add_callback(Clock())
        trainer.train()
        cycle = (
            trainer.args.num_iterations * trainer.args.steps_per_generation // trainer.args.gradient_accumulation_steps
        )
        rows = [row["reward"] for row in trainer.state.log_history if "reward" in row]
        completions = trainer.args.generation_batch_size * (len(ends) - cycle) / cycle
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"seconds": ends[-1] - ends[cycle - 1], "completions": completions, "rewards": rows, "peak_mb": peak}


def compare_with_stock(steps, seeds):
    """Alternate the variants seed by seed, each in a process of its own, and print ratios."""
    results = {variant: [] for variant in VARIANTS}
    for seed in seeds:
        for variant in VARIANTS:
            command = [sys.executable, __file__, "--one", variant, "--seeds", str(seed), "--steps", str(steps)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{variant}: {done.stderr[-2000:]}")
            results[variant].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"seed {seed}, {variant}: {results[variant][-1]['seconds']:.1f} s", file=sys.stderr)
    print(f"{'':14} completions/s   ours is x times   peak MB   reward, last quarter (each seed)")
    for variant, runs in results.items():
        speed = sum(r["completions"] for r in runs) / sum(r["seconds"] for r in runs)
        pairs = [
            a["completions"] / a["seconds"] / (b["completions"] / b["seconds"])
            for a, b in zip(results["ours"], runs, strict=True)
        ]
        late = [sum(r["rewards"][-max(1, len(r["rewards"]) // 4) :]) / max(1, len(r["rewards"]) // 4) for r in runs]
        peak = max(r["peak_mb"] for r in runs)
        print(
            f"{variant:14} {speed:13.1f}   {min(pairs):6.2f} to {max(pairs):5.2f} {peak:9.0f}   "
            + " ".join(f"{value:.3f}" for value in late)
        )


# ------------------------------------------------------------------------------------------- the parts of a step


def make_shape(name, folder):
    """Save a random model of a published shape, with the demo's tokenizer, to `folder`; returns its parameter count."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    layers, hidden, inner, heads, kv_heads, vocabulary, tied = SHAPES[name]
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "demo" / "model")
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


@contextlib.contextmanager
def timed(spans, name, device):
    """Add the seconds of the block to spans[name], the device's queue emptied before and after."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    wait()
    begun = time.perf_counter()
    yield
    wait()
    spans[name] = spans.get(name, 0.0) + time.perf_counter() - begun


def watch(owner, method, spans, name, device, when=lambda: True):
    """Time every call of owner.method (where `when()`), under `name`."""
    original = getattr(owner, method)

    def watched(*args, **kwargs):
        with timed(spans, name, device) if when() else contextlib.nullcontext():
            return original(*args, **kwargs)

    setattr(owner, method, watched)


def measure_shape(name, device, steps, batch, length):
    """One run of pspo at the paper's batch with the steps taken apart; returns the figures as a dict."""
    import torch
    from transformers import PrinterCallback

    import maths_finetuning as ours

    with tempfile.TemporaryDirectory() as folder:
        parameters = make_shape(name, folder)
        flags = ["--learning_rate", "5e-7", "--num_iterations", "2", "--max_steps", str(steps), "--warmup_steps", "0"]
        flags += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "False"]
        flags += ["--per_device_train_batch_size", str(batch), "--max_completion_length", str(length)]
        flags += ["--device", device, "--output_dir", f"{folder}/run", "--disable_tqdm", "True"]
        argv = ["--model", folder, "--dataset", "demo", "--trust_region_method", "pspo", *flags]
        args, rest = ours.parse_own_flags(argv)
        config, model_config, _ = ours.resolve(args, rest)
        tokenizer = ours.load_tokenizer(Path(folder))
        data = dict(zip(("train", "validation"), ours.load_training_data("demo", "pspo", 0, None), strict=True))
        model = ours.load_model(Path(folder), model_config, tokenizer)
        trainer = ours.make_trainer(args, config, model_config, model, tokenizer, data)
        trainer.remove_callback(PrinterCallback)
        spans, tokens = {}, []
        take_apart(trainer, spans, tokens, device)
        begun = time.perf_counter()
        trainer.train()
        spans["total"] = time.perf_counter() - begun
        peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else math.nan
        return {
            "name": name,
            "parameters": parameters,
            "spans": spans,
            "tokens": sum(tokens),
            "steps": steps,
            "peak": peak,
        }


def take_apart(trainer, spans, tokens, device):
    """Hook timers into the trainer; optimisation is timed through the optimiser that the trainer creates."""
    import torch

    watch(trainer, "_generate", spans, "generation", device)
    watch(trainer, "_calculate_rewards", spans, "rewards", device)
    no_grad = lambda: not torch.is_grad_enabled()  # noqa: E731
    watch(trainer, "_get_per_token_logps_and_entropies", spans, "log-probabilities", device, no_grad)
    watch(trainer, "_compute_loss", spans, "forward", device)
    watch(trainer.accelerator, "backward", spans, "backward", device)
    trainer.create_optimizer()
    watch(trainer.optimizer, "step", spans, "optimiser", device)
    original = trainer._compute_loss

    def count(model, inputs):
        tokens.append(inputs["prompt_ids"].numel() + inputs["completion_ids"].numel())
        return original(model, inputs)

    trainer._compute_loss = count


def report_shape(figures, peak_tflops):
    """Print one shape's split and what it means for the paper's grid."""
    spans, steps = figures["spans"], figures["steps"]
    named = {k: v for k, v in spans.items() if k != "total"}
    print(f"{figures['name']}: {figures['parameters'] / 1e9:.3f} G parameters, {spans['total'] / steps:.3f} s a step")
    for name, seconds in [*named.items(), ("rest", spans["total"] - sum(named.values()))]:
        print(f"  {name:18} {seconds / steps:8.4f} s  {100 * seconds / spans['total']:5.1f} %")
    # Kaplan et al. 2020, arXiv 2001.08361, section 2.1: 6 floating-point operations a parameter and token, both passes.
    rate = 6 * figures["parameters"] * figures["tokens"] / (spans["forward"] + spans["backward"]) / 1e12
    share = f", {100 * rate / peak_tflops:.1f} % of {peak_tflops} TFLOP/s" if peak_tflops else ""
    print(f"  forward and backward: {rate:.3f} TFLOP/s{share}; peak memory {figures['peak']:.1f} GB")
    # An epoch is 437 generations of 16 prompts; clip and pspo take 2 steps for each, noclip 1; 3 epochs, 5 seeds.
    hours = spans["total"] / steps * 437 * 3 * (2 + 2 + 1) * 5 / 3600
    print(f"  the paper's grid for this model (clip, noclip, pspo; 5 seeds; validation not counted): {hours:.1f} hours")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--one", choices=list(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), help="take the step of these shapes apart")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--batch", type=int, default=4, help="per-device batch (default: the paper's 4)")
    parser.add_argument("--length", type=int, default=128, help="longest completion (default: the paper's 128)")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(args.one, args.seeds[0], args.steps)))
    elif args.shape:
        import torch

        card = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
        peak = next((tflops for name, tflops in PEAK_TFLOPS.items() if name in card), None)
        print(f"device: {card}; torch {torch.__version__}")
        for name in args.shape:
            report_shape(measure_shape(name, args.device, args.steps, args.batch, args.length), peak)
    else:
        compare_with_stock(args.steps, args.seeds)


if __name__ == "__main__":
    main()
