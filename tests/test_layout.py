"""The house: no import circle, files and functions of a size to read, and a README that says what the code does."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = "training sampling evaluation reporting reporting/page slurm common grading".split()
SOURCES = [p for folder in (".", *ROOMS, "demo") for p in sorted(ROOT.glob(f"{folder}/*.py"))]
SLOW = {"torch", "transformers", "trl", "datasets", "peft", "accelerate", "safetensors", "matplotlib", "scipy", "vllm"}
SLOW |= {"huggingface_hub", "tokenizers", "markupsafe", "pyarrow", "math_verify", "jinja2", "tqdm", "httpx2", "yaml"}
SLOW |= {"pandas"}


def name_of(path):
    """The module's dotted name: common.runs, grading, grading.golds."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@functools.cache
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


@functools.cache
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


COMMANDS = {path.stem for path in ROOT.glob("*.py")}
LIBRARIES = {"apply_patches", "maths_rewards"}  # commands that are libraries too


def test_seven_commands_stand_in_front():
    assert len(COMMANDS) == 7 and COMMANDS > LIBRARIES


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent not in (ROOT, ROOT / "demo")], ids=name_of)
def test_no_room_imports_a_command(path):
    assert not {module.split(".")[0] for module, _, _ in imports(path)} & (COMMANDS - LIBRARIES)


ORDER = ("training", "reporting", "slurm", "evaluation", "sampling", "common", "grading")


@pytest.mark.parametrize("room", ORDER)
def test_imports_between_rooms_go_down_the_list(room):
    above = set(ORDER[: ORDER.index(room)])
    assert not {module.split(".")[0] for p in ROOT.glob(f"{room}/**/*.py") for module, _, _ in imports(p)} & above


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nobody_reads_the_source_of_a_file_of_ours(path):
    """Whoever wants to know another file's flags or names asks it."""
    assert not re.search(r"""["'](?:maths_\w+|save_model_locally)\.py["']\)?\.(?:read_text|open)""", path.read_text())
