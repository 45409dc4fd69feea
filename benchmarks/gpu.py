"""Every figure of one CUDA card by one command: is the sampler right there, how fast is it, what does a step cost?

For Probability Smoothing Policy Optimisation (arXiv 2509.21282). Shapes of Qwen2.5 with random weights made on the
spot, the paper's batch (16 prompts with 4 completions of 128 tokens each). Each part runs in a process of its own; the
JSON is written after every row, no part is started that cannot end in time, and the same command again goes on with
what is missing.

    python benchmarks/gpu.py                                      # under 9 minutes -> benchmarks/results/gpu.json
    python benchmarks/gpu.py --only right ours --shape Qwen2.5-0.5B
    python benchmarks/gpu.py --device cpu --shape tiny --quick    # does it run? on any machine

`right`, `ours`, `plain` and `continuous` need torch >= 2.11 and transformers >= 5.17 alone, `vllm` vLLM too; `step`,
`patch` and `resume` need the patched TRL. On a machine with torch and no network these wheels make it whole (Python
3.12; 16 MiB where pandas and pyarrow are there already), then apply_patches.py: transformers 5.23.0, trl 1.16.0, peft
0.21.2, accelerate 1.15.0, datasets 5.2.0, dill 0.4.1, multiprocess 0.70.19, math-verify 0.9.0, latex2sympy2_extended
1.11.0, antlr4_python3_runtime 4.13.2.

The static cache of model.generate is not measured: it is compiled anew for each width of the prompts, and on an H200
the paper's batch was not through after 76 seconds.
"""

import itertools
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import patch_cost, training
from benchmarks.common import (
    ROOT,
    SHAPES,
    Part,
    alternate,
    count_parameters,
    divide,
    make_row,
    make_shape,
    not_run,
    run_benchmarks,
    save_shape,
    timed,
)
from benchmarks.evaluation import pad_left
from common.files import run_script
from common.runs import LOG_FILE

# the paper's batch; 160 tokens: GSM8K's prompts
PROMPTS = 16
SAMPLES = 4
PROMPT_TOKENS = 160
NEW_TOKENS = 128
OUR_ROWS = (64, 256, 1024)  # rows decoded at once; training has 64, an evaluation fills what is given
TEMPERATURE = 0.8
TOP_P = 0.9
TRL = ("trl", "peft", "datasets", "accelerate")


# ---- the device


def measure_ceilings(device, quick):
    """(floating-point operations, bytes) a second of this device: a large matrix product, and a copy, best of five."""
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size = 256 if quick else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(2**20 if quick else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a @ b
    product = min(timed(lambda: a @ b, device)[1] for _ in range(5))
    copy = min(timed(lambda: target.copy_(source), device)[1] for _ in range(5))
    return 2 * size**3 / product, 2 * source.numel() / copy


def report_ceilings(options):
    """Rows: what the card can do at best, measured."""
    flops, bandwidth = measure_ceilings(options.device, options.quick)
    yield make_row("matrix product", flops / 1e12, "TFLOP/s")
    yield make_row("copy, read and written", bandwidth / 1e9, "GB/s")


def load_shape(options, shape):
    """(model in the device's number type, prompts: lists of random token ids, new tokens)."""
    import torch

    model = make_shape(shape, options.device, torch.bfloat16 if options.device == "cuda" else torch.float32)
    count, width, new = (4, 12, 6) if options.quick else (PROMPTS, PROMPT_TOKENS, NEW_TOKENS)
    generator = torch.Generator().manual_seed(0)
    widths = torch.randint(width // 2, width + 1, (count,), generator=generator).tolist()
    prompts = [torch.randint(1, SHAPES[shape][5], (n,), generator=generator).tolist() for n in widths]
    return model, prompts, new


def sample_ours(model, prompts, samples, new, rows, temperature=TEMPERATURE, decoder=None):
    """Our engine's Completions; no token ends one, so all have the same length. decoder: None for a new one."""
    from sampling.engine import Request, generate
    from sampling.tokens import Sampling

    sampling = Sampling(temperature, TOP_P if temperature else 1.0, 0, new, [], 0)
    return generate(
        model, [Request(p, i, range(samples)) for i, p in enumerate(prompts)], sampling, rows, decoder=decoder
    )


# ---- is it right?


def check_right(options):
    """Rows: our log-probabilities against a forward pass; greedy tokens judged by a float32 forward, as others' are."""
    from sampling.check import TOLERANCE, logp_difference
    from sampling.engine import Request

    for shape in options.shape:
        model, prompts, new = load_shape(options, shape)
        completions = sample_ours(model, prompts, 2, new, 32)
        requests = [Request(p, i, range(2)) for i, p in enumerate(prompts)]
        difference = logp_difference(model, requests, completions, TEMPERATURE)
        name = f"log-probability against a forward pass, {shape}"
        yield make_row(name, difference, "on average", target=("at most", TOLERANCE[model.dtype]))
        greedy = {
            "ours": [group[0].ids for group in sample_ours(model, prompts, 1, new, 32, temperature=0)],
            "model.generate": generate_plain(model, prompts, new, do_sample=False),
        }
        equal = sum(a == b for a, b in zip(*greedy.values(), strict=True))
        dtype = model.dtype
        judge = model.float()
        wrong = {name: count_wrong(judge, prompts, found, dtype) for name, found in greedy.items()}
        note = (
            f"{equal} of {len(prompts)} completions equal model.generate's, {wrong['model.generate']} of whose tokens"
        )
        note += f" are wrong by the same judge; {len(prompts) * new} tokens each"
        name = f"greedy tokens that a float32 forward calls wrong, {shape}"
        yield make_row(name, wrong["ours"], "", target=("at most", 0), note=note)


def count_wrong(judge, prompts, completions, dtype):
    """Greedy tokens whose float32 logit is further below the best than the number type they were chosen in explains.

    judge: the same weights in float32. Logits of size x are kept to eps x; three such steps, and what a thousand
    float32 additions leave, are no error.
    """
    import torch

    wrong = 0
    for prompt, ids in zip(prompts, completions, strict=True):
        with torch.inference_mode():
            logits = judge(torch.tensor([[*prompt, *ids]], device=judge.device)).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(ids, device=judge.device)[:, None])[:, 0]
        explained = 3 * torch.finfo(dtype).eps * logits.abs().amax(-1) + 1e-3
        wrong += int((logits.amax(-1) - chosen > explained).sum())
    return wrong


# ---- how fast does it sample?


def generate_plain(model, prompts, new, **kwargs):
    """model.generate of rows of the same length `new`; returns the new token ids of each row."""
    import torch

    inputs = pad_left(prompts, 0, model.device)
    length = {"max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        output = model.generate(**inputs, **length, **kwargs)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def make_generate(model, prompts, new, **kwargs):
    """An engine: model.generate with the paper's sampling."""
    sampling = {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0}
    return lambda: generate_plain(model, prompts, new, **sampling, **kwargs)


def make_continuous(model, prompts, new):
    """An engine: transformers' continuous batching."""
    from transformers import GenerationConfig

    length = {"max_new_tokens": new, "pad_token_id": 0, "eos_token_id": -1}
    config = GenerationConfig(do_sample=True, temperature=TEMPERATURE, top_p=TOP_P, top_k=0, **length)
    return lambda: model.generate_batch(prompts, generation_config=config, progress_bar=False)


def compare_engine(make_engine, title, options):
    """Rows: tokens a second of an engine at the paper's batch, and how much faster ours is, in turns."""
    for shape in options.shape:
        model, prompts, new = load_shape(options, shape)
        rows = [p for p in prompts for _ in range(SAMPLES)]
        functions = {"theirs": make_engine(model, rows, new)}
        functions["ours"] = partial(sample_ours, model, prompts, SAMPLES, new, OUR_ROWS[0])
        alternate(functions, 1, options.device)  # compiles, and loads what is loaded lazily
        seconds, _ = alternate(functions, 1 if options.quick else 3, options.device)
        speed = len(rows) * new / sorted(seconds["theirs"])[len(seconds["theirs"]) // 2]
        ratios = divide(seconds["theirs"], seconds["ours"])
        yield make_row(f"sampling, {title}, {shape}", speed, "tokens/s", "ours is faster by", ratios)


def compare_with_vllm(options):
    """Rows: tokens a second of vLLM beside ours, where vLLM is installed."""
    if not find_spec("vllm"):
        yield not_run("sampling, vLLM", "vllm is not installed")
        return
    from vllm import LLM, SamplingParams

    for shape in options.shape:
        with tempfile.TemporaryDirectory() as folder:
            save_shape(shape, folder, options.device)
            llm = LLM(model=folder, skip_tokenizer_init=True, gpu_memory_utilization=0.4, max_model_len=512)

            def make_vllm(model, rows, new, llm=llm):
                params = SamplingParams(temperature=TEMPERATURE, top_p=TOP_P, max_tokens=new, ignore_eos=True)
                params.detokenize = False
                return lambda: llm.generate([{"prompt_token_ids": ids} for ids in rows], params, use_tqdm=False)

            alone = type(options)(**{**vars(options), "shape": [shape]})
            yield from compare_engine(make_vllm, "vLLM", alone)


def measure_ours(options):
    """Rows: tokens a second of ours by rows decoded at once, against the same step without graphs, in turns."""
    import torch

    from sampling.graphs import Decoder

    bandwidth = measure_ceilings(options.device, options.quick)[1]
    for shape in options.shape:
        model, prompts, new = load_shape(options, shape)
        for rows in (2, 4) if options.quick else OUR_ROWS:
            many = list(itertools.islice(itertools.cycle(prompts), max(1, rows // SAMPLES)))
            graph = Decoder()
            eager = Decoder()
            eager.captures = False
            engines = {
                name: partial(sample_ours, model, many, SAMPLES, new, rows, decoder=decoder)
                for name, decoder in (("graph", graph), ("eager", eager))
            }
            first = timed(engines["graph"], options.device)[1]  # captures
            engines["eager"]()
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds, _ = alternate(engines, 1 if options.quick else 3, options.device)
            middle = sorted(seconds["graph"])[len(seconds["graph"]) // 2]
            share = decoding_bytes(model, rows, PROMPT_TOKENS + new / 2) * new / bandwidth / middle
            note = f"{1000 * middle / new:.2f} ms a step, {share:.0%} of what the memory's bandwidth allows; "
            note += f"first call, with captures, {first:.1f} s"
            if options.device == "cuda":
                note += f"; peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB of both"
            speed = len(many) * SAMPLES * new / middle
            ratios = divide(seconds["eager"], seconds["graph"])
            name = f"sampling, ours, {shape}, {rows} rows"
            yield make_row(name, speed, "tokens/s", "faster than without graphs by", ratios, note=note)


def decoding_bytes(model, rows, context):
    """Bytes that one decoding step must read: the weights once, and the keys and values of each row."""
    c = model.config
    cache = 2 * c.num_hidden_layers * c.num_key_value_heads * (c.hidden_size // c.num_attention_heads) * context
    return (count_parameters(model) + rows * cache) * model.dtype.itemsize


# ---- what needs TRL


def with_trl(name, measure):
    """A part that says what is missing where TRL is."""

    def rows(options):
        missing = [package for package in TRL if not find_spec(package)]
        if missing:
            yield not_run(name, f"needs {', '.join(missing)} (see --help)")
        else:
            yield from measure(options)

    return rows


def measure_training(options):
    """Rows: a training step by shape and micro-batch, its parts, its share of the card's matrix product."""
    yield from training.measure_steps(options, measure_ceilings(options.device, options.quick)[0])


def measure_resume(options):
    """Row: how far the weights of a run of the demo that was saved and continued are from those of one that was not."""
    with tempfile.TemporaryDirectory() as folder:
        whole = train_demo(Path(folder) / "whole", options)
        train_demo(Path(folder) / "parts", options, stop_at=3)
        parts = train_demo(Path(folder) / "parts", options)
    difference = max(float((whole[name].float() - parts[name].float()).abs().max()) for name in whole)
    same = "bit for bit the same" if difference == 0 else f"{difference:.1g} apart at most"
    yield make_row("weights of a continued run, largest difference", difference, "", note=f"weights are {same}")


def train_demo(folder, options, stop_at=None):
    """Train the demo for some steps -> its weights; with stop_at it is sent SIGTERM once that step is logged."""
    from safetensors.torch import load_file

    steps = "--max_steps 8 --save_steps 2 --eval_strategy no --load_best_model_at_end false --warmup_steps 0"
    size = "--per_device_train_batch_size 8 --gradient_accumulation_steps 2 --max_completion_length 12"
    command = [sys.executable, ROOT / "maths_finetuning.py", "--model", "demo", "--trust_region_method", "pspo"]
    command += [*steps.split(), *size.split(), "--sampler", "own", "--device", options.device]
    process = subprocess.Popen([*map(str, command), "--output_dir", str(folder)], stdout=subprocess.DEVNULL)
    log = folder / LOG_FILE
    while stop_at and process.poll() is None:
        if log.exists() and f'"step": {stop_at}' in log.read_text():
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.02)
    process.wait()
    return None if stop_at else load_file(folder / "model.safetensors")


def compare_with_continuous(options):
    """Rows of continuous batching; on a CPU it takes over a minute for the tiniest load."""
    if options.device == "cpu":
        yield not_run("sampling, continuous batching", "needs a GPU")
    else:
        yield from compare_engine(make_continuous, "continuous batching", options)


def engine_part(make_engine, title, seconds):
    """A Part that compares an engine with ours."""
    return Part(lambda options: compare_engine(make_engine, title, options), seconds)


PARTS = {  # in the order of their worth, each with the seconds it may take
    "right": Part(check_right, 60),
    "ours": Part(measure_ours, 70),
    "step": Part(with_trl("training step", measure_training), 110),
    "resume": Part(with_trl("a continued run", measure_resume), 110),
    "patch": Part(with_trl("cost of the patch", patch_cost.measure), 110),
    "ceilings": Part(report_ceilings, 40),
    "plain": engine_part(make_generate, "model.generate", 110),
    "continuous": Part(compare_with_continuous, 110),
    "vllm": Part(compare_with_vllm, 110),
}


def add_flags(parser):
    """What gpu.py alone takes."""
    shapes = ["Qwen2.5-0.5B", "Qwen2.5-1.5B"]
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=shapes, help="default: 0.5B and 1.5B")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="default: cuda")
    parser.add_argument("--seconds", type=float, default=530, help="of the whole call (default: 530)")


def main():
    return run_benchmarks(__doc__, PARTS, __file__, add_flags)


if __name__ == "__main__":
    sys.exit(run_script(main))
