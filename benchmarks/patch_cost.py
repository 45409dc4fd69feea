"""
What the patches cost: step time of patched clip over the TRL release, and of pspo over patched clip.

Three trainers (release, clip, pspo) of equal models take their optimisation steps (forward, loss, metrics, backward,
AdamW) in turns, in an order drawn anew each round, on the same completions. The ratio of the times is taken within a
round, so what slows the machine for longer than a round cancels. Generation is the same code for all and left out,
which makes the ratios larger than those of whole training steps. The release's trainer is the patched file with the
patch taken back, loaded beside it.

Both the wall clock and the CPU time of this process are reported. They agree on an idle machine; on a busy one the
wall clock also measures the others. On a GPU only the wall clock means anything.

python benchmarks/patch_cost.py
python benchmarks/patch_cost.py --rounds 1000 --hidden_size 256 --num_layers 8
"""

import argparse
import importlib.util
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from apply_patches import convert, find_trl, read_patches, require_patched_trl  # noqa: E402

VOCABULARY = 600
PROMPT_LENGTH, COMPLETION_LENGTH = 48, 80  # tokens, about those of the demo's problems
PAIRS = (("clip", "release"), ("pspo", "clip"))


def load_release_trainer():
    """GRPOTrainer of the release: the source of the patched one, reversed, as a further module of `trl.trainer`."""
    patch = read_patches()[0]
    source = find_trl() / "trainer" / "grpo_trainer.py"
    with tempfile.NamedTemporaryFile(suffix=".py") as file:
        file.write(convert(source.read_bytes(), patch, reverse=True))
        file.flush()
        spec = importlib.util.spec_from_file_location("trl.trainer.grpo_trainer_release", file.name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module.GRPOTrainer


def make_tokenizer():
    """A tokenizer of the right size; what it makes of text does not matter here."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, **{str(i): i for i in range(2, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_trainer(trainer_class, method, args, **fields):
    """A trainer of a random Qwen2 model, the same at every call, with AdamW; fields: further ones of the config."""
    import torch
    from datasets import Dataset
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl import GRPOConfig

    torch.manual_seed(0)
    size = args.hidden_size
    shape = dict(hidden_size=size, intermediate_size=4 * size, num_hidden_layers=args.num_layers)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, vocab_size=VOCABULARY, eos_token_id=1, pad_token_id=0)
    config = GRPOConfig(
        output_dir=tempfile.gettempdir(), report_to=[], use_cpu=args.device == "cpu", bf16=False, learning_rate=1e-6,
        per_device_train_batch_size=args.batch_size, num_generations=4, max_completion_length=COMPLETION_LENGTH,
        gradient_checkpointing=False, trust_region_method=method, save_strategy="no",
        num_iterations=2**30,  # the batch that is set below is used for ever
        **fields,
    )  # fmt: skip
    trainer = trainer_class(
        model=Qwen2ForCausalLM(Qwen2Config(**shape, **heads)), reward_funcs=lambda completions, **kwargs: [0.0],
        args=config, train_dataset=Dataset.from_dict({"prompt": ["2"]}), processing_class=make_tokenizer(),
    )  # fmt: skip
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer._step = 1
    return trainer


def make_batch(batch_size, device):
    """Random prompts and completions, with log-probabilities that put ratios on both sides of the clip range."""
    import torch

    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(2, VOCABULARY, (batch_size, PROMPT_LENGTH), generator=generator)
    completions = torch.randint(2, VOCABULARY, (batch_size, COMPLETION_LENGTH), generator=generator)
    lengths = torch.randint(COMPLETION_LENGTH // 4, COMPLETION_LENGTH + 1, (batch_size, 1), generator=generator)
    mask = (torch.arange(COMPLETION_LENGTH) < lengths).long()
    # a random model gives every token about 1 / VOCABULARY
    old = -torch.tensor(float(VOCABULARY)).log() + 0.2 * torch.randn(completions.shape, generator=generator)
    batch = {
        "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": completions,
        "completion_mask": mask, "advantages": torch.randn(batch_size, generator=generator),
        "old_per_token_logps": old, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    return {name: tensor.to(device) for name, tensor in batch.items()}


def time_step(trainer):
    """Seconds of one optimisation step: (wall clock, CPU time of the process)."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start, cpu_start = time.perf_counter(), time.process_time()
    trainer.training_step(trainer.model, None, None)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - cpu_start


def measure(trainers, rounds):
    """{name: [(wall, CPU) seconds of each round]}, after ten rounds that are not counted."""
    times, generator = {name: [] for name in trainers}, random.Random(0)
    for i in range(rounds + 10):
        for name in generator.sample(list(trainers), len(trainers)):
            seconds = time_step(trainers[name])
            if i >= 10:
                times[name].append(seconds)
        if i % 50 == 0:
            print(f"\rround {i} of {rounds + 10}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return times


def median_with_interval(values, resamples=2000):
    """Median and its 95 % bootstrap interval."""
    import numpy as np

    values, generator = np.asarray(values), np.random.default_rng(0)
    medians = np.median(generator.choice(values, (resamples, len(values))), axis=1)
    return np.median(values), *np.quantile(medians, [0.025, 0.975])


def report(times):
    """Prints the medians of the ratios for both clocks; returns those of the wall clock."""
    medians = {}
    for clock, label in enumerate(("wall clock", "CPU time")):
        for name, base in PAIRS:
            ratios = [a[clock] / b[clock] for a, b in zip(times[name], times[base], strict=True)]
            medians[label, name], low, high = median_with_interval(ratios)
            milliseconds = 1e3 * sorted(seconds[clock] for seconds in times[base])[len(ratios) // 2]
            print(
                f"{label}, {name} / {base}: median {medians[label, name]:.4f}, "
                f"95 % interval {low:.4f} to {high:.4f} ({base} {milliseconds:.1f} ms)"
            )
    return [medians["wall clock", name] for name, _ in PAIRS]


def main(args):
    """Builds the three trainers, times them and prints the ratios; returns 0 if both medians are within 1 %."""
    require_patched_trl("pspo")
    import torch
    from trl import GRPOTrainer

    torch.set_num_threads(args.threads)
    trainers = {
        "release": make_trainer(load_release_trainer(), "clip", args),
        "clip": make_trainer(GRPOTrainer, "clip", args),
        "pspo": make_trainer(GRPOTrainer, "pspo", args),
    }
    for trainer in trainers.values():
        trainer._buffered_inputs = [make_batch(args.batch_size, trainer.accelerator.device)]
        trainer.model.to(trainer.accelerator.device).train()
    count = sum(p.numel() for p in trainers["clip"].model.parameters())
    print(f"{count / 1e6:.2f} M parameters, batch {args.batch_size}, {args.rounds} rounds, {args.threads} threads")
    return 0 if all(abs(median - 1) < 0.01 for median in report(measure(trainers, args.rounds))) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300, help="steps of each trainer")
    parser.add_argument("--batch_size", type=int, default=16, help="completions a step")
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    sys.exit(main(parser.parse_args()))
