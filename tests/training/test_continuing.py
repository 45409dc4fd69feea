"""A run that is cut off and continued is the same run, bit for bit, whatever its settings; others are refused."""

import gc
import json
import math
import os
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from stops import KILL, SIGNAL, Killed, Stop, add_stop
from trl.trainer.grpo_config import TRUST_REGION_METHODS

import maths_finetuning
from common.files import BadInput
from common.runs import EXIT_SAVED, find_checkpoint
from training.continuing import ONLY_THESE, ONLY_THESE_IN_GRPO, ONLY_THESE_IN_SFT, REFUSED_SWITCHES

ROOT = Path(__file__).resolve().parents[2]
TIMES = ("step_time", "runtime", "per_second")


# ---- a model and data so small that a run takes a second


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A directory with a random model of one layer, which has the demo's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = Path(shutil.copytree(ROOT / "demo/model", tmp_path_factory.mktemp("small") / "model"))
    config = AutoConfig.from_pretrained(path)
    config.update({"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "layer_types": None})
    config.update({"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False})
    config.layer_types = ["full_attention"]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    gc.freeze()  # what is imported by now is not looked through again at the start of every run
    return path.parent


def varied_reward(completions, **_):
    """A reward that differs between almost any two completions, so that every step of a run has a gradient."""
    return [sum(map(ord, completion[0]["content"])) % 7 / 7 for completion in completions]


def second_reward(completions, **_):
    return [0.0 for _ in completions]


@pytest.fixture(scope="module")
def start(small):
    """start(flags, output_dir, stop=None) -> the exit code of a run in this process, "killed", or what it refused."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    patch = pytest.MonkeyPatch()
    patch.setattr(maths_finetuning, "REWARDS", {varied_reward: 1.0, second_reward: 1.0})
    patch.setattr("reporting.figures.plot_training", lambda *_: None)
    make_trainer = maths_finetuning.make_trainer

    def start_one(flags, output_dir, stop=None):
        patch.setattr(maths_finetuning, "make_trainer", add_stop(make_trainer, stop) if stop else make_trainer)
        argv = ["--model", small / "model", "--output_dir", output_dir, "--device", "cpu", "--disable_tqdm", "true"]
        try:
            return maths_finetuning.main([str(word) for word in [*argv, *flags]])
        except Killed:
            return "killed"
        except BadInput as error:
            return str(error)

    yield start_one
    patch.undo()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def write_rows(path, count):
    """A data set of `count` rows to train on and one to validate on."""
    lines = (ROOT / "demo/data/train.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: count + 1]))
    return path


def weights(path):
    (file,) = (path / name for name in ("model.safetensors", "adapter_model.safetensors") if (path / name).exists())
    return file.read_bytes()


def log_rows(path):
    """metrics.jsonl without what a clock measured."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not any(word in k for word in TIMES)} for row in rows]


# ---- the property


@dataclass
class Case:
    """A drawn run: its flags, its rows to train on, and where it is cut off."""

    flags: dict
    rows: int
    stops: list = field(default_factory=list)


BASE = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "eval_strategy": "no",
    "load_best_model_at_end": False,
}


@st.composite
def cases(draw):
    """Settings of every kind that a checkpoint has to do with, none of which is refused."""
    method = draw(st.sampled_from(["pspo", "pspo", "clip", "sft"]))
    accumulation = draw(st.integers(1, 3))
    flags = {**BASE, "trust_region_method": method, "gradient_accumulation_steps": accumulation}
    flags["lr_scheduler_type"] = draw(st.sampled_from(["linear", "constant", "cosine"]))
    flags["use_peft"] = draw(st.booleans())
    rows = draw(st.integers(6, 12))
    cycle = 1
    if method != "sft":
        cycle = add_grpo(draw, flags)
    flags["num_train_epochs"] = draw(st.sampled_from([1, 2, 3, 1.5]))
    flags["max_steps"] = draw(st.sampled_from([-1, -1, 5, 9]))
    add_saving(draw, flags, cycle)
    how = st.sampled_from([SIGNAL, KILL])
    at_a_step = st.builds(Stop, st.just("on_step_end"), st.integers(1, 5), how)
    elsewhere = st.builds(Stop, st.sampled_from(["on_log", "on_save", "on_evaluate", "on_epoch_end"]), st.just(1), how)
    return Case(flags, rows, [draw(at_a_step), *draw(st.lists(st.one_of(at_a_step, elsewhere), max_size=1))])


def add_grpo(draw, flags):
    """Draw what GRPO alone has; returns the steps of a cycle."""
    flags["num_generations"] = 2
    flags["max_completion_length"] = 4
    flags["steps_per_generation"] = draw(st.integers(1, 3))
    flags["num_iterations"] = draw(st.integers(1, 2))
    flags["beta"] = draw(st.sampled_from([0.0, 0.1]))
    flags["sampler"] = draw(st.sampled_from(["own", "own", "trl"]))
    flags["shuffle_dataset"] = draw(st.sampled_from([True, True, False]))
    if flags["beta"] and not flags["use_peft"]:
        flags["sync_ref_model"] = draw(st.booleans())
        flags["ref_model_sync_steps"] = 2
    flags["use_adaptive_entropy"] = draw(st.booleans())
    micro_batches = flags["steps_per_generation"] * flags["num_iterations"]  # that a generation is used for
    return math.lcm(flags["gradient_accumulation_steps"], micro_batches) // flags["gradient_accumulation_steps"]


def add_saving(draw, flags, cycle):
    """Draw when is saved, validated and logged."""
    strategy = draw(st.sampled_from(["steps", "steps", "steps", "epoch", "best", "no"]))
    flags["save_strategy"] = strategy
    flags["save_steps"] = cycle * draw(st.integers(1, 2))
    flags["save_total_limit"] = draw(st.sampled_from([1, 2, 3]))
    flags["logging_steps"] = draw(st.sampled_from([1, 1, flags["save_steps"]]))
    flags["eval_steps"] = flags["save_steps"]
    flags["eval_strategy"] = draw(
        st.sampled_from(["steps", "epoch"] if strategy == "best" else ["steps", "epoch", "no"])
    )
    if flags["eval_strategy"] != "no":
        flags["eval_on_start"] = draw(st.booleans())
        flags["load_best_model_at_end"] = strategy == flags["eval_strategy"]


def to_argv(flags):
    return [f"--{name}={value}" for name, value in flags.items()]


def check_same_run(start, case, folder):
    """Run a case undisturbed, and cut off and continued: both must end with the same weights and log -> exit codes."""
    argv = [*to_argv(case.flags), "--dataset", write_rows(folder / "rows.jsonl", case.rows)]
    assert start(argv, folder / "a") == 0
    codes = [start(argv, folder / "b", stop) for stop in [*case.stops, None]]
    assert codes[-1] == 0 and {*codes} <= {0, EXIT_SAVED, "killed"}
    assert log_rows(folder / "b") == log_rows(folder / "a")
    assert weights(folder / "b") == weights(folder / "a")
    return codes


def property_of(examples):
    """The settings of a property test over so many drawn cases, the same ones in every run; nothing is shrunk."""
    health = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    phases = [Phase.explicit, Phase.generate]
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases,
        suppress_health_check=health,
    )


@property_of(30 if os.environ.get("GRPSPO_SLOW_TESTS") else 4)
@given(case=cases())
def test_a_continued_run_is_the_same_run(start, tmp_path_factory, case):
    event(str(check_same_run(start, case, tmp_path_factory.mktemp("case"))))


# ---- what once made a continued run another one

GRPO = {**BASE, "trust_region_method": "pspo", "gradient_accumulation_steps": 2, "num_generations": 2}
GRPO = {**GRPO, "max_completion_length": 4, "max_steps": 6, "save_steps": 2}
SFT = {**BASE, "trust_region_method": "sft", "gradient_accumulation_steps": 2, "num_train_epochs": 3, "save_steps": 1}
PARTIAL = {**GRPO, "gradient_accumulation_steps": 3, "steps_per_generation": 2, "max_steps": -1, "num_train_epochs": 3}
MIXED = {**GRPO, "save_strategy": "steps", "eval_strategy": "epoch", "max_steps": -1, "save_steps": 4}
AT_START = {**GRPO, "eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}
PLATEAU = {**GRPO, "eval_strategy": "steps", "eval_steps": 2, "lr_scheduler_type": "reduce_lr_on_plateau"}
# Its flags, its rows to train on, and the step after which it is cut off, by a signal or killed.
FORMER_FAULTS = {
    "the reference model moves": (
        {**GRPO, "beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1},
        8,
        3,
        SIGNAL,
    ),
    # an epoch of 4 generations is 8 micro-batches, no multiple of 3, and with two iterations 16
    "an epoch ends within an accumulation": ({**PARTIAL, "num_iterations": 1, "save_steps": 2}, 8, 4, SIGNAL),
    "it ends within a cycle of several steps": ({**PARTIAL, "num_iterations": 2, "save_steps": 4}, 8, 9, KILL),
    "the tokens of SFT are counted": (SFT, 8, 3, SIGNAL),
    "it is validated at the start": (AT_START, 8, 3, SIGNAL),
    "it is validated at the start and has no checkpoint": (AT_START, 8, 1, KILL),
    "it is validated once an epoch and cut off within one": ({**MIXED, "num_train_epochs": 2}, 12, 2, SIGNAL),
    "it is validated after the last step of an epoch": ({**MIXED, "num_train_epochs": 3}, 4, 5, KILL),
    "it is saved between two rows of the log": ({**SFT, "save_strategy": "epoch", "logging_steps": 2}, 12, 4, KILL),
    "tokens are counted by transformers too": ({**GRPO, "include_num_input_tokens_seen": True}, 8, 3, SIGNAL),
}
OTHER_STATE = {
    "the learning rate follows validation": (PLATEAU, 8, 3, KILL),
    "the embeddings have noise": ({**SFT, "neftune_noise_alpha": 5.0}, 12, 2, SIGNAL),
    "callbacks are restored": ({**GRPO, "restore_callback_states_from_checkpoint": True}, 8, 3, SIGNAL),
    "rows are loaded by a worker": ({**GRPO, "dataloader_num_workers": 1}, 8, 3, SIGNAL),
}


def check_case(start, folder, flags, rows, step, how):
    codes = check_same_run(start, Case(flags, rows, [Stop("on_step_end", step, how)]), folder)
    assert codes == [EXIT_SAVED if how == SIGNAL else "killed", 0]


QUICK = ("an epoch ends within an accumulation", "it is validated at the start and has no checkpoint")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FORMER_FAULTS]
)
def test_a_run_continues_where_it_once_became_another_one(start, tmp_path, name):
    check_case(start, tmp_path, *FORMER_FAULTS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_STATE)
def test_a_run_continues_whatever_state_its_settings_bring(start, tmp_path, name):
    check_case(start, tmp_path, *OTHER_STATE[name])


METHODS = {  # each with what it needs beside GRPO, two updates a generation
    **dict.fromkeys(TRUST_REGION_METHODS, {}),
    "cispo": {"epsilon_high": 5.0},
    "gmpo": {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    "m2po": {"gradient_accumulation_steps": 1, "steps_per_generation": 2, "num_iterations": 1},
    "r2vpo": {"trust_region_penalty": 2.5},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_of_every_method_continues(start, tmp_path, method):
    flags = {**GRPO, "num_iterations": 2, **METHODS[method], "trust_region_method": method}
    check_case(start, tmp_path, flags, 8, 3, KILL)


def test_the_best_model_is_found_though_the_directory_has_moved(start, tmp_path):
    flags = {**GRPO, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "beta": 0.1}
    flags = {**flags, "metric_for_best_model": "eval_kl", "greater_is_better": False}  # best before it has moved far
    argv = [*to_argv(flags), "--dataset", write_rows(tmp_path / "rows.jsonl", 8)]
    assert start(argv, tmp_path / "a") == 0
    assert start(argv, tmp_path / "b", Stop("on_step_end", 3, SIGNAL)) == EXIT_SAVED
    (tmp_path / "b").rename(tmp_path / "c")
    assert start(argv, tmp_path / "c") == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "a/checkpoint-2")  # so that it is not simply the last
    assert weights(tmp_path / "c") == weights(tmp_path / "a")


def test_the_old_checkpoint_is_there_until_the_new_one_is_sealed(start, tmp_path):
    argv = [*to_argv({**GRPO, "save_total_limit": 1}), "--dataset", write_rows(tmp_path / "rows.jsonl", 8)]
    assert start(argv, tmp_path / "run", Stop("on_save", 2, KILL)) == "killed"
    assert find_checkpoint(tmp_path / "run") == tmp_path / "run/checkpoint-2"
    assert start(argv, tmp_path / "run") == 0
    assert [p.name for p in tmp_path.glob("run/checkpoint-*")] == ["checkpoint-6"]


REFUSED = {
    "save_only_model": {"save_only_model": True},
    "ignore_data_skip": {"ignore_data_skip": True},
    "enable_jit_checkpoint": {"enable_jit_checkpoint": True},
    "save_on_each_node": {"save_on_each_node": True},
    "dataloader_persistent_workers": {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
    "dataloader_in_order": {"dataloader_in_order": False, "dataloader_num_workers": 2},
    "logging_strategy": {"logging_strategy": "epoch"},
    "train_sampling_strategy": {"train_sampling_strategy": "group_by_length"},
    "data_seed": {"data_seed": 3},
    "sync_ref_model": {"sync_ref_model": True, "beta": 0.1, "fsdp": "full_shard"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_no_run_continues_with_is_refused_before_it_starts(start, tmp_path, name):
    argv = [*to_argv({**GRPO, **REFUSED[name]}), "--dataset", write_rows(tmp_path / "rows.jsonl", 8)]
    said = start(argv, tmp_path / "run")
    assert isinstance(said, str) and said.startswith(f"--{name}") and len(said) < 140
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("train_sampling_strategy", "group_by_length"), ("accelerator_config", '{"use_seedable_sampler": false}')]
    + [("auto_find_batch_size", True)],
)
def test_what_sft_does_not_continue_with_is_refused(start, tmp_path, name, value):
    argv = [*to_argv({**SFT, name: value}), "--dataset", write_rows(tmp_path / "rows.jsonl", 8)]
    assert start(argv, tmp_path / "run").startswith(f"--{name}")
    assert not (tmp_path / "run").exists()


def test_every_switch_that_is_refused_is_an_option_of_trl():
    from trl import GRPOConfig, SFTConfig

    for config in (GRPOConfig, SFTConfig):
        assert {*REFUSED_SWITCHES, *ONLY_THESE} <= {*config.__dataclass_fields__}
    assert {*ONLY_THESE_IN_GRPO} <= {*GRPOConfig.__dataclass_fields__}
    assert {*ONLY_THESE_IN_SFT} <= {*SFTConfig.__dataclass_fields__}
