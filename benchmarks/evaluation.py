"""How fast is an evaluation? Against the published procedure and lm-evaluation-harness; memory, and how time grows.

Parts of cpu.py (arXiv 2509.21282, Probability Smoothing Policy Optimisation; its evaluation is written anew here). The
demo's model and problems. lm_eval needs an environment of its own, named by LM_EVAL_PYTHON:

    python -m venv lm_eval_env && lm_eval_env/bin/pip install lm_eval==0.4.13 torch==2.13.0 transformers==5.23.0
"""

import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import DEMO_MODEL, SCRATCH, alternate, divide, make_row, not_run, timed

TEMPERATURE = 0.8
MAX_NEW_TOKENS = 128
PUBLISHED_BATCH = 32
OUR_BATCH = 256
HARNESS_BATCHES = (1, 32, 200)
STRICT_MATCH = re.compile(r"#### (\-?[0-9\.\,]+)")  # the filter of lm_eval's own task gsm8k
# The two samplers draw other random numbers, so they are held to the same distribution: with 95 % confidence the paired
# difference over problems is inside these. With 48 samples of 500 problems it is known to 0.7 points and 0.2 tokens.
SAME_ACCURACY = 0.03
SAME_LENGTH = 0.5


class Setup(NamedTuple):
    """The demo's model on the CPU and its problems; prompts: token ids."""

    model: object
    tokenizer: object
    eos: list
    rows: list
    prompts: list


def load(problems):
    """The Setup of so many of the demo's test problems."""
    import torch
    from transformers.utils import logging

    from common.datasets import build_prompt, load_maths_dataset
    from common.models import get_eos_token_ids, load_model, load_tokenizer

    logging.disable_progress_bar()
    model = load_model([DEMO_MODEL], torch.float32).eval()
    tokenizer = load_tokenizer([DEMO_MODEL])
    rows = load_maths_dataset("demo", "test", None).to_list()[:problems]
    chats = [build_prompt(row["question"]) for row in rows]
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
    return Setup(model, tokenizer, get_eos_token_ids(tokenizer, model.generation_config), rows, prompts)


def pad_left(prompts, pad, device="cpu"):
    """{"input_ids", "attention_mask"}: tensors [prompts, longest]."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def answer_as_published(setup, samples):
    """The published evaluation: 32 prompts at a time, one draw after another, the prompts read anew for each draw.

    Returns completions[prompt][sample], token ids cut after the end token, as our engine does.
    """
    import torch

    completions = [[] for _ in setup.prompts]
    pad = setup.tokenizer.pad_token_id
    sampling = {"do_sample": True, "temperature": TEMPERATURE, "top_p": 1.0, "top_k": 0}
    ends = {"max_new_tokens": MAX_NEW_TOKENS, "eos_token_id": setup.eos, "pad_token_id": pad}
    for start in range(0, len(setup.prompts), PUBLISHED_BATCH):
        inputs = pad_left(setup.prompts[start : start + PUBLISHED_BATCH], pad)
        for _ in range(samples):
            with torch.no_grad():
                output = setup.model.generate(**inputs, **ends, **sampling)
            for i, tokens in enumerate(output[:, inputs["input_ids"].shape[1] :].tolist()):
                end = next((k + 1 for k, t in enumerate(tokens) if t in setup.eos), len(tokens))
                completions[start + i].append(tokens[:end])
    return completions


def answer_as_we_do(setup, samples, temperature=TEMPERATURE, first=0, max_new_tokens=MAX_NEW_TOKENS):
    """Our engine with what maths_evaluations.py gives it; first: the first sample's index, other samples after it."""
    from sampling.engine import Request, generate
    from sampling.tokens import Sampling

    sampling = Sampling(temperature, 1.0, 0, max_new_tokens, setup.eos, setup.tokenizer.pad_token_id)
    requests = [Request(p, seed, range(first, first + samples)) for seed, p in enumerate(setup.prompts)]
    completions = generate(setup.model, requests, sampling, OUR_BATCH)
    return [[list(c.ids) for c in group] for group in completions]


# ---- against the published procedure


def score(setup, runs):
    """[accuracy, length] of each problem over the samples of all runs: array [problems, 2]."""
    import numpy as np

    from grading import grade_batch

    values = []
    for i, row in enumerate(setup.rows):
        samples = [ids for run in runs for ids in run[i]]
        texts = setup.tokenizer.batch_decode(samples, skip_special_tokens=True)
        grades = grade_batch(texts, [row["gold"]] * len(texts), [row["kind"]] * len(texts))
        values.append((np.mean([g.correct for g in grades]), np.mean([len(s) for s in samples])))
    return np.array(values)


def compare_distributions(ours, theirs):
    """Rows: the paired differences over problems of accuracy and length with their 95 % intervals, and their margins.

    ours, theirs: arrays [problems, 2] of `score`. The row's figure is the end of the interval farther from zero.
    """
    from evaluation.intervals import bootstrap_interval

    low, high = bootstrap_interval(ours - theirs)
    margins = (("accuracy", SAME_ACCURACY, 100, "points"), ("length", SAME_LENGTH, 1, "tokens"))
    for k, (name, margin, scale, unit) in enumerate(margins):
        a = scale * float(low[k])
        b = scale * float(high[k])
        mean = scale * float((ours - theirs)[:, k].mean())
        note = f"paired difference {mean:+.2f} {unit}, 95 % interval {a:+.2f} to {b:+.2f}"
        name = f"{name}, ours against the published procedure: the difference is less than"
        yield make_row(name, max(abs(a), abs(b)), unit, target=("at most", scale * margin), note=note)


def compare_with_published(options):
    """Rows: tokens a second of both, the cost of 16 samples over one, and whether the samplers agree."""
    problems, samples, rounds = (4, 2, 1) if options.quick else (500, 16, 3)
    setup = load(problems)
    first = iter(range(0, 10**6, samples))
    answer_as_we_do(setup, 1)  # the first call pays for libraries that load lazily
    functions = {
        "published": lambda: answer_as_published(setup, samples),
        "ours": lambda: answer_as_we_do(setup, samples, first=next(first)),
        "one": lambda: answer_as_we_do(setup, 1),
    }
    seconds, runs = alternate(functions, rounds)
    # by tokens a second, since the two draw different completions of different lengths
    speed = {name: divide([sum(map(len, sum(run, []))) for run in runs[name]], seconds[name]) for name in runs}
    middle = rounds // 2
    name = f"evaluation, ours, {samples} samples a prompt"
    yield make_row("evaluation, the published procedure", sorted(speed["published"])[middle], "tokens/s")
    ratios = divide(speed["ours"], speed["published"])
    target = ("at least", 3)
    against = "times the published procedure"
    yield make_row(name, sorted(speed["ours"])[middle], "tokens/s", against, ratios, target)
    growth = divide(seconds["ours"], seconds["one"])
    yield make_row(name, sorted(seconds["ours"])[middle], "s", "times one sample", growth)
    yield from compare_distributions(score(setup, runs["ours"]), score(setup, runs["published"]))


# ---- against lm-evaluation-harness


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


def run_lm_eval(python, folder, batch):
    """lm_eval's completions, its accuracy under strict-match and the seconds its `generate_until` took."""
    out = folder / f"lm_eval-{batch}.json"
    command = [python, "-c", LM_EVAL, str(DEMO_MODEL), str(folder), str(batch), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"lm_eval failed: {done.stderr.strip()[-1500:]}")
    return json.loads(out.read_text())


def strict_match(texts, rows):
    """Accuracy as lm_eval computes it: the first `#### number` is the gold, letter by letter."""
    found = [STRICT_MATCH.search(text) for text in texts]
    return sum(bool(m) and m[1] == row["gold"] for m, row in zip(found, rows, strict=True)) / len(rows)


def answer_texts(setup, chats):
    """Greedy completions as text from messages: the work that lm_eval's `generate_until` does too."""
    prompts = setup.tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
    completions = answer_as_we_do(setup._replace(prompts=prompts), 1, temperature=0)
    return setup.tokenizer.batch_decode([samples[0] for samples in completions], skip_special_tokens=True)


def compare_with_harness(options):
    """Rows: greedy, the same model and prompts: seconds, equal completions and accuracy by lm_eval's batch size."""
    from common.datasets import build_prompt

    name = "greedy, against lm_eval, batch size {}"
    if not options.lm_eval_python:
        why = "LM_EVAL_PYTHON names no Python with lm_eval"
        yield from (not_run(name.format(batch), why, ("at least", 2)) for batch in HARNESS_BATCHES)
        return
    setup = load(4 if options.quick else 200)
    folder = SCRATCH / "lm_eval"
    chats = [build_prompt(row["question"]) for row in setup.rows]
    texts = setup.tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    write_task(folder, setup.rows, texts)
    answer_texts(setup, chats)  # the first call pays for libraries that load lazily
    for batch in HARNESS_BATCHES[1:2] if options.quick else HARNESS_BATCHES:
        ratios = []
        for _ in range(1 if options.quick else 3):
            _, reading = timed(lambda: answer_as_we_do(setup, 1, temperature=0, max_new_tokens=1))
            texts, seconds = timed(lambda: answer_texts(setup, chats))
            theirs = run_lm_eval(options.lm_eval_python, folder, batch)
            ratios.append(theirs["seconds"] / seconds)
        equal = sum(a == b for a, b in zip(texts, theirs["texts"], strict=True))
        note = f"{equal} of {len(texts)} completions equal; strict-match {strict_match(texts, setup.rows):.3f} and "
        note += f"{theirs['accuracy']:.3f}; lm_eval {theirs['version']}; reading the prompts, which both must, is "
        note += f"{reading / seconds:.0%} of ours"
        target = ("at least", 2)
        yield make_row(name.format(batch), seconds, "s", "ours is faster by", ratios, target, note)


# ---- memory and growth


def measure_growth(options):
    """Rows: seconds as the samples a prompt, the problems, or the completions of a training generation double."""
    setup = load(8 if options.quick else 400)
    answer_as_we_do(setup, 1)
    sizes = (2, 4) if options.quick else (100, 200, 400)
    loads = {f"{n} problems, 4 samples": (n, 4) for n in sizes}
    loads |= {f"{sizes[0]} problems, {n} samples": (sizes[0], n) for n in (1, 2, 8, 16)}
    loads |= {f"a generation of {8 * n} completions": (n, 8) for n in ((1, 2) if options.quick else (8, 16, 32, 64))}
    parts = {name: setup._replace(prompts=setup.prompts[:n]) for name, (n, _) in loads.items()}
    functions = {name: lambda name=name: answer_as_we_do(parts[name], loads[name][1]) for name in loads}
    seconds, _ = alternate(functions, 1 if options.quick else 3)
    for name, (problems, samples) in loads.items():
        middle = sorted(seconds[name])[len(seconds[name]) // 2]
        yield make_row(f"sampling, {name}", middle, "s", note=f"{problems * samples / middle:.0f} completions/s")


def measure_memory(options):
    """Rows: peak memory of whole evaluations, ten times the problems over one, each in a process of its own."""
    few, many, samples = (4, 40, 1) if options.quick else (500, 5000, 4)
    peaks = {}
    for count in (few, many):
        command = [sys.executable, __file__, str(count), str(samples)]
        peaks[count] = int(subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).split()[-1]) / 1024
        yield make_row(f"peak memory, evaluation of {count} problems, {samples} samples", peaks[count], "MB")
    growth = [peaks[many] / peaks[few]]
    target = ("at most", 1.1)
    yield make_row(f"peak memory, {many} problems", peaks[many], "MB", f"over {few}", growth, target)


def evaluate_many(count, samples):
    """One evaluation of `count` problems (the demo's, under other ids) in this process; prints its peak in KiB."""
    import datasets

    import maths_evaluations
    from common.datasets import load_maths_dataset
    from common.files import run_script

    rows = load_maths_dataset("demo", "test", None).to_list()
    many = [row | {"id": f"{i}-{row['id']}"} for i in range(-(-count // len(rows))) for row in rows][:count]
    maths_evaluations.load_maths_dataset = lambda *_: datasets.Dataset.from_list(many)
    with tempfile.TemporaryDirectory() as out:
        flags = ["--datasets", "demo", "--temperatures", "0.8", "--samples_per_prompt", str(samples)]
        sys.argv = ["maths_evaluations.py", "--model_path", "demo", *flags, "--output_dir", out]
        code = run_script(maths_evaluations.main)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return code


if __name__ == "__main__":  # one evaluation in a process of its own, for measure_memory
    sys.exit(evaluate_many(int(sys.argv[1]), int(sys.argv[2])))
