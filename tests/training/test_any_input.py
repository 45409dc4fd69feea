"""Whatever is given to the scripts is a run or one line that says what is wrong, and every way to say it says the same.

Random keys, types and ranges, through recipes, grids and command lines. GRPSPO_SLOW_TESTS=1 trains what was accepted.
"""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import maths_evaluations
import maths_finetuning
from common.files import BadInput, to_yaml
from common.values import kinds_of_parser
from maths_grid import read_grid
from slurm.grid_file import OURS
from training.options import read_field_kinds

ALWAYS_THE_SAME = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
QUICK = settings(max_examples=40, **ALWAYS_THE_SAME)
DEMO = ["--model", "demo", "--trust_region_method", "pspo"]
# What starts other processes or belongs to other machines, and what a grid names otherwise.
ELSEWHERE = {"deepspeed", "fsdp", "fsdp_config", "local_rank", "torch_compile", "output_dir", "log_level"}
BY_GRID = {*OURS, "model", "seed", "config", "trust_region_method"}
OPTIONS = sorted(read_field_kinds("pspo").keys() - ELSEWHERE - BY_GRID)
FLAGS = sorted(kinds_of_parser(maths_finetuning.make_parser()).keys() - BY_GRID)
WORDS = "no yes true false none -1 0 1 2 16 0.5 1e-6 nan inf steps epoch auto grpo token [] {} demo gsm8k".split()
TEXT = st.sampled_from(WORDS) | st.text("abz.é ", max_size=4)
SCALARS = st.none() | st.booleans() | st.integers(-2, 64) | st.integers() | st.floats() | TEXT
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text("ab", min_size=1), SCALARS, max_size=2)
KEYS = st.sampled_from(OPTIONS) | st.sampled_from(FLAGS) | st.sampled_from(["x", "learning_rat", "no_bf16"])
RECIPES = st.dictionaries(KEYS, VALUES, max_size=3)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A directory of its own, and the environment as it was: some options of transformers set variables."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def outcome(argv):
    """{option: value} of an accepted command line, or None; a refusal is one line that is not endless."""
    try:
        plan = maths_finetuning.resolve(maths_finetuning.parse(argv))
    except BadInput as error:
        assert 0 < len(str(error)) < 3000
        return None
    ours = {name: value for name, value in vars(plan.command.args).items() if name not in ("config", "output_root")}
    values = {name: value for name, (value, _) in plan.values.items() if name != "output_dir"}
    return repr({**values, **ours, "dataset": plan.command.dataset})


def by_grid(recipe):
    """The same of a grid of one cell with these flags."""
    axes = {"model": ["demo"], "method": ["pspo"], "seed": [0]}
    Path("grid.yaml").write_text(to_yaml({"axes": axes, "train": recipe}))
    try:
        (cell,) = read_grid("grid.yaml")
    except BadInput as error:
        assert str(error).startswith("grid.yaml")
        return None
    return outcome(cell.train[2:])


@QUICK
@given(RECIPES)
def test_a_recipe_and_a_grid_mean_the_same(recipe):
    Path("recipe.yaml").write_text(to_yaml(recipe))
    assert outcome([*DEMO, "--config", "recipe.yaml"]) == by_grid(recipe)


@QUICK
@given(st.lists(st.tuples(KEYS, TEXT | st.sampled_from(["null", ""])), max_size=3), st.booleans())
def test_any_command_line_is_a_run_or_one_line(said, glued):
    words = [word for key, value in said for word in ([f"--{key}={value}"] if glued else [f"--{key}", value])]
    outcome([*DEMO, *words])


@QUICK
@given(st.dictionaries(st.sampled_from(["axes", "cells", "train", "evaluate", "output_root", "x"]), VALUES | RECIPES))
def test_any_grid_is_cells_or_one_line(grid):
    Path("grid.yaml").write_text(to_yaml(grid))
    try:
        read_grid("grid.yaml")
    except BadInput as error:
        assert 0 < len(str(error)) < 3000


EVALUATION = sorted(kinds_of_parser(maths_evaluations.make_parser()).keys() - {"model_path"})


@QUICK
@given(st.lists(st.tuples(st.sampled_from(EVALUATION), TEXT), max_size=3))
def test_any_command_line_of_an_evaluation_is_one_or_one_line(said):
    try:
        args = maths_evaluations.parse_args(["--model_path", "demo", *(f"--{key}={value}" for key, value in said)])
    except BadInput as error:
        assert 0 < len(str(error)) < 3000
    else:
        assert args.samples_per_prompt >= 1 and min(args.temperatures) >= 0 and 0 < args.top_p <= 1


# ---- what was accepted trains

TINY = (
    "--per_device_train_batch_size 4 --gradient_accumulation_steps 1 --num_generations 2 --num_generations_eval 1 "
    "--per_device_eval_batch_size 64 --max_completion_length 4 --max_steps 2 --save_steps 2 --eval_steps 2 "
    "--warmup_steps 0"
).split()
# What would only cost time or memory here.
SIZES = {
    "max_steps num_train_epochs generation_batch_size steps_per_generation num_generations num_generations_eval lora_r "
    "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps max_completion_length "
    "dataloader_num_workers dataset_num_proc num_iterations pad_to_multiple_of cache_dir dataset output_root device"
}
SMALL = st.booleans() | st.sampled_from([0, 1, 2, 3, 0.1, 0.5, 1.5]) | st.sampled_from(WORDS) | st.none()


@pytest.mark.slow
@settings(max_examples=60, **ALWAYS_THE_SAME)
@given(st.dictionaries(st.sampled_from(sorted({*OPTIONS, *FLAGS} - {*" ".join(SIZES).split()})), SMALL, max_size=3))
def test_what_is_accepted_trains(tmp_path_factory, recipe):
    out = tmp_path_factory.mktemp("run")
    rows = [json.dumps({"question": f"{n}+1?", "answer": f"#### {n + 1}"}) + "\n" for n in range(20)]
    (out / "mine.jsonl").write_text("".join(rows))
    (out / "recipe.yaml").write_text(to_yaml(recipe))
    argv = [*DEMO, *TINY, "--dataset", out / "mine.jsonl", "--config", out / "recipe.yaml", "--output_dir", out / "run"]
    try:
        assert maths_finetuning.main([str(word) for word in argv]) == 0
    except BadInput:
        assert not (out / "run/run.json").exists(), "refused only after it had begun"
    except SystemExit as error:  # what the numbers themselves did: a loss that is not finite
        assert "stopped" in str(error)


def test_the_strategies_reach_options_of_every_kind():
    kinds = read_field_kinds("pspo")
    assert {name for option in OPTIONS for name in kinds[option].types} >= {
        "bool",
        "int",
        "float",
        "str",
        "dict",
        "list",
    }
    assert len(OPTIONS) > 150 and {field.name for field in dataclasses.fields(maths_finetuning.Plan)} >= {"values"}
