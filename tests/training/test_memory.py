"""training/memory.py against what was measured on a card, and against the tensors that a forward really keeps."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import maths_finetuning
from common.models import fp32_bytes, load_tokenizer
from common.record import make_record, write_record
from maths_rewards import REWARDS
from training import memory, schedule
from training.memory import (
    SHAPES,
    SHARE,
    SPLIT,
    Shape,
    Work,
    activation_bytes,
    choose_split,
    count_parameters,
    find_splits,
    get_split,
    least_peaks,
    peak_bytes,
)
from training.shared_prompts import install, pack

ROOT = Path(__file__).resolve().parents[2]


def make_model(shape):
    layers, hidden, inner, heads, kv_heads, vocabulary = shape
    config = Qwen2Config(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_model(name):
    with torch.device("meta"):
        model = make_model(SHAPES[name])
    assert count_parameters(SHAPES[name]) == pytest.approx(sum(p.numel() for p in model.parameters()), rel=2e-3)


@pytest.mark.parametrize(("rows", "accumulation", "gigabytes"), [(4, 16, 10.8), (16, 4, 14.7), (64, 1, 28.2)])
def test_peaks_of_an_h200(rows, accumulation, gigabytes):
    """What `benchmarks/gpu.py --shape Qwen2.5-0.5B` measured there when each row still read its prompt."""
    shape = SHAPES["Qwen2.5-0.5B"]
    work = Work(shape, count_parameters(shape), prompt=70, completion=128, group=1)
    assert peak_bytes(work, rows, accumulation) / 1e9 == pytest.approx(gigabytes, rel=0.03)


def kept_bytes(model, inputs):
    """Bytes of all that a forward of the layers keeps for its backward, parameters and indices aside."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model.base_model(**inputs, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())


def test_activations_are_those_that_a_forward_keeps():
    """The difference of two depths: what is kept once, not by every layer, falls out."""
    rows, prompt, completion, group = 8, 40, 32, 4
    prompts = torch.randint(1, 50, (rows // group, prompt)).repeat_interleave(group, 0)
    input_ids = torch.cat([prompts, torch.randint(1, 50, (rows, completion))], 1)
    found, expected = [], []
    for layers in (1, 3):
        shape = Shape(layers, 128, 512, 4, 4, 50)
        model = make_model(shape)
        install(model)
        inputs = pack(input_ids, torch.ones_like(input_ids), completion).model_inputs()
        del inputs["shift_labels"]
        found.append(kept_bytes(model, inputs))
        weights_in_half = 2 * (count_parameters(shape) - 50 * 128)  # autocast keeps these once for all forwards
        expected.append(activation_bytes(Work(shape, 0, prompt, completion, group), rows) + weights_in_half)
    assert expected[1] - expected[0] == pytest.approx(found[1] - found[0], rel=0.15)


@pytest.mark.parametrize(
    ("steps_per_generation", "largest", "smallest"),
    [(16, (64, 1, 1), (1, 64, 64)), (32, (64, 1, 2), (1, 64, 128)), (4, (16, 4, 1), (1, 64, 16))],
    ids=["a generation an update", "two updates a generation", "four generations an update"],
)
def test_splits_keep_the_updates_of_a_generation(steps_per_generation, largest, smallest):
    splits = find_splits(64, 16, steps_per_generation)
    assert (splits[0], splits[-1]) == (largest, smallest)
    assert (4, 16, steps_per_generation) in splits  # the published one
    assert all(rows * accumulation == 64 for rows, accumulation, _ in splits)
    assert {steps / accumulation for _, accumulation, steps in splits} == {steps_per_generation / 16}


def test_the_split_is_the_largest_that_fits():
    shape = SHAPES["Qwen2.5-1.5B"]
    work = Work(shape, count_parameters(shape), prompt=256, completion=128, group=4)
    splits = find_splits(64, 16, 16)
    chosen = []
    for size in range(10, 150, 5):
        split = choose_split(splits, work, size * 1e9)
        chosen.append(split[0])
        larger = splits[: splits.index(split)]
        assert all(peak_bytes(work, rows, parts) > SHARE * size * 1e9 for rows, parts, _ in larger)
        assert split == splits[-1] or peak_bytes(work, *split[:2]) <= SHARE * size * 1e9
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (1, 64)


def test_an_adapter_and_checkpointing_need_less():
    shape = SHAPES["Qwen2.5-0.5B"]
    lengths = {"prompt": 100, "completion": 128, "group": 4}
    full = Work(shape, count_parameters(shape), **lengths)
    adapter = Work(shape, count_parameters(shape), **lengths, trained_share=0)
    checkpointed = Work(shape, count_parameters(shape), **lengths, is_checkpointed=True)
    assert peak_bytes(full, 4, 16) - peak_bytes(adapter, 4, 16) == 12 * full.parameters
    assert activation_bytes(checkpointed, 64) < 0.1 * activation_bytes(full, 64)


def test_the_documents_table_is_what_the_command_prints(capsys):
    memory.main()
    printed = capsys.readouterr().out
    assert printed.count("Qwen2.5") == 6
    text = (ROOT / "training/README.md").read_text()
    assert all(table in text for table in printed.split("\n\n"))


def find_least(model_path, **changes):
    """least_peaks of a usual run with some values changed."""
    config = {"optim": "adamw_torch_fused", "max_completion_length": 128}
    model_config = {"dtype": "float32", "use_peft": False, "load_in_4bit": False, "load_in_8bit": False}
    of_model = {name: value for name, value in changes.items() if name in model_config}
    others = {name: value for name, value in changes.items() if name not in model_config}
    namespaces = (SimpleNamespace(**{**config, **others}), SimpleNamespace(**{**model_config, **of_model}))
    return least_peaks(*namespaces, model_path)


def test_the_least_a_card_must_hold_is_weights_copies_gradients_and_moments():
    model = ROOT / "demo/model"
    parameters = fp32_bytes(model) // 4
    peak, with_adapter = find_least(model)
    assert peak - with_adapter == 12 * parameters
    assert 6 * parameters < with_adapter < 6 * parameters + 2 * memory.HEAD_TILE
    assert find_least(model, use_peft=True) == (with_adapter, with_adapter)
    for unusual in ({"optim": "adamw_bnb_8bit"}, {"dtype": "bfloat16"}, {"load_in_4bit": True}):
        assert find_least(model, **unusual) is None


# ---- of a process

FAULTS = """
import resource, sys
import torch
from training.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(3):  # 64 MB each; how many the allocator needs at first is its own affair
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    faults = {}
    for how in ("leave", "keep"):
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, cwd=ROOT)
        faults[how] = int(done.stdout)
    assert faults["keep"] < 0.5 * faults["leave"]  # a block or two may be new where the heap was laid out badly


# ---- of a run

DEMO = ROOT / "demo" / "model"


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """fit(free bytes, *flags) -> the Plan of a run of the demo on a card with so much memory."""

    def fit_one(free_bytes, *flags):
        argv = ["--model", "demo", "--trust_region_method", "pspo", "--output_root", str(tmp_path), *flags]
        plan = maths_finetuning.resolve(maths_finetuning.parse(argv))
        plan.config.use_cpu = False  # no card is touched: its memory is what the test says
        monkeypatch.setattr(memory, "measure_free_bytes", lambda config: free_bytes)
        tokenizer = load_tokenizer([DEMO])
        data = maths_finetuning.load_data(plan, DEMO, tokenizer)
        maths_finetuning.fit_to_memory(plan, DEMO, tokenizer, data)
        return plan

    return fit_one


def test_a_run_is_split_as_the_memory_allows_and_its_record_says_so(fit, capsys):
    plan = fit(1e12)
    assert get_split(plan.config) == (128, 1, 1)
    assert [plan.values[name] for name in SPLIT] == [(128, "machine"), (1, "machine"), (1, "machine")]
    assert plan.config.generation_batch_size == 128
    assert schedule.cycle_steps(plan.config) == 2
    assert capsys.readouterr().out == "micro-batches: 1 of 128 rows, as the memory allows\n"
    assert get_split(fit(0).config) == (1, 128, 128)


@pytest.mark.parametrize("flag", ["--per_device_train_batch_size=32", "--gradient_accumulation_steps=4"])
def test_what_somebody_said_is_left_alone(fit, flag):
    plan = fit(1e12, flag)
    assert flag.removeprefix("--") in [f"{name}={getattr(plan.config, name)}" for name in SPLIT]
    assert "machine" not in [plan.values[name][1] for name in SPLIT]


def test_the_update_of_m2po_stays_one_micro_batch_however_little_memory_there_is(fit):
    assert get_split(fit(0, "--trust_region_method=m2po").config) == (128, 1, 1)


@pytest.mark.slow
def test_a_continued_run_keeps_its_split(fit):
    path = Path(fit(1e12).config.output_dir)
    plan = fit(1e12)
    record = make_record(plan.command, plan.values, 1, DEMO, {}, REWARDS)
    record.computed.update(zip(SPLIT, (32, 4, 4), strict=True))
    path.mkdir(parents=True)
    write_record(path, record)
    assert get_split(fit(1e12).config) == (32, 4, 4)
    assert get_split(fit(1e12, "--overwrite").config) == (128, 1, 1)


def test_out_of_memory_goes_on_with_half_the_rows(fit, monkeypatch, capsys):
    plan = fit(1e12)
    record = make_record(plan.command, plan.values, 1, DEMO, {}, REWARDS)
    started, written = [], []
    watcher = SimpleNamespace(record=record, path="runs/x", write_record=written.append)
    monkeypatch.setattr(os, "execv", lambda *argv: started.append(argv))
    maths_finetuning.start_again_with_fewer_rows(plan.config, watcher)
    assert [record.computed[name] for name in SPLIT] == [64, 2, 2]
    assert written == ["running"]
    assert started == [(sys.executable, [sys.executable, *sys.argv])]
    assert "going on with 64 from the last checkpoint" in capsys.readouterr().out


def test_out_of_memory_with_rows_that_somebody_said_stops_with_the_way_out(fit):
    plan = fit(1e12, "--per_device_train_batch_size=64", "--gradient_accumulation_steps=2")
    watcher = SimpleNamespace(record=make_record(plan.command, plan.values, 1, DEMO, {}, REWARDS), path="runs/x")
    with pytest.raises(SystemExit, match="--per_device_train_batch_size 32 --gradient_accumulation_steps 4"):
        maths_finetuning.start_again_with_fewer_rows(plan.config, watcher)
