"""The report: which runs it compares, what it says of them, and what it refuses."""

import csv
import itertools
import json
import os
import shutil
import subprocess
import sys
import types
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import producers
import pytest
from matplotlib.figure import Figure

import maths_report
from common.files import BadInput
from common.models import Device
from common.record import read_record, write_record
from common.runs import seal_checkpoint
from evaluation.intervals import Z
from maths_grid import read_grid
from maths_report import make_report, read_runs, write_report
from reporting import figures
from reporting.answer import conclude_pair
from reporting.comparison import describe_part
from reporting.methods import RULES
from reporting.page import page as page_module
from reporting.statistics import compare, share_interval
from reporting.tables import make_tables

ROOT = Path(__file__).resolve().parents[2]


def python(*args):
    done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in done.stderr
    return done


def write_evaluation(path, verdicts, **settings):
    """A made-up evaluation: verdicts[problem] lists what its samples were found to be."""
    producers.write_evaluation(path / "evaluations", verdicts, **settings)


def write_run(path, method="pspo", seed=0, status="finished", validation=0.5, steps=4, ratio=1.1, **flags):
    """A made-up training run."""
    given = {"gradient_accumulation_steps": 1, "steps_per_generation": 4, **flags}
    record = producers.run_record(method, seed, status=status, steps=steps, validation=validation, **given)
    ratios = {"trust_region/ratio_min": 2 - ratio, "trust_region/ratio_max": ratio, "trust_region/approx_kl": 0.1}
    rows = [{"step": i, "reward": i / steps, "completions/mean_length": 20, **ratios} for i in range(1, steps + 1)]
    rows += [] if validation is None else [{"step": steps, "eval_reward": validation}]
    producers.write_run(path, record, rows)


def rename(paths, method, name):
    """Give the runs of a method another name, which no command line would take, in their records."""
    for path in paths:
        record = read_record(path)
        if record.method == method:
            record.method = name
            write_record(path, record)


def make_verdicts(rng, rate, problems=40, samples=4):
    return {f"p{i}": list(rng.random(samples) < rate) for i in range(problems)}


def write_study(root, rates, seeds=3, problems=40, **config):
    """Runs of methods with these accuracies, `seeds` each -> their paths."""
    rng, paths = np.random.default_rng(0), []
    for method, rate in rates.items():
        for seed in range(seeds):
            path = root / method / f"seed{seed}"
            write_run(path, method, seed, **config)
            write_evaluation(path, make_verdicts(rng, rate, problems))
            paths.append(path)
    return paths


def report_on(paths, baseline=None, tuning_seeds=(), **flags):
    """(the Report, {method: its row, the last of several})."""
    given = {"baseline": baseline, "primary": None, "margin": None, "failed": "no_verdict", "datasets": None}
    args = types.SimpleNamespace(**given | flags)
    report = make_report(read_runs(paths, None, tuning_seeds), args)
    return report, {row["method"]: row for row in report.rows}


# ---- two runs


def test_a_paired_difference_is_narrower_than_two_intervals_and_agrees_with_the_normal_approximation():
    rng = np.random.default_rng(0)
    difficulty = rng.random(400)
    first = (rng.random((4, 400)) < difficulty).mean(0)[None]
    other = (rng.random((4, 400)) < np.minimum(1, difficulty + 0.1)).mean(0)[None]
    gap = compare(other, first)
    gaps = (other - first)[0]
    assert gap["difference"] == pytest.approx(gaps.mean())
    width = gap["difference_high"] - gap["difference_low"]
    assert width == pytest.approx(2 * 1.96 * gaps.std(ddof=1) / 20, rel=0.1)
    (low, high), (other_low, other_high) = share_interval(first), share_interval(other)
    assert width < np.hypot(high - low, other_high - other_low)


def test_two_runs_get_one_line_a_data_set_and_temperature(tmp_path):
    write_evaluation(tmp_path / "a", {"x": [0, 0], "y": [1, 0], "z": [0, 0]})
    write_evaluation(tmp_path / "b", {"x": [1, 1], "y": [1, 0], "z": [0, 0]})
    printed = python("maths_report.py", tmp_path / "a", tmp_path / "b").stdout
    (line,) = [line for line in printed.splitlines() if line.startswith("demo")]
    assert "16.7 (" in line and "50.0 (" in line and "+33.3 (" in line
    assert "over problems, for these runs only" in printed


def test_other_problems_and_missing_evaluations_are_refused_in_one_line(tmp_path):
    write_evaluation(tmp_path / "a", {"x": [0]})
    write_evaluation(tmp_path / "b", {"y": [0]})
    (tmp_path / "c").mkdir()
    for names, said in [("ab", "different problems"), ("ac", "maths_evaluations.py"), ("ad", "not a directory")]:
        done = python("maths_report.py", *(tmp_path / name for name in names))
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


# ---- what may be compared


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"grader": -1}, "--regrade"),
        ({"data": {"demo": "e"}}, "different versions of demo"),
        ({"prompt": [{"role": "user", "content": "Q"}]}, "different prompt"),
        ({"max_new_tokens": 48}, "different max_new_tokens (128 and 48)"),
        ({"top_p": 0.9}, "different top_p (1.0 and 0.9)"),
        ({"device": Device("cuda", "NVIDIA H100", "bfloat16")}, "number_type (float32 and bfloat16)"),
    ],
)
def test_what_makes_a_comparison_unfair_is_refused_with_the_way_out(tmp_path, changed, said):
    write_evaluation(tmp_path / "a", {"x": [0], "y": [1]})
    write_evaluation(tmp_path / "b", {"x": [1], "y": [1]}, **changed)
    done = python("maths_report.py", tmp_path / "a", tmp_path / "b")
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "a") in done.stderr and str(tmp_path / "b") in done.stderr and not done.stdout


@pytest.mark.parametrize("changed", [{"samples_per_prompt": 8}, {"backend": "vllm"}, {"versions": {"torch": "3"}}])
def test_what_changes_no_expectation_is_compared_and_said(tmp_path, changed):
    paths = write_study(tmp_path, {"noclip": 0.5, "pspo": 0.5}, seeds=1)
    write_evaluation(paths[1], make_verdicts(np.random.default_rng(1), 0.5), **changed)
    report, rows = report_on(paths)
    assert rows["pspo"]["difference"] is not None
    assert any(next(iter(changed)) in note for note in report.notes)


def test_data_sets_that_only_one_run_has_need_not_agree(tmp_path):
    write_evaluation(tmp_path / "a", {"x": [0], "y": [1]}, data={"demo": "d", "gsm8k": "1"})
    write_evaluation(tmp_path / "b", {"x": [1], "y": [1]}, data={"demo": "d", "gsm8k": "2"})
    assert python("maths_report.py", tmp_path / "a", tmp_path / "b").returncode == 0


# ---- methods


def test_methods_are_compared_over_seeds_and_problems(tmp_path):
    report, rows = report_on(write_study(tmp_path, {"noclip": 0.3, "pspo": 0.31, "clip": 0.6}))
    assert rows["clip"]["verdict"] == "better" and rows["pspo"]["verdict"] == "no difference shown"
    assert rows["clip"]["difference"] == pytest.approx(rows["clip"]["accuracy"] - rows["noclip"]["accuracy"])
    assert rows["clip"]["difference_low"] < rows["clip"]["difference"] < rows["clip"]["difference_high"]
    assert rows["clip"]["p_holm"] == pytest.approx(2 * rows["clip"]["p"])  # the smaller of two
    assert rows["clip"]["improvement_probability"] == 1
    assert "difference" not in rows["noclip"] and rows["noclip"]["low"] is not None
    assert not any("fewer than" in note for note in report.notes)


def test_with_two_seeds_the_report_speaks_of_runs(tmp_path):
    report, rows = report_on(write_study(tmp_path, {"noclip": 0.2, "clip": 0.8}, seeds=2))
    assert rows["clip"]["over"] == "problems" and rows["clip"]["compared"] == "runs"
    assert rows["clip"]["verdict"] == "these runs: higher" and rows["clip"]["detectable"] is None
    assert any("runs, not of methods" in note for note in report.notes)


def test_the_baseline_is_the_one_with_the_same_number_of_iterations(tmp_path):
    paths = write_study(tmp_path / "two", {"noclip": 0.3, "pspo": 0.5}, num_iterations=2)
    paths += write_study(tmp_path / "one", {"noclip": 0.1, "clip": 0.5}, num_iterations=1)
    report, _ = report_on(paths)
    gaps = {(row["setting_key"][0], row["method"]): row.get("difference") for row in report.rows}
    values = {(row["setting_key"][0], row["method"]): row["accuracy"] for row in report.rows}
    assert gaps[2, "pspo"] == pytest.approx(values[2, "pspo"] - values[2, "noclip"])
    assert gaps[1, "clip"] == pytest.approx(values[1, "clip"] - values[1, "noclip"])
    alone, _ = report_on([*paths[3:6], *paths[6:9]])  # pspo at 2, noclip at 1: no control
    assert not any(row.get("baseline") for row in alone.rows)
    assert any("nothing is compared with noclip" in note for note in alone.notes)


def test_another_baseline_can_be_named_and_must_be_there(tmp_path):
    paths = write_study(tmp_path, {"noclip": 0.3, "clip": 0.5}, seeds=1)
    assert report_on(paths, "clip")[1]["noclip"]["baseline"] == "clip"
    done = python("maths_report.py", *paths, "--baseline", "pspo")
    assert done.returncode == 2 and "no evaluated run of the baseline pspo: choose from clip, noclip" in done.stderr


def test_runs_of_one_method_with_another_flag_are_another_method(tmp_path):
    paths = write_study(tmp_path / "a", {"pspo": 0.3}, smoothing_alpha=0.1)
    paths += write_study(tmp_path / "b", {"pspo": 0.3}, smoothing_alpha=0.5)
    _, rows = report_on(paths)
    assert set(rows) == {"pspo smoothing_alpha=0.1", "pspo smoothing_alpha=0.5"}


def test_what_else_differs_from_the_baseline_is_said(tmp_path):
    paths = write_study(tmp_path / "a", {"noclip": 0.3}, max_steps=160, epsilon=0.2)
    paths += write_study(tmp_path / "b", {"clip": 0.3}, max_steps=320, epsilon=0.1)
    report, _ = report_on(paths)
    assert "clip differs from noclip also in max_steps" in report.notes


def test_validation_chooses_the_learning_rate_and_the_test_set_does_not(tmp_path):
    paths = write_study(tmp_path / "low", {"clip": 0.8}, learning_rate=1e-5, validation=0.3)
    paths += write_study(tmp_path / "high", {"clip": 0.4}, learning_rate=1e-4, validation=0.6)
    paths += write_study(tmp_path / "none", {"clip": 0.9}, learning_rate=1e-3, validation=None)
    report, rows = report_on(paths)
    assert rows["clip"]["learning_rate"] == 1e-4 and rows["clip"]["accuracy"] < 0.6
    assert rows["clip"]["rates_tried"] == 3 and rows["clip"]["runs_tried"] == 9
    unvalidated, _ = report_on(paths[6:] + write_study(tmp_path / "x", {"clip": 0.5}, validation=None))
    assert len(unvalidated.rows) == 2 and any("no learning rate is chosen" in n for n in unvalidated.notes)


def test_pspo_is_held_against_noclip_at_the_rate_its_gradient_amounts_to(tmp_path):
    paths = write_study(tmp_path / "a", {"pspo": 0.5}, smoothing_alpha=0.1, learning_rate=1e-4)
    paths += write_study(tmp_path / "b", {"noclip": 0.5}, learning_rate=9e-5, validation=0.1)
    paths += write_study(tmp_path / "c", {"noclip": 0.2}, learning_rate=1e-4, validation=0.9)
    report, _ = report_on(paths)
    [row] = report.controls
    assert row["baseline"] == "noclip learning_rate=9e-05" and row["verdict"] == "exploratory: no difference shown"


def test_one_seed_of_one_method_given_twice_is_refused(tmp_path):
    paths = write_study(tmp_path / "a", {"pspo": 0.3}, seeds=1) + write_study(tmp_path / "b", {"pspo": 0.3}, seeds=1)
    with pytest.raises(BadInput, match="one method with one seed"):
        report_on(paths)
    assert len(report_on([paths[0], paths[0]])[0].rows) == 1


# ---- whatever became of the runs


def write_grid(path, methods, seeds, extra=""):
    """A grid file of the demo whose runs lie beside it, under `demo`."""
    axes = f"model: [demo], method: [{', '.join(methods)}], seed: {list(seeds)}"
    path.write_text(f"axes: {{{axes}}}\n{extra}output_root: {path.parent}\n")
    return path


def test_a_grid_declares_what_is_asked_of_it_and_a_flag_asks_something_else(tmp_path, monkeypatch):
    grid = tmp_path / "grid.yaml"
    write_grid(grid, ["clip"], [0], "report: {primary: demo@1, baseline: clip}\n")

    def asked(*argv):
        monkeypatch.setattr(sys, "argv", ["maths_report.py", *map(str, argv)])
        args = maths_report.parse_args()
        return args.primary, args.baseline, args.failed

    assert asked(grid) == ("demo@1", "clip", "no_verdict")
    assert asked(grid, "--primary", "demo@0") == ("demo@0", "clip", "no_verdict")
    assert asked(tmp_path, "--failed", "base") == (None, None, "base")
    with pytest.raises(BadInput, match="^margin must be above 0, got -1"):
        asked(grid, "--margin", "-1")


def test_cells_of_a_grid_that_are_not_evaluated_are_shown_as_what_they_are(tmp_path):
    write_study(tmp_path / "demo", {"noclip": 0.3, "clip": 0.5}, seeds=2)
    write_run(tmp_path / "demo/pspo/seed0", "pspo", 0, status="running")
    report, rows = report_on([write_grid(tmp_path / "g.yaml", ["noclip", "clip", "pspo"], range(2))])
    assert set(rows) == {"noclip", "clip"}
    notes = "\n".join(report.notes)
    assert f"{tmp_path}/demo/pspo/seed0: failed: step 4 of" in notes and "pspo/seed1: waiting" in notes
    assert [(row["method"], row["started"], row["failed"]) for row in report.failures][-1] == ("pspo", 1, 1)


def test_a_line_that_is_being_written_is_left_out_and_any_other_damage_is_named(tmp_path):
    [path] = write_study(tmp_path, {"pspo": 0.3}, seeds=1)
    file = path / "evaluations/demo.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"id": "p1", "tempe')
    assert report_on([path])[1]["pspo"]["problems"] == 40
    file.write_text(whole + '{"id": "p1", "tempe\n')
    with pytest.raises(BadInput, match="line 161 is damaged"):
        report_on([path])


def test_what_the_summary_does_not_call_complete_is_left_out_and_named(tmp_path):
    paths = write_study(tmp_path, {"noclip": 0.3, "pspo": 0.3}, seeds=1)
    file = paths[1] / "evaluations/demo.jsonl"
    file.write_text("\n".join(file.read_text().splitlines()[:80]) + "\n")
    report, rows = report_on(paths)
    assert set(rows) == {"noclip"} and f"{paths[1]}: not complete: demo at 0.8" in report.notes


def test_missing_temperatures_and_an_empty_data_set_leave_the_rest(tmp_path):
    paths = write_study(tmp_path, {"noclip": 0.3, "pspo": 0.3}, seeds=1)
    write_evaluation(paths[1], {f"p{i}": [1] for i in range(40)}, temperature=0)
    report, _ = report_on(paths)
    assert {(r["method"], r["temperature"]) for r in report.rows} == {("noclip", 0.8), ("pspo", 0)}
    write_evaluation(paths[1], {})
    report, rows = report_on(paths)
    assert set(rows) == {"noclip"} and any("no complete evaluation" in note for note in report.notes)


def test_no_run_with_a_result_is_a_table_without_rows(tmp_path):
    write_run(tmp_path / "a/seed0", status="running")
    write_run(tmp_path / "a/seed1", seed=1, status="running")
    write_run(tmp_path / "a/seed2", seed=2)
    done = python("maths_report.py", *(tmp_path / f"a/seed{i}" for i in range(3)))
    assert done.returncode == 0 and "seed0: failed: stopped at step 4" in done.stdout


# ---- files and figures


def write_output(paths, output, *flags):
    done = python("maths_report.py", *paths, "--output", output, *flags)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return output


@pytest.fixture
def write_undrawn(monkeypatch):
    """Writes a Report to a directory, all but its figures, which take most of the time."""
    monkeypatch.setattr(figures, "DRAWN", ())

    def write(report, output):
        write_report(report, output, None)
        return output

    return write


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_hold_what_the_table_says(tmp_path, write_undrawn):
    paths = write_study(tmp_path / "low", {"noclip": 0.4, "pspo": 0.7}, learning_rate=1e-5, validation=0.3)
    paths += write_study(tmp_path / "high", {"noclip": 0.3, "pspo": 0.5}, ratio=1.0)
    report, expected = report_on(paths)
    out = write_undrawn(report, tmp_path / "out")
    results = {row["method"]: row for row in read_csv(out / "results.csv")}
    assert float(results["pspo"]["difference"]) == pytest.approx(expected["pspo"]["difference"], abs=1e-5)
    assert len(results["pspo"]["per_seed"].split()) == 3 and results["pspo"]["rates_tried"] == "2"
    runs = read_csv(out / "runs.csv")
    assert len(runs) == 12 and {r["chosen"] for r in runs if r["learning_rate"] == "1e-05"} == {"False"}
    assert {(r["inert"], r["learning_rate"]) for r in runs} == {("True", "0.0001"), ("False", "1e-05")}
    curves = [r for r in read_csv(out / "curves.csv") if r["metric"] == "reward" and r["method"] == "pspo"]
    assert [float(r["mean"]) for r in curves] == [0.25, 0.5, 0.75, 1.0] and {r["seeds"] for r in curves} == {"3"}
    assert {r["device"] for r in runs} == {str(report.runs[0].record.basis.device)}
    markdown, latex = (out / "results.md").read_text(), (out / "results.tex").read_text()
    cell = f"{100 * expected['pspo']['accuracy']:.1f} ({100 * expected['pspo']['low']:.1f} to "
    assert cell in markdown and cell in latex and r"num\_iterations" in latex and latex.count("tabular") == 2


@pytest.mark.slow
def test_every_figure_is_drawn_where_there_is_something_to_draw(tmp_path):
    paths = []
    for rate in (1e-5, 1e-4):
        for steps in (1, 4):
            root = tmp_path / f"{rate}-{steps}"
            config = {"learning_rate": rate, "steps_per_generation": steps}
            paths += write_study(root, {"noclip": 0.3, "pspo": 0.5}, seeds=2, **config)
    rename(paths, "pspo", "pspo $x$ <b>")
    record = read_record(paths[2])
    record.outcome.collapsed_at = 3
    write_record(paths[2], record)
    producers.write_rows(paths[2] / "metrics.jsonl", [{"step": 3, "trust_region/effective_sample_size": 0.5}])
    out = write_output(paths, tmp_path / "out")
    names = {"differences", "temperature", "pass", "curves", "budget", "validation", "rates", "staleness", "groups"}
    names |= {"stability", "collapses"}
    assert {p.stem for p in out.glob("*.svg")} == {p.stem for p in out.glob("*.png")} == names
    texts = {p.stem: "".join(ElementTree.parse(p).getroot().itertext()) for p in out.glob("*.svg")}
    assert all("pspo $x$ <b>" in text for text in texts.values())
    assert "0.0001" in texts["rates"] and "updates a generation" in texts["staleness"]


@pytest.mark.slow
def test_two_hundred_runs_and_a_seed_of_one_method_give_a_page(tmp_path):
    paths = write_study(tmp_path / "many", {"clip": 0.4, "noclip": 0.4}, seeds=100, problems=4)
    assert read_csv(write_output(paths, tmp_path / "out") / "results.csv")[0]["seeds"] == "100"
    one = write_output(paths[:1], tmp_path / "one")
    assert (one / "index.html").is_file() and not (one / "groups.csv").read_text().count("nan")


def test_a_reader_that_goes_away_sees_no_traceback(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # what is printed is then written at the end
    paths = write_study(tmp_path, {"noclip": 0.3, "pspo": 0.5}, seeds=1, problems=4)
    command = [sys.executable, "maths_report.py", *map(str, paths), "--baseline", "noclip"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        process.stdout.close()  # before anything is printed
        assert process.stderr.read() == ""
    assert process.returncode == 1


# ---- accuracy by category


def test_a_category_is_compared_as_the_whole_is_problem_by_problem_and_seed_by_seed(tmp_path, write_undrawn):
    """Every problem of the producers' is hard, so that the group is the whole; of a part the means are told by hand."""
    paths = [write_run_and_result(tmp_path / f"n{s}", "noclip", s, 0.3) for s in range(5)]
    paths += [write_run_and_result(tmp_path / f"p{s}", "pspo", s, 0.5) for s in range(5)]
    report, rows = report_on(paths)
    groups = {r["method"]: r for r in read_csv(write_undrawn(report, tmp_path / "out") / "groups.csv")}
    for name in ("accuracy", "low", "high", "difference", "difference_low", "difference_high"):
        assert float(groups["pspo"][name]) == pytest.approx(rows["pspo"][name], abs=1e-5), name
    assert rows["pspo"]["seeds_paired"] and groups["noclip"]["difference"] == "" and groups["pspo"]["group"] == "hard"
    ids = ["p3", "p8", "p11"]
    part = describe_part(rows["pspo"], ids, report.question)
    key = report.question.keys[0]
    ours, theirs = (np.mean([[run.scores[key][i] for i in ids] for run in runs]) for runs in halves(report.runs))
    assert part["difference"] == pytest.approx(theirs - ours) and part["problems"] == 3
    assert part["difference_low"] < part["difference"] < part["difference_high"]


def halves(values):
    """The first and the second half of a list."""
    return values[: len(values) // 2], values[len(values) // 2 :]


# ---- the page, in a real browser


HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> 5 < 6 & 1"


@pytest.fixture(scope="module")
def chromium():
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not path:
        pytest.skip("needs a browser: apt-get install chromium, or name one in CHROMIUM")
    from playwright.sync_api import sync_playwright

    switches = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    switches += "--disable-component-update --disable-sync"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, headless=True, args=switches.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report_page(tmp_path_factory):
    """A report of three methods and three seeds whose completions are hostile; one run of clip crashed."""
    root = tmp_path_factory.mktemp("page")
    paths, rng = [], np.random.default_rng(0)
    for method, rate in {"noclip": 0.3, "pspo": 0.9, "clip": 0.5}.items():
        for seed in range(3):
            path = root / "runs" / method / f"seed{seed}"
            write_run(path, method, seed)
            verdicts = {f"demo-test-{i}": rng.random(4) < (1 if i < 5 else rate) for i in range(30)}
            write_evaluation(path, verdicts, text=HOSTILE)
            paths.append(path)
    paths.append(root / "runs/clip/seed3")
    write_run(paths[-1], "clip", 3, status="running")
    rename(paths, "clip", "clip</script><i>")
    return write_output(paths, root / "out") / "index.html"


@pytest.fixture
def page(chromium, report_page):
    """The page opened from its file; a message on its console or a request to a network fails the test."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or said.append(request.url))
    page.goto(report_page.as_uri())
    page.wait_for_selector("html[data-ready]")
    yield page
    title = page.title()
    page.close()
    assert said == [] and title == "Trust regions compared"


def column(page, table, number):
    return [cell.strip() for cell in page.locator(f"#{table} tbody td:nth-child({number})").all_inner_texts()]


def test_the_page_begins_with_the_answer_and_its_table_fits_the_window_and_says_who_survived(page):
    page.set_viewport_size({"width": 1300, "height": 900})
    assert "There is no verdict on clip</script><i>: not all runs have a score." in page.locator("#answer").inner_text()
    box = page.locator("#results-table").locator("xpath=..")
    assert box.evaluate("(box) => [box.scrollWidth - box.clientWidth, box.scrollHeight - box.clientHeight]") == [0, 0]
    assert box.locator("xpath=preceding-sibling::p").last.inner_text().endswith("compared with noclip")
    rows = dict(zip(column(page, "results-table", 1), column(page, "results-table", 2), strict=True))
    assert "3 of 4 runs" in rows["clip</script><i>"] and "runs" not in rows["pspo"]


def test_a_table_sorts_both_ways(page):
    def accuracy():
        return [float(text.split()[0]) for text in column(page, "results-table", 2)]

    head = page.locator("#results-table th", has_text="accuracy").locator("button")
    head.click()
    assert accuracy() == sorted(accuracy())
    page.keyboard.press("Enter")  # the button keeps the keyboard's focus
    assert accuracy() == sorted(accuracy(), reverse=True)
    assert page.locator("#results-table th[aria-sort=descending]").count() == 1


def test_problems_are_searched_filtered_and_opened_and_completions_are_text(page):
    assert page.locator("#problems li").count() == 30
    page.fill("#search", "kim has 15 plums")  # the question of demo-test-1, from the demo's own data
    assert page.locator("#problems li").count() == 1
    page.locator("#problems button").click()
    page.wait_for_selector("#problem .card")
    assert page.locator("#problem h3").inner_text() == "demo-test-1"
    assert page.locator("#problem .card").count() == 3 * 3 * 4
    assert page.locator("#problem .card pre").first.inner_text() == HOSTILE
    assert page.locator("#problem img, #problem script, #problem i").count() == 0
    page.fill("#search", "")
    page.check("#disagree")
    assert 0 < page.locator("#problems li").count() < 30
    for line in page.locator("#problems .small").all_inner_texts():
        values = [int(value) for value in line.split(" · ")]
        assert min(values) < 50 <= max(values)


def test_blind_mode_hides_names_and_verdicts_and_ratings_are_exported_with_them(page):
    page.check("#blind")
    page.locator("#problems button").first.click()
    page.wait_for_selector(".rating")
    shown = page.locator("#browser .columns").inner_html()
    assert not any(word in shown for word in ("pspo", "noclip", "clip&lt;", "right</span>", "seed "))
    assert page.locator("#problem h4").all_inner_texts() == ["Answer A", "Answer B", "Answer C"]
    for i, value in enumerate((5, 1, 3)):
        page.locator(".rating").nth(i).locator("button", has_text=str(value)).click()
    with page.expect_download() as download:
        page.click("#export")
    rows = read_csv(download.value.path())
    assert [(row["position"], row["rating"]) for row in rows] == [("1", "5"), ("2", "1"), ("3", "3")]
    assert {row["method"] for row in rows} == {"noclip", "pspo", "clip</script><i>"} and {
        r["order_seed"] for r in rows
    } == {"0"}


@pytest.mark.slow
def test_the_blind_order_follows_from_the_seed_and_the_problem(page):
    def order(seed, problem):
        page.fill("#blind-seed", str(seed))
        page.locator("#blind-seed").blur()
        page.locator("#problems button").nth(problem).click()
        page.wait_for_selector(".rating")
        page.evaluate("state.ratings.clear()")
        for rating in page.locator(".rating").all():
            rating.locator("button").first.click()
        return page.evaluate("[...state.ratings.keys()].map((key) => JSON.parse(key)[5]).join()")

    page.check("#blind")
    orders = [order(seed, problem) for seed in range(2) for problem in range(3)]
    assert orders == [order(seed, problem) for seed in range(2) for problem in range(3)] and len(set(orders)) > 2


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_screen_and_no_two_parts_overlap(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.locator("#problems button").first.click()
    page.wait_for_selector("#problem .card")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [
        b.bounding_box() for b in page.locator("main > section > *:visible, #problem > *:visible, #problem h4").all()
    ]
    boxes = [b for b in boxes if b and b["height"] and b["x"] >= 0]
    for a, b in itertools.combinations(boxes, 2):
        inside = all(a[k] <= b[k] and b[k] + b[s] <= a[k] + a[s] + 1 for k, s in (("x", "width"), ("y", "height")))
        apart = any(a[k] + a[s] <= b[k] + 1 or b[k] + b[s] <= a[k] + 1 for k, s in (("x", "width"), ("y", "height")))
        assert inside or apart


def test_the_page_names_every_run_that_has_no_result(tmp_path, chromium, write_undrawn):
    paths = write_study(tmp_path, {"noclip": 0.3}, seeds=1)
    write_run(tmp_path / "<b>pspo/seed0", "pspo", 0, status="running", validation=None)
    report, _ = report_on([*paths, tmp_path / "<b>pspo/seed0"])
    page = chromium.new_page()
    page.goto((write_undrawn(report, tmp_path / "out") / "index.html").as_uri())
    page.wait_for_selector("html[data-ready]")
    assert "stopped at step 4, not evaluated" in column(page, "runs-table", 2)
    assert "<b>pspo/seed0: failed: stopped at step 4" in page.locator("#notes-title + .notes").inner_text()
    page.close()


def test_a_page_holds_no_more_completions_than_it_can_bear(tmp_path, monkeypatch):
    paths = write_study(tmp_path, {"noclip": 0.3, "pspo": 0.4}, seeds=2)
    report, _ = report_on(paths)

    def count(limit):
        monkeypatch.setattr(page_module, "MAX_COMPLETIONS", limit)
        index, problems, note = page_module.make_browser(report, {})
        held = [answer for methods in problems.values() for answers in methods.values() for answer in answers]
        return len(held), max(a[1] for a in held) + 1, len(index["views"][0]["problems"]), note

    assert count(10_000)[:3] == (2 * 2 * 40 * 4, 4, 40)
    assert count(400)[:3] == (2 * 2 * 40 * 2, 2, 40)
    assert count(80)[:3] == (2 * 2 * 20, 1, 40) and "of one problem in 2" in count(80)[3]


# ---- the study


def test_every_method_of_the_study_has_the_same_budget_and_its_corner_and_control_are_part_of_it():
    every = {str(cell.run_dir): cell for cell in read_grid(ROOT / "recipes/study.yaml")}
    corner = read_grid(ROOT / "recipes/study_quick.yaml")
    corner += [cell for cell in read_grid(ROOT / "recipes/study_control.yaml") if cell.method == "pspo"]
    assert all((c.train, c.evaluate) == (every[str(c.run_dir)].train, every[str(c.run_dir)].evaluate) for c in corner)
    budgets = defaultdict(set)
    for cell in every.values():
        budgets[cell.rivals].add((cell.rate, cell.seed, cell.tuning))
    seeds = [(seed, seed >= 10) for seed in (0, 1, 2, 3, 4, 10, 11)]
    assert set(map(frozenset, budgets.values())) == {
        frozenset((rate, *seed) for rate in (1.25e-5, 2.5e-5, 5e-5, 1e-4) for seed in seeds)
    }
    methods = {cell.method for cell in every.values()}
    assert methods >= {"clip", "noclip", "pspo"} and len(budgets) == len(methods) + 1


# ---- training curves


def test_plots_of_one_and_of_several_runs(tmp_path):
    write_run(tmp_path / "a", "pspo", steps=30)
    write_run(tmp_path / "b", "clip")
    figures.plot_training([tmp_path / "a", tmp_path / "b"], tmp_path / "both.png")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(BadInput, match="not the directory of a training run"):
        figures.plot_training([tmp_path], tmp_path / "none.png")


@pytest.mark.parametrize(("key", "markers"), [("reward", 1), ("trust_region/approx_kl", 0)])
def test_validation_is_marked_where_it_says_something(key, markers):
    axes = Figure().subplots()
    rows = [{"step": 1, key: 0.5}, {"step": 2, key: 0.6}, {"step": 2, f"eval_{key}": 0.4}]
    figures.draw_curve(axes, rows, key, "C0", "a run")
    assert sum(line.get_marker() == "o" for line in axes.lines) == markers


def test_the_strong_line_is_a_running_mean_over_a_twentieth_of_the_run():
    values, axes = np.random.default_rng(0).random(140), Figure().subplots()
    figures.draw_curve(axes, [{"step": i, "loss": v} for i, v in enumerate(values)], "loss", "C0", "a run")
    faint, strong = (line.get_ydata() for line in axes.lines)
    assert list(faint) == list(values)
    assert strong == pytest.approx([np.mean(values[max(0, i - 6) : i + 1]) for i in range(140)])


# ---- what a sceptic asks


def notes_of(report):
    return "\n".join([*report.answer, *report.rules, *report.notes])


def write_run_and_result(path, method, seed, rate, **config):
    """A run and its evaluation; the same seed and rate give the same verdicts."""
    write_run(path, method, seed, **config)
    write_evaluation(path, make_verdicts(np.random.default_rng([seed, int(1000 * rate)]), rate))
    return path


def write_crashed(path, method, seed, **config):
    """A run that ended after an early validation, without weights."""
    write_run(path, method, seed, status="running", **config)
    return path


def test_survivors_are_never_better_and_how_many_finished_is_said(tmp_path):
    paths = [write_run_and_result(tmp_path / f"n{s}", "noclip", s, 0.2) for s in range(5)]
    paths += [write_run_and_result(tmp_path / f"c{s}", "clip", s, 0.8) for s in range(3)]
    whole, rows = report_on(paths)
    assert rows["clip"]["verdict"] == "better"
    paths += [write_crashed(tmp_path / f"c{s}", "clip", s) for s in (3, 4)]
    report, rows = report_on(paths)
    assert rows["clip"]["verdict"] == "no verdict: 2 of the runs have no score" and rows["clip"]["p_holm"] is None
    assert (rows["clip"]["finished"], rows["clip"]["started"], rows["clip"]["failed"]) == (3, 5, 2)
    assert "2 of 5 runs of clip failed." in report.answer and "no verdict on clip" in notes_of(report)
    [failures] = [row for row in report.failures if row["method"] == "clip"]
    assert (failures["failed"], failures["started"], failures["theirs_failed"]) == (2, 5, 0)
    assert failures["low"] == pytest.approx(0.0527, abs=1e-4) and failures["high"] == pytest.approx(0.8534, abs=1e-4)


def test_the_base_model_or_a_checkpoint_scores_for_a_run_that_crashed_if_that_is_asked(tmp_path):
    paths = [write_run_and_result(tmp_path / f"demo/n/seed{s}", "noclip", s, 0.2) for s in range(5)]
    paths += [write_run_and_result(tmp_path / f"demo/c/seed{s}", "clip", s, 0.8) for s in range(4)]
    crashed = write_crashed(tmp_path / "demo/c/seed4", "clip", 4)
    write_evaluation(tmp_path / "demo/base", make_verdicts(np.random.default_rng(0), 0.1))
    report, rows = report_on([*paths, crashed, tmp_path / "demo/base"], failed="base")
    assert rows["clip"]["seeds"] == 5 and rows["clip"]["stand_ins"] == 1 and rows["clip"]["failed"] == 1
    assert min(rows["clip"]["per_seed"]) == pytest.approx(rows["base"]["accuracy"])
    assert rows["clip"]["verdict"] in ("better", "no difference shown") and RULES["base"] in notes_of(report)
    checkpoint = crashed / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "weights").write_text("w")
    seal_checkpoint(checkpoint)
    report, rows = report_on([*paths, crashed], failed="checkpoint")
    assert f"--model_path {checkpoint}" in notes_of(report) and rows["clip"]["verdict"].startswith("no verdict")
    producers.write_evaluation(crashed / "evaluations/checkpoint-2", make_verdicts(np.random.default_rng(0), 0.5))
    _, rows = report_on([*paths, crashed], failed="checkpoint")
    assert rows["clip"]["stand_ins"] == 1 and not rows["clip"]["verdict"].startswith("no verdict")


def test_a_rate_is_not_chosen_on_survivors_nor_lost_to_an_unfinished_run(tmp_path):
    low = [
        write_run_and_result(tmp_path / f"l{s}", "clip", s, 0.5, learning_rate=1e-5, validation=0.5) for s in range(3)
    ]
    high = write_run_and_result(tmp_path / "h0", "clip", 0, 0.6, learning_rate=1e-3, validation=0.55)
    lost = [write_crashed(tmp_path / f"h{s}", "clip", s, learning_rate=1e-3, validation=0.6) for s in (1, 2)]
    report, rows = report_on([*low, high, *lost])
    assert rows["clip"]["learning_rate"] == 1e-5 and rows["clip"]["seeds"] == 3 and rows["clip"]["edge"] == "lowest"
    assert "passed over for runs without an end: learning rate 0.001" in notes_of(report)
    assert "the lowest that was tried" in notes_of(report) and "2 of 6 runs of clip failed." in report.answer


@pytest.mark.parametrize(("seeds", "paired"), [(2, False), (3, True)])
def test_seeds_are_paired_from_three_on(tmp_path, seeds, paired):
    _, rows = report_on(write_study(tmp_path, {"noclip": 0.4, "pspo": 0.5}, seeds=seeds))
    assert rows["pspo"]["seeds_paired"] == paired


def test_methods_compared_at_several_updates_a_generation_are_counted_once(tmp_path):
    paths = []
    for steps in (2, 4):
        rates = {"noclip": 0.4, "clip": 0.4, "pspo": 0.4}
        paths += write_study(tmp_path / str(steps), rates, steps_per_generation=steps)
    assert (
        report_on(paths)[0].answer[0].startswith("In 4 comparisons of 2 methods none was shown to differ from noclip")
    )


def test_a_run_that_collapsed_has_failed_at_that_step_and_stays_in_the_mean(tmp_path):
    """Its effective sample size is a mean over the updates until then, and the figure that shows both is drawn."""
    paths = write_study(tmp_path, {"noclip": 0.4, "pspo": 0.4}, steps=8)
    record = read_record(paths[0])
    record.outcome.collapsed_at = 5
    write_record(paths[0], record)
    log = paths[0] / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        row["trust_region/effective_sample_size"] = 1 / row["step"]
    producers.write_rows(log, rows)
    report, methods = report_on(paths)
    assert methods["noclip"]["seeds"] == 3 and "1 of 3 runs of noclip" in " ".join(report.answer)
    assert "its reward collapsed at step 5" in notes_of(report)
    tables = make_tables(report)
    run = tables["runs"].set_index("run").loc[str(paths[0])]
    assert run["collapsed_at"] == 5
    assert run["effective_sample_size"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5)
    ends = tables["ends"]
    assert ends[(ends["method"] == "noclip") & (ends["failed"] > 0)]["step"].tolist() == [5, 8]
    styles = figures.make_styles(["noclip", "pspo"])
    assert figures.draw_collapses(tables, styles) is not None
    healthy = {"runs": tables["runs"].assign(collapsed_at=None)}
    assert figures.draw_collapses(healthy, styles) is None


def test_a_run_below_its_base_model_or_without_a_finite_loss_has_failed_and_stays_in_the_mean(tmp_path):
    path = tmp_path / "demo"
    write_evaluation(path / "base", make_verdicts(np.random.default_rng(0), 0.6))
    paths = [write_run_and_result(path / f"p/seed{s}", "pspo", s, 0.1 if s == 0 else 0.7) for s in range(3)]
    with open(paths[1] / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "loss": NaN}\n')
    report, rows = report_on([*paths, path / "base"])
    assert rows["pspo"]["seeds"] == 3 and rows["pspo"]["failed"] == 2
    assert "points below the base model" in notes_of(report) and "loss not finite at step 3" in notes_of(report)


def test_the_score_that_chooses_is_that_of_the_weights_that_were_kept(tmp_path):
    path = write_run_and_result(tmp_path / "a", "clip", 0, 0.5, validation=0.1)
    rows = [{"step": 2, "eval_reward": 0.6}, {"step": 4, "eval_reward": 0.1}]
    producers.write_rows(path / "metrics.jsonl", rows)
    assert read_runs([path])[0].score == 0.1


def test_the_same_seeds_are_paired_and_that_is_said(tmp_path):
    rates = [0.2, 0.35, 0.5, 0.65, 0.8]
    paths = [write_run_and_result(tmp_path / f"n{s}", "noclip", s, rates[s]) for s in range(5)]
    paths += [write_run_and_result(tmp_path / f"c{s}", "clip", s, rates[s] + 0.05) for s in range(5)]
    report, rows = report_on(paths)
    gaps = rows["clip"]["per_seed_difference"]
    assert rows["clip"]["seeds_paired"] and len(gaps) == 5
    assert rows["clip"]["difference"] == pytest.approx(np.mean(gaps))
    wide = rows["clip"]["difference_high"] - rows["clip"]["difference_low"]
    write_run(paths[-1], "clip", 7)  # another seed: the sets are not the same
    _, rows = report_on(paths)
    assert (
        not rows["clip"]["seeds_paired"] and rows["clip"]["difference_high"] - rows["clip"]["difference_low"] > 2 * wide
    )


def test_runs_that_are_the_same_do_not_differ_and_that_is_sure(tmp_path):
    """Five runs under two names, whose seeds are 12 points apart: not paired, the interval was some points wide."""
    rates = [0.3, 0.42, 0.54, 0.66, 0.78]
    paths = [write_run_and_result(tmp_path / f"{m}{s}", m, s, rates[s]) for m in ("noclip", "pspo") for s in range(5)]
    _, rows = report_on(paths)
    assert rows["pspo"]["difference"] == 0 and rows["pspo"]["p"] == 1
    of_pseudo_answers = Z**2 / 40  # see spare_answers: 40 problems of which none is discordant
    assert 0.5 * of_pseudo_answers < rows["pspo"]["difference_high"] < 1.1 * of_pseudo_answers


def test_one_family_says_better_and_the_rest_is_exploratory(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for method, rate in {"noclip": 0.2, "clip": 0.8, "pspo": 0.2}.items():
        for seed in range(3):
            paths.append(tmp_path / method / f"seed{seed}")
            write_run(paths[-1], method, seed)
            write_evaluation(paths[-1], make_verdicts(rng, rate))
            write_evaluation_of_two(paths[-1], rng, rate)
    report, _ = report_on(paths)
    said = {(row["method"], row["temperature"]): row["verdict"] for row in report.rows if "verdict" in row}
    assert said["clip", 0] == "better" and said["clip", 0.8] == "exploratory: higher"
    report, _ = report_on(paths, primary="demo@0.8")
    said = {(row["method"], row["temperature"]): row["verdict"] for row in report.rows if "verdict" in row}
    assert said["clip", 0.8] == "better" and said["clip", 0] == "exploratory: higher"
    with pytest.raises(BadInput, match="choose from demo@0, demo@0.8"):
        report_on(paths, primary="demo@0.5")


def write_evaluation_of_two(path, rng, rate):
    """An evaluation at temperatures 0 and 0.8: the first is written apart and the two files are put together."""
    verdicts = [make_verdicts(rng, rate, samples=n) for n in (1, 4)]
    files = []
    for found, temperature in zip(verdicts, (0, 0.8), strict=True):
        write_evaluation(path, found, temperature=temperature)
        files.append([(path / f"evaluations/{name}").read_text() for name in ("demo.jsonl", "summary.json")])
    (path / "evaluations/demo.jsonl").write_text(files[0][0] + files[1][0])
    summary = json.loads(files[0][1])
    summary["datasets"]["demo"] |= json.loads(files[1][1])["datasets"]["demo"]
    (path / "evaluations/summary.json").write_text(json.dumps(summary))


def test_two_runs_allow_one_sentence():
    intervals = {("demo", 0.0): (0.48, 0.58), ("demo", 1.0): (-0.01, 0.02), ("other", 0.0): (-0.3, -0.1)}
    said = conclude_pair("runs/base", "runs/pspo", intervals)
    assert said.startswith("runs/pspo solves more problems than runs/base on demo@0, and fewer problems than runs/base")
    assert "demo@1" not in said and "on other@0" in said and "one run beside another" in said
    unclear = conclude_pair("runs/base", "runs/pspo", {("demo", 1.0): (-0.01, 0.02)})
    assert unclear.startswith("runs/pspo was not shown to differ from runs/base:")


def test_a_margin_lets_the_report_say_that_methods_are_alike(tmp_path):
    paths = [write_run_and_result(tmp_path / f"n{s}", "noclip", s, 0.5) for s in range(5)]
    paths += [write_run_and_result(tmp_path / f"p{s}", "pspo", s, 0.5) for s in range(5)]
    report, rows = report_on(paths, margin=15)
    assert rows["pspo"]["verdict"] == "within 15 points of noclip"
    assert "pspo is within 15 points of noclip." in report.answer
    assert "pspo was not shown to lie within 0.1 points of noclip." in report_on(paths, margin=0.1)[0].answer


def test_tuning_seeds_choose_the_rate_and_are_not_judged(tmp_path):
    scores = {(1e-5, 0): 0.9, (1e-5, 10): 0.1, (1e-4, 0): 0.1, (1e-4, 10): 0.9}
    paths = []
    for (rate, seed), score in scores.items():
        path = tmp_path / f"{rate}/seed{seed}"
        paths.append(write_run_and_result(path, "clip", seed, 0.5, learning_rate=rate, validation=score))
    _, rows = report_on(paths, tuning_seeds=[10])
    assert rows["clip"]["learning_rate"] == 1e-4 and rows["clip"]["seeds"] == 1 and rows["clip"]["tuned_apart"]
    with pytest.raises(BadInput, match="every run has a tuning seed"):
        report_on(paths, tuning_seeds=[0, 10])


def test_a_method_whose_tuning_seeds_alone_have_begun_is_no_obstacle(tmp_path):
    paths = write_study(tmp_path / "judged", {"clip": 0.4, "noclip": 0.5})
    write_run(tmp_path / "tuning", "pspo", 10)
    report, rows = report_on([*paths, tmp_path / "tuning"], tuning_seeds=[10])
    assert rows.keys() == {"clip", "noclip"}
    assert set(make_tables(report)["curves"]["method"]) == {"clip", "noclip"}


def test_a_grids_tuning_seeds_are_cells_that_choose(tmp_path):
    grid = write_grid(tmp_path / "g.yaml", ["clip"], [0, 1], "tuning_seeds: [10]\n")
    assert [(cell.seed, cell.tuning) for cell in read_grid(grid)] == [(0, False), (1, False), (10, True)]
    for wrong in ("10", "[a]", "[0, 1]"):
        with pytest.raises(BadInput, match="seeds"):
            read_grid(write_grid(tmp_path / "g.yaml", ["clip"], [0, 1], f"tuning_seeds: {wrong}\n"))


def test_failures_are_tested_over_tuning_seeds_where_the_others_ran_at_one_rate_each(tmp_path):
    """pspo lost three of five judged runs, at its own rate; of tuning runs neither lost one."""
    paths = []
    for method, chosen in (("noclip", 1e-5), ("pspo", 1e-4)):
        for rate in (1e-5, 1e-4):
            for seed in (10, 11):
                path = tmp_path / f"{method}{rate}/seed{seed}"
                write_run(path, method, seed, learning_rate=rate, validation=float(rate == chosen))
                paths.append(path)
        for seed in range(5):
            path = tmp_path / f"{method}{chosen}/seed{seed}"
            write_run_and_result(path, method, seed, 0.5, learning_rate=chosen)
            if method == "pspo" and seed < 3:
                with open(path / "metrics.jsonl", "a") as file:
                    file.write('{"step": 3, "loss": NaN}\n')
            paths.append(path)
    report, _ = report_on(paths, tuning_seeds=[10, 11])
    [row] = [row for row in report.failures if row["method"] == "pspo"]
    assert (row["started"], row["failed"], row["theirs_started"]) == (9, 3, 4) and row["p"] == 1


def test_a_tuning_run_is_no_control(tmp_path):
    paths = write_study(tmp_path / "p", {"pspo": 0.5}, smoothing_alpha=0.5, learning_rate=1e-4)
    paths += write_study(tmp_path / "n", {"noclip": 0.4}, learning_rate=5e-5)
    write_run(tmp_path / "tuning", "noclip", 10, learning_rate=5e-5)
    report, _ = report_on([*paths, tmp_path / "tuning"], tuning_seeds=[10])
    assert [(row["lost"], len(row["theirs"])) for row in report.controls] == [(0, 3)]


def test_a_left_out_run_that_has_begun_is_listed_and_not_judged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = "tuning_seeds: [10]\nonly_chosen_rates: true\n"
    text = "axes: {model: [demo], method: [noclip, clip], learning_rate: [1.0e-5, 1.0e-4], seed: [0, 1, 2]}\n"
    Path("g.yaml").write_text(text + more)
    for cell in read_grid("g.yaml"):
        if cell.tuning:
            write_run(cell.run_dir, cell.method, 10, learning_rate=cell.rate, validation=cell.rate)
        elif cell.rate == 1e-4:
            write_run_and_result(cell.run_dir, cell.method, cell.seed, 0.5, learning_rate=cell.rate)
    begun = next(cell for cell in read_grid("g.yaml") if cell.rate == 1e-5 and not cell.tuning)
    write_run(begun.run_dir, begun.method, begun.seed, "running", learning_rate=begun.rate)
    report, rows = report_on([Path("g.yaml")])
    assert {row["learning_rate"] for row in rows.values()} == {1e-4}
    assert sum(row["failed"] for row in report.failures) == 0
    assert f"{begun.run_dir}: left out: learning rate 0.0001 was chosen" in notes_of(report)


def test_what_choosing_a_rate_on_the_judged_runs_gains_is_the_excess_over_choosing_on_the_others(tmp_path):
    """Seed 0 alone prefers the second rate and is better there: the other seeds would not have chosen it for it."""
    paths = []
    for rate, scores in ((1e-5, (0.50, 0.52, 0.54)), (1e-4, (0.99, 0.30, 0.30))):
        for seed, score in enumerate(scores):
            path = tmp_path / f"{rate}/seed{seed}"
            paths.append(write_run_and_result(path, "clip", seed, score, learning_rate=rate, validation=score))
    report, rows = report_on(paths)
    table = {
        rate: [np.mean(list(run.scores["demo", 0.8].values())) for run in report.runs[i : i + 3]]
        for i, rate in ((0, 1), (3, 2))
    }
    honest = np.mean([table[1][0], table[2][1], table[2][2]])
    assert rows["clip"]["selection_gain"] == pytest.approx(np.mean(table[2]) - honest)
    assert "flatters" in notes_of(report)


def test_two_runs_of_which_none_is_the_baseline_are_compared_with_each_other(tmp_path):
    paths = [write_run_and_result(tmp_path / m, m, 0, rate) for m, rate in (("pspo", 0.2), ("clip", 0.9))]
    report, rows = report_on(paths)
    assert rows["clip"]["baseline"] == "pspo" and rows["clip"]["difference"] > 0.5
    assert "from pspo, over problems: with fewer than 3 seeds this speaks of these runs" in report.answer[0]


def test_a_data_set_is_held_against_every_other_version_not_only_the_first_runs(tmp_path):
    write_evaluation(tmp_path / "a", {"x": [1]}, data={"other": "1"})
    (tmp_path / "a/evaluations/demo.jsonl").rename(tmp_path / "a/evaluations/other.jsonl")
    write_evaluation(tmp_path / "b", {"x": [1]}, data={"demo": "1"})
    write_evaluation(tmp_path / "c", {"x": [1]}, data={"demo": "2"})
    with pytest.raises(BadInput, match="different versions of demo"):
        report_on([tmp_path / name for name in "abc"])


def test_seeds_that_took_different_samplers_are_noted(tmp_path):
    """On a card every run settles on the faster sampler at its first batch, which two seeds may find different."""
    for seed, sampler in enumerate(("own", "own", "trl")):
        path = tmp_path / f"pspo/seed{seed}"
        write_run(path, "pspo", seed)
        write_evaluation(path, {"demo-0": [True]})
        record = read_record(path)
        record.outcome.sampler = sampler
        write_record(path, record)
    report, _ = report_on([tmp_path / f"pspo/seed{seed}" for seed in range(3)])
    assert any("sampled by own and some by trl" in note for note in report.notes)
    report, _ = report_on([tmp_path / f"pspo/seed{seed}" for seed in range(2)])
    assert not any("sampled by" in note for note in report.notes)


def test_a_report_of_nothing_is_one_line_and_leaves_no_directory(tmp_path):
    grid = write_grid(tmp_path / "g.yaml", ["clip", "pspo"], [0])
    done = python("maths_report.py", grid, "--output", tmp_path / "out")
    errors = [line for line in done.stderr.splitlines() if not line.startswith("note:")]  # of a queue that is broken
    assert done.returncode == 2 and len(errors) == 1 and "is evaluated" in errors[0]
    assert not (tmp_path / "out").exists() and "clip/seed0: waiting" in done.stdout


def test_a_terminal_that_lacks_a_letter_shows_it_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    paths = write_study(tmp_path / "ε→", {"noclip": 0.3, "pspo": 0.5}, seeds=1)
    done = subprocess.run(
        [sys.executable, "maths_report.py", *paths], capture_output=True, text=True, cwd=ROOT, encoding="latin-1"
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr and "difference, paired" in done.stdout


def test_p_is_never_printed_as_0(tmp_path, write_undrawn):
    paths = [write_run_and_result(tmp_path / m, m, 0, rate) for m, rate in (("noclip", 0.02), ("clip", 0.98))]
    text = (write_undrawn(report_on(paths)[0], tmp_path / "out") / "results.md").read_text()
    assert "< 0.001 |" in text and "| 0.000 |" not in text


def test_figures_hold_their_captions(report_page):
    for name in ("differences", "temperature", "failures", "pass", "curves", "budget", "groups"):
        text = " ".join("".join(ElementTree.parse(report_page.with_name(f"{name}.svg")).getroot().itertext()).split())
        caption = " ".join(getattr(figures, f"draw_{name}").__doc__.split())
        assert caption.split(".")[0][:40] in text
