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

import fcntl
import hashlib
import json
import math
import os
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

from maths_common import DEMO_DIR, BadInput, get_cache_dir, go_offline, make_parser, run_script
from maths_datasets import EVAL_SPLIT, build_prompt, load_maths_dataset
from maths_models import find_model, get_eos_token_ids
from maths_rewards import check_grader, format_reward, grade_batch
from maths_statistics import Sample, print_table, summarise_dataset

PAPER_DATASETS = ["gsm8k", "MATH-500", "asdiv", "SVAMP"]
TEMPERATURES = [0.0, 0.2, 0.4, 0.6, 0.8]  # arXiv 2509.21282, evaluation at five temperatures
MAX_SAMPLES = 1024
REGRADE_ROWS = 1000  # at a time, so that slow answers are graded side by side
MAX_BATCH_SIZE = {"cpu": 256, "cuda": 1024}  # rows; on two CPU cores 512 is slower than 256: the cache no longer fits
CHUNK_BATCHES = 8  # prompts are answered in chunks of 8 full batches: what a resume repeats at most
ROW = {  # the stored columns and their JSON types
    "id": str,
    "temperature": float,
    "sample": int,
    "completion": str,
    "tokens": int,
    "finish_reason": str,
    "answer": (str, type(None)),
    "rule": str,
    "well_formed": bool,
    "correct": bool,
}
MODEL_FILES = [  # what decides a completion
    "*.safetensors",
    "*config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
]
GRADER_FILES = ("maths_rewards.py", "maths_answers.py", "maths_numbers.py", "maths_latex.py")


# ------------------------------------------------------------------ stored rows


def read_rows(path, problems):
    """Yields the stored completions of a data set; a torn last line is cut off the file first.

    Raises BadInput for a damaged line, a row that is there twice, or one whose problem the data set does not have.
    """
    cut_torn_line(path)
    seen = Counter()  # (problem id, temperature) -> a bit for every sample
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            row = parse_row(line)
            if row is None:
                raise BadInput(f"{path}, line {number} is damaged: delete the line, then start the same command again")
            if row["id"] not in problems:
                raise BadInput(f"{path}, line {number} is of another data set: choose another --output_dir")
            key = problems[row["id"]]["id"], row["temperature"]
            if seen[key] >> row["sample"] & 1:
                raise BadInput(f"{path}, line {number} is there twice: delete the line, then start again")
            seen[key] |= 1 << row["sample"]
            yield row


def parse_row(line):
    """A stored row, or None if the line is not one."""
    try:
        row = json.loads(line)
        well_typed = row.keys() == ROW.keys() and all(isinstance(row[c], ROW[c]) for c in ROW)
        return row if well_typed and 0 <= row["sample"] < MAX_SAMPLES else None
    except (ValueError, AttributeError, RecursionError):
        return None


def cut_torn_line(path):
    """Drop what follows the last line end: a line that was being written when the process was killed."""
    with open(path, "r+b") as file:
        end = at = file.seek(0, os.SEEK_END)
        while at > 0:
            start = max(0, at - 65536)
            file.seek(start)
            found = file.read(at - start).rfind(b"\n")
            at = start + found + 1 if found >= 0 else start
            if found >= 0:
                break
        if at < end:
            print(f"{path}: dropped a line that was cut short", file=sys.stderr)
            file.truncate(at)


def grade_rows(rows, problems):
    """Put the current grader's verdict into rows that hold a completion; returns the rows."""
    texts, golds = [r["completion"] for r in rows], [problems[r["id"]] for r in rows]
    grades = grade_batch(texts, [g["gold"] for g in golds], [g["kind"] for g in golds])
    for row, grade, form in zip(rows, grades, format_reward(texts), strict=True):
        row |= {"answer": grade.answer, "rule": grade.rule, "well_formed": form > 0, "correct": grade.correct}
    return rows


def to_lines(rows):
    """JSON lines; lone surrogates in a completion are escaped rather than written."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def regrade(path, problems):
    """Grade a data set's stored completions again and replace the file; returns how many verdicts changed."""
    temporary, changed = path.with_name(path.name + ".tmp"), 0
    stored = read_rows(path, problems)
    with open(temporary, "w", encoding="utf-8") as file:
        while rows := list(islice(stored, REGRADE_ROWS)):
            before = [row["correct"] for row in rows]
            file.write(to_lines(grade_rows(rows, problems)))
            changed += sum(row["correct"] != verdict for row, verdict in zip(rows, before, strict=True))
    os.replace(temporary, path)
    return changed


def summarise_file(path, problems, ids, temperatures):
    """{temperature: summary} of the stored rows of these problem ids and temperatures."""
    samples = {t: {} for t in temperatures}
    wanted = set(ids)
    for row in read_rows(path, problems):
        if row["temperature"] in samples and row["id"] in wanted:
            answer = row["answer"] and sys.intern(row["answer"])
            cut_off = row["finish_reason"] == "length"
            sample = Sample(row["correct"], row["well_formed"], cut_off, row["tokens"], answer)
            samples[row["temperature"]].setdefault(problems[row["id"]]["id"], []).append(sample)
    return {f"{t:g}": summarise_dataset(s, problems) for t, s in samples.items()}


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
    path = out / "summary.json"
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        return earlier["datasets"] if earlier["settings"]["grader"] == settings["grader"] else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"{path} is damaged: delete it, then start the same command again") from None


# ------------------------------------------------------------------ settings


def hash_files(paths):
    """SHA-256 over the names and contents of files."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def hash_model(directory):
    """SHA-256 of what decides a model's completions: weights, configuration, tokenizer."""
    return hash_files(sorted({path for pattern in MODEL_FILES for path in directory.glob(pattern)}))


def hash_problems(problems):
    """SHA-256 of a data set's questions and golds."""
    text = json.dumps([[r["id"], r["question"], r["gold"], r["kind"]] for r in problems.values()])
    return hashlib.sha256(text.encode()).hexdigest()


def hash_grader():
    """SHA-256 of the code that decides a verdict."""
    return hash_files([Path(__file__).with_name(name) for name in GRADER_FILES])


def make_settings(args, model_dirs, problems, device):
    """Everything that decides the rows; `data` and `grader` are compared by themselves."""
    from importlib.metadata import version

    return {
        "samples_per_prompt": args.samples_per_prompt,
        "top_p": args.top_p,
        "max_new_tokens": args.max_new_tokens,
        "seed": args.seed,
        "backend": args.backend,
        "batch_size": args.batch_size,
        "device": device,
        "prompt": build_prompt("QUESTION"),
        "model": [hash_model(d) for d in model_dirs],
        "versions": {p: version(p) for p in ("torch", "transformers", *(["vllm"] if args.backend == "vllm" else []))},
        "data": {name: hash_problems(rows) for name, rows in problems.items()},
        "grader": hash_grader(),
    }


def read_settings(out):
    """settings.json of an output directory, None in a fresh one. Raises BadInput if it is damaged or missing."""
    path = out / "settings.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings["data"], dict) or "grader" not in settings:
            raise ValueError
        return settings
    except FileNotFoundError:
        if found := sorted(p.name for p in out.glob("*.jsonl")):
            raise BadInput(f"{out} holds {found[0]} but no settings.json: choose another --output_dir") from None
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"{path} is damaged: choose another --output_dir, or delete this one") from None


def check_settings(out, here, there):
    """Raises BadInput if `out` holds results (settings `there`) that may not be mixed with those of settings `here`.

    Data sets and temperatures may be added to a directory; nothing else that decides a row may differ.
    """
    for key in sorted({*here, *there} - {"data", "grader"}):
        if here.get(key) != there.get(key):
            values = "" if key == "model" else f" ({there.get(key)}, now {here.get(key)})"
            raise BadInput(f"{out} holds results of another {key}{values}: choose another --output_dir, or delete it")
    if here["grader"] != there["grader"]:
        raise BadInput(f"{out} was graded by another version of the grader: run with --regrade, then start this again")


def merge_data(out, here, there):
    """The hashes of all data sets with results. Raises BadInput if one of them is another version now."""
    for name in here.keys() & there.keys():
        if here[name] != there[name]:
            raise BadInput(f"{out} holds results of another version of {name}: choose another --output_dir")
    return there | here


def write_json(path, value):
    """Write through a temporary file and a rename."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


# ------------------------------------------------------------------ inputs


def load_problems(args):
    """{data set: {id: row}}. Raises BadInput for a data set that is missing, or ids that are not unique."""
    problems = {}
    for name in args.datasets:
        rows = load_maths_dataset(name, EVAL_SPLIT[name], get_cache_dir(args.cache_dir)).to_list()
        problems[name] = {row["id"]: row for row in rows}
        if len(problems[name]) < len(rows):
            raise BadInput(f"{name}: two problems have the same id; fetch the data set again")
    return problems


def find_model_dirs(args):
    """[model], or [adapter, base] for a LoRA adapter. Raises BadInput naming what is missing."""
    cache_dir = get_cache_dir(args.cache_dir)
    path = find_model(args.model_path, cache_dir)
    if (path / "config.json").is_file():
        return [path]
    if not (path / "adapter_model.safetensors").is_file():
        raise BadInput(f"{path} has no adapter_model.safetensors (other formats can run code and are not read)")
    try:
        base = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        names = [base, Path(base).name]  # a path of another machine: its last part is a name in the cache
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"{path / 'adapter_config.json'} is damaged, or names no base model") from None
    for name in names:
        try:
            return [path, find_model(name, cache_dir)]
        except BadInput as error:
            reason = error
    raise BadInput(f"{path} is an adapter and its base model was not found: {reason}")


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
    for path in (model_dir / "run.json", model_dir.parent / "run.json"):
        try:
            return json.loads(path.read_text(encoding="utf-8"))["config"]["dataset"] == "demo"
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return model_dir == DEMO_DIR / "model"


def load_tokenizer(dirs):
    """Tokenizer of the first directory that has one, with a chat template. Raises BadInput otherwise."""
    from transformers import AutoTokenizer

    path = next((d for d in dirs if (d / "tokenizer_config.json").is_file()), None)
    if path is None:
        raise BadInput(f"{dirs[0]} has no tokenizer (tokenizer_config.json is missing)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise BadInput(f"cannot load the tokenizer in {path}: {error}") from None
    if not tokenizer.chat_template:
        raise BadInput(f"the tokenizer in {path} has no chat template; add a chat_template.jinja to it")
    return tokenizer


def load_config(path, load):
    """A model's configuration by load(path). Raises BadInput if it is damaged or needs code of its own."""
    try:
        return load(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"cannot read the model's configuration in {path}: {error}") from None


def load_generation_config(path, config):
    """A model's generation config, read for its end tokens alone."""
    from transformers import GenerationConfig

    if (path / "generation_config.json").is_file():
        return load_config(path, GenerationConfig.from_pretrained)
    return GenerationConfig.from_model_config(config)


def choose_device():
    """(device, data type): the GPU in bf16 (fp16 where it has none), else the CPU in fp32."""
    import torch

    if not torch.cuda.is_available():
        return "cpu", torch.float32
    return "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def describe(device, dtype):
    """Device, number type and what else rounds differently: the GPU's name, or the number of CPU threads."""
    import torch

    detail = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{device}, {detail}, {str(dtype).removeprefix('torch.')}"


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


def encode_prompts(tokenizer, problems, config, max_new_tokens):
    """{data set: {id: token ids}}. Raises BadInput if a prompt is too long, or tokenizer and model do not match."""
    prompts = {}
    limit = getattr(config, "max_position_embeddings", None) or math.inf
    for name, rows in problems.items():
        chats = [build_prompt(row["question"]) for row in rows.values()]
        encoded = tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
        prompts[name] = dict(zip(rows, encoded, strict=True))
        for row, ids in prompts[name].items():
            if max(ids) >= config.vocab_size:
                raise BadInput(f"the tokenizer has tokens that the model lacks (token {max(ids)}): they do not match")
            if len(ids) + max_new_tokens > limit:
                raise BadInput(
                    f"{name} {row}: {len(ids)} prompt tokens and --max_new_tokens {max_new_tokens} exceed the model's "
                    f"{limit} positions; lower --max_new_tokens"
                )
    return prompts


# ------------------------------------------------------------------ engines


def load_model(dirs, device, dtype):
    """The model, an adapter merged into its base. Raises BadInput for weights that are damaged or incomplete."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            dirs[-1], dtype=dtype, attn_implementation="sdpa", use_safetensors=True, output_loading_info=True
        )
        if missing := sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])}):
            raise ValueError(f"weights are missing or of another shape, {missing[0]} for one")
        if len(dirs) > 1:
            model = merge_adapter(model, dirs[0])
    except (OSError, ValueError, KeyError, RuntimeError, UserWarning, SafetensorError) as error:
        raise BadInput(f"cannot load the model in {dirs[0]}: {error}") from None
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise BadInput(f"the weights in {dirs[0]} hold values that are not finite: the training went wrong")
    return model.to(device).eval()


def merge_adapter(model, path):
    """A base model with a LoRA adapter's update added to its weights. Raises UserWarning if weights are missing."""
    import warnings

    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        return PeftModel.from_pretrained(model, path).merge_and_unload()


def choose_backend(name, dirs):
    """The backend to use; `auto` is vllm on a GPU where vllm is installed. Raises BadInput if it cannot be used."""
    from importlib.util import find_spec

    if name == "auto":
        return "vllm" if find_spec("vllm") and choose_device()[0] == "cuda" and len(dirs) == 1 else "transformers"
    if name == "vllm" and not find_spec("vllm"):
        raise BadInput("vllm is not installed: pip install vllm, or use --backend transformers")
    if name == "vllm" and len(dirs) > 1:
        raise BadInput(f"{dirs[0]} is an adapter: merge it first (--merge_adapter), or use --backend transformers")
    return name


def make_transformers_engine(args, dirs, eos_token_ids, pad_token_id):
    """answer(prompts, num_samples, temperature, seeds, finished): finished(i, samples) is called as prompts end."""
    from maths_generation import generate

    model = load_model(dirs, *choose_device())

    def answer(prompts, num_samples, temperature, seeds, finished):
        generate(
            model,
            prompts,
            num_samples=num_samples,
            max_new_tokens=args.max_new_tokens,
            temperature=temperature,
            top_p=args.top_p,
            top_k=0,
            eos_token_ids=eos_token_ids,
            pad_token_id=pad_token_id,
            seeds=seeds,
            batch_size=args.batch_size,
            progress=finished,
        )

    return answer


def make_vllm_engine(args, dirs, eos_token_ids, longest):
    """As make_transformers_engine, with vLLM."""
    from vllm import LLM, SamplingParams

    # generation_config="vllm": a model's own sampling defaults (a repetition penalty, say) are no part of the protocol
    llm = LLM(model=str(dirs[0]), seed=args.seed, max_model_len=longest, generation_config="vllm")

    def answer(prompts, num_samples, temperature, seeds, finished):
        fixed = {"n": num_samples, "temperature": temperature, "top_p": args.top_p, "max_tokens": args.max_new_tokens}
        params = [SamplingParams(seed=s, stop_token_ids=eos_token_ids, detokenize=False, **fixed) for s in seeds]
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        for i, output in enumerate(outputs):
            finished(i, [list(c.token_ids) for c in output.outputs])

    return answer


# ------------------------------------------------------------------ evaluation


def make_seed(*what):
    """A 63-bit seed that follows from its arguments alone."""
    return int.from_bytes(hashlib.sha256(json.dumps(what).encode()).digest()[:8]) >> 1


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
                stored[rows[row["id"]]["id"], row["temperature"]] |= 1 << row["sample"]
        for t in args.temperatures:
            samples = range(count_samples(args, t))
            todo = {i: [s for s in samples if not stored[i, t] >> s & 1] for i in chosen(args, rows)}
            missing[name, t] = {i: left for i, left in todo.items() if left}
    return {key: todo for key, todo in missing.items() if todo}


def chosen(args, rows):
    """The ids that --limit leaves, in the data set's order."""
    return list(rows)[: args.limit]


def answer_dataset(args, answer, file, name, temperature, problems, prompts, missing, decode, bar):
    """Generate, grade and append what is missing of one data set at one temperature.

    Whole chunks are generated, the same ones in every run, even where a part of a chunk is stored already: a batch of
    the same rows rounds the same way, so the completions are those of a run that was never interrupted.
    """
    n, ids = count_samples(args, temperature), chosen(args, problems)
    size = max(1, CHUNK_BATCHES * args.batch_size // n)
    for start in range(0, len(ids), size):
        chunk = ids[start : start + size]

        def finished(i, samples, chunk=chunk):
            wanted = missing.get(chunk[i], [])
            rows = [make_row(chunk[i], temperature, s, *decode(samples[s])) for s in wanted]
            if rows:
                file.write(to_lines(grade_rows(rows, problems)))
                file.flush()
                bar.update(len(rows))

        if any(i in missing for i in chunk):
            seeds = [make_seed(args.seed, name, i, temperature) for i in chunk]
            answer([prompts[i] for i in chunk], n, temperature, seeds, finished)


def make_row(problem_id, temperature, sample, completion, tokens, finish_reason):
    """A row to store, not graded yet."""
    return {
        "id": problem_id,
        "temperature": temperature,
        "sample": sample,
        "completion": completion,
        "tokens": tokens,
        "finish_reason": finish_reason,
    }


def make_decoder(tokenizer, eos_token_ids):
    """decode(token ids) -> (text, number of tokens, finish reason)."""
    ends = set(eos_token_ids)

    def decode(tokens):
        reason = "stop" if tokens[-1] in ends else "length"
        return tokenizer.decode(tokens, skip_special_tokens=True), len(tokens), reason

    return decode


def settle_settings(args, out, dirs, problems, config, longest):
    """Choose backend and batch size, write settings.json. Raises BadInput if `out` holds results of other settings."""
    device, dtype = choose_device()
    args.backend = choose_backend(args.backend, dirs)
    args.batch_size = args.batch_size or choose_batch_size(config, longest, device, dtype)
    settings = make_settings(args, dirs, problems, describe(device, dtype))
    if there := read_settings(out):
        check_settings(out, settings, there)
        settings["data"] = merge_data(out, settings["data"], there["data"])
    write_json(out / "settings.json", settings)
    return settings


def generate_missing(args, out, dirs, problems):
    """Complete the rows under `out`; returns the settings they were made with. All checks come before the model."""
    from transformers import AutoConfig

    config = load_config(dirs[-1], AutoConfig.from_pretrained).get_text_config()
    tokenizer = load_tokenizer(dirs)
    asked = {name: {i: rows[i] for i in chosen(args, rows)} for name, rows in problems.items()}
    prompts = encode_prompts(tokenizer, asked, config, args.max_new_tokens)
    longest = max(len(p) for ids in prompts.values() for p in ids.values()) + args.max_new_tokens
    settings = settle_settings(args, out, dirs, problems, config, longest)
    if missing := find_missing(args, out, problems):
        eos = get_eos_token_ids(tokenizer, load_generation_config(dirs[-1], config))
        if args.backend == "vllm":
            answer = make_vllm_engine(args, dirs, eos, longest)
        else:
            answer = make_transformers_engine(args, dirs, eos, tokenizer.pad_token_id or eos[0])
        answer_all(args, answer, out, problems, prompts, missing, make_decoder(tokenizer, eos))
    return settings


def answer_all(args, answer, out, problems, prompts, missing, decode):
    """Generate and store the missing rows of every data set and temperature, with a progress bar."""
    from tqdm import tqdm

    total = sum(len(samples) for todo in missing.values() for samples in todo.values())
    with tqdm(total=total, unit="completion", desc=f"{args.batch_size} rows at a time", disable=None) as bar:
        for (name, t), todo in missing.items():
            bar.set_postfix_str(f"{name} at {t:g}")
            try:
                with open(out / f"{name}.jsonl", "a", encoding="utf-8") as file:
                    answer_dataset(args, answer, file, name, t, problems[name], prompts[name], todo, decode, bar)
            except OSError as error:
                raise BadInput(f"cannot write {out / name}.jsonl ({error.strerror}): start again to go on") from None


def regrade_stored(args, out, problems):
    """Apply the current grader to the stored rows of every data set given; returns their settings."""
    settings = read_settings(out)
    if settings is None:
        raise BadInput(f"nothing to grade again in {out}: there are no results")
    if left := sorted({p.stem for p in out.glob("*.jsonl")} - problems.keys()):
        raise BadInput(f"--regrade covers a whole directory: add --datasets {' '.join([*problems, *left])}")
    settings["data"] = merge_data(out, {n: hash_problems(r) for n, r in problems.items()}, settings["data"])
    for name, rows in problems.items():
        if (out / f"{name}.jsonl").exists():
            print(f"{name}: {regrade(out / f'{name}.jsonl', rows)} verdicts changed")
    settings["grader"], args.samples_per_prompt = hash_grader(), settings["samples_per_prompt"]
    write_json(out / "settings.json", settings)
    return settings


def open_output_dir(out):
    """Make the output directory and lock it against a second process; returns the lock file, to be kept open."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / ".lock", "w")  # noqa: SIM115 - held until the process ends
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadInput(f"another evaluation is writing to {out}: wait for it, or choose another --output_dir") from None
    except OSError as error:
        raise BadInput(f"cannot write to {out} ({error.strerror}): choose another --output_dir") from None
    return lock


def parse_args(argv=None):
    """Command line; raises BadInput for a value out of range."""
    parser = make_parser(__doc__)
    parser.add_argument("--model_path", required=True, help="run directory, checkpoint, adapter, cached model, demo")
    parser.add_argument("--samples_per_prompt", type=int, default=1, help="at temperatures above 0 (default: 1)")
    parser.add_argument("--datasets", nargs="+", choices=list(EVAL_SPLIT), help="default: the paper's, or demo")
    parser.add_argument("--temperatures", nargs="+", type=float, default=TEMPERATURES, help="default: 0 to 0.8")
    parser.add_argument("--top_p", type=float, default=1.0, help="default: 1")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="default: 128")
    parser.add_argument("--limit", type=int, help="only the first problems of each data set")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--backend", choices=["auto", "transformers", "vllm"], default="auto", help="default: auto")
    parser.add_argument("--batch_size", type=int, help="rows decoded at once (default: sized from memory)")
    parser.add_argument("--output_dir", help="default: evaluations/ in the run directory")
    parser.add_argument("--cache_dir", help="default: $GRPSPO_CACHE, else ./cached_files")
    parser.add_argument("--regrade", action="store_true", help="grade the stored completions again; generates nothing")
    args = parser.parse_args(argv)
    at_least_one = ("max_new_tokens", "limit", "batch_size")
    if bad := next((f for f in at_least_one if getattr(args, f) is not None and getattr(args, f) < 1), None):
        raise BadInput(f"--{bad} {getattr(args, bad)}: must be at least 1")
    if not 1 <= args.samples_per_prompt <= MAX_SAMPLES:
        raise BadInput(f"--samples_per_prompt {args.samples_per_prompt}: must be 1 to {MAX_SAMPLES}")
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
    dirs = find_model_dirs(args)
    args.datasets = list(dict.fromkeys(args.datasets or (["demo"] if trained_on_demo(dirs[0]) else PAPER_DATASETS)))
    out = choose_output_dir(args, dirs[0])
    problems = load_problems(args)
    check_grader({row["kind"] for rows in problems.values() for row in rows.values()})
    with open_output_dir(out):
        settings = regrade_stored(args, out, problems) if args.regrade else generate_missing(args, out, dirs, problems)
        summary = write_summary(args, out, problems, settings)
    print_table(summary)
    print(f"rows and summary.json in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
