"""Benchmarks of maths_evaluations.py: speed, agreement with lm-evaluation-harness, memory, share of a GPU's bandwidth.

Against the published evaluation of arXiv 2509.21282 (Probability Smoothing Policy Optimisation), written anew here.

    python benchmarks/evaluation.py speed         # 16 samples a prompt against the published procedure, a few minutes
    python benchmarks/evaluation.py memory        # peak memory of 500 and of 5,000 problems
    python benchmarks/evaluation.py gpu           # Qwen2.5-0.5B's shape; without a GPU a small shape, to try the script
    python benchmarks/evaluation.py agreement --lm_eval_python lm_eval_env/bin/python     # and greedy speed against it

The last needs an environment of its own: python -m venv lm_eval_env, then lm_eval_env/bin/pip install lm_eval==0.4.13
torch==2.13.0 transformers==5.23.0. Figures come as lines of JSON.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from maths_datasets import build_prompt, load_maths_dataset  # noqa: E402
from maths_models import get_eos_token_ids  # noqa: E402

TEMPERATURE, MAX_NEW_TOKENS, PUBLISHED_BATCH = 0.8, 128, 32
H200_BANDWIDTH = 4.8e12  # bytes/s: https://www.nvidia.com/en-us/data-center/h200/, "GPU memory bandwidth"
BANDWIDTHS = {
    "H200": H200_BANDWIDTH,
    "H100": 3.35e12,
    "A100": 2.0e12,
    "L40": 8.64e11,
    "L4": 3.0e11,
}  # NVIDIA data sheets
STRICT_MATCH = re.compile(r"#### (\-?[0-9\.\,]+)")  # the filter of lm_eval's own task gsm8k


def show(**figures):
    """One line of JSON."""
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}), flush=True)


def load(path, problems):
    """(model, tokenizer, end tokens, problem rows, prompts as token ids)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    rows = load_maths_dataset("demo", "test", None).to_list()[:problems]
    chats = [build_prompt(row["question"]) for row in rows]
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
    return model, tokenizer, get_eos_token_ids(tokenizer, model.generation_config), rows, prompts


def pad_left(prompts, pad):
    """(token ids, attention mask): tensors [prompts, longest]."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    return ids, torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])


def answer_as_published(model, prompts, samples, eos, pad, max_new_tokens=MAX_NEW_TOKENS):
    """The published evaluation: 32 prompts at a time, one draw after another, the prompts read anew for each draw.

    Returns completions[prompt][sample], cut after the end token, as our engine does.
    """
    import torch

    completions = [[] for _ in prompts]
    sampling = {"do_sample": True, "temperature": TEMPERATURE, "top_p": 1.0, "top_k": 0}
    for start in range(0, len(prompts), PUBLISHED_BATCH):
        ids, mask = pad_left(prompts[start : start + PUBLISHED_BATCH], pad)
        ids, mask = ids.to(model.device), mask.to(model.device)
        for _ in range(samples):
            with torch.no_grad():
                output = model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=max_new_tokens,
                    eos_token_id=eos,
                    pad_token_id=pad,
                    **sampling,
                )
            for i, tokens in enumerate(output[:, ids.shape[1] :].tolist()):
                end = next((k + 1 for k, t in enumerate(tokens) if t in eos), len(tokens))
                completions[start + i].append(tokens[:end])
    return completions


def answer_as_we_do(
    model, prompts, samples, eos, pad, temperature=TEMPERATURE, batch_size=256, max_new_tokens=MAX_NEW_TOKENS
):
    """Our engine with what maths_evaluations.py gives it."""
    from maths_generation import generate

    return generate(
        model,
        prompts,
        num_samples=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=1.0,
        top_k=0,
        eos_token_ids=eos,
        pad_token_id=pad,
        seeds=list(range(len(prompts))),
        batch_size=batch_size,
    )


def timed(function, *args, **kwargs):
    """(result, seconds)."""
    begin = time.perf_counter()
    result = function(*args, **kwargs)
    return result, time.perf_counter() - begin


def describe(name, completions, seconds, tokenizer, rows):
    """Figures of one way of answering: speed, accuracy and length with their intervals over prompts."""
    import numpy as np

    from maths_rewards import grade_batch
    from maths_statistics import bootstrap_interval

    tokens = sum(len(s) for samples in completions for s in samples)
    values = []
    for samples, row in zip(completions, rows, strict=True):
        texts = tokenizer.batch_decode(samples, skip_special_tokens=True)
        grades = grade_batch(texts, [row["gold"]] * len(texts), [row["kind"]] * len(texts))
        values.append((np.mean([g.correct for g in grades]), np.mean([len(s) for s in samples])))
    values = np.array(values)
    low, high = bootstrap_interval(values) if len(values) > 1 else (values[0], values[0])
    figures = {"seconds": seconds, "tokens_per_second": tokens / seconds}
    figures |= {
        "accuracy": float(values[:, 0].mean()),
        "accuracy_interval": [round(float(x), 4) for x in (low[0], high[0])],
    }
    figures |= {
        "length": float(values[:, 1].mean()),
        "length_interval": [round(float(x), 2) for x in (low[1], high[1])],
    }
    show(name=name, **figures)
    return figures


def run_speed(args):
    """Ours and the published procedure on the same problems; ours at 1 and at `--samples` samples a prompt."""
    model, tokenizer, eos, rows, prompts = load(args.model, args.problems)
    pad = tokenizer.pad_token_id
    answer_as_we_do(model, prompts[:8], 1, eos, pad)  # the first call pays for libraries that load lazily
    ours, published, single = [], [], []
    for _ in range(args.repeats):  # alternately: whatever else the machine does meets all alike
        published.append(timed(answer_as_published, model, prompts, args.samples, eos, pad))
        ours.append(timed(answer_as_we_do, model, prompts, args.samples, eos, pad))
        single.append(timed(answer_as_we_do, model, prompts, 1, eos, pad))
    best = [min(runs, key=lambda run: run[1]) for runs in (published, ours, single)]
    names = ("published procedure", f"ours, {args.samples} samples", "ours, 1 sample")
    theirs, mine, one = (describe(n, *run, tokenizer, rows) for n, run in zip(names, best, strict=True))
    inside = [mine[f"{k}_interval"][0] <= theirs[k] <= mine[f"{k}_interval"][1] for k in ("accuracy", "length")]
    # compared by tokens a second, since the two draw different completions of different lengths
    show(
        problems=len(prompts),
        samples=args.samples,
        speedup=mine["tokens_per_second"] / theirs["tokens_per_second"],
        cost_over_one_sample=mine["seconds"] / one["seconds"],
        published_within_our_intervals=all(inside),
    )


# ------------------------------------------------------------------ lm-evaluation-harness


def write_task(folder, rows, texts):
    """A local lm_eval task with our prompts, written out in full, and GSM8K's strict-match filter."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"prompt": text, "answer": row["gold"]}) + "\n" for text, row in zip(texts, rows, strict=True))
    (folder / "problems.jsonl").write_text("".join(lines))
    (folder / "agreement.yaml").write_text(f"""task: agreement
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "problems.jsonl"}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["<|im_end|>"], do_sample: false, temperature: 0.0, max_gen_toks: {MAX_NEW_TOKENS}}}
filter_list:
  - name: strict-match
    filter:
      - {{function: regex, regex_pattern: '{STRICT_MATCH.pattern}'}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: false}}
""")


LM_EVAL = """
import json, sys, time
import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
model, folder, batch, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
lm = HFLM(pretrained=model, device="cpu", dtype="float32", batch_size=batch, add_bos_token=False)
began, inner = [], lm.generate_until
def timed(*args, **kwargs):
    start = time.perf_counter()
    result = inner(*args, **kwargs)
    began.append(time.perf_counter() - start)
    return result
lm.generate_until = timed
tasks = TaskManager(include_path=folder)
result = lm_eval.simple_evaluate(lm, tasks=["agreement"], task_manager=tasks, log_samples=True)
samples = sorted(result["samples"]["agreement"], key=lambda s: s["doc_id"])
json.dump({"seconds": sum(began), "version": lm_eval.__version__, "texts": [s["resps"][0][0] for s in samples],
           "accuracy": result["results"]["agreement"]["exact_match,strict-match"]}, open(out, "w"))
"""


def run_lm_eval(args, folder, batch):
    """lm_eval's completions, its accuracy under strict-match and the seconds its `generate_until` took."""
    out = folder / f"lm_eval-{batch}.json"
    command = [args.lm_eval_python, "-c", LM_EVAL, str(args.model), str(folder), str(batch), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"lm_eval failed: {done.stderr.strip()[-1500:]}")
    return json.loads(out.read_text())


def strict_match(texts, rows):
    """Accuracy as lm_eval computes it: the first `#### number` is the gold, letter by letter."""
    found = [STRICT_MATCH.search(text) for text in texts]
    return sum(bool(m) and m[1] == row["gold"] for m, row in zip(found, rows, strict=True)) / len(rows)


def answer_texts(model, tokenizer, eos, chats):
    """Greedy completions as text from messages: the work that lm_eval's `generate_until` does too."""
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
    completions = answer_as_we_do(model, prompts, 1, eos, tokenizer.pad_token_id, temperature=0)
    return tokenizer.batch_decode([samples[0] for samples in completions], skip_special_tokens=True)


def run_agreement(args):
    """Greedy, the same model and prompts: completions, accuracy under lm_eval's filter, and seconds."""
    model, tokenizer, eos, rows, _ = load(args.model, args.problems)
    folder = Path(args.work_dir).resolve()
    chats = [build_prompt(row["question"]) for row in rows]
    write_task(folder, rows, tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False))
    answer_texts(model, tokenizer, eos, chats[:8])  # the first call pays for libraries that load lazily
    runs = [timed(answer_texts, model, tokenizer, eos, chats) for _ in range(args.repeats)]
    texts, seconds = min(runs, key=lambda run: run[1])
    ours, agreed = strict_match(texts, rows), True
    show(name="ours, greedy", seconds=seconds, strict_match=ours)
    for batch in args.lm_eval_batches:
        theirs = run_lm_eval(args, folder, batch)
        equal = sum(a == b for a, b in zip(texts, theirs["texts"], strict=True))
        name, accuracy = f"lm_eval {theirs['version']}, batch size {batch}", theirs["accuracy"]
        show(name=name, seconds=theirs["seconds"], strict_match=accuracy, speedup=theirs["seconds"] / seconds)
        print(f"{equal} of {len(rows)} completions equal; strict-match {ours:.4f} and {accuracy:.4f}")
        agreed &= equal == len(rows) and abs(ours - accuracy) < 1e-12
    return 0 if agreed else 1


# ------------------------------------------------------------------ memory


def run_memory(args):
    """Peak memory of whole evaluations of 500 and 5,000 problems (the demo's, under ten ids each), a process each."""
    peaks = {
        n: int(
            subprocess.check_output(
                [sys.executable, __file__, "memory_of", str(n), str(args.model), str(args.samples)]
            ).split()[-1]
        )
        for n in (500, 5000)
    }
    show(peak_mb={n: round(p / 1024) for n, p in peaks.items()}, growth=peaks[5000] / peaks[500] - 1)


def run_memory_of(args):
    """One evaluation of `count` problems in this process; prints the peak resident size in KiB."""
    import tempfile

    import datasets

    import maths_evaluations
    from maths_common import run_script

    rows = load_maths_dataset("demo", "test", None).to_list()
    many = [row | {"id": f"{i}-{row['id']}"} for i in range(-(-args.count // len(rows))) for row in rows][: args.count]
    maths_evaluations.load_maths_dataset = lambda *_: datasets.Dataset.from_list(many)
    with tempfile.TemporaryDirectory() as out:
        flags = [
            "--datasets",
            "demo",
            "--temperatures",
            "0.8",
            "--samples_per_prompt",
            args.samples,
            "--output_dir",
            out,
        ]
        sys.argv = ["maths_evaluations.py", "--model_path", args.model, *flags]
        if run_script(maths_evaluations.main):
            raise SystemExit(1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


# ------------------------------------------------------------------ GPU


def make_shape(small):
    """A Qwen2 model with random weights: Qwen2.5-0.5B's shape (its config.json on the Hub), or a small one."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    size = dict(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2
    )
    if small:
        size = dict(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
        )
    config = Qwen2Config(
        vocab_size=1000 if small else 151_936, tie_word_embeddings=True, max_position_embeddings=4096, **size
    )
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    torch.manual_seed(0)
    with torch.device(device):
        return Qwen2ForCausalLM(config).to(dtype).eval()


def floor_seconds(model, rows, context, steps, bandwidth):
    """The least time memory allows for so many decoding steps: weights once, each row's keys and values once a step."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    c = model.config
    cache = 2 * c.num_hidden_layers * c.num_key_value_heads * (c.hidden_size // c.num_attention_heads) * context
    return steps * (weights + rows * cache * next(model.parameters()).element_size()) / bandwidth


def run_gpu(args):
    """Tokens a second of a fixed load (no end token: every completion has the same length) at several batch sizes."""
    import torch

    cuda = torch.cuda.is_available()
    model, name = make_shape(small=not cuda), torch.cuda.get_device_name() if cuda else "CPU, small shape"
    count, new, width = (256, 128, 150) if cuda else (16, 16, 20)
    ids = torch.randint(3, 900, (count, width), generator=torch.Generator().manual_seed(0)).tolist()
    bandwidth = next((b for key, b in BANDWIDTHS.items() if key in name), None)
    _, seconds = timed(answer_as_published, model, ids[: count // 4], 2, [0], 0, max_new_tokens=new)
    show(name="published procedure", device=name, tokens_per_second=count // 4 * 2 * new / seconds)
    for batch in (256, 512, 1024) if cuda else (16, 32):
        answer_as_we_do(model, ids[:4], 1, [0], 0, batch_size=4, max_new_tokens=4)
        completions, seconds = timed(
            answer_as_we_do, model, ids, 16 if cuda else 2, [0], 0, batch_size=batch, max_new_tokens=new
        )
        tokens = sum(len(s) for samples in completions for s in samples)
        floor = floor_seconds(model, batch, width + new / 2, tokens / batch, bandwidth) if bandwidth else None
        show(
            name="ours",
            rows=batch,
            tokens_per_second=tokens / seconds,
            share_of_bandwidth_floor=floor and floor / seconds,
        )
    if not cuda:
        show(outstanding="no GPU here: the figures above only show that the script runs")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "agreement", "memory", "memory_of", "gpu"])
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)  # of memory_of, which `memory` starts
    parser.add_argument("--model", default=str(ROOT / "demo" / "model"), help="default: the demo model")
    parser.add_argument("--problems", type=int, default=200, help="default: 200")
    parser.add_argument("--samples", type=int, default=16, help="default: 16")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest of so many is reported (default: 3)")
    parser.add_argument("--lm_eval_python", help="a Python that has lm_eval")
    parser.add_argument("--lm_eval_batches", type=int, nargs="+", default=[32], help="its batch sizes (default: 32)")
    parser.add_argument("--work_dir", default="runs/benchmark", help="for the task file (default: runs/benchmark)")
    args = parser.parse_args()
    if args.what == "agreement" and not args.lm_eval_python:
        parser.error("agreement needs --lm_eval_python")
    if args.what == "memory_of":
        args.count, args.model, args.samples = int(args.rest[0]), args.rest[1], args.rest[2]
    benchmarks = {"speed": run_speed, "agreement": run_agreement, "memory": run_memory, "gpu": run_gpu}
    return {**benchmarks, "memory_of": run_memory_of}[args.what](args)


if __name__ == "__main__":
    sys.exit(main())
