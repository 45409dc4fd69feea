"""maths_finetuning.py: the paper's table, precedence, methods, determinism, continuing, LoRA, bad input."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from forked import fork, run_command
from producers import run_record
from stops import KILL, SIGNAL, Stop, add_stop

import maths_finetuning
from common import runs
from common.files import BadInput
from common.record import read_record, write_record
from training import schedule

ROOT = Path(__file__).resolve().parents[2]
# A part of the demo's rows, so that a run reads 300 and not 3000 before its first step.
ROWS = Path(tempfile.gettempdir()) / f"demo-rows-{os.getpid()}.jsonl"
# A live trust region in seconds: generations of 32 completions, two mini-batches of two micro-batches each, twice.
SMALL = (
    "--max_steps 16 --per_device_train_batch_size 8 --gradient_accumulation_steps 2 --steps_per_generation 4 "
    "--num_iterations 2 --num_generations 4 --warmup_steps 2 --learning_rate 1e-3 --save_steps 4 --eval_strategy no "
    f"--load_best_model_at_end False --max_completion_length 24 --dataset {ROWS}"
).split()
TIMES = ("step_time", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


# ---- running it


def _child(argv, log, stop=None, picture=False):
    """Run maths_finetuning in a forked process, cut off by a Stop, with its output in a file."""
    if not picture:
        maths_finetuning.draw_curve = lambda path: None  # a fifth of so short a run
    if stop:
        maths_finetuning.make_trainer = add_stop(maths_finetuning.make_trainer, replace(stop, own_process=True))
    run_command("maths_finetuning", argv, log, {})


@pytest.fixture(scope="module", autouse=True)
def few_rows():
    """The file ROWS while these tests run."""
    lines = (ROOT / "demo/data/train.jsonl").read_text().splitlines(keepends=True)
    ROWS.write_text("".join(lines[:300]))
    yield
    ROWS.unlink()


@pytest.fixture(scope="session")
def start():
    """start(argv, log, stop=None, picture=False) -> a process that has everything imported already.

    A run costs seconds in it. picture: whether it draws its curve.
    """

    def start_one(argv, log, stop=None, picture=False):
        return fork(_child, argv, str(log), stop, picture)

    return start_one


AFTER_STEP_4 = Stop("on_step_begin", 5, KILL)  # its checkpoint is sealed by then


def killed(process):
    """Wait for the end of a process that its Stop kills."""
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture
def run(start, tmp_path):
    """run(argv) -> the run directory, after a run that must succeed."""

    def run_one(*argv, root="a", method="pspo", model="demo", code=0, picture=False):
        log = tmp_path / "log"
        argv = ["--model", model, "--trust_region_method", method, "--output_root", tmp_path / root, *argv]
        process = start(argv, log, picture=picture)
        process.join()
        assert process.exitcode == code, log.read_text()
        seed = argv[argv.index("--seed") + 1] if "--seed" in argv else 0
        return tmp_path / root / Path(model).name / method / f"seed{seed}"

    return run_one


def weights(path):
    return (path / "model.safetensors").read_bytes()


def log_rows(path):
    """metrics.jsonl without what a clock measured."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def resolved(*argv):
    plan = maths_finetuning.resolve(maths_finetuning.parse(list(map(str, argv))))
    return plan.config, plan.model_config, plan.values


# ---- the paper's table

SHARED = {
    "num_train_epochs": 3,
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 16,
    "max_completion_length": 128,
    "temperature": 0.8,
    "top_p": 0.9,
    "beta": 0.0,
    "loss_type": "dapo",
    "warmup_steps": 140,
    "eval_steps": 100,
    "save_steps": 100,
    "metric_for_best_model": "eval_reward",
    "load_best_model_at_end": True,
}
PUBLISHED = {
    ("Qwen2.5-0.5B", "clip"): {"learning_rate": 1e-6, "epsilon": 0.1, "num_iterations": 2},
    ("Qwen2.5-0.5B", "noclip"): {"learning_rate": 1e-6, "num_iterations": 1},
    ("Qwen2.5-0.5B", "pspo"): {"learning_rate": 5e-7, "smoothing_alpha": 0.1, "num_iterations": 2},
    ("Qwen2.5-1.5B", "clip"): {"learning_rate": 5e-7, "epsilon": 0.2, "num_iterations": 2},
    ("Qwen2.5-1.5B", "noclip"): {"learning_rate": 1e-6, "num_iterations": 1},
    ("Qwen2.5-1.5B", "pspo"): {"learning_rate": 5e-7, "smoothing_alpha": 0.1, "num_iterations": 2},
}
PUBLISHED |= {("Qwen2.5-3B", method): PUBLISHED["Qwen2.5-1.5B", method] for method in ("clip", "noclip", "pspo")}


@pytest.mark.parametrize(("model", "method"), PUBLISHED)
def test_published_cell(model, method):
    config, _, _ = resolved("--model", model, "--trust_region_method", method)
    expected = {**SHARED, **PUBLISHED[model, method], "trust_region_method": method}
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.parametrize(("model", "method"), PUBLISHED)
def test_no_value_comes_from_another_methods_row(model, method):
    from trl import GRPOConfig

    config, _, values = resolved("--model", model, "--trust_region_method", method)
    foreign = {key for row in PUBLISHED.values() for key in row} - set(PUBLISHED[model, method])
    defaults = GRPOConfig.__dataclass_fields__
    assert {key: (getattr(config, key), values[key][1]) for key in foreign} == {
        key: (defaults[key].default, "default") for key in foreign
    }


def test_sft_cell():
    config, _, _ = resolved("--model", "Qwen2.5-0.5B", "--trust_region_method", "sft")
    assert (config.num_train_epochs, config.metric_for_best_model) == (20, "eval_loss")
    assert config.learning_rate == type(config).__dataclass_fields__["learning_rate"].default  # TRL's default
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 64


def test_a_flag_beats_the_recipe_and_the_recipe_the_table(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning-rate: 3e-6\nepsilon: 0.3\nseed: 7\n")  # as on the command line, a - is a _
    flags = ["--model", "Qwen2.5-0.5B", "--trust_region_method", "clip", "--config", recipe, "--epsilon", "0.05"]
    _, _, values = resolved(*flags)
    assert values["learning_rate"] == (3e-6, "recipe")
    assert values["epsilon"] == (0.05, "flag")
    assert values["num_iterations"] == (2, "table")
    assert values["seed"][0] == 7
    assert values["full_determinism"][1] == "default"


RECIPES = {
    "gspo": {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "clip_higher": {"epsilon": 0.2, "epsilon_high": 0.28, "loss_type": "dapo", "importance_sampling_level": "token"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_of_clip(name):
    recipe = ROOT / "recipes" / f"{name}.yaml"
    config, _, _ = resolved("--model", "Qwen2.5-0.5B", "--trust_region_method", "clip", "--config", recipe)
    assert {key: getattr(config, key) for key in RECIPES[name]} == RECIPES[name]
    assert config.learning_rate == PUBLISHED["Qwen2.5-0.5B", "clip"]["learning_rate"]


@pytest.mark.parametrize("model", ["Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-3B", "demo"])
def test_methods_without_published_values_take_pspos(model):
    own = {
        "cispo": {"epsilon_high": 5.0}, "spo": {"epsilon": 0.2}, "dppo": {"trust_region_delta": 0.15},
        "drpo": {"trust_region_delta": 0.15}, "r2vpo": {"trust_region_penalty": 2.5},
        "gmpo": {"epsilon": 0.4, "importance_sampling_level": "sequence", "loss_type": "grpo"},
        "m2po": {"trust_region_delta": 0.04, "gradient_accumulation_steps": 1},
    }  # fmt: skip
    pspo, _, _ = resolved("--model", model, "--trust_region_method", "pspo")
    for method in set(maths_finetuning.methods()) - {"clip", "noclip", "pspo", "sft"}:
        config, _, values = resolved("--model", model, "--trust_region_method", method)
        expected = {"learning_rate": pspo.learning_rate, "num_iterations": 2, **own.get(method, {})}
        assert {key: (getattr(config, key), "table") for key in expected} == {key: values[key] for key in expected}
        updates = [c.per_device_train_batch_size * c.gradient_accumulation_steps for c in (pspo, config)]
        assert updates[0] == updates[1]  # as many sequences in an update


@pytest.mark.parametrize(
    ("accumulation", "per_generation", "iterations", "inert", "cycle"),
    [(16, 16, 1, True, 1), (16, 16, 2, False, 2), (4, 2, 2, True, 1), (4, 8, 1, False, 2), (4, 2, 1, True, 1)]
    + [(4, 6, 1, False, 3), (2, 4, 2, False, 4)],
)
def test_when_the_trust_region_is_inert_and_how_long_a_cycle_is(accumulation, per_generation, iterations, inert, cycle):
    flags = ["--gradient_accumulation_steps", accumulation, "--steps_per_generation", per_generation]
    config, _, _ = resolved("--model", "demo", "--trust_region_method", "pspo", *flags, "--num_iterations", iterations)
    assert schedule.is_inert(config) == inert
    assert schedule.cycle_steps(config) == cycle


PARTIAL = ["--gradient_accumulation_steps", "4", "--steps_per_generation", "6", "--num_iterations", "1"]


def test_the_steps_of_validation_matter_where_there_is_any():
    flags = ["--model", "demo", "--trust_region_method", "pspo", *PARTIAL, "--save_steps", "6"]  # a cycle of 3
    flags += ["--load_best_model_at_end", "False"]
    config, _, _ = resolved(*flags)
    with pytest.raises(BadInput, match="eval_steps 40 is not a multiple of the generation cycle of 3 steps"):
        schedule.check_plan(config, 3000)
    config, _, _ = resolved(*flags, "--eval_strategy", "no")
    schedule.check_plan(config, 3000)


@pytest.mark.parametrize(
    ("method", "rows", "flags", "said"),
    [
        ("sft", 40, [], "40 rows a step, 1 step an epoch"),  # fewer than one step takes
        ("sft", 130, [], "64 rows a step, 3 steps an epoch"),
        ("pspo", 530, PARTIAL, "an epoch is 17 steps and 4224 completions"),  # 11 generations of one and a half steps
    ],
)
def test_the_steps_of_an_epoch_are_those_that_are_trained(method, rows, flags, said, tmp_path):
    argv = ["--model", "demo", "--trust_region_method", method, "--output_dir", tmp_path, "--eval_strategy", "no"]
    argv += ["--load_best_model_at_end", "False", *flags]
    plan = maths_finetuning.resolve(maths_finetuning.parse(list(map(str, argv))))
    config = plan.config
    line = " ".join(schedule.describe(config, "float32", rows, 1))
    assert said in line
    path = ROOT / "demo" / "model"
    tokenizer = maths_finetuning.load_tokenizer([path])
    data = maths_finetuning.load_data(plan, path, tokenizer)
    data["train"] = data["train"].select(range(rows))
    policy = maths_finetuning.load_policy(path, plan.model_config, tokenizer)
    trainer = maths_finetuning.make_trainer(plan, "own", policy, tokenizer, data)
    steps = trainer.set_initial_training_values(config, trainer.get_train_dataloader())[1]
    assert f" {steps} step" in line


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_log_file_says_that_sft_tokenises_its_rows(is_terminal, monkeypatch, capsys):
    """Minutes on the whole of GSM8K: a log that says nothing looks as if it hung."""
    argv = ["--model", "demo", "--trust_region_method", "sft", "--device", "cpu"]
    plan = maths_finetuning.resolve(maths_finetuning.parse(argv))
    path = ROOT / "demo" / "model"
    tokenizer = maths_finetuning.load_tokenizer([path])
    data = maths_finetuning.load_data(plan, path, tokenizer)
    data = {part: rows.select(range(count)) for (part, rows), count in zip(data.items(), (5, 3), strict=True)}
    policy = maths_finetuning.load_policy(path, plan.model_config, tokenizer)
    maths_finetuning.quieten()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    capsys.readouterr()
    maths_finetuning.make_trainer(plan, None, policy, tokenizer, data)
    line = "demo/sft/seed0: tokenising 5 rows to train and 3 to validate on\n"
    assert capsys.readouterr().err == ("" if is_terminal else line)


# ---- real short runs


SLOWER = [pytest.param(method, marks=pytest.mark.slow) for method in ("clip", "noclip", "sapo")]


@pytest.mark.parametrize("method", ["pspo", *SLOWER])
def test_each_method_trains_on_the_demo(run, method):
    path = run(*SMALL, "--max_steps", "8", method=method, picture=True)
    rows = log_rows(path)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert any(row["reward"] > 0 for row in rows if "reward" in row)
    assert max(row["trust_region/ratio_max"] for row in rows) > 1  # live
    assert weights(path) != weights(ROOT / "demo" / "model")
    assert read_record(path).outcome.status == "finished"
    assert (path / "reward_curve.png").read_bytes().startswith(b"\x89PNG")
    assert ("clip_ratio/region_mean" in rows[-1]) == (method == "clip")


FURTHER = ("cispo", "dppo", "reinforce", "spo", "topr", "drpo", "gmpo", "vespo", "r2vpo", "m2po")


@pytest.mark.parametrize("method", FURTHER)
@pytest.mark.slow
def test_a_further_method_trains_on_the_demo(run, method):
    flags = [*SMALL, "--max_steps", "4", "--max_completion_length", "16"]
    flags += ["--epsilon_high", "1.01"] if method == "cispo" else []  # so that it acts in so short a run
    flags += ["--trust_region_delta", "0.01"] if method in ("dppo", "drpo") else []
    if method == "m2po":
        flags += ["--trust_region_delta", "0.0001", "--gradient_accumulation_steps", "1", "--steps_per_generation", "2"]
    flags += ["--epsilon", "0.01"] if method == "gmpo" else []
    flags += ["--trust_region_penalty", "100"] if method == "r2vpo" else []
    path = run(*flags, method=method)
    rows = log_rows(path)
    assert weights(path) != weights(ROOT / "demo" / "model") and [row["step"] for row in rows] == [1, 2, 3, 4]
    assert any(row["trust_region/active_ratio"] > 0 for row in rows) == (method not in ("reinforce", "vespo"))


@pytest.mark.slow
def test_an_inert_trust_region_has_ratio_one(run):
    path = run(*SMALL, "--num_iterations", "1", "--steps_per_generation", "2", "--max_steps", "4")
    assert {row["trust_region/ratio_max"] for row in log_rows(path)} == {1.0}


def assert_may_choose_the_best_model(path, method):
    """Every figure that a run's validation logged may choose the best model: checks.py knows it by name."""
    logged = {name for row in log_rows(path) for name in row if name.startswith("eval_")}
    assert {"eval_loss", "eval_entropy"} <= logged
    for name in logged:
        resolved("--model", "demo", "--trust_region_method", method, "--metric_for_best_model", name)


@pytest.mark.slow
def test_sft_trains_on_the_demo_and_only_on_the_answer(run):
    flags = ["--max_steps", "8", "--eval_steps", "4", "--save_steps", "4", "--warmup_steps", "1"]
    path = run(*flags, "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "4", method="sft")
    losses = [row["eval_loss"] for row in log_rows(path) if "eval_loss" in row]
    assert losses[-1] < losses[0]
    assert_may_choose_the_best_model(path, "sft")


@pytest.mark.parametrize("greater", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_validation_selects_the_best_checkpoint(run, greater):
    flags = ["--max_steps", "8", "--eval_strategy", "steps", "--eval_steps", "4", "--load_best_model_at_end", "True"]
    flags += ["--metric_for_best_model", "eval_entropy", "--greater_is_better", greater, "--num_generations_eval", "1"]
    path = run(*SMALL, *flags)
    entropy = {row["step"]: row["eval_entropy"] for row in log_rows(path) if "eval_entropy" in row}
    assert len(set(entropy.values())) == 2  # so one of the two directions selects the checkpoint that is not the last
    best = (max if greater else min)(entropy, key=entropy.get)
    assert weights(path) == weights(path / f"checkpoint-{best}")
    assert_may_choose_the_best_model(path, "pspo")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_does_not(run):
    flags = [*SMALL, "--max_steps", "6"]
    first = run(*flags, root="a")
    again = run(*flags, root="b")
    other = run(*flags, "--seed", "1", root="a")
    assert weights(first) == weights(again)
    assert log_rows(first) == log_rows(again)
    assert weights(first) != weights(other)


@pytest.mark.slow
def test_several_threads_give_the_same_bits_at_every_start(begin, tmp_path):
    """What threads add up in the order in which they come differed in three of four starts."""
    found = set()
    for count in range(3):
        run = tmp_path / str(count)
        argv = [*DEMO, *SMALL, "--max_steps", "4", "--output_dir", run]
        process = begin("maths_finetuning", argv, tmp_path / "log", {"OMP_NUM_THREADS": "2"})
        process.join()
        assert process.exitcode == 0, (tmp_path / "log").read_text()
        found.add(weights(run))
    assert len(found) == 1


def snapshot(path):
    """{file: content} of all below a directory but its locks."""
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.slow
def test_a_finished_run_says_so_and_loses_nothing(run, tmp_path):
    path = run(*SMALL, "--max_steps", "4")
    before = snapshot(path)
    assert Path("checkpoint-4/model.safetensors") in before  # of the last step, which nothing would continue from
    run(*SMALL, "--max_steps", "4")
    assert "is finished" in (tmp_path / "log").read_text()
    assert snapshot(path) == before
    run(*SMALL, "--max_steps", "8", "--overwrite")
    assert snapshot(path.with_name("seed0.old-1")) == before
    assert weights(path) != before[Path("model.safetensors")]


def test_looking_at_a_live_run_changes_nothing(tmp_path, capsys):
    from common.files import hold_lock

    with hold_lock(tmp_path, "in use"):
        write_record(tmp_path, run_record(status="running"))
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
        before = snapshot(tmp_path)
        assert "running, step 2" in runs.describe_state(tmp_path)
        assert snapshot(tmp_path) == before
    assert "stopped" in runs.describe_state(tmp_path)


@pytest.mark.slow
def test_a_picture_that_fails_is_one_warning(start, tmp_path):
    path = tmp_path / "a/demo/pspo/seed0"
    argv = [*DEMO, "--output_root", tmp_path / "a", *SMALL, "--max_steps", "4"]
    killed(start(argv, tmp_path / "log", Stop("on_step_begin", 1, KILL)))
    (path / "reward_curve.png").mkdir()  # so that no file can take its place
    process = start(argv, tmp_path / "log", picture=True)
    process.join()
    text = (tmp_path / "log").read_text()
    assert process.exitcode == 0 and text.count("warning: no reward_curve.png") == 1, text
    before = snapshot(path)
    assert read_record(path).outcome.status == "finished"
    process = start(argv, tmp_path / "log")
    process.join()
    assert "is finished" in (tmp_path / "log").read_text() and snapshot(path) == before


@pytest.mark.slow
def test_which_sampler_runs_is_said_and_its_error_is_logged(run, tmp_path):
    rows = log_rows(run(*SMALL, "--max_steps", "4"))
    text = (tmp_path / "log").read_text()
    assert "sampler: own" in text
    assert "seed0: step 1 of 4, " in text and "\r" not in text and "Warning" not in text  # nobody sees a terminal
    name = "sampling/sampling_logp_difference/mean"
    assert all(0 < row[name] < 1e-4 for row in rows if "reward" in row)
    rows = log_rows(run(*SMALL, "--max_steps", "4", "--min_p", "0.01", root="b"))
    assert "sampler: trl (--min_p needs it)" in (tmp_path / "log").read_text()
    assert not any(name in row for row in rows)


# ---- being interrupted

# Two and a half epochs of 2 generations, 8 steps, each, so that the order of later epochs is continued too.
EPOCHS = [*SMALL, "--max_steps", "20", "--save_steps", "4"]


@pytest.fixture(scope="session")
def undisturbed(start, tmp_path_factory):
    """(weights, log) of the run that nothing disturbs, and begin(root, stop) that runs it anywhere -> exit code."""
    root = tmp_path_factory.mktemp("undisturbed")
    lines = (ROOT / "demo/data/train.jsonl").read_text().splitlines(keepends=True)
    (root / "rows.jsonl").write_text("".join(lines[:36]))  # 3 of them are to validate on

    def begin(folder, stop=None):
        argv = [*DEMO, *EPOCHS, "--dataset", root / "rows.jsonl", "--output_root", folder]
        process = start(argv, folder / "log", stop)
        process.join()
        assert process.exitcode in (0, 75, -signal.SIGKILL), (folder / "log").read_text()
        return process.exitcode

    assert begin(root) == 0
    path = root / "demo/pspo/seed0"
    return weights(path), log_rows(path), begin


def assert_ends_as_if_undisturbed(folder, undisturbed):
    """Start the run of a folder until it is finished; its weights and its log must be those of `undisturbed`."""
    expected_weights, expected_log, begin = undisturbed
    assert begin(folder) == 0
    assert weights(folder / "demo/pspo/seed0") == expected_weights
    assert log_rows(folder / "demo/pspo/seed0") == expected_log


@pytest.mark.slow
def test_a_killed_run_ends_as_if_nothing_had_happened(undisturbed, tmp_path):
    """Killed at up to 6 steps of its own, also while it saves; what has come to its end begins anew."""
    _, _, begin = undisturbed
    kills = 5
    rng = random.Random(2)
    while kills:
        what, most = rng.choice([("on_step_begin", 6), ("on_step_end", 6), ("on_log", 6), ("on_save", 2)])
        if begin(tmp_path, Stop(what, rng.randint(1, most), KILL)) == 0:
            assert_ends_as_if_undisturbed(tmp_path, undisturbed)
            shutil.rmtree(tmp_path / "demo")
        else:
            kills -= 1
    assert_ends_as_if_undisturbed(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signalled_run_ends_as_if_nothing_had_happened(undisturbed, tmp_path, number):
    _, _, begin = undisturbed
    assert begin(tmp_path, Stop("on_step_end", 5, SIGNAL, number)) == 75
    card = tmp_path / "demo/pspo/seed0/README.md"
    assert not card.exists()  # TRL writes one at each checkpoint, which says nothing of the run
    steps = [int(p.name.split("-")[1]) for p in tmp_path.glob("demo/pspo/seed0/checkpoint-*")]
    assert max(steps) == 8  # the next end of a cycle of 4 steps
    assert_ends_as_if_undisturbed(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_run_cut_off_after_its_last_checkpoint_is_not_trained_further(undisturbed, tmp_path):
    _, _, begin = undisturbed
    assert begin(tmp_path, Stop("on_train_end", 1, KILL)) == -signal.SIGKILL
    assert (tmp_path / "demo/pspo/seed0/checkpoint-20/sealed.json").exists()
    assert_ends_as_if_undisturbed(tmp_path, undisturbed)


def test_a_later_signal_ends_the_process_at_once(monkeypatch):
    from training.callbacks import Run

    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    run = Run.__new__(Run)
    run.signal = None
    run.on_signal(signal.SIGTERM, None)
    run.on_signal(signal.SIGTERM, None)  # the same one, delivered twice
    assert run.signal == signal.SIGTERM and not codes
    run.signalled -= 3
    run.on_signal(signal.SIGUSR1, None)
    assert codes == [128 + signal.SIGUSR1]


@pytest.mark.parametrize("step", [7, 8])
def test_a_signal_in_the_last_step_leaves_its_validation_and_the_best_model_to_it(step, tmp_path):
    from training.callbacks import Run

    accelerator = SimpleNamespace(device="cpu", reduce=lambda flag: flag)
    trainer = SimpleNamespace(accelerator=accelerator, args=SimpleNamespace(save_total_limit=2))
    run = Run(trainer, tmp_path, run_record(status="running"))
    run.signal = signal.SIGTERM
    config = SimpleNamespace(save_strategy="steps", load_best_model_at_end=True)
    last = step == 8
    control = SimpleNamespace(should_log=True, should_save=False, should_evaluate=last, should_training_stop=last)
    state = SimpleNamespace(global_step=step, max_steps=8, epoch=step / 16, log_history=[], is_world_process_zero=False)
    run.on_step_end(config, state, control)
    assert control.should_training_stop and control.should_save == (step == 7)
    assert config.load_best_model_at_end == control.should_evaluate == (step == 8)


@pytest.mark.slow
def test_a_truncated_checkpoint_is_passed_over(undisturbed, tmp_path):
    _, _, begin = undisturbed
    assert begin(tmp_path, Stop("on_step_begin", 13, KILL)) == -signal.SIGKILL
    newest = tmp_path / "demo/pspo/seed0/checkpoint-12"
    os.truncate(newest / "optimizer.pt", (newest / "optimizer.pt").stat().st_size - 1)
    assert_ends_as_if_undisturbed(tmp_path, undisturbed)
    text = (tmp_path / "log").read_text()
    assert "checkpoint-12 is incomplete or damaged" in text and "continuing from" in text and "checkpoint-8" in text


# ---- what stops a run by itself


def test_a_loss_that_is_not_finite_stops_the_run(run, tmp_path):
    run(*SMALL, "--learning_rate", "1e30", "--max_grad_norm", "0", "--beta", "0.1", code=1)
    text = (tmp_path / "log").read_text()
    assert "stopped" in text and "Traceback" not in text


def _child_with_small_disk(argv, log):
    """As _child, where a file can grow to 5 MB: the demo's weights fit, its optimiser state does not."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * 10**6, 5 * 10**6))
    _child(argv, log)


@pytest.mark.slow
def test_a_disk_that_fills_stops_the_run_and_spoils_nothing(run, tmp_path):
    process = fork(_child_with_small_disk, [*DEMO, "--output_root", tmp_path / "a", *SMALL], tmp_path / "log")
    process.join()
    lines = (tmp_path / "log").read_text().splitlines()
    assert process.exitcode == 1 and "cannot write to" in lines[-1]
    assert not list(tmp_path.glob("a/**/sealed.json"))
    assert weights(run(*SMALL)) == weights(run(*SMALL, root="b"))  # with room again, as if nothing had happened


def test_too_little_room_for_a_checkpoint_stops_the_run_before_it_is_saved(monkeypatch, tmp_path):
    from training.callbacks import check_space

    check_space(tmp_path, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(SystemExit, match="Make room"):
        check_space(tmp_path, 10**6)


def log_of_steps(first, last, every=1, validated_every=None, zero_std=1.0):
    """Rows as a training logs them, of which one in `every` carries rewards, and rows of validations between them."""
    rows = []
    for step in range(first, last + 1):
        generated = {"reward": 0.0, "frac_reward_zero_std": zero_std} if step % every == 0 else {}
        rows.append({"step": step, "loss": 0.0, **generated})
        if validated_every and step % validated_every == 0:
            rows.append({"step": step, "eval_reward": 0.1, "eval_frac_reward_zero_std": 0.0})
    return rows


@pytest.mark.parametrize(("every", "validated_every"), [(1, None), (1, 1), (1, 7), (2, 10), (50, 50)])
def test_a_reward_that_never_differs_stops_the_run(every, validated_every):
    """However often it is validated, and though rows between two generations have no rewards."""
    from training.callbacks import check_log

    rows = log_of_steps(1, 99, every, validated_every)
    for count in range(1, len(rows) + 1):
        check_log(rows[:count], Path("run"))
    with pytest.raises(SystemExit, match="same reward for 100 steps"):
        check_log(log_of_steps(1, 100, every, validated_every), Path("run"))
    check_log(log_of_steps(1, 100, every, validated_every, zero_std=0.99), Path("run"))


def test_a_reward_that_differs_once_begins_the_count_again():
    from training.callbacks import check_log

    rows = [*log_of_steps(1, 99), *log_of_steps(100, 100, zero_std=0.5), *log_of_steps(101, 199, validated_every=3)]
    check_log(rows, Path("run"))
    with pytest.raises(SystemExit, match=r"up to 200\)"):
        check_log([*rows, *log_of_steps(200, 200)], Path("run"))


# ---- LoRA


@pytest.mark.slow
def test_lora_trains_continues_merges_and_agrees(run, tmp_path, start):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    flags = [*SMALL, "--max_steps", "8", "--use_peft", "--lora_r", "4", "--lora_dropout", "0"]
    flags += ["--lora_target_modules", "q_proj", "v_proj", "--merge_adapter"]
    path = tmp_path / "a/demo/pspo/seed0"
    argv = ["--model", "demo", "--trust_region_method", "pspo", "--output_root", tmp_path / "a", *flags]
    killed(start(argv, tmp_path / "log", AFTER_STEP_4))
    continued, straight = run(*flags), run(*flags, root="b")
    assert weights(continued) == weights(straight)
    assert not list(path.glob("training_args.bin")) and not list(path.glob("adapter/*.bin"))  # no pickle is left
    merged = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    base = AutoModelForCausalLM.from_pretrained(ROOT / "demo" / "model", dtype="float32")
    unmerged = PeftModel.from_pretrained(base, path / "adapter")
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, unmerged(ids).logits, atol=1e-4)
        with unmerged.disable_adapter():
            assert not torch.allclose(merged(ids).logits, unmerged(ids).logits, atol=1e-4)  # it did learn


# ---- bad input

DEMO = ["--model", "demo", "--trust_region_method", "pspo"]
CLIP = ["--model", "demo", "--trust_region_method", "clip"]
BAD_FLAGS = [
    (["--trust_region_method", "pspo"], "--model"),
    (["--model", "demo"], "--trust_region_method"),
    (["--model", "demo", "--trust_region_method", "ppo"], "ppo"),
    (["--model", "demo", "--trust_region_method", "PSPO"], "PSPO"),
    (["--model", "no-such-model", "--trust_region_method", "pspo"], "no-such-model"),
    (["--model", "Qwen2.5-0.5B", "--trust_region_method", "pspo"], "save_model_locally.py"),
    (["--model", "some/model", "--trust_region_method", "pspo"], "save_model_locally.py"),
    ([*DEMO, "--dataset", "imagenet"], "imagenet"),
    ([*DEMO, "--dataset", "gsm8k"], "save_model_locally.py"),
    ([*DEMO, "--smoothing_alpha", "1.5"], "smoothing_alpha"),
    ([*DEMO, "--smoothing_alpha", "-0.1"], "smoothing_alpha"),
    ([*DEMO, "--smoothing_alpha", "nan"], "smoothing_alpha"),
    ([*DEMO, "--smoothing_alpha", "big"], "smoothing_alpha"),
    ([*DEMO, "--loss_type", "cispo"], "loss_type"),
    ([*CLIP, "--loss_type", "cispo"], "--epsilon_high"),
    ([*DEMO, "--sampler", "own", "--min_p", "0.1"], "--min_p"),
    ([*DEMO, "--sampler", "fast"], "fast"),
    ([*DEMO, "--loss_type", "nonsense"], "nonsense"),
    ([*DEMO, "--delta", "2"], "delta"),
    ([*DEMO, "--use_liger_kernel"], "use_liger_kernel"),
    ([*DEMO, "--num_generations", "3"], "num_generations"),
    ([*DEMO, "--num_generations", "1"], "num_generations must be at least 2"),
    ([*DEMO, "--per_device_train_batch_size", "0"], "per_device_train_batch_size"),
    ([*DEMO, "--generation_batch_size", "7"], "generation_batch_size"),
    ([*DEMO, "--per_device_eval_batch_size", "3", "--num_generations_eval", "2"], "eval"),
    ([*DEMO, "--learning_rate", "fast"], "learning_rate"),
    ([*DEMO, "--lerning_rate", "1e-4"], "learning_rate"),
    ([*DEMO, "-epsilon", "0.2"], "did you mean epsilon"),
    ([*DEMO, "--no_learning_rate"], "no_learning_rate"),
    ([*DEMO, "0.2"], "0.2"),
    ([*DEMO, "--seed", "-1"], "seed"),
    ([*DEMO, "--seed", "one"], "seed"),
    ([*DEMO, "--save_steps", "41", "--load_best_model_at_end", "False"], "save_steps"),
    ([*DEMO, "--eval_steps", "41", "--load_best_model_at_end", "False"], "eval_steps"),
    ([*DEMO, "--logging_steps", "7"], "logging_steps"),
    ([*DEMO, "--steps_per_generation", "376", "--save_steps", "376", "--eval_steps", "376"], "training rows"),
    ([*DEMO, "--device", "cuda"], "CUDA"),
    ([*DEMO, "--device", "tpu"], "tpu"),
    ([*DEMO, "--trust_remote_code"], "trust_remote_code"),
    ([*DEMO, "--model_name_or_path", "x"], "--model"),
    ([*DEMO, "--resume_from_checkpoint", "x"], "resume_from_checkpoint"),
    ([*DEMO, "--push_to_hub"], "push_to_hub"),
    ([*DEMO, "--use_vllm"], "vllm"),
    ([*DEMO, "--config", "no-such-recipe.yaml"], "no-such-recipe.yaml"),
    ([*DEMO, "--config", "."], "recipe"),
    ([*DEMO, "--merge_adapter"], "--use_peft"),
    ([*CLIP, "--epsilon", "wide"], "epsilon"),
    ([*DEMO, "--max_steps", "0", "--num_train_epochs", "0"], "max_steps must be at least 1"),
    ([*DEMO, "--report_to", "wandb"], "wandb"),
    ([*DEMO, "--dtype", "float8"], "dtype"),
]


def refused(argv, named, start, tmp_path):
    """The run must end with exit code 2 and one line that holds `named`, with no model loaded and nothing trained."""
    process = start([*argv, "--output_root", tmp_path / "runs"], tmp_path / "log")
    process.join()
    lines = (tmp_path / "log").read_text().strip().splitlines()
    assert process.exitcode == 2, lines
    assert len(lines) == 1 and lines[0].startswith("maths_finetuning.py: error: "), lines
    assert named in lines[0]
    assert not list(tmp_path.glob("runs/**/metrics.jsonl"))


@pytest.mark.parametrize(("argv", "named"), BAD_FLAGS, ids=lambda v: " ".join(v)[-60:] if isinstance(v, list) else None)
def test_bad_flags(argv, named, start, tmp_path, monkeypatch):
    refused(["--cache_dir", tmp_path / "cache", *argv], named, start, tmp_path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lerning_rate: 1\n", "learning_rate"),
        ("1: 2\n", "unknown option 1"),
        ("- a list\n", "mapping"),
        ("a: [1\n", "recipe"),
        ("env: {A: 1}\n", "env"),
        ("trust_region_method: ppo\n", "ppo"),
        ("\xff\n", "recipe"),
        ("smoothing_alpha: 2\n", "smoothing_alpha"),
    ],
)
def test_bad_recipes(text, named, start, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(text.encode("latin-1"))
    argv = DEMO if named != "ppo" else DEMO[:2]
    refused([*argv, "--config", tmp_path / "recipe.yaml"], named, start, tmp_path)


def copy_model(tmp_path):
    return Path(shutil.copytree(ROOT / "demo" / "model", tmp_path / "model"))


def damage_weights(path):
    os.truncate(path / "model.safetensors", 1000)


def drop_template(path):
    (path / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((path / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def make_adapter(path):
    (path / "config.json").unlink()
    (path / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_weights, "model.safetensors"),
        (lambda path: (path / "model.safetensors").unlink(), "no safetensors"),
        (lambda path: (path / "tokenizer.json").write_text("{"), "tokenizer"),
        (lambda path: (path / "config.json").write_text("{"), "config.json"),
        (drop_template, "chat template"),
        (make_adapter, "adapter"),
    ],
)
def test_bad_models(damage, named, start, tmp_path):
    path = copy_model(tmp_path)
    damage(path)
    argv = ["--model", path, "--trust_region_method", "pspo", "--dataset", "demo", "--learning_rate", "1e-5"]
    refused([*argv, *DEMO_SIZES], named, start, tmp_path)


DEMO_SIZES = ["--max_steps", "2", "--save_steps", "2", "--eval_steps", "2", "--num_generations", "8"]


def test_a_model_without_a_row_needs_a_learning_rate(start, tmp_path):
    argv = ["--model", copy_model(tmp_path), "--trust_region_method", "pspo", "--dataset", "demo"]
    refused(argv, "--learning_rate", start, tmp_path)


def test_an_output_directory_of_another_configuration(run, start, tmp_path):
    flags = [*SMALL, "--max_steps", "4"]
    run(*flags)
    process = start([*DEMO, "--output_root", tmp_path / "a", *flags, "--temperature", "0.5"], tmp_path / "log")
    process.join()
    text = (tmp_path / "log").read_text()
    assert process.exitcode == 2 and "temperature" in text and "--overwrite" in text


@pytest.fixture
def stopped(start, tmp_path):
    """(path, argv) of a run that was killed after its first checkpoint."""
    path, argv = tmp_path / "a/demo/pspo/seed0", [*DEMO, "--output_root", tmp_path / "a", *SMALL]
    killed(start(argv, tmp_path / "log", AFTER_STEP_4))
    return path, argv


CHANGES = {
    "data train": {"data": {"train": "7 rows, x"}},
    "versions torch": {"versions": {"torch": "1.0"}},
    "patches grpotrainer.patch": {"patches": {"grpotrainer.patch": "x"}},
    "grader": {"grader": 0},
    "device name": {"device": {"name": "99 threads"}},
    "model": {"model": ["x"]},
}


@pytest.mark.slow
def test_a_run_goes_on_with_other_code_or_data_only_when_it_is_told_to(stopped, start, tmp_path):
    path, argv = stopped
    stored = json.loads((path / "run.json").read_text())
    basis = stored["basis"]
    for name, changed in CHANGES.items():
        other = {key: {**basis[key], **value} if isinstance(value, dict) else value for key, value in changed.items()}
        (path / "run.json").write_text(json.dumps({**stored, "basis": {**basis, **other}}))
        before = snapshot(path)
        process = start(argv, tmp_path / "log")
        process.join()
        line = (tmp_path / "log").read_text().strip()
        assert process.exitcode == 2 and "\n" not in line and name in line, line
        assert "--accept_changes" in line and snapshot(path) == before
    process = start([*argv, "--accept_changes"], tmp_path / "log")
    process.join()
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    after = json.loads((path / "run.json").read_text())
    assert after["changes"][0]["changed"] == {"model": [["x"], basis["model"]]}
    assert after["basis"] == basis


def test_overwrite_waits_for_nobody_and_moves_nothing_that_is_live(stopped, start, tmp_path):
    from common.files import hold_lock

    path, argv = stopped
    before = snapshot(path)
    (path / "evaluations").mkdir()
    for place, named in (
        (path, "another process is training"),
        (path / "evaluations", "another process is evaluating"),
    ):
        with hold_lock(place, "in use"):
            process = start([*argv, "--overwrite"], tmp_path / "log")
            process.join()
        assert process.exitcode == 2 and named in (tmp_path / "log").read_text()
        assert snapshot(path) == before and not path.with_name("seed0.old-1").exists()


def test_an_output_directory_that_is_not_ours(start, tmp_path):
    (tmp_path / "runs/demo/pspo/seed0").mkdir(parents=True)
    (tmp_path / "runs/demo/pspo/seed0/thesis.tex").write_text("x")
    refused(DEMO, "not empty", start, tmp_path)


def test_an_output_directory_in_use(start, tmp_path):
    import fcntl

    path = tmp_path / "runs/demo/pspo/seed0"
    path.mkdir(parents=True)
    with open(path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(DEMO, "another process", start, tmp_path)


def test_an_output_root_that_is_a_file(start, tmp_path):
    (tmp_path / "runs").write_text("x")
    process = start([*DEMO, "--output_root", tmp_path / "runs"], tmp_path / "log")
    process.join()
    assert process.exitcode == 2 and "cannot write" in (tmp_path / "log").read_text()


def test_damaged_run_record(start, tmp_path):
    path = tmp_path / "runs/demo/pspo/seed0"
    path.mkdir(parents=True)
    (path / "run.json").write_text("{")
    refused(DEMO, "run.json", start, tmp_path)


@pytest.mark.parametrize("files", [["grpo_trainer.py", "grpo_config.py"], ["grpo_trainer.py"], ["grpo_config.py"]])
@pytest.mark.slow
def test_an_unpatched_or_half_patched_trl(files, tmp_path):
    import trl

    package = Path(shutil.copytree(Path(trl.__file__).parent, tmp_path / "site" / "trl"))
    patch = [sys.executable, ROOT / "apply_patches.py", "--target", package.parent]
    pristine = Path(shutil.copytree(package, tmp_path / "pristine" / "trl"))
    subprocess.run([*patch[:-1], pristine.parent, "--reverse"], check=True, capture_output=True)
    for file in files:
        shutil.copy(pristine / "trainer" / file, package / "trainer" / file)
    done = subprocess.run(
        [sys.executable, ROOT / "maths_finetuning.py", *DEMO, "--output_root", tmp_path / "runs"],
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "apply_patches.py" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_no_space_is_found_before_training(monkeypatch, tmp_path):
    from training.callbacks import check_room

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(BadInput, match="free"):
        check_room(tmp_path, ROOT / "demo" / "model", 2)


# ---- real GSM8K rows


@pytest.fixture(scope="session")
def real_cache(shared, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache")
    command = [sys.executable, ROOT / "save_model_locally.py", "--from_files", shared / "data", "--cache_dir", path]
    subprocess.run([*command, "--datasets", "gsm8k"], check=True, capture_output=True)
    return path


@pytest.mark.parametrize("method", ["pspo", "sft"])
@pytest.mark.slow
def test_real_rows_are_trained_on(run, real_cache, method):
    flags = ["--dataset", "gsm8k", "--cache_dir", real_cache, "--max_steps", "2", "--per_device_train_batch_size", "4"]
    flags += ["--gradient_accumulation_steps", "2", "--save_steps", "2", "--eval_strategy", "no", "--warmup_steps", "0"]
    flags += ["--load_best_model_at_end", "False", "--skip_long_prompts"]  # 16 rows exceed the demo's 512 positions
    flags += [] if method == "sft" else ["--num_generations", "4", "--max_completion_length", "32"]
    path = run(*flags, method=method)
    data = read_record(path).basis.data
    kept = {name: int(part.split()[0]) for name, part in data.items()}
    share = 0.8 if method == "sft" else 0.99  # SFT's rows hold their answers
    assert share * 7000 < kept["train"] <= 7000 and share * 473 < kept["validation"] <= 473
    assert [row["step"] for row in log_rows(path)] == [1, 2]


@pytest.mark.parametrize("saved", [True, False])
def test_an_interruption_says_where_the_same_command_goes_on(tmp_path, capsys, monkeypatch, saved):
    def interrupt(resume_from_checkpoint):
        raise KeyboardInterrupt

    there = tmp_path / "checkpoint-4" if saved else None
    monkeypatch.setattr(runs, "find_checkpoint", lambda path: there)
    main_process = SimpleNamespace(distributed_state=SimpleNamespace(is_main_process=True))
    trainer = SimpleNamespace(train=interrupt, args=main_process, state=SimpleNamespace(global_step=7))
    with pytest.raises(KeyboardInterrupt):
        maths_finetuning.train(trainer, SimpleNamespace(path=tmp_path), None)
    goes_on = "goes on from checkpoint-4" if saved else "begins again"
    assert f"interrupted at step 7: the same command {goes_on}" in capsys.readouterr().out
