"""The grid: cells and their places, what is refused, where a cell stands, running here."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from forked import fork, run_and_read, run_apart
from producers import run_record, write_run

import maths_finetuning
import maths_grid
from common import runs
from common.files import BadInput, hold_lock
from common.models import fp32_bytes
from common.record import Outcome, read_record, write_record
from maths_grid import cell_state, find_needs, read_grid
from reporting.chosen import find_states
from slurm import commands, preflight, queue
from slurm.cells import EVALUATED, TO_DO, pick

ROOT = Path(__file__).resolve().parents[2]
AXES = {"model": ["demo"], "method": ["noclip", "pspo"], "seed": [0, 1]}
TINY = {  # two seconds of training beside the imports
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 64,
    "num_generations": 4,
    "max_completion_length": 8,
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "save_steps": 2,
    "warmup_steps": 0,
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(maths_grid.slurm_queue, "list_jobs", lambda: [])  # whatever this machine has queued


def write_grid(path="grid.yaml", **parts):
    Path(path).write_text(yaml.safe_dump({"axes": AXES, **parts}, sort_keys=False))
    return path


def places(**parts):
    return [str(cell.run_dir) for cell in read_grid(write_grid(**parts))]


def flags_of(cell):
    return dict(re.findall(r"--(\w+) (\S+)", " ".join(cell.train)))


def without_slurm():
    """An environment whose PATH has no SLURM, installed here or not."""
    bare = Path(tempfile.mkdtemp(dir=Path.cwd().parent))
    for name in ("bash", "env", "git", "id"):
        (bare / name).symlink_to(shutil.which(name))
    return {**os.environ, "PATH": str(bare)}


def grid_command(*args, **kwargs):
    env = {**without_slurm(), **kwargs.pop("env", {})}
    return subprocess.run(
        [sys.executable, ROOT / "maths_grid.py", *args], capture_output=True, text=True, env=env, **kwargs
    )


# ---- cells


def test_cells_are_the_product_in_order_with_all_that_a_command_needs():
    cells = read_grid(write_grid(train=TINY, evaluate={"limit": 5, "temperatures": [0, 0.5]}))
    assert [(c.index, c.method, c.seed) for c in cells] == [
        (0, "noclip", 0), (1, "noclip", 1), (2, "pspo", 0), (3, "pspo", 1)
    ]  # fmt: skip
    assert str(cells[3].run_dir) == "runs/demo/pspo/seed1" and str(cells[3].log) == "logs/runs/demo/pspo/seed1.log"
    flags = flags_of(cells[3])
    assert flags["model"] == "demo" and flags["trust_region_method"] == "pspo" and flags["seed"] == "1"
    assert flags["output_dir"] == "runs/demo/pspo/seed1" and flags["load_best_model_at_end"] == "false"
    assert cells[3].evaluate[2:] == "--model_path runs/demo/pspo/seed1 --limit 5 --temperatures 0 0.5".split()


def test_a_place_follows_from_the_values_alone():
    axes = {**AXES, "learning_rate": ["1e-6", 2e-5], "beta": [0.0, 0.04]}
    backwards = {key: value[::-1] + [7] * (key == "seed") for key, value in reversed(axes.items())}
    before, after = places(axes=axes), places(axes=backwards)
    assert set(before) < set(after) and len(after) == 24
    assert "runs/demo/pspo-beta=0.04-learning_rate=2e-5/seed1" in before
    assert all(re.fullmatch(r"[A-Za-z0-9/=._-]+", place) for place in after)


@pytest.mark.parametrize("rate", [1e-6, "1e-6", "1.0e-6", "1e-06"])
def test_one_number_has_one_place(rate):
    assert "runs/demo/pspo-learning_rate=1e-6/seed0" in places(axes={**AXES, "learning_rate": [rate]})


def test_texts_keep_their_value():
    for value in (0.1, 5e-7, 1e22, 100.0, 0.30000000000000004, 1e-10, 1.5e10):
        assert float(maths_grid.to_text(value)) == value
    assert [maths_grid.to_text(v) for v in (100.0, 7, True, "x", 1e-10)] == ["100", "7", "true", "x", "1e-10"]


def test_an_output_root_may_lie_anywhere(tmp_path):
    for root, place in (
        ("x/../y", "y"),
        (str(tmp_path / "y"), "y"),
        ("../y", str(tmp_path.parent / "y")),
        ("/y", "/y"),
    ):
        cell = read_grid(write_grid(output_root=root))[0]
        assert str(cell.run_dir) == f"{place}/demo/noclip/seed0" and str(cell.log).startswith("logs/")
        assert ".." not in cell.log.parts


def test_named_cells_stand_for_the_axes_they_set():
    own = {
        "noclip-mu2": {"method": "noclip", "num_iterations": 2},
        "soft": {"method": "pspo", "smoothing_alpha": [0.1, 0.2]},
    }
    cells = read_grid(write_grid(cells=own, axes={**AXES, "seed": [3]}))
    assert [str(c.run_dir) for c in cells] == [
        "runs/demo/noclip/seed3",
        "runs/demo/pspo/seed3",
        "runs/demo/noclip-mu2/seed3",
        "runs/demo/soft-smoothing_alpha=0.1/seed3",
        "runs/demo/soft-smoothing_alpha=0.2/seed3",
    ]
    assert (flags_of(cells[2])["num_iterations"], flags_of(cells[2])["trust_region_method"]) == ("2", "noclip")
    assert "num_iterations" not in flags_of(cells[0])


def test_a_named_cell_goes_before_the_flags_of_all():
    cells = read_grid(write_grid(train={"max_steps": 4}, cells={"long": {"method": "pspo", "max_steps": 8}}))
    assert {flags_of(c)["max_steps"] for c in cells if c.name == "long"} == {"8"}
    assert {flags_of(c)["max_steps"] for c in cells if c.name != "long"} == {"4"}


def test_a_number_names_a_cell_as_its_text_does():
    assert "runs/demo/2/seed3" in places(cells={2: {"method": "noclip"}}, axes={**AXES, "seed": [3]})


def test_paper_grid_is_75_cells_of_the_papers_table():
    cells = read_grid(ROOT / "recipes/paper.yaml")
    assert len(cells) == 75 == len({cell.run_dir for cell in cells})
    assert {cell.name for cell in cells} == {"clip", "noclip", "noclip-mu2", "pspo", "sft"}
    assert cells[0].evaluate[4:] == (
        "--datasets gsm8k MATH-500 asdiv SVAMP --temperatures 0 0.2 0.4 0.6 0.8 --samples_per_prompt 16".split()
    )
    for path in (ROOT / "recipes").glob("*.yaml"):  # the others are accelerate's
        if "axes" in yaml.safe_load(path.read_text()):
            assert read_grid(path)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"axes": {**AXES, "learning_rat": [1e-6]}}, "learning_rat.*did you mean learning_rate"),
        ({"axes": {**AXES, "methods": ["clip"]}}, "methods.*did you mean method"),
        ({"axes": {**AXES, "method": ["pspoo"]}}, "grid.yaml, axes: method must be one of clip, noclip.*, got 'pspoo'"),
        ({"axes": {**AXES, "beta": ["1e-2", 0.01]}}, "2 cells share the directory runs/demo/noclip-beta=0.01/seed0"),
        ({"axes": {**AXES, "model": ["a/b", "c/b"]}}, "2 cells share the directory runs/b/noclip/seed0"),
        ({"cells": {"pspo": {"method": "pspo", "beta": 0.1}}}, "2 cells share the directory"),
        ({"cells": {"x": {"metod": "pspo"}}}, "cells: x: unknown name 'metod'; did you mean method"),
        ({"axes": {"method": ["clip"], "seed": [0]}}, "no model"),
        ({"axes": {**AXES, "model": [".."]}}, "'..' cannot be part"),
        ({"axes": {**AXES, "output_dir": ["x"]}}, "output_dir cannot be given"),
        ({"train": {"output_root": "x"}}, "output_root cannot be given"),
        ({"train": {"overwrite": True}}, "overwrite cannot be given"),
        ({"train": {"seed": 5}}, "train: seed cannot be given: it is an axis"),
        ({"axes": ["clip"]}, "axes: must be a mapping"),
        ({"axis": {}}, "unknown name 'axis'; did you mean axes"),
        ({"axes": {}}, "has no cells"),
        ({"axes": {**AXES, "seed": []}}, "has no cells"),
        ({"evaluate": {"model_path": "x"}}, "model_path cannot be given"),
        ({"axes": {**AXES, "beta": [None]}}, "grid.yaml, axes: beta must be a number, got null"),
        ({"axes": {**AXES, "seed": [0.5]}}, "grid.yaml, axes: seed must be a whole number, got 0.5"),
        ({"train": {"use_peft": "maybe"}}, "grid.yaml, train: use_peft must be true or false, got 'maybe'"),
        ({"train": {"learning_rate": -1}}, "grid.yaml, train: learning_rate must be at least 0, got -1"),
        ({"train": {"accept_changes": 3}}, "grid.yaml, train: accept_changes must be true or false, got 3"),
        ({"cells": {"x": {"epsilon": "wide"}}}, "grid.yaml, cells: x: epsilon must be a number, got 'wide'"),
        (
            {"evaluate": {"temperature": 1}},
            "grid.yaml, evaluate: unknown name 'temperature'; did you mean temperatures",
        ),
        ({"evaluate": {"limit": True}}, "grid.yaml, evaluate: limit must be a whole number or null, got True"),
        ({"axes": {**AXES, "beta": [[1, 2]]}}, "beta.*a list"),
    ],
)
def test_a_faulty_grid_is_refused_in_one_line(parts, words):
    write_grid(**parts)
    with pytest.raises(BadInput, match=words):
        read_grid("grid.yaml")


def test_values_mean_what_the_types_of_their_flags_say():
    Path("grid.yaml").write_text(
        "axes: {model: [demo], method: [pspo], seed: [0]}\n"
        "cells:\n  yes: {beta: 0}\n  no: {beta: 1}\n"
        "train: {use_peft: true, accept_changes: false, bf16: no, disable_tqdm: true, eval_strategy: no,\n"
        "  save_total_limit: null, dataset: null, learning_rate: 1e-6,\n"
        "  chat_template_kwargs: {a: false}, run_name: -x}\n"
        "evaluate: {skip_long_prompts: false, limit: null, temperatures: 1}\n"
    )
    plain, yes, no = read_grid("grid.yaml")
    assert (plain.name, yes.name, no.name) == ("pspo", "yes", "no")
    words = plain.train[plain.train.index("--output_dir") + 2 :]
    assert words == [
        *"--use_peft true --accept_changes false --bf16 false --disable_tqdm true --eval_strategy no".split(),
        *"--save_total_limit null --learning_rate 1e-6 --chat_template_kwargs".split(),
        '{"a": false}',
        "--run_name=-x",
    ]
    assert plain.evaluate[4:] == "--skip_long_prompts false --temperatures 1".split()
    plan = maths_finetuning.resolve(maths_finetuning.parse([*plain.train[2:], "--load_best_model_at_end", "false"]))
    values = {name: value for name, (value, _) in plan.values.items()}
    assert plan.command.args.accept_changes is False and values["use_peft"] is True and values["bf16"] is False
    assert values["save_total_limit"] is None and values["chat_template_kwargs"] == {"a": False}
    assert values["eval_strategy"] == "no" and values["disable_tqdm"] is True and values["run_name"] == "-x"


def test_refused_grids_end_with_code_2_and_one_line(tmp_path):
    for text in ("a: [", "- 1", "\0", "axes: {model: [demo], method: [pspo], seed: [0], bta: [1]}"):
        Path("grid.yaml").write_text(text)
        done = grid_command("grid.yaml", "--list")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "grid.yaml" in done.stderr, done.stderr
    assert grid_command("nowhere.yaml", "--run").returncode == 2


@pytest.mark.parametrize(
    "value",
    ["[" * 5000 + "]" * 5000, "{a: " * 1000 + "1" + "}" * 1000, "&a {b: *a}", "&a [*a]", "9" * 5000],
)
def test_yaml_that_cannot_be_taken_in_is_refused(value):
    Path("grid.yaml").write_text(f"train: {{lr_scheduler_kwargs: {value}}}")
    with pytest.raises(BadInput, match=r"^cannot read the grid grid.yaml: "):
        read_grid("grid.yaml")


@pytest.mark.parametrize("text", ["axes: {seed: [0], seed: [1]}", "cells:\n  x: {beta: 1}\n  x: {beta: 2}"])
def test_a_key_that_is_given_twice_is_refused(text):
    Path("grid.yaml").write_text(text)
    with pytest.raises(BadInput, match=r"^grid.yaml, line \d: (seed|x) is given twice"):
        read_grid("grid.yaml")


def test_known_names_are_those_of_the_classes_themselves():
    from trl import GRPOConfig, ModelConfig, SFTConfig

    fields = {*GRPOConfig.__dataclass_fields__, *SFTConfig.__dataclass_fields__, *ModelConfig.__dataclass_fields__}
    known = maths_grid.training_kinds().keys()
    assert fields <= known
    own = set(re.findall(r"--(\w+)", subprocess.run(
        [sys.executable, ROOT / "maths_finetuning.py", "--help"], capture_output=True, text=True
    ).stdout))  # fmt: skip
    assert known - fields - {"method"} <= own


def test_flags_that_only_the_scripts_can_judge_are_judged_before_anything_runs():
    check = lambda **parts: find_needs(read_grid(write_grid(**parts)))  # noqa: E731
    check(cells={"sft": {"method": "sft"}}, train={"max_steps": 4}, evaluate={"limit": 3})
    with pytest.raises(BadInput, match=r"cell 2, runs/demo/soft/seed0: .*smoothing_alpha"):
        check(axes={**AXES, "method": ["noclip"]}, cells={"soft": {"method": "clip", "smoothing_alpha": 0.5}})
    with pytest.raises(BadInput, match=r"cell 0.*num_iterations"):
        check(axes={**AXES, "method": ["sft"], "num_iterations": [2]})
    with pytest.raises(BadInput, match=r"grid.yaml, axes: seed must be from 0"):
        check(axes={**AXES, "seed": [0, -1]})
    with pytest.raises(BadInput, match=r"cell 0.*--merge_adapter needs --use_peft"):
        check(train={"merge_adapter": True})
    with pytest.raises(BadInput, match=r"cell 0.*--limit 0"):
        check(evaluate={"limit": 0})
    with pytest.raises(BadInput, match=r"cell 0.*data set"):
        check(evaluate={"datasets": ["gsm9k"]})


def test_what_the_report_is_asked_stands_in_the_grid_and_is_checked_before_anything_runs():
    asked = {"primary": "demo@1", "baseline": "clip", "margin": 2, "failed": "base"}
    assert maths_grid.load_grid(write_grid(report=asked))["report"] == asked
    for wrong, said in (
        ({"primry": "demo@1"}, "unknown name 'primry'; did you mean primary"),
        ({"failed": "never"}, "failed must be one of"),
        ({"margin": "much"}, "margin must be"),
        ({"margin": -1}, "margin must be above 0"),
        (["primary"], "must be a mapping"),
    ):
        with pytest.raises(BadInput, match=rf"^grid.yaml, report: {said}"):
            read_grid(write_grid(report=wrong))


# ---- where a cell stands


def make_run(cell, status="running", rows=(), outcome=None, **flags):
    record = run_record(cell.method, cell.seed, status=status, **{"max_steps": 40, **flags})
    record.outcome = outcome or Outcome(status)
    record.origin.started = "2026-01-01T00:00:00+0000"
    write_run(cell.run_dir, record, rows)


@pytest.fixture
def cell():
    return read_grid(write_grid())[0]


def write_log(cell, text):
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    cell.log.write_text(text)


def test_states(cell):
    assert cell_state(cell) == ("waiting", "")
    assert cell_state(cell, {cell.run_dir.resolve(): ("queued", "Priority", "7")}) == ("queued", "Priority")
    write_log(cell, "a\nmaths_finetuning.py: error: no such thing\n\n")
    assert cell_state(cell) == ("stopped", "maths_finetuning.py: error: no such thing")
    make_run(cell, rows=[{"step": 10, "epoch": 0.1}], outcome=Outcome(finished_steps=8, wall_seconds=80.0))
    write_log(cell, "step 1\r step 2\r\x1b[31mloss is nan\x07")
    assert cell_state(cell) == ("stopped", "?[31mloss is nan?")
    with hold_lock(cell.run_dir, "busy"):
        assert cell_state(cell) == ("running", "step 10 of 40, 5 min left")
    assert cell_state(cell, {cell.run_dir.resolve(): ("running", "", "7")})[0] == "running"
    record = read_record(cell.run_dir)
    record.outcome.status = "finished"
    write_record(cell.run_dir, record)
    assert cell_state(cell)[0] == "trained"
    with hold_lock(cell.run_dir / "evaluations", "busy"):
        assert cell_state(cell) == ("running", "evaluation")
    (cell.run_dir / "evaluations/summary.json").write_text("{}")
    assert cell_state(cell)[0] == "trained"  # of another evaluation than the grid's, for all that is known
    (cell.run_dir / EVALUATED).write_text(json.dumps({"flags": cell.evaluate[4:]}))
    assert cell_state(cell) == ("evaluated", "")
    record.outcome.collapsed_at = 12
    write_record(cell.run_dir, record)
    assert cell_state(cell) == ("evaluated", "collapsed at step 12")
    assert cell_state(read_grid(write_grid(evaluate={"limit": 5}))[0])[0] == "trained"
    (cell.run_dir / "run.json").write_text("{")
    assert cell_state(cell)[0] == "stopped" and "damaged" in cell_state(cell)[1]


def test_the_last_line_is_not_a_progress_bar(cell):
    bar = "\rruns/x:  50%|█████     | 2/4 [00:01<00:01,  1.7it/s, loss=0.1]"
    write_log(cell, f"starting\n{bar * 9}loss is nan{bar}\n")
    assert commands.last_line(cell.log) == "loss is nan"
    write_log(cell, bar * 500)
    assert commands.last_line(cell.log) == ""
    write_log(cell, "x" * 100_000)
    assert commands.last_line(cell.log) == "x" * 200


def test_time_left_without_a_checkpoint_and_steps_from_epochs(cell):
    make_run(cell, rows=[{"step": 20, "epoch": 0.5}], max_steps=-1, num_train_epochs=3)
    start = runs.datetime.fromisoformat("2026-01-01T00:00:00+0000").timestamp()
    os.utime(cell.run_dir / "metrics.jsonl", (start + 3600, start + 3600))
    with hold_lock(cell.run_dir, "busy"):
        assert cell_state(cell) == ("running", "step 20 of 120, 5.0 h left")


@pytest.mark.parametrize("text", ["", "\n", "{", "[]", '{"step": "x"}', '{"step": 1', "\xff"])
def test_a_log_that_says_nothing_is_no_error(cell, text):
    make_run(cell)
    (cell.run_dir / "metrics.jsonl").write_text(text)
    with hold_lock(cell.run_dir, "busy"):
        assert cell_state(cell) == ("running", "starting")


def test_looking_changes_nothing_and_takes_no_lock(cell, tmp_path):
    make_run(cell, rows=[{"step": 1, "epoch": 0.1}])
    (cell.run_dir / ".lock").touch()
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(tmp_path.rglob("*"))}
    script = (
        "import fcntl, sys\nfrom pathlib import Path\nlost = 0\n"
        "while not Path('stop').exists():\n"
        "    with open(sys.argv[1]) as f:\n"
        "        try: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "        except BlockingIOError: lost += 1\n"
        "print(lost)"
    )
    busy = subprocess.Popen([sys.executable, "-c", script, cell.run_dir / ".lock"], stdout=subprocess.PIPE, text=True)
    states = {cell_state(cell)[0] for _ in range(2000)}
    Path("stop").touch()
    assert busy.communicate(timeout=60)[0] == "0\n"  # it got the lock at every one of its attempts
    Path("stop").unlink()
    assert states <= {"running", "stopped"}
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(tmp_path.rglob("*"))} == before
    source = ast.parse((ROOT / "maths_grid.py").read_text())
    assert "flock" not in {node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute)}


def test_list_shows_cells_and_how_many_each_method_has(cell, capsys):
    cells = read_grid(
        write_grid(
            cells={
                "noclip-mu2": {"method": "noclip", "num_iterations": 2},
                "fast": {"method": "pspo", "learning_rate": ["1e-4", "1e-3"]},
            }
        )
    )
    maths_grid.print_list(cells, {})
    text = capsys.readouterr().out
    assert re.search(r"^ +0  runs/demo/noclip/seed0 +waiting$", text, re.M)
    counts = dict(re.findall(r"^([\w-]+) +(\d+)  ", text.split("\n\n")[1], re.M))
    assert counts == {"noclip": "2", "pspo": "2", "noclip-mu2": "2", "fast": "4"}


# ---- learning rates that tuning seeds choose

CHOOSING = {
    "axes": {"model": ["demo"], "learning_rate": ["1e-5", "1e-4"], "seed": [0]},
    "cells": {"clip": {"method": "clip"}, "noclip": {"method": "noclip"}},
    "tuning_seeds": [10, 11],
    "only_chosen_rates": True,
    "train": TINY,
}


def write_tuning(cells, scores):
    """Runs of the tuning seeds among cells with the validation scores {(method, rate): score}."""
    for cell in cells:
        if cell.tuning and (cell.method, cell.rate) in scores:
            score = scores[cell.method, cell.rate]
            make_run(cell, "finished", outcome=run_record(validation=score).outcome, learning_rate=cell.rate)


def wanted_of(cells):
    return pick(cells, find_states(cells), TO_DO)


def test_judged_seeds_wait_for_the_tuning_seeds_and_then_run_at_the_chosen_rate_alone():
    cells = read_grid(write_grid(**CHOOSING))
    write_tuning(cells, {("clip", 1e-5): 0.3, ("clip", 1e-4): 0.6, ("noclip", 1e-5): 0.7})
    states = find_states(cells)
    found = {(c.method, c.rate): states[c.index] for c in cells if not c.tuning}
    assert found["clip", 1e-5] == ("left out", "learning rate 0.0001 was chosen")
    assert found["clip", 1e-4] == ("waiting", "")
    assert found["noclip", 1e-5] == found["noclip", 1e-4] == ("held", "for its learning rate: 2 tuning runs to go")
    assert states[next(c.index for c in cells if c.tuning and c.method == "clip")] == (
        "evaluated",
        "by validation alone",
    )
    assert [(c.method, c.rate, c.seed) for c in wanted_of(cells)] == [
        ("clip", 1e-4, 0),
        ("noclip", 1e-4, 10),
        ("noclip", 1e-4, 11),
    ]


def test_a_rate_at_which_a_tuning_run_lost_its_loss_is_not_chosen_and_one_that_was_stopped_is_waited_for():
    cells = read_grid(write_grid(**CHOOSING))
    write_tuning(cells, {("clip", 1e-5): 0.3, ("clip", 1e-4): 0.6})
    lost = next(c for c in cells if c.tuning and (c.method, c.rate) == ("clip", 1e-4))
    judged = {c.rate: c.index for c in cells if c.method == "clip" and not c.tuning}
    make_run(lost, outcome=Outcome("running"), learning_rate=1e-4)
    assert find_states(cells)[judged[1e-5]] == ("held", "for its learning rate: 1 tuning run to go")
    assert [find_states(cells, tried=[lost.index])[judged[rate]][0] for rate in (1e-5, 1e-4)] == ["waiting", "left out"]
    shutil.rmtree(lost.run_dir)
    assert [find_states(cells, tried=[lost.index])[judged[rate]][0] for rate in (1e-5, 1e-4)] == ["waiting", "left out"]
    make_run(lost, outcome=Outcome("running", failure="loss nan at step 3"), learning_rate=1e-4)
    assert [find_states(cells)[judged[rate]][0] for rate in (1e-5, 1e-4)] == ["waiting", "left out"]
    (lost.run_dir / "run.json").write_text("{")
    assert find_states(cells)[judged[1e-5]] == ("held", "for its learning rate: 1 tuning run to go")


def test_tuning_seeds_run_where_the_grid_says_and_choose_for_every_value_of_that_axis():
    axes = {**CHOOSING["axes"], "num_iterations": [1, 2]}
    own = {"clip": {"method": "clip"}, "once": {"method": "noclip", "num_iterations": 1}}
    parts = {**CHOOSING, "axes": axes, "cells": own, "tuned_at": {"num_iterations": 2}}
    cells = read_grid(write_grid(**parts))
    assert [c.index for c in cells] == list(range(len(cells)))
    assert {(c.method, flags_of(c)["num_iterations"]) for c in cells if c.tuning} == {("clip", "2"), ("noclip", "1")}
    write_tuning(cells, {("clip", 1e-5): 0.3, ("clip", 1e-4): 0.6, ("noclip", 1e-5): 0.7, ("noclip", 1e-4): 0.6})
    wanted = [(c.method, c.rate, flags_of(c)["num_iterations"]) for c in wanted_of(cells)]
    assert wanted == [("clip", 1e-4, "1"), ("clip", 1e-4, "2"), ("noclip", 1e-5, "1")]
    for wrong in ({"num_iterations": 3}, {"epsilon_high": None}, {"learning_rate": 1e-5}, {"seed": 0}, {"nothing": 1}):
        with pytest.raises(BadInput, match="tuned_at"):
            read_grid(write_grid(**{**parts, "tuned_at": wrong}))
    for wrong in (
        {"only_chosen_rates": False},
        {"axes": {**axes, "learning_rate": ["1e-5"]}},
        {"cells": {**own, "alone": {"method": "clip", "seed": [3]}}},
        {"cells": {**own, "other": {"method": "clip", "num_iterations": [1, 4]}}},
    ):
        with pytest.raises(BadInput, match="tuned_at|only_chosen_rates"):
            read_grid(write_grid(**{**parts, **wrong}))


def test_what_is_left_out_is_counted_and_not_listed(capsys):
    cells = read_grid(write_grid(**CHOOSING))
    write_tuning(cells, {(m, r): r for m in ("clip", "noclip") for r in (1e-5, 1e-4)})
    maths_grid.print_list(cells, {})
    table, counts = capsys.readouterr().out.split("\n\n")
    assert len(table.splitlines()) == 1 + 10 and "left out" not in table
    assert re.search(r"^clip +6 +1 +0 +0 +0 +0 +4 +1$", counts, re.M)


def test_a_grid_without_the_word_runs_every_rate():
    cells = read_grid(write_grid(**{**CHOOSING, "only_chosen_rates": False}))
    write_tuning(cells, {})
    assert {state for state, _ in find_states(cells).values()} == {"waiting"}


def test_a_tuning_run_that_fails_is_tried_once_and_holds_nobody_up(monkeypatch):
    cells = read_grid(write_grid(**CHOOSING))
    begun = []

    def pretend(cell):
        begun.append((cell.method, cell.rate, cell.seed))
        if (cell.method, cell.rate, cell.seed) == ("clip", 1e-4, 10):
            return 1, []  # and no record
        make_run(cell, "finished", outcome=run_record(validation=cell.rate).outcome)
        return 0, []

    monkeypatch.setattr(maths_grid, "report", lambda *_: None)
    monkeypatch.setattr(maths_grid, "find_needs", lambda cells: [])
    monkeypatch.setattr(maths_grid, "run_cell", pretend)
    assert maths_grid.run_grid(Path("grid.yaml"), cells) == 1
    assert begun[8:] == [("clip", 1e-5, 0), ("noclip", 1e-4, 0)]


def test_a_signal_that_the_last_cell_did_not_need_ends_the_run_too(monkeypatch):
    cells = read_grid(write_grid(**CHOOSING))
    begun = []

    def pretend(cell):
        begun.append(cell.index)
        make_run(cell, "finished", outcome=run_record(validation=cell.rate).outcome)
        return 0, [signal.SIGTERM] if len(begun) == 8 else []

    monkeypatch.setattr(maths_grid, "report", lambda *_: None)
    monkeypatch.setattr(maths_grid, "find_needs", lambda cells: [])
    monkeypatch.setattr(maths_grid, "run_cell", pretend)
    assert maths_grid.run_grid(Path("grid.yaml"), cells) == 75 and len(begun) == 8


def test_a_run_goes_from_the_tuning_seeds_to_the_judged_ones_by_itself(monkeypatch):
    cells = read_grid(write_grid(**CHOOSING))
    scores = {("clip", 1e-5): 0.3, ("clip", 1e-4): 0.6, ("noclip", 1e-5): 0.7, ("noclip", 1e-4): 0.6}
    begun = []

    def pretend(cell):
        begun.append((cell.method, cell.rate, cell.seed))
        make_run(cell, "finished", outcome=run_record(validation=scores[cell.method, cell.rate]).outcome)
        return 0, []

    monkeypatch.setattr(maths_grid, "report", lambda *_: None)
    monkeypatch.setattr(maths_grid, "find_needs", lambda cells: [])
    monkeypatch.setattr(maths_grid, "run_cell", pretend)
    assert maths_grid.run_grid(Path("grid.yaml"), cells) == 0
    assert sorted(begun[:8]) == [(m, r, s) for m in ("clip", "noclip") for r in (1e-5, 1e-4) for s in (10, 11)]
    assert begun[8:10] == [("clip", 1e-4, 0), ("noclip", 1e-5, 0)]


@pytest.mark.slow
def test_a_signal_reaches_all_cells_side_by_side_and_75_comes_back():
    write_grid(**{**CHOOSING, "train": {**TINY, "max_steps": 4000, "save_steps": 2000}})
    command = ["grid.yaml", "--run", "--jobs", "2"]
    process = fork(run_apart, "maths_grid", command, Path.cwd(), without_slurm(), ["out", "err"])
    cells = [cell for cell in read_grid("grid.yaml") if cell.tuning][:2]
    while not all(runs.read_log(cell.run_dir / runs.LOG_FILE) for cell in cells):
        assert process.is_alive()
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    process.join(900)
    assert process.exitcode == 75
    states = [cell_state(cell) for cell in read_grid("grid.yaml")]
    assert Counter(state for state, _ in states) == {"stopped": 2, "waiting": 10}
    assert all("SIGTERM: saving" in cell.log.read_text() for cell in cells)


# ---- running


def test_dry_run_prints_commands_that_the_scripts_accept_and_leaves_nothing():
    write_grid(train=TINY, evaluate={"limit": 5})
    done = grid_command("grid.yaml", "--run", "--dry_run")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 8
    assert lines[:2] == [" ".join(words) for c in read_grid("grid.yaml")[:1] for words in (c.train, c.evaluate)]
    assert grid_command("grid.yaml", "--cell", "3", "--dry_run").stdout.splitlines() == lines[6:]
    assert grid_command("grid.yaml", "--cell", "4", "--dry_run").returncode == 2
    assert os.listdir() == ["grid.yaml"]


@pytest.mark.slow
def test_run_does_what_is_missing_goes_on_after_a_failure_and_names_it():
    write_grid(
        axes={"model": ["demo"], "method": ["noclip"], "seed": [1], "learning_rate": ["1e+30"]},
        cells={"kept": {"method": "pspo", "seed": 0, "learning_rate": "1e-4"}},
        train=TINY,
        evaluate={"limit": 5, "temperatures": [0], "max_new_tokens": 8},
    )
    diverged, kept = read_grid("grid.yaml")
    done = run_and_read("maths_grid", ["grid.yaml", "--run", "--jobs", "2"], Path.cwd(), without_slurm())
    assert done.returncode == 1, done.stderr
    assert len(re.findall(r"^[12] of 2, .*: cell [01], runs/demo/.*: (?:stopped|evaluated)$", done.stdout, re.M)) == 2
    state, why = cell_state(diverged)
    assert state == "stopped" and "stopped. The last good" in why
    assert cell_state(kept) == ("evaluated", "")
    place = re.escape(str(diverged.run_dir))
    assert done.stderr.count("\n") == 1 and "seed1: failed: " in done.stderr and why in done.stderr
    assert re.search(rf"^ +0  {place} +stopped +.*intact", done.stdout, re.M)
    before = (kept.run_dir / "model.safetensors").stat().st_mtime_ns
    again = grid_command("grid.yaml", "--cell", "1")
    assert again.returncode == 0 and "already" in again.stdout
    assert (kept.run_dir / "model.safetensors").stat().st_mtime_ns == before

    rows = (kept.run_dir / "evaluations/demo.jsonl").read_bytes()
    shutil.rmtree(kept.run_dir)
    alone = grid_command("grid.yaml", "--cell", "1", env={"OMP_NUM_THREADS": "1"})  # processes of their own, not forks
    assert alone.returncode == 0 and (kept.run_dir / "evaluations/demo.jsonl").read_bytes() == rows


SLEEPER = """
import signal, sys, time
def stop(number, frame):
    print("saving for", signal.Signals(number).name, flush=True); sys.exit(75)
signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGUSR1, stop)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_signals_reach_the_training_and_75_comes_back(name, tmp_path):
    code = (
        "import sys; from pathlib import Path; from slurm import commands;"
        f"code, received = commands.run_command([sys.executable, '-c', {SLEEPER!r}], Path('x.log'));"
        "print(code, [int(number) for number in received])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    number = int(getattr(signal, name))
    assert process.communicate(timeout=30)[0] == f"saving for {name}\n75 [{number}]\n"
    assert Path("x.log").read_text() == f"ready\nsaving for {name}\n"


def test_a_signal_that_came_before_a_child_was_known_is_sent_on_once_it_is():
    children = commands.Children((signal.SIGTERM,))
    children.on_signal(signal.SIGUSR1, None)
    children.on_signal(signal.SIGTERM, None)
    child = subprocess.Popen(["sleep", "900"])
    children.add(child.pid)
    assert child.wait(60) == -signal.SIGTERM and children.received == [signal.SIGUSR1, signal.SIGTERM]


def test_a_killed_command_is_named_and_one_ended_by_our_signal_is_to_go_on():
    log = Path("logs/x.log")
    before = signal.getsignal(signal.SIGTERM)
    die = "import os, signal, sys; print('half'); sys.stdout.flush(); os.kill(os.{}(), signal.SIG{})"
    code, received = commands.run_command([sys.executable, "-c", die.format("getpid", "KILL")], log)
    assert (code, received) == (-9, []) and "ended by SIGKILL" in commands.last_line(log)
    code, received = commands.run_command(
        [sys.executable, "-c", die.format("getppid", "TERM") + "; import time; time.sleep(30)"], log
    )
    assert (code, received) == (75, [signal.SIGTERM])
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_that_a_signal_stopped_begins_no_other_cell(monkeypatch):
    cells = read_grid(write_grid())
    begun = []
    monkeypatch.setattr(maths_grid, "find_needs", lambda cells: [])
    monkeypatch.setattr(maths_grid, "run_cell", lambda cell: begun.append(cell.index) or (75, [signal.SIGTERM]))
    assert maths_grid.run_grid(Path("grid.yaml"), cells) == 75 and begun == [0]


def needs(**parts):
    return find_needs(read_grid(write_grid(**parts)))


# ---- rows

# Of a training, and the words with which it is refused; None where the schedule is what is asked about.
REFUSED_ROWS = {
    "completions beyond the positions": ("pspo", {"max_completion_length": 500}, "positions with their completions"),
    "rows beyond max_length": ("sft", {"max_length": 30}, "exceed max_length 30"),
    "a token that is none": ("sft", {"eos_token": "<|nothing|>"}, "no token of this model's tokenizer"),
    "saves between the ends of cycles": ("pspo", {"save_steps": 3}, "save_steps 3 is not a multiple"),
    "fewer rows than a generation": ("pspo", {"per_device_train_batch_size": 64000}, "fewer than the"),
}


@pytest.mark.parametrize("case", REFUSED_ROWS)
def test_what_training_refuses_of_its_rows_is_refused_before_anything_is_queued_in_its_words(case):
    method, flags, words = REFUSED_ROWS[case]
    train = {"load_best_model_at_end": False, **flags}
    _, cell = read_grid(write_grid(axes={**AXES, "method": [method]}, train=train))
    with pytest.raises(BadInput) as before:
        preflight.check_rows(find_needs([cell]))
    with pytest.raises(BadInput) as training:
        maths_finetuning.main([*cell.train[2:], "--device", "cpu"])
    assert words in str(training.value) and not Path("runs").exists()
    assert str(before.value) == f"cell 1, runs/demo/{method}/seed1: {training.value}"


def test_what_an_evaluation_would_refuse_is_refused_before_it_is_trained():
    with pytest.raises(BadInput, match=r"^cell 0, runs/demo/noclip/seed0: demo: .* positions with their completions"):
        preflight.check_rows(needs(evaluate={"max_new_tokens": 500, "limit": 5}))
    preflight.check_rows(needs(evaluate={"max_new_tokens": 8, "limit": 5}))


def test_an_evaluation_is_asked_with_the_template_that_the_run_is_trained_with():
    cell, *_ = needs(train={"chat_template_kwargs": {"tools": []}}, evaluate={"limit": 5})
    *_, evaluation = cell.row_checks.values()
    with pytest.raises(BadInput, match="chat_template_kwargs: tools"):
        evaluation()


def test_cells_of_the_same_rows_are_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(maths_grid, "check_training_rows", lambda plan: asked.append(plan.config))
    monkeypatch.setattr(maths_grid, "check_evaluation_rows", lambda *_: asked.append("evaluation"))
    preflight.check_rows(needs(axes={**AXES, "learning_rate": [1e-4, 1e-5]}))
    assert len(asked) == 2
    asked.clear()
    preflight.check_rows(needs(axes={**AXES, "max_completion_length": [8, 16]}))
    assert [config.max_completion_length for config in asked if config != "evaluation"] == [8, 16]
    asked.clear()
    preflight.check_rows(needs(axes={**AXES, "method": ["pspo", "sft"]}))
    assert len(asked) == 3 and asked.count("evaluation") == 1  # SFT reads the answers too


def test_looking_at_rows_comes_to_an_end_and_says_what_it_has_not_looked_at(capsys):
    cells = needs(train={"max_completion_length": 500})
    preflight.check_rows(cells, seconds=0)
    assert "0 s were over before the rows of 4 cells were looked at: their training does" in capsys.readouterr().err


# ---- room


def test_room_is_that_of_models_checkpoints_and_one_more_in_those_that_run(monkeypatch):
    weights = (ROOT / "demo/model/model.safetensors").stat().st_size
    fp32 = fp32_bytes(ROOT / "demo/model")
    assert fp32 in (weights, 2 * weights)
    need, free = preflight.check_room(needs(), [Path("runs")], 2)
    assert need == 4 * 7 * fp32 + 2 * 3 * fp32 and free > need
    need, _ = preflight.check_room(needs(train={"save_total_limit": 1}), [], 2)
    assert need == 4 * 4 * fp32 + 2 * 3 * fp32
    monkeypatch.setattr(preflight, "free_bytes", lambda path: need - 1)
    with pytest.raises(BadInput, match=r"4 cells need about .* under runs, where .* free"):
        preflight.check_room(needs(), [], 2)


@pytest.mark.parametrize(
    ("gres", "card"),
    [
        ("gpu:l4:1", "l4"),
        ("gpu:l40:2", "l40"),
        ("gpu:a100swarm:1", "a100"),
        ("gpu:nvidia_a100_80gb_pcie:4", "a100"),
        ("gpu:h200", "h200"),
        ("gpu:l4swarm:7", "l4"),
        ("gpu:2", None),
        ("gpu:tesla:1", None),
        ("", None),
    ],
)
def test_the_card_that_a_gres_names(gres, card):
    assert preflight.find_card(gres) == card


def test_a_model_that_cannot_fit_the_card_is_refused_with_what_would():
    [cell] = needs(axes={**AXES, "method": ["pspo"], "seed": [0]})
    preflight.check_cards([cell], "gpu:l4:1")  # the demo
    cell.find_peaks = lambda: (59_000_000_000, 20_000_000_000)  # of 3B
    preflight.check_cards([cell], "gpu:a100:1")
    preflight.check_cards([cell], "gpu:1")  # no name, so nothing is known
    with pytest.raises(BadInput, match=r"at least 59 GB .* l40 \(gpu:l40:1\) has at most 48.*a100 or h100 or h200"):
        preflight.check_cards([cell], "gpu:l40:1")
    with pytest.raises(BadInput, match="use_peft: true under train, which needs 20"):
        preflight.check_cards([cell], "gpu:l4:1")
    cell.find_peaks = lambda: (200_000_000_000, 60_000_000_000)
    with pytest.raises(BadInput, match="choose a smaller model"):
        preflight.check_cards([cell], "gpu:l4:1")
    cell.find_peaks = lambda: None
    preflight.check_cards([cell], "gpu:l4:1")


def test_data_and_models_that_are_not_cached_are_named(tmp_path):
    def check(**parts):
        preflight.check_data(find_needs(read_grid(write_grid(**parts)), tmp_path))

    with pytest.raises(BadInput, match="Qwen2.5-0.5B is not in .*save_model_locally.py"):
        check(axes={**AXES, "model": ["Qwen2.5-0.5B"]})
    with pytest.raises(BadInput, match="gsm8k is not in"):
        check(train={"dataset": "gsm8k"})
    with pytest.raises(BadInput, match="SVAMP is not in"):
        check(evaluate={"datasets": ["SVAMP", "demo"]})
    check()


def test_a_cache_that_the_grid_names_is_the_one_that_is_looked_into(tmp_path):
    named = needs(train={"cache_dir": str(tmp_path / "named")})
    assert {cell.cache_dir for cell in named} == {tmp_path / "named"}


def test_room_is_counted_for_what_is_trained_and_of_flags_that_are_numbers():
    assert preflight.check_room(needs(train={"use_peft": False}), [], 2)[0] > 0
    assert preflight.check_room(needs(train={"use_peft": True}), [], 2)[0] == 0
    with pytest.raises(BadInput, match=r"train: save_total_limit must be a whole number"):
        needs(train={"save_total_limit": "few"})


def test_the_data_of_an_evaluation_follow_from_those_of_the_training():
    [small, *_] = needs(axes={**AXES, "model": ["small"]}, train={"dataset": "demo", "learning_rate": 1e-4})
    assert small.data == [("demo", "train"), ("demo", "test")]
    [other, *_] = needs(train={"dataset": "gsm8k"})
    assert [name for name, _ in other.data] == ["gsm8k", "gsm8k", "MATH-500", "asdiv", "SVAMP"]


# ---- SLURM, what needs no SLURM


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("1:30", 1.5),
        ("60:00:00", 3600),
        ("2-12", 3600),
        ("2-12:30", 3630),
        ("5-00:00:30", 7200.5),
        ("infinite", float("inf")),
    ],
)
def test_walltimes(text, minutes):
    assert preflight.to_minutes(text) == minutes


def test_walltime_that_is_none():
    with pytest.raises(BadInput, match="walltime"):
        preflight.to_minutes("two days")


@pytest.mark.parametrize(
    ("there", "wanted", "yes"),
    [
        ("gpu:a100:2(S:0-1)", "gpu:a100:1", True),
        ("gpu:a100:2(S:0-1)", "gpu:a100:3", False),
        ("gpu:a100swarm:4", "gpu:a100:1", False),
        ("gpu:l4:4,gpu:a100:2", "gpu:6", True),
        ("gpu:l4:4", "gpu:l4", True),
        ("gpu:1g.10gb:7", "gpu:1g.10gb:2", True),
        ("(null)", "gpu:1", False),
    ],
)
def test_gres(there, wanted, yes):
    assert (preflight.count_gres(there) >= preflight.count_gres(wanted)) is yes


@pytest.mark.parametrize("numbers", [[0], [0, 1, 2], [0, 2, 3, 7], [4, 5]])
def test_ranges_are_read_back(numbers):
    back = []
    for part in queue.to_ranges(numbers).split(","):
        first, _, last = part.partition("-")
        back += range(int(first), int(last or first) + 1)
    assert back == numbers


def test_site_values_environment_and_flags(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("GRID_", "GRPSPO_CACHE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("USER", "me")
    site, env = queue.read_site({})
    assert site["partition"] == "a100" and site["throttle"] == "2" and site["account"] == ""
    assert env["GRPSPO_CACHE"] == "/scratch/me/cached_files" and "OMP_NUM_THREADS" in os.environ
    monkeypatch.setenv("GRID_PARTITION", "l4")
    monkeypatch.setenv("GRID_GRES", "")
    site, env = queue.read_site({"throttle": "5"})
    assert (site["partition"], site["throttle"], env["GRID_THROTTLE"]) == ("l4", "5", "5")
    assert queue.read_site({"partition": "quad_h200"})[0]["partition"] == "quad_h200"
    for throttle in ("0", "two", "-1", "1;ls"):
        with pytest.raises(BadInput, match="throttle"):
            queue.read_site({"throttle": throttle})


def test_submit_without_slurm_prints_its_lines_or_says_what_is_missing(tmp_path):
    write_grid(train=TINY)
    dry = grid_command("grid.yaml", "--submit", "--dry_run", "--account", "ecs", env={"GRID_SCRATCH": str(tmp_path)})
    array, report = dry.stdout.splitlines()
    assert dry.returncode == 0 and not Path("logs").exists(), dry.stderr
    for word in (
        "--partition=a100",
        "--gres=gpu:a100:1",
        "--account=ecs",
        "--array=0-3%2",
        "--time=60:00:00",
        "--nodes=1",
        "--cpus-per-task=8",
        "--mem=48G",
    ):
        assert f" {word} " in array
    assert " --mem=4G " in report and " --time=00:30:00 " in report
    assert "--dependency=afterany:JOBID" in report and "--gres" not in report
    frozen = Path(array.split()[-1])
    assert frozen.parent == tmp_path / "logs" and array.split()[-2] == str(ROOT)


def test_a_queued_grid_whose_file_was_deleted_is_a_note_when_looking_and_a_line_when_submitting(monkeypatch, capsys):
    write_grid()
    there = [str(Path("grid.yaml").resolve()), 1, "queued", "Priority", "7"]
    gone = ["/nowhere/g-0.yaml", 0, "running", "None", "8"]
    monkeypatch.setattr(queue, "list_jobs", lambda: [gone, there])
    cells = read_grid("grid.yaml")
    assert maths_grid.read_queue() == {cells[1].run_dir.resolve(): ["queued", "Priority", "7"]}
    assert "the grid of job 8 cannot be read" in capsys.readouterr().err
    with pytest.raises(BadInput, match="scancel 8, or put /nowhere/g-0.yaml back"):
        maths_grid.read_queue(must=True)


def test_the_lines_are_printed_where_the_queue_cannot_be_asked(monkeypatch, capsys):
    def refuse():
        raise BadInput("squeue: no cluster here")

    write_grid()
    monkeypatch.setattr(queue, "list_jobs", refuse)
    monkeypatch.setattr("sys.argv", ["maths_grid.py", "grid.yaml", "--submit", "--dry_run"])
    assert maths_grid.main() == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("sbatch ") and "not known: squeue: no cluster here" in printed.err
    monkeypatch.setattr("sys.argv", ["maths_grid.py", "grid.yaml", "--submit"])
    with pytest.raises(BadInput, match="no cluster here"):
        maths_grid.main()


def test_another_cluster_edits_env_sh_alone(monkeypatch):
    for name in [name for name in os.environ if name.startswith("GRID_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GRID_CPUS_PER_TASK", "3")
    site, _ = queue.read_site({"report_time": "01:00:00"})
    array = queue.array_line({**site, "mem": ""}, Path("logs/g.yaml"), [0])
    report = queue.report_line({**site, "report_mem": ""}, Path("logs/g.yaml"), ["7"])
    assert "--cpus-per-task=3" in array and "--time=01:00:00" in report
    assert not any("--mem" in word for word in [*array, *report])  # for a cluster that refuses to be asked
    for script in (ROOT / "slurm").glob("*.sbatch"):
        assert not re.search(r"#SBATCH --(mem|time|partition|gres|account|qos)", script.read_text()), script


def test_what_is_queued_is_what_was_submitted(tmp_path, monkeypatch):
    cells = read_grid(write_grid(train=TINY, evaluate={"limit": 5}))
    frozen, text = maths_grid.freeze_grid("grid.yaml")
    frozen.parent.mkdir()
    frozen.write_text(text)
    for one, other in zip(cells, read_grid(frozen), strict=True):
        assert one == other
    monkeypatch.chdir("logs")
    assert read_grid(frozen)[0].run_dir == tmp_path / "runs/demo/noclip/seed0"
    monkeypatch.chdir(tmp_path)
    for axes in ({**AXES, "seed": [5]}, dict(reversed(AXES.items()))):  # another order numbers the cells anew
        write_grid(axes=axes, train=TINY, evaluate={"limit": 5})
        assert maths_grid.freeze_grid("grid.yaml")[0] != frozen


@pytest.mark.parametrize(("done", "most", "again"), [("", 3, True), ("2", 3, True), ("3", 3, False), ("", 0, False)])
def test_a_cell_is_not_requeued_for_ever(monkeypatch, done, most, again):
    asked = []
    monkeypatch.setattr(queue, "ask", lambda *command: asked.append(command))
    variables = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "GRID_MAX_REQUEUES": str(most)}
    for name, value in (variables | ({"SLURM_RESTART_COUNT": done} if done else {})).items():
        monkeypatch.setenv(name, value)
    assert ("submit again" in queue.requeue()) is not again
    assert asked == ([("scontrol", "requeue", "12_3")] if again else [])


def test_all_methods_of_the_training_script_are_known():
    cells = read_grid(write_grid(axes={**AXES, "method": list(maths_finetuning.methods())}))
    assert len(cells) == 2 * len(maths_finetuning.methods())
