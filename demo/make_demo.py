"""Make the embedded default: word problems in GSM8K's schema, and a small Qwen2 base model that has room to learn.

Everything follows from fixed seeds; the files this writes are the ones that are shipped in `demo/`.

    python demo/make_demo.py --data      # demo/data/{train,validation,test}.jsonl, seconds
    python demo/make_demo.py --model     # demo/model/, about 12 minutes on one CPU core

The problems are two steps of addition and subtraction with numbers to 20. The base is trained from scratch on a mixture
of careful and careless answers (`MIXTURE`), as a pretraining corpus is: it can do the arithmetic, but a sample of it
often stops after the first step or guesses. Policy optimisation then has something to reinforce that is already there,
which is what it does for large models too; it would not teach a model of this size arithmetic within minutes.
"""

import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from common.datasets import CALCULATOR_NOTE, build_prompt  # noqa: E402
from common.files import make_parser, run_script, write_text  # noqa: E402

SPLITS = {"train": 3000, "validation": 128, "test": 500}
MIXTURE = {"worked": 0.35, "bare": 0.3, "first_step": 0.35}  # ways of answering, by their share
SIZES = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
STEPS = 800
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
NAMES = "Ada Ben Cleo Dan Eve Finn Gwen Hugo Iris Jack Kim Leo Mia Noah Olga Paul Rosa Sam Tara Zoe".split()
ITEMS = "apples books cards coins cups eggs flags hats kites marbles nuts pens pins plums rings shells stamps stones"
ITEMS = ITEMS.split()
CHANGES = {
    "+": ["buys {n} more {items}", "finds {n} {items}", "gets {n} {items} from {friend}", "is given {n} {items}"],
    "-": ["gives {n} {items} to {friend}", "loses {n} {items}", "sells {n} {items}", "hands {friend} {n} {items}"],
}


def make_step(left, sign, right):
    """One step of a calculation: (left, sign, right, result)."""
    return left, sign, right, left + right if sign == "+" else left - right


def make_problem(rng):
    """One problem as (question, [step, step]): two people compared and their sum, or a start and two changes."""
    comparison = rng.random() < 0.3
    name, friend = rng.sample(NAMES, 2)
    items = rng.choice(ITEMS)
    total = rng.randint(3 if comparison else 2, 20)
    text = f"{name} has {total} {items}."
    steps = []
    if comparison:
        sign = rng.choice("+-")
        n, word = (rng.randint(2, 20), "more") if sign == "+" else (rng.randint(2, total - 1), "fewer")
        steps = [make_step(total, sign, n)]
        steps.append(make_step(total, "+", steps[0][-1]))
        text += f" {friend} has {n} {word} {items} than {name}."
        return f"{text} How many {items} do they have together?", steps
    for opening in ("", "Then "):
        sign = rng.choice("+-") if total > 1 else "+"
        n = rng.randint(2, 20 if sign == "+" else min(20, total))
        text += f" {opening}{name} {rng.choice(CHANGES[sign]).format(n=n, items=items, friend=friend)}."
        steps.append(make_step(total, sign, n))
        total = steps[-1][-1]
    return f"{text} How many {items} does {name} have now?", steps


def write_answer(steps, style="worked"):
    """The answer text in GSM8K's form, calculator notes included; `style` is a key of `MIXTURE`."""
    shown = {"worked": steps, "bare": [], "first_step": steps[:1]}[style]
    lines = [f"{a} {sign} {b} = <<{a}{sign}{b}={c}>>{c}." for a, sign, b, c in shown]
    lines = [f"{opening} {line}" for opening, line in zip(("First", "Then"), lines, strict=False)]
    return "\n".join([*lines, f"#### {(shown or steps)[-1][-1]}"])


def make_splits(seed=0):
    """`{split: [{"question", "answer"}, ...]}`; no question occurs twice, within a split or across splits."""
    rng = random.Random(seed)
    seen = set()
    splits = {}
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
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        print(f"{path}: {len(rows)} problems")


def make_pretraining_rows(seed, count):
    """`count` pairs (prompt messages, completion text) of the mixture; validation and test questions are left out."""
    rng = random.Random(seed)
    splits = make_splits()
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
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = {"special_tokens": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=byte_level.alphabet(), **special)
    texts = ("\n".join([*(f"{m['role']}\n{m['content']}" for m in p), "assistant", c]) for p, c in rows)
    tokenizer.train_from_iterator(texts, trainer)
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": 512}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)
    fast.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return fast


def make_model(tokenizer):
    """A random Qwen2 model of 0.84 million parameters."""
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    more = {"tie_word_embeddings": True, "dtype": "float32", "bos_token_id": None}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **SIZES, **more, **special))
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
    for _ in (progress := tqdm(range(STEPS), desc="base")):
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
    parser = make_parser(__doc__)
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
    sys.exit(run_script(main))
