"""The documents: their size, their links, the commands and numbers in them that the code can contradict."""

import csv
import json
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from training.hyperparameters import GRPO, PRESETS, SFT
from training.memory import SHAPES, count_parameters

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(p for folder in (".", "*") for p in ROOT.glob(f"{folder}/*.md") if not p.parent.name.startswith("."))
README = ROOT / "README.md"
VALUES = ROOT / "training" / "README.md"


def name_of(path):
    return str(path.relative_to(ROOT))


def test_the_readme_is_read_in_one_sitting():
    assert README.stat().st_size <= 12 * 1024


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / link).exists(), link


def test_the_map_names_every_command_and_room():
    text = README.read_text().split("## Map\n", 1)[1].split("\n## ", 1)[0]
    listed = re.findall(r"^(\w+\.py|\w+/)", text, re.M)
    commands = {path.name for path in ROOT.glob("*.py")}
    rooms = {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")}
    assert commands | rooms <= {*listed} and all((ROOT / name).exists() for name in listed)


# ---- the hyperparameters


def table_of_values():
    """Rows, as lists of cells, of the first table of training/README.md."""
    first = re.search(r"(?:^\|.*\n)+", VALUES.read_text(), re.M).group()
    rows = [line.strip("|").split("|") for line in first.splitlines()]
    return [[cell.strip() for cell in row] for row in rows if not set("".join(row)) <= set("-: ")]


def test_the_hyperparameters_are_those_that_are_used():
    symbols = {"lr": "learning_rate", "ε": "epsilon", "μ": "num_iterations", "α": "smoothing_alpha"}
    header, *rows = table_of_values()
    methods = [cell.strip("`") for cell in header[1:]]
    assert methods == ["clip", "noclip", "pspo"]
    assert {row[0].split()[0] for row in rows} == set(PRESETS) - {"demo"}
    for model, *cells in rows:
        for method, cell in zip(methods, cells, strict=True):
            said = {symbols[name]: float(value) for name, value in re.findall(r"(\S+) ([\d.e-]+)", cell)}
            assert said == PRESETS[model.split()[0]][method], (model, method)


def test_the_shared_values_are_those_that_are_used():
    text = " ".join(VALUES.read_text().split("| |", 1)[0].split())
    batch = GRPO["per_device_train_batch_size"] * GRPO["gradient_accumulation_steps"]
    for said in (
        f"{GRPO['num_train_epochs']} epochs",
        f"{GRPO['num_generations']} generations a prompt",
        f"{batch} completions a step",
        f"at most {GRPO['max_completion_length']} tokens",
        f"temperature {GRPO['temperature']}, top_p {GRPO['top_p']}",
        f'`loss_type="{GRPO["loss_type"]}"`',
        f"{GRPO['warmup_steps']} warm-up steps",
        f"every {GRPO['eval_steps']} steps",
        f"SFT: {SFT['num_train_epochs']} epochs",
    ):
        assert said in text, said


# ---- hours on a card


def test_a_cell_that_was_not_measured_is_derived_from_the_step_that_was():
    """Forward and backward go with the weights, generation with the layers at least and with the weights at most."""
    rows = json.loads((ROOT / "benchmarks/results/gpu.json").read_text())["parts"]["step"]["rows"]
    figures = {row["name"]: row for row in rows}
    measured = figures["training step, Qwen2.5-0.5B, micro-batches of 64"]
    step = measured["figure"]
    share = {part: int(found) / 100 for part, found in re.findall(r"(\w+) (\d+) %", measured["note"])}
    steps = figures["the paper's grid, Qwen2.5-0.5B, 64"]["figure"] * 3600 / 25 / step
    text = (ROOT / "slurm/README.md").read_text()
    assert f"the grid's {steps:,.0f} steps" in text
    small = SHAPES["Qwen2.5-0.5B"]
    for model in ("Qwen2.5-1.5B", "Qwen2.5-3B"):
        weights = count_parameters(SHAPES[model]) / count_parameters(small)
        layers = SHAPES[model].layers / small.layers
        rest = 1 - share["forward"] - share["backward"] - share["generation"]
        least = step * ((share["forward"] + share["backward"]) * weights + share["generation"] * layers + rest)
        most = step * ((1 - rest) * weights + rest)
        columns = [(1, ".1f", "s"), (steps / 60, ".0f", "min"), (25 * steps / 3600, ".0f", "h")]
        spans = [f"{least * scale:{digits}} to {most * scale:{digits}} {unit}" for scale, digits, unit in columns]
        assert f"| {model} | {' | '.join(spans)} | derived" in text, spans


# ---- the study


@pytest.mark.parametrize(
    ("runs", "results", "judged_methods"),
    [("runs.csv", "results.md", 14 * 3 + 1), ("control_runs.csv", "control.md", 3 * 3)],
)
def test_a_table_of_the_study_holds_the_means_of_its_runs(runs, results, judged_methods):
    judged = defaultdict(list)
    for run in csv.DictReader((ROOT / "study" / runs).open()):
        if run["chosen"] == "True" and run["method"] != "base":
            judged[run["setting"], run["temperature"], run["method"]].append(float(run["accuracy"]))
    assert len(judged) == 2 * judged_methods
    lines = (ROOT / "study" / results).read_text().replace("\\_", "_").splitlines()
    for (setting, temperature, method), accuracies in judged.items():
        assert len(accuracies) == 5
        [row] = [line for line in lines if f"| {setting} | demo | {float(temperature):g} | {method} |" in line]
        assert f"| {100 * sum(accuracies) / 5:.1f} (" in row


def test_the_collapses_are_told_as_their_runs_have_them():
    runs = list(csv.DictReader((ROOT / "study/collapse_runs.csv").open()))
    collapsed = [float(run["collapsed_at"]) for run in runs if run["collapsed_at"]]
    sizes = [float(run["effective_sample_size"]) for run in runs]
    found = spearmanr([float(run["collapsed_at"] or run["steps"]) for run in runs], sizes)
    text = " ".join((ROOT / "study/README.md").read_text().split())
    for said in (
        f"All {len(runs)} end at {100 * max(float(run['accuracy']) for run in runs):.0f} % or less",
        f"calls {len(collapsed)} of them collapsed, between updates {min(collapsed):.0f} and {max(collapsed):.0f}",
        f"is {min(sizes):.2f} to {max(sizes):.2f} on average",
        f"ρ {found.statistic:.2f} over the {len(runs)}, p = {found.pvalue:.2f}",
    ):
        assert said in text


@pytest.mark.parametrize("path", ["README.md", "study/README.md"])
def test_every_interval_about_the_study_is_in_its_table(path):
    text = (ROOT / path).read_text()
    if path == "README.md":
        text = re.search(r"^- `make study` asks.*?(?=^- )", text, re.M | re.S).group()
    text = " ".join(text.replace("−", "-").split())
    intervals = re.findall(r"([+-]?[\d.]+)(?: points)?(?: %)? (\([+-]?[\d.]+ to [+-]?[\d.]+)", text)
    table = "".join((ROOT / "study" / name).read_text() for name in ("results.md", "control.md"))
    assert intervals and all(f"{value} {ends}" in table for value, ends in intervals)
    differences = re.findall(r"(?<!\w)[+-]\d+\.\d", text)
    assert all(value in table for value in differences)
    assert len(differences) == 3 * len([ends for _, ends in intervals if ends[1] in "+-"])  # none without an interval


# ---- the commands


def commands_in(path):
    """{(script or -m module, its flags)} of every python command in a document, whatever starts it."""
    text = path.read_text().replace("\\\n", " ")
    start = r"(?:^|[`|(\s])(?:\S*python[\d.]*|launch (?:--config_file )?\S+(?: \S+)?) "
    found = re.findall(start + r"((?:\w+/)?\w+\.py|-m common\.\w+)\b([^#`\n&|)]*)", text)
    return {(script, tuple(sorted(set(re.findall(r"--([a-z_]+)", rest))))) for script, rest in found}


COMMANDS = sorted({command for path in DOCUMENTS for command in commands_in(path)})


def test_commands_are_found():
    scripts = {script for script, _ in COMMANDS}
    assert {"maths_finetuning.py", "maths_evaluations.py", "apply_patches.py", "-m common.runs"} <= scripts
    assert any(script.startswith("benchmarks/") for script in scripts)


@cache
def known_flags(script):
    """Names of the flags in a command's help; TRL's fields too for the training script, which takes them all."""
    command = [sys.executable, *script.split(), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    known = set(re.findall(r"(?<![\w-])--([a-z_]+)(?![\w-])", done.stdout))
    if script == "maths_finetuning.py":
        from trl import GRPOConfig, ModelConfig

        known |= {*GRPOConfig.__dataclass_fields__, *ModelConfig.__dataclass_fields__}
    return known


@pytest.mark.parametrize(("script", "flags"), COMMANDS, ids=lambda v: v if isinstance(v, str) else "")
def test_flags_in_the_documents_exist(script, flags):
    assert set(flags) <= known_flags(script)


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for path in DOCUMENTS for name in re.findall(r"(?:^|`)make ([\w-]+)", path.read_text(), re.M)}
    assert named <= targets
