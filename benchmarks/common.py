"""What the benchmarks share: rows and targets, timers, model shapes, a process for each part, JSON after every row.

For Probability Smoothing Policy Optimisation (arXiv 2509.21282). A part is a function of the options that yields rows;
a row is one figure, what it is compared with, their ratio in one and the same run, and the target, if there is one.
Standard library only at import: a shape needs torch and transformers.
"""

import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.files import make_parser, read_json, write_json  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / "runs" / "benchmark"  # logs of the parts, and results of --quick
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "math-verify", "vllm")
DEMO_MODEL = ROOT / "demo" / "model"

# Layers, hidden and inner width, heads, key/value heads, vocabulary: Qwen2.5 technical report, arXiv 2412.15115, table
# 1, and the models' config.json; all tie the embeddings.
SHAPES = {
    "tiny": (2, 64, 192, 4, 2, 600),
    "Qwen2.5-0.5B": (24, 896, 4864, 14, 2, 151936),
    "Qwen2.5-1.5B": (28, 1536, 8960, 12, 2, 151936),
}


# ---- rows


def make_row(name, figure, unit, against="", ratios=(), target=None, note=""):
    """One figure. ratios: of each round, paired. target: ("at least" or "at most", number), of their median if any."""
    ratio = spread(ratios) if ratios else None
    judged = ratio["median"] if ratio else figure
    met = None
    if target:
        met = judged >= target[1] if target[0] == "at least" else judged <= target[1]
    shown = {"figure": figure, "unit": unit, "against": against, "ratio": ratio}
    return {"name": name, "status": "measured", **shown, "target": target, "met": met, "note": note}


def not_run(name, why, target=None):
    """A row without a figure: what is missing, and with it the target stays open."""
    return {"name": name, "status": f"not run: {why}", "target": target, "met": None}


def spread(ratios):
    """Median and range of a few ratios; of more than ten the median's 95 % interval (binomial order statistics)."""
    values = sorted(ratios)
    skip = 0 if len(values) <= 10 else max(0, int(len(values) / 2 - 0.98 * len(values) ** 0.5))
    low = values[skip]
    high = values[-1 - skip]
    kind = "95 % interval" if skip else "range"
    return {"median": statistics.median(values), "low": low, "high": high, "kind": kind, "rounds": len(values)}


# ---- timers


def synchronize(device):
    """Wait until the device has done what it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def timed(function, device="cpu", clock=time.perf_counter):
    """(result, seconds by a clock) of a call."""
    synchronize(device)
    begun = clock()
    result = function()
    synchronize(device)
    return result, clock() - begun


def alternate(functions, rounds, device="cpu"):
    """({name: [seconds]}, {name: [result]}) of functions called in turns: what slows the machine meets all alike."""
    seconds, results = ({name: [] for name in functions} for _ in range(2))
    names = list(functions)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            result, taken = timed(functions[name], device)
            seconds[name].append(taken)
            results[name].append(result)
    return seconds, results


def divide(first, second):
    """Element-wise ratios of two lists of equal length."""
    return [a / b for a, b in zip(first, second, strict=True)]


# ---- shapes


def make_shape(name, device="cpu", dtype=None):
    """A Qwen2 model of a published shape with random weights: time does not depend on what the weights are."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    layers, hidden, inner, heads, kv_heads, vocabulary = SHAPES[name]
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2ForCausalLM(config).to(dtype or torch.float32).eval()
        model.get_output_embeddings().weight.data *= 5  # logits as far apart as a trained model's: few ties
    return model


def count_parameters(model):
    """How many parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())


def save_shape(name, folder, device="cpu"):
    """Save a random model of a published shape in bf16 with the demo's tokenizer; returns its parameter count."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig

    model = make_shape(name, device, torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.config.update(ends)
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return count_parameters(model)


# ---- a run: each part in a process of its own, the JSON written after every row


class Part(NamedTuple):
    """function(options) yields rows; it is stopped after so many seconds."""

    function: object
    seconds: int


def describe_machine():
    """Processor, threads, memory, graphics card: what a figure depends on."""
    cpu = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpu.read_text()) if cpu.exists() else None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    machine = {"cpu": found[1] if found else platform.machine(), "cores": os.cpu_count(), "memory_gib": round(memory)}
    try:
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        machine["gpu"] = subprocess.check_output(command, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        machine["gpu"] = None
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    return machine | {"threads": threads, "python": platform.python_version()}


def installed_versions():
    """{package: version} of those that are there."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def find_commit():
    """The commit that is checked out, None outside a clone."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return git.stdout.strip() or None


def open_results(path, options):
    """The results to go on with: those in the file if machine, versions and options are the same, else none."""
    made_by = {"machine": describe_machine(), "versions": installed_versions()}
    # of a path of this machine only that it was given: the file is published
    made_by["options"] = {k: bool(v) if k in ("data_dir", "lm_eval_python") else v for k, v in options.items()}
    there = read_json(path, "delete it") if path.exists() else None
    if there and {key: there.get(key) for key in made_by} == made_by:
        return there
    if there:
        kept = path.with_name(f"{path.stem}-before{path.suffix}")
        write_json(kept, there)
        print(f"{path} is of another machine, other versions or options: kept as {kept}", file=sys.stderr)
    return {**made_by, "parts": {}}


def is_complete(part, commit):
    """Whether a part has rows, all of them measured and with the code as it is."""
    rows = part.get("rows", [])
    return bool(rows) and part["commit"] == commit and all(row["status"] == "measured" for row in rows)


def run_child(names, command, seconds, log):
    """Yield the rows, (part, row), that a process prints; a last one says so where it failed or took too long."""
    late = threading.Event()
    with open(log, "w", encoding="utf-8") as errors:
        kwargs = {"stdout": subprocess.PIPE, "stderr": errors, "text": True, "start_new_session": True}
        process = subprocess.Popen(command, cwd=ROOT, **kwargs)

        def stop():
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            for line in process.stdout:
                if line.startswith("ROW "):
                    yield json.loads(line[4:])
                else:
                    errors.write(line)
            code = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code:
        why = f"longer than {seconds:.0f} s" if late.is_set() else f"exit code {code}"
        yield names[-1], not_run(" ".join(names), f"{why}, see {log.relative_to(ROOT)}")


def run_parts(parts, script, args, options):
    """Run the parts that are missing, each in a process; write the JSON after every row. Returns the results."""
    path = Path(args.out or (SCRATCH / f"{script.stem}-quick.json" if args.quick else RESULTS / f"{script.stem}.json"))
    for folder in (path.parent, SCRATCH):
        folder.mkdir(parents=True, exist_ok=True)
    results = open_results(path, options)
    commit = find_commit()
    begun = time.monotonic()
    names = [name for name in parts if not args.only or name in args.only]
    names = [name for name in names if args.again or not is_complete(results["parts"].get(name, {}), commit)]
    groups = [names] if args.quick and names else [[name] for name in names]  # --quick: libraries are imported once
    for group in groups:
        left = args.seconds - (time.monotonic() - begun)
        if left < 10:
            results["parts"] |= {
                name: {"commit": commit, "rows": [not_run(name, "out of time: start again")]} for name in group
            }
            continue
        print(f"{' '.join(group)} ...", file=sys.stderr, flush=True)
        command = [sys.executable, str(script), "--part", *group, *to_flags(options)]
        limit = min(left, sum(parts[name].seconds for name in group))
        started = time.monotonic()
        results["parts"] |= {name: {"commit": commit, "rows": []} for name in group}
        for name, row in run_child(group, command, limit, SCRATCH / f"{script.stem}-{group[0]}.log"):
            results["parts"][name]["rows"].append(row)
            results["parts"][name]["seconds"] = round(time.monotonic() - started, 1)
            write_json(path, results)
            print(f"  {format_row(row)}", file=sys.stderr, flush=True)
    write_json(path, results)
    print(f"results in {path}", file=sys.stderr)
    return results


def to_flags(options):
    """The command line of options: switches, lists and single values; None is left out."""
    flags = []
    for key, value in options.items():
        if value is True:
            flags.append(f"--{key}")
        elif value not in (None, False):
            flags += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def run_benchmarks(doc, parts, script, add_flags):
    """The command line of cpu.py and gpu.py; returns the exit code, 0 whatever the figures are."""
    parser = make_parser(doc)
    parser.add_argument("--only", nargs="+", choices=list(parts), help="these parts (default: all that are missing)")
    parser.add_argument("--quick", action="store_true", help="the smallest size: shows that all runs, measures nothing")
    parser.add_argument("--again", action="store_true", help="measure anew what was measured already")
    parser.add_argument("--out", help="the JSON (default: benchmarks/results, with --quick runs/benchmark)")
    parser.add_argument("--part", nargs="+", choices=list(parts), help="print these parts' rows, in this process")
    own = {action.dest for action in parser._actions} - {"quick"} | {"seconds"}
    add_flags(parser)
    args = parser.parse_args()
    options = {key: value for key, value in vars(args).items() if key not in own}
    if args.part:
        for name in args.part:
            for row in parts[name].function(args):
                print("ROW " + json.dumps([name, row]), flush=True)
        return 0
    print_results(run_parts(parts, Path(script).resolve(), args, options))
    return 0


# ---- tables


def format_number(value):
    """Four significant digits, thousands with commas."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def format_ratio(ratio):
    """'3.1 (2.9 to 3.3)'."""
    return f"{ratio['median']:.3g} ({ratio['low']:.3g} to {ratio['high']:.3g})" if ratio else ""


def format_target(row):
    """'at least 3: met', or nothing."""
    if not row.get("target"):
        return ""
    state = {True: "met", False: "not met", None: "open"}[row["met"]]
    return f"{row['target'][0]} {row['target'][1]:,g}: {state}"


def format_row(row):
    """One line of a row."""
    if row["status"] != "measured":
        return f"{row['name']}: {row['status']}"
    parts = [f"{row['name']}: {format_number(row['figure'])} {row['unit']}".rstrip()]
    parts += [f"{row['against']} {format_ratio(row['ratio'])}"] if row["against"] else []
    return ", ".join([*parts, *filter(None, [format_target(row), row["note"]])])


def print_results(results):
    """All rows, part by part."""
    for name, part in results["parts"].items():
        print(f"{name} ({part.get('seconds', 0):.0f} s)")
        for row in part["rows"]:
            print(f"  {format_row(row)}")
