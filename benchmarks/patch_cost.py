"""What the patches cost: step time of patched clip over the TRL release, and of pspo and m2po over patched clip.

Patched clip has the diagnostics of every method and nothing else that is new; m2po, which sorts the tokens of an
update, is the dearest method. Four trainers (release, clip, pspo, m2po) of equal models take their optimisation steps
(forward, loss, metrics, backward, AdamW) in turns, in an order drawn anew each round, on the same completions. The
ratio of the times is taken within a round, so what slows the machine for longer than a round cancels. Generation is
the same code for all and left out, which makes the ratios larger than those of whole training steps. The release's
trainer is the patched file with the patch taken back, loaded beside it. A part of cpu.py and gpu.py (Probability
Smoothing Policy Optimisation, arXiv 2509.21282).
"""

import importlib.util
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from apply_patches import convert, find_trl, read_patches, require_patched_trl
from benchmarks.common import divide, make_row, timed

VOCABULARY = 600
# tokens, about those of the demo's problems
PROMPT_LENGTH = 48
COMPLETION_LENGTH = 80
PAIRS = (("clip", "release"), ("pspo", "clip"), ("m2po", "clip"))


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


def make_trainer(trainer_class, method, device, size, batch_size, **fields):
    """A trainer of a random Qwen2 model, the same at every call, with AdamW; fields: further ones of the config."""
    import torch
    from datasets import Dataset
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl import GRPOConfig

    torch.manual_seed(0)
    hidden, layers = size
    shape = dict(hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, vocab_size=VOCABULARY, eos_token_id=1, pad_token_id=0)
    config = GRPOConfig(
        output_dir=tempfile.gettempdir(), report_to=[], use_cpu=device == "cpu", bf16=False, learning_rate=1e-6,
        per_device_train_batch_size=batch_size, num_generations=4, max_completion_length=COMPLETION_LENGTH,
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


def take_step(trainer):
    """One optimisation step."""
    trainer.training_step(trainer.model, None, None)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def time_rounds(trainers, rounds, device):
    """{name: [seconds of each round]}, after ten rounds that are not counted.

    On a CPU seconds of this process, so that it does not count what else the machine does.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds = {name: [] for name in trainers}
    generator = random.Random(0)
    for i in range(rounds + 10):
        for name in generator.sample(list(trainers), len(trainers)):
            _, taken = timed(lambda name=name: take_step(trainers[name]), device, clock)
            if i >= 10:
                seconds[name].append(taken)
    return seconds


def measure(options):
    """Rows: each of PAIRS, on a model of a million parameters, on a GPU of 200 million; the target is 1 %."""
    require_patched_trl("pspo")
    import torch
    from trl import GRPOTrainer

    device = getattr(options, "device", "cpu")
    size, batch_size, rounds = ((896, 20), 16, 100) if device == "cuda" else ((128, 4), 16, 150)
    if options.quick:
        size = (32, 1)
        batch_size = 4
        rounds = 3
    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    trainers = {
        "release": make_trainer(load_release_trainer(), "clip", device, size, batch_size),
        "clip": make_trainer(GRPOTrainer, "clip", device, size, batch_size),
        "pspo": make_trainer(GRPOTrainer, "pspo", device, size, batch_size),
        "m2po": make_trainer(GRPOTrainer, "m2po", device, size, batch_size, trust_region_delta=0.04),
    }
    for trainer in trainers.values():
        trainer._buffered_inputs = [make_batch(batch_size, trainer.accelerator.device)]
        trainer.model.to(trainer.accelerator.device).train()
    seconds = time_rounds(trainers, rounds, device)
    for name, base in PAIRS:
        milliseconds = 1000 * sorted(seconds[name])[rounds // 2]
        ratios = divide(seconds[name], seconds[base])
        yield make_row(f"optimisation step, {name}", milliseconds, "ms", f"over {base}", ratios, ("at most", 1.01))
