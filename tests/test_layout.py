"""The house: no import circle, files and functions of a size to read, and a README that says what the code does."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from training.hyperparameters import GRPO, PRESETS, SFT

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
ROOMS = "training sampling evaluation reporting reporting/page slurm common grading".split()
SOURCES = [p for folder in (".", *ROOMS, "demo") for p in sorted(ROOT.glob(f"{folder}/*.py"))]
SLOW = {"torch", "transformers", "trl", "datasets", "peft", "accelerate", "safetensors", "matplotlib", "scipy", "vllm"}
SLOW |= {"huggingface_hub", "tokenizers", "markupsafe", "pyarrow", "math_verify", "jinja2", "tqdm", "httpx2", "yaml"}
SLOW |= {"pandas"}


def name_of(path):
    """The module's dotted name: common.runs, grading, grading.golds."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path):
    """[(module, its node, the function it stands in or None)] of a file, relative imports resolved."""
    package, found = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0], []

    def visit(node, function):
        for child in ast.iter_child_nodes(node):
            inside = child if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
            if isinstance(child, ast.Import):
                found.extend((alias.name, child, function) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = ".".join(filter(None, [package if child.level else "", child.module]))
                found.append((module, child, function))
                found.extend((f"{module}.{alias.name}", child, function) for alias in child.names)
            visit(child, inside)

    visit(ast.parse(path.read_text()), None)
    return found


def find_circle(graph):
    """A list of modules that import one another in a circle, [] if there is none."""
    state, trail = {}, []

    def visit(node):
        state[node] = "open"
        trail.append(node)
        for other in sorted(graph[node]):
            if state.get(other) == "open":
                return trail[trail.index(other) :] + [other]
            if other not in state and (circle := visit(other)):
                return circle
        trail.pop()
        state[node] = "done"
        return []

    return next((circle for node in sorted(graph) if node not in state and (circle := visit(node))), [])


def test_a_circle_is_found_where_there_is_one():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_nothing_imports_in_a_circle():
    """Imports inside functions count too: they only hide a circle."""
    names = {name_of(path) for path in SOURCES}
    graph = {name_of(p): {module for module, _, _ in imports(p)} & names - {name_of(p)} for p in SOURCES}
    assert find_circle(graph) == []


def test_the_grader_stands_alone():
    used = {module.split(".")[0] for path in ROOT.glob("grading/*.py") for module, _, _ in imports(path)}
    assert not {name for name in used if (ROOT / f"{name}.py").exists()}


def slow_modules():
    """Slow libraries, and our own modules that import one at their top."""
    slow, before = set(SLOW), None
    while slow != before:
        before = set(slow)
        slow |= {
            name_of(p)
            for p in SOURCES
            if any(function is None and module.split(".")[0] in slow for module, _, function in imports(p))
        }
    return slow


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_slow_imports_stand_inside_functions(path):
    slow = slow_modules()
    inside = {module for module, _, function in imports(path) if function is not None}
    roots = {module for module in inside if not any(module.startswith(f"{other}.") for other in inside)}
    assert not {module for module in roots if module not in slow and module.split(".")[0] not in slow}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_is_read_in_one_sitting(path):
    text = path.read_text()
    assert sum(bool(line.strip()) for line in text.splitlines()) < 450
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert not {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno + 1 > 45}
    assert not {f.name for f in functions if len(f.args.args) + len(f.args.kwonlyargs) > 7}


# ---- the README


def readme_table(heading):
    """Rows, as lists of cells, of the first table under a heading of the README."""
    section = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not set("".join(row)) <= set("-: ")]


def test_the_hyperparameters_in_the_readme_are_those_that_are_used():
    symbols = {"lr": "learning_rate", "ε": "epsilon", "μ": "num_iterations", "α": "smoothing_alpha"}
    header, *rows = readme_table("Hyperparameters")
    methods = [cell.strip("`") for cell in header[1:]]
    assert methods == ["clip", "noclip", "pspo"]
    assert {row[0].split()[0] for row in rows} == set(PRESETS) - {"demo"}
    for model, *cells in rows:
        for method, cell in zip(methods, cells, strict=True):
            said = {symbols[name]: float(value) for name, value in re.findall(r"(\S+) ([\d.e-]+)", cell)}
            assert said == PRESETS[model.split()[0]][method], (model, method)


def test_the_shared_values_in_the_readme_are_those_that_are_used():
    text = " ".join(README.split("## Hyperparameters\n", 1)[1].split("| |", 1)[0].split())
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


def readme_commands():
    """[(script, flags)] of every python command in the README, whatever starts it."""
    text = README.replace("\\\n", " ")
    found = re.findall(
        r"(?:^|[`|(\s])(?:\S*python[\d.]*|launch \S+ \S+|\S+ -m) ((?:\w+/)?\w+\.py)\b([^#`\n&|)]*)", text
    )
    return sorted({(script, tuple(sorted(set(re.findall(r"--([a-z_]+)", rest))))) for script, rest in found})


def test_the_readmes_commands_are_found():
    scripts = {script for script, _ in readme_commands()}
    assert {"maths_finetuning.py", "maths_evaluations.py", "apply_patches.py"} <= scripts
    assert any(script.startswith("benchmarks/") for script in scripts)


@pytest.mark.parametrize(("script", "flags"), readme_commands(), ids=lambda v: v if isinstance(v, str) else "")
def test_flags_in_the_readme_exist(script, flags):
    from trl import GRPOConfig, ModelConfig

    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    known = set(re.findall(r"(?<![\w-])--([a-z_]+)(?![\w-])", done.stdout))
    if script == "maths_finetuning.py":
        known |= {*GRPOConfig.__dataclass_fields__, *ModelConfig.__dataclass_fields__}
    assert set(flags) <= known


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`)make (\w+)", README, re.M)) <= targets
