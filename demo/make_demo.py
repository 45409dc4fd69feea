"""Make the embedded default: word problems in GSM8K's schema, and a small Qwen2 base model that has room to learn.

Everything follows from fixed seeds; the files this writes are the ones that are shipped in `demo/`.

    python demo/make_demo.py --data      # demo/data/{train,validation,test}.jsonl, seconds
    python demo/make_demo.py --model     # demo/model/, about 12 minutes on one CPU core

The problems are two steps of addition and subtraction with numbers to 20. The base is trained from scratch on a mixture
of careful and careless answers (`MIXTURE`), as a pretraining corpus is: it can do the arithmetic, but a sample of it
often stops after the first step or guesses. Policy optimisation then has something to reinforce that is already there,
which is what it does for large models too; it would not teach a model of this size arithmetic within minutes.
"""

import argparse
import json
import os
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from maths_datasets import CALCULATOR_NOTE, build_prompt  # noqa: E402

SPLITS = {"train": 3000, "validation": 128, "test": 500}
MIXTURE = {"worked": 0.35, "bare": 0.3, "first_step": 0.35}  # ways of answering, by their share
STEPS, BATCH_SIZE, LEARNING_RATE = 800, 64, 2e-3
NAMES = "Ada Ben Cleo Dan Eve Finn Gwen Hugo Iris Jack Kim Leo Mia Noah Olga Paul Rosa Sam Tara Zoe".split()
ITEMS = "apples books cards coins cups eggs flags hats kites marbles nuts pens pins plums rings shells stamps stones"
ITEMS = ITEMS.split()
GAINS = ["buys {n} more {items}", "finds {n} {items}", "gets {n} {items} from {friend}", "is given {n} {items}"]
LOSSES = ["gives {n} {items} to {friend}", "loses {n} {items}", "sells {n} {items}", "hands {friend} {n} {items}"]


def make_change_problem(rng):
    """A problem with a start and two changes: (question, [(left, sign, right, result), ...])."""
    name, friend = rng.sample(NAMES, 2)
    items, total = rng.choice(ITEMS), rng.randint(2, 20)
    text, steps = f"{name} has {total} {items}.", []
    for opening in (f"{name}", f"Then {name}"):
        sign = rng.choice("+-") if total > 1 else "+"
        n = rng.randint(2, 20 if sign == "+" else min(20, total))
        phrase = rng.choice(GAINS if sign == "+" else LOSSES).format(n=n, items=items, friend=friend)
        result = total + n if sign == "+" else total - n
        text, total = f"{text} {opening} {phrase}.", steps.append((total, sign, n, result)) or result
    return f"{text} How many {items} does {name} have now?", steps


def make_comparison_problem(rng):
    """A problem that compares two people and asks for the sum; same return value as `make_change_problem`."""
    name, friend = rng.sample(NAMES, 2)
    items, first, sign = rng.choice(ITEMS), rng.randint(3, 20), rng.choice("+-")
    n = rng.randint(2, 20 if sign == "+" else first - 1)
    second = first + n if sign == "+" else first - n
    word = "more" if sign == "+" else "fewer"
    text = f"{name} has {first} {items}. {friend} has {n} {word} {items} than {name}."
    return f"{text} How many {items} do they have together?", [
        (first, sign, n, second),
        (first, "+", second, first + second),
    ]


def make_problem(rng):
    """One problem as (question, steps)."""
    return make_comparison_problem(rng) if rng.random() < 0.3 else make_change_problem(rng)


def write_answer(steps, style="worked"):
    """The answer text in GSM8K's form, calculator notes included; `style` is a key of `MIXTURE`."""
    lines = [
        f"{opening} {a} {sign} {b} = <<{a}{sign}{b}={c}>>{c}."
        for opening, (a, sign, b, c) in zip(("First", "Then"), steps, strict=True)
    ]
    if style == "bare":
        return f"#### {steps[-1][-1]}"
    if style == "first_step":
        return f"{lines[0]}\n#### {steps[0][-1]}"
    return "\n".join([*lines, f"#### {steps[-1][-1]}"])


def make_splits(seed=0):
    """`{split: [{"question", "answer"}, ...]}`; no question occurs twice, within a split or across splits."""
    rng, seen, splits = random.Random(seed), set(), {}
    for split, size in SPLITS.items():
        rows = splits.setdefault(split, [])
        while len(rows) < size:
            question, steps = make_problem(rng)
            if question not in seen:
                seen.add(question)
                rows.append({"question": question, "answer": write_answer(steps)})
    return splits


def write_data(folder):
    """Write the three JSON Lines files."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in make_splits().items():
        path = folder / f"{split}.jsonl"
        path.with_suffix(".tmp").write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(path.with_suffix(".tmp"), path)
        print(f"{path}: {len(rows)} problems")


def make_pretraining_rows(seed, count):
    """`count` pairs (prompt messages, completion text) of the mixture; validation and test questions are left out."""
    rng, splits = random.Random(seed), make_splits()
    held_out = {row["question"] for split in ("validation", "test") for row in splits[split]}
    while count:
        question, steps = make_problem(rng)
        if question not in held_out:
            style = rng.choices(list(MIXTURE), weights=MIXTURE.values())[0]
            yield build_prompt(question), CALCULATOR_NOTE.sub("", write_answer(steps, style))
            count -= 1


def make_tokenizer(rows):
    """A 600-entry byte-level BPE with single digits and the ChatML template of Qwen2.5, as a fast tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    texts = ("\n".join([*(f"{m['role']}\n{m['content']}" for m in p), "assistant", c]) for p, c in rows)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=512
    )
    fast.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return fast


def make_model(tokenizer):
    """A random Qwen2 model of 0.84 million parameters."""
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        dtype="float32",
        bos_token_id=None,
        **special,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(**special)
    return model


def encode(tokenizer, prompt, completion):
    """Token ids and labels of one row; the prompt is masked with -100."""
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    prompt_ids = tokenizer(text)["input_ids"]
    completion_ids = tokenizer(completion + tokenizer.eos_token)["input_ids"]
    return prompt_ids + completion_ids, [-100] * len(prompt_ids) + completion_ids


def train_base(model, tokenizer, rows):
    """Plain supervised training on the completions: AdamW, linear warm-up, cosine decay to zero."""
    import torch
    from tqdm import tqdm
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 100, STEPS)
    progress = tqdm(range(STEPS), desc="base")
    for _ in progress:
        batch = [encode(tokenizer, *next(rows)) for _ in range(BATCH_SIZE)]
        width = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row, _ in batch])
        labels = torch.tensor([row + [-100] * (width - len(row)) for _, row in batch])
        loss = model(input_ids=ids, labels=labels).loss  # right padding is behind every label: no mask is needed
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")


def write_model(folder):
    """Train the base and save it with its tokenizer."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)  # the number of threads changes the order of sums, and so the last bits of the weights
    tokenizer = make_tokenizer(list(make_pretraining_rows(seed=1, count=5000)))
    model = make_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    train_base(model, tokenizer, make_pretraining_rows(seed=2, count=STEPS * BATCH_SIZE))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="store_true", help="write demo/data")
    parser.add_argument("--model", action="store_true", help="train and write demo/model")
    parser.add_argument("--output_dir", type=Path, default=HERE, help="folder that gets data/ and model/")
    args = parser.parse_args()
    if not (args.data or args.model):
        parser.error("say what to make: --data, --model, or both")
    if args.data:
        write_data(args.output_dir / "data")
    if args.model:
        write_model(args.output_dir / "model")


if __name__ == "__main__":
    main()
