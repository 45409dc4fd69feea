"""What holds for all scripts, and the two small ones: comparison and plots."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import maths_compare
import maths_plots
from maths_common import BadInput

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [path for path in sorted(ROOT.glob("*.py")) if "__main__" in path.read_text()]
README = (ROOT / "README.md").read_text()


def python(*args, **kwargs):
    return subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, cwd=ROOT, **kwargs)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help(script):
    done = python(script, "--help")
    assert done.returncode == 0 and "usage:" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("script", sorted(ROOT.glob("*.py")), ids=lambda path: path.name)
def test_importing_does_nothing(script, tmp_path):
    done = python(
        "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {script.stem}", env={"HOME": str(tmp_path)}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_readme_names_every_script_and_only_files_that_exist():
    listed = re.search(r"## Files\n+```\n(.*?)```", README, re.S).group(1)
    names = [line.split()[0] for line in listed.splitlines()]
    assert all((ROOT / name).exists() for name in names)
    assert {path.name for path in [*ROOT.glob("*.py"), *ROOT.glob("*.patch")]} <= set(names)
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def readme_commands():
    text = README.replace("\\\n", " ")
    return re.findall(r"^\s*(?:accelerate launch \S+ \S+|python) ((?:\w+/)?\w+\.py)\b([^#\n&]*)", text, re.M)


@pytest.mark.parametrize(("script", "rest"), readme_commands())
def test_flags_in_the_readme_exist(script, rest):
    from trl import GRPOConfig, ModelConfig

    flags = set(re.findall(r"--(\w+)", rest))
    if script == "maths_finetuning.py":
        flags -= {*GRPOConfig.__dataclass_fields__, *ModelConfig.__dataclass_fields__}
    text = python(ROOT / script, "--help").stdout
    assert all(f"--{flag}" in text for flag in flags), flags


def test_requirements_are_exact_and_name_the_patched_release():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.M))
    lines = [x for x in (ROOT / "requirements.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert len(pins) == len(lines)
    for patch in ("grpotrainer.patch", "grpoconfig.patch"):
        assert f"X-TRL-Release: {pins['trl']}\n" in (ROOT / patch).read_text()


def test_a_reader_that_goes_away_ends_a_script_quietly():
    code = "import sys; from maths_datasets import run_script;"
    code += "sys.exit(run_script(lambda: [print('x' * 1000, flush=True) for _ in range(1000)] and 0))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(60) == 1 and process.stderr.read() == b""


# --------------------------------------------------------------------------------------------------- comparison


def write_evaluation(path, accuracy, temperature=0.8):
    """A made-up evaluation: accuracy[problem] lists the verdicts of its samples."""
    (path / "evaluations").mkdir(parents=True)
    rows = [
        {"id": problem, "temperature": temperature, "sample": i, "correct": bool(verdict)}
        for problem, verdicts in accuracy.items()
        for i, verdict in enumerate(verdicts)
    ]
    (path / "evaluations" / "demo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "evaluations" / "summary.json").write_text("{}")


def test_a_paired_difference_is_narrower_than_two_intervals_and_agrees_with_the_normal_approximation():
    rng = np.random.default_rng(0)
    difficulty = rng.random(400)
    first = {str(i): (rng.random(4) < p).mean() for i, p in enumerate(difficulty)}
    other = {str(i): (rng.random(4) < min(1, p + 0.1)).mean() for i, p in enumerate(difficulty)}
    a, b, (mean, low, high) = maths_compare.compare(first, other)
    gaps = np.array(list(other.values())) - np.array(list(first.values()))
    assert mean == pytest.approx(gaps.mean())
    assert high - low == pytest.approx(2 * 1.96 * gaps.std(ddof=1) / 20, rel=0.1)
    assert high - low < np.hypot(a[2] - a[1], b[2] - b[1])


def test_compare_prints_one_line_a_data_set_and_temperature(tmp_path, capsys, monkeypatch):
    write_evaluation(tmp_path / "a", {"x": [0, 0], "y": [1, 0], "z": [0, 0]})
    write_evaluation(tmp_path / "b", {"x": [1, 1], "y": [1, 0], "z": [0, 0]})
    monkeypatch.setattr(sys, "argv", ["maths_compare.py", str(tmp_path / "a"), str(tmp_path / "b")])
    assert maths_compare.main() == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("demo") and "16.7 (" in line and "50.0 (" in line and "+33.3 (" in line


def test_compare_refuses_other_problems_and_missing_evaluations(tmp_path):
    write_evaluation(tmp_path / "a", {"x": [0]})
    write_evaluation(tmp_path / "b", {"y": [0]})
    for argv, named in [(["a", "b"], "different problems"), (["a", "c"], "maths_evaluations.py"), (["a"], "two")]:
        done = python(ROOT / "maths_compare.py", *(tmp_path / name for name in argv))
        assert done.returncode == 2 and named in done.stderr and len(done.stderr.splitlines()) == 1


# -------------------------------------------------------------------------------------------------------- plots


def write_run(path, method, steps):
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"method": method}))
    rows = [{"step": i, "reward": i / steps, "trust_region/approx_kl": 0.1} for i in range(1, steps + 1)]
    rows.append({"step": steps, "eval_reward": 0.5})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_plots_of_one_and_of_several_runs(tmp_path):
    write_run(tmp_path / "a", "pspo", 30)
    write_run(tmp_path / "b", "clip", 3)
    assert python(ROOT / "maths_plots.py", tmp_path / "a").returncode == 0
    assert (tmp_path / "a" / "reward_curve.png").read_bytes().startswith(b"\x89PNG")
    maths_plots.plot_training([tmp_path / "a", tmp_path / "b"], tmp_path / "both.png")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(BadInput, match="not the directory of a training run"):
        maths_plots.plot_training([tmp_path], tmp_path / "none.png")


@pytest.mark.parametrize(("key", "markers"), [("reward", 1), ("trust_region/approx_kl", 0)])
def test_validation_is_marked_where_it_says_something(key, markers):
    axes = Figure().subplots()
    rows = [{"step": 1, key: 0.5}, {"step": 2, key: 0.6}, {"step": 2, f"eval_{key}": 0.4}]
    maths_plots.draw_curve(axes, rows, key, "C0", "a run")
    assert sum(line.get_marker() == "o" for line in axes.lines) == markers


def test_smoothing_is_a_running_mean():
    values = list(np.random.default_rng(0).random(50))
    expected = [np.mean(values[max(0, i - 6) : i + 1]) for i in range(50)]
    assert maths_plots.smooth(values, 7) == pytest.approx(expected)
