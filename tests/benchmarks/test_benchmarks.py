"""Every benchmark runs at its smallest size, and a row says what it should. No figure is judged here."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from forked import fork, run_command

import maths_finetuning
from benchmarks import common, evaluation, readme
from common.files import BadInput
from common.record import read_record, write_record
from maths_finetuning import Command
from training import rollout
from training.hyperparameters import REFUSED, check_names

ROOT = common.ROOT


def run(script, *flags, **environment):
    """Start a benchmark; returns its results."""
    command = [sys.executable, ROOT / "benchmarks" / script, *map(str, flags)]
    env = {**os.environ, "LM_EVAL_PYTHON": "", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def rows_of(path):
    return [row for part in json.loads(path.read_text())["parts"].values() for row in part["rows"]]


NEEDS = {  # beginnings of the names of rows that something else is needed for
    "cpu.py": ("LaTeX answers", "numeric, against lm_eval", "greedy, against lm_eval"),
    "gpu.py": ("sampling, continuous batching", "sampling, vLLM"),
}


@pytest.mark.parametrize(("script", "flags"), [("cpu.py", []), ("gpu.py", ["--device", "cpu", "--shape", "tiny"])])
@pytest.mark.slow
def test_every_benchmark_runs_at_its_smallest_size(script, flags, tmp_path):
    out = tmp_path / "results.json"
    run(script, "--quick", "--out", out, *flags)
    rows = rows_of(out)
    left = [row["name"] for row in rows if row["status"] != "measured"]
    assert all(name.startswith(NEEDS[script]) for name in left), left
    assert all(np.isfinite(row["figure"]) for row in rows if row["status"] == "measured")
    parts = json.loads(out.read_text())["parts"]
    module = __import__(f"benchmarks.{script[:-3]}", fromlist=["PARTS"])
    assert parts.keys() == module.PARTS.keys() and all(part["rows"] for part in parts.values())


# ---- the trial of samplers, which only a GPU makes unasked


def train_forced(winner, argv, log):
    """Train in a forked process whose trial of samplers, as on a GPU, is won by `winner`; "none" makes no trial."""
    measured = rollout.time_paths

    def forced(paths, accelerator):
        if winner == "none":
            raise AssertionError("a continued run makes no trial")
        return {name: seconds + 1000 * (name != winner) for name, seconds in measured(paths, accelerator).items()}

    rollout.time_paths = forced
    if "--sampler" not in argv:
        maths_finetuning.choose_sampler = lambda *_: maths_finetuning.SamplerChoice("trial", "forced")
    run_command("maths_finetuning", argv, log, {})


SMALL = (
    "--model demo --trust_region_method pspo --max_steps 4 --per_device_train_batch_size 8 --max_completion_length 12"
)
SMALL += " --gradient_accumulation_steps 2 --steps_per_generation 4 --num_iterations 1"
SMALL += " --save_steps 2 --save_total_limit 5 --eval_strategy no --load_best_model_at_end False --warmup_steps 0"


def train(winner, path, *flags):
    """(what it printed, the weights that it made)."""
    log = path.with_suffix(".log")
    process = fork(train_forced, winner, [*SMALL.split(), "--output_dir", path, *flags], log)
    process.join()
    assert process.exitcode == 0, log.read_text()[-3000:]
    return log.read_text(), (path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("winner", ["own", "trl"])
@pytest.mark.slow
def test_a_trial_of_samplers_changes_no_number_and_is_made_once(winner, tmp_path):
    said, weights = train(winner, tmp_path / "trial")
    record = read_record(tmp_path / "trial")
    assert f"sampler: {winner} (first batch: own " in said and record.outcome.sampler == winner
    assert train(winner, tmp_path / "plain", "--sampler", winner)[1] == weights

    record.outcome.status = "running"
    write_record(tmp_path / "trial", record)
    (tmp_path / "trial" / "model.safetensors").unlink()
    said, continued = train("none", tmp_path / "trial")
    assert "continuing from" in said and f"sampler: {winner} (it was the faster one" in said and continued == weights


def test_a_path_that_runs_out_of_memory_loses_the_trial():
    def run_out():
        raise torch.OutOfMemoryError

    accelerator = Namespace(device=torch.device("cpu"), gather=lambda tensor: tensor)
    state = torch.random.get_rng_state()
    seconds = rollout.time_paths({"own": lambda: torch.rand(1), "trl": run_out}, accelerator)
    assert 0 < seconds["own"] < seconds["trl"] == np.inf and torch.equal(torch.random.get_rng_state(), state)


# ---- wrong flags


def test_a_wrong_flag_is_named_before_trl_is_imported_and_no_right_one_is_refused():
    from trl import GRPOConfig, ModelConfig, SFTConfig, TrlParser

    for method, kind in (("pspo", GRPOConfig), ("sft", SFTConfig)):
        command = Command(Namespace(trust_region_method=method), rest=[], recipe={}, dataset="gsm8k")
        parser = TrlParser([kind, ModelConfig], allow_abbrev=False)
        names = [name for action in parser._actions for name in action.option_strings if action.dest not in REFUSED]
        command.rest = [name for name in names if name.startswith("--") and name not in ("--help", "--config")]
        check_names(command)
        for wrong in ("--learning_rat", "--learning_rat=3", "--no_learning"):
            with pytest.raises(BadInput, match=f"unknown option {wrong.split('=')[0]}"):
                check_names(replace(command, rest=[wrong]))
    code = "import sys, maths_finetuning as m\ntry: m.parse(sys.argv[1:])\nexcept ValueError: pass\n"
    code += "assert not {'torch', 'trl', 'transformers'} & sys.modules.keys()"
    flags = ["--model", "demo", "--trust_region_method", "pspo", "--learning_rat", "1"]
    assert subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT).returncode == 0


# ---- rows


@pytest.mark.parametrize(("shift", "met"), [(0.0, True), (0.08, False)])
def test_two_samplers_agree_when_their_paired_difference_is_surely_small(shift, met):
    """200 problems with 48 samples each, as in the benchmark: twenty pairs of equal samplers, and of unequal ones."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        accuracy = rng.beta(1, 2, 200) * 0.9
        length = rng.uniform(10, 30, 200)

        def draw(p, rng=rng, length=length):
            return np.stack([rng.binomial(48, p) / 48, length + rng.normal(0, 6, (48, 200)).mean(0)], 1)

        row = next(iter(evaluation.compare_distributions(draw(accuracy + shift), draw(accuracy))))
        assert row["met"] is met, (seed, row)


def test_a_row_is_judged_by_its_median_and_an_open_one_says_why():
    row = common.make_row("a", 5, "s", "over b", [1.0, 3.0, 2.0], ("at least", 2))
    assert row["met"] and row["ratio"] == {"median": 2.0, "low": 1.0, "high": 3.0, "kind": "range", "rounds": 3}
    assert not common.make_row("a", 5, "s", target=("at most", 4))["met"]
    assert common.format_row(common.not_run("b", "no card", ("at least", 2))) == "b: not run: no card"
    values = np.random.default_rng(0).normal(1, 0.1, 400)
    medians = [np.median(np.random.default_rng(i).choice(values, 400)) for i in range(2000)]
    ratio = common.spread(list(values))
    assert [ratio["low"], ratio["high"]] == pytest.approx(np.quantile(medians, [0.025, 0.975]), abs=0.004)


def test_a_part_that_fails_or_hangs_is_a_row_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "ROOT", tmp_path)
    code = 'import time; print(\'ROW ["a", {"name": 1}]\', flush=True); time.sleep(%s); raise SystemExit(3)'
    for wait, why in ((0, "exit code 3"), (60, "longer than 2 s")):
        rows = list(common.run_child(["a"], [sys.executable, "-c", code % wait], 2, tmp_path / "log"))
        assert rows[0] == ["a", {"name": 1}] and why in rows[1][1]["status"]


@pytest.mark.slow
def test_the_same_command_goes_on_with_what_is_missing(tmp_path):
    out = tmp_path / "results.json"
    flags = ["--device", "cpu", "--shape", "tiny", "--quick", "--only", "ceilings", "vllm", "--out", out]
    run("gpu.py", *flags)
    first = json.loads(out.read_text())
    assert "ceilings" not in run("gpu.py", *flags).stderr
    assert json.loads(out.read_text())["parts"]["ceilings"] == first["parts"]["ceilings"]
    first["parts"]["ceilings"]["commit"] = "of other code"
    out.write_text(json.dumps(first))
    assert "ceilings vllm ..." in run("gpu.py", *flags).stderr


def test_measuring_a_part_again_keeps_the_others_and_what_another_machine_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "SCRATCH", tmp_path)
    rows = [["a", common.make_row("one", 2.0, "s")]]
    monkeypatch.setattr(common, "run_child", lambda names, *_: iter(rows))
    path = tmp_path / "results.json"
    parts = {"a": common.Part(None, 1), "b": common.Part(None, 1)}
    args = Namespace(out=str(path), quick=False, only=["a"], again=True, seconds=100)
    first = common.open_results(path, {})
    first["parts"] = {name: {"commit": "x", "rows": [common.make_row("one", 1.0, "s")]} for name in parts}
    path.write_text(json.dumps(first))
    again = common.run_parts(parts, tmp_path / "cpu.py", args, {})
    assert [again["parts"][name]["rows"][0]["figure"] for name in parts] == [2.0, 1.0]
    path.write_text(json.dumps({**first, "machine": "another"}))
    assert common.run_parts(parts, tmp_path / "cpu.py", args, {})["parts"].keys() == {"a"}
    assert json.loads((tmp_path / "results-before.json").read_text())["parts"].keys() == {"a", "b"}
    assert "of another machine" in capsys.readouterr().err


def test_the_readme_holds_what_the_results_say():
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "readme.py", "--check"], cwd=ROOT)
    assert done.returncode == 0, "run: python benchmarks/readme.py"


def test_the_readme_is_made_from_the_json(tmp_path, monkeypatch):
    rows = [common.make_row("a figure", 1234.5, "s", "over b", [2.0, 3.0, 4.0], ("at least", 2), "a note")]
    rows.append(common.not_run("c", "no card"))
    made_by = {"machine": common.describe_machine(), "versions": {"torch": "2.13.0"}}
    parts = {"p": {"commit": "abcdefghij", "rows": rows}, "q": {"commit": "klmnopqrst", "rows": []}}
    (tmp_path / "cpu.json").write_text(json.dumps({**made_by, "parts": parts}))
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    text = readme.insert_section(f"before\n{readme.BEGIN}old\n{readme.END}after\n")
    assert "| `p` | a figure | 1,234 s | over b 3 (2 to 4) | at least 2: met |" in text and "- a figure: a note" in text
    assert "; commit abcdefg for `p`; commit klmnopq for `q`." in text
    assert "Not run: c (no card)." in text and "old" not in text and text.endswith(f"{readme.END}after\n")
    assert readme.insert_section(text) == text
    with pytest.raises(BadInput, match="must hold the two lines"):
        readme.insert_section("no markers")
