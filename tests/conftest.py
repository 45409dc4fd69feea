"""Fixtures that several test files share."""

import gc
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path[:0] = [str(ROOT), str(TESTS)]

from forked import fork, run_command  # noqa: E402

LONGEST_FIRST = (
    "training/test_finetuning.py",
    "benchmarks/test_benchmarks.py",
    "common/test_cache.py",
    "real/test_real_model.py",
    "training/test_continuing.py",
    "real/test_processes.py",
    "patches/test_trust_region.py",
    "evaluation/test_evaluations.py",
    "real/test_families.py",
    "reporting/test_report.py",
)
LONGEST = 900  # seconds, after which a command hangs
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # no thread spins while other tests run
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: minutes rather than seconds; runs with GRPSPO_SLOW_TESTS=1")


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that no process is left alone with one of them at the end.

    Skip the slow tests, and say how to run them, unless GRPSPO_SLOW_TESTS is set.
    """
    places = {TESTS / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    if not os.environ.get("GRPSPO_SLOW_TESTS"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: set GRPSPO_SLOW_TESTS=1"))


def pytest_collection_finish():
    """What was imported stays: each training collects garbage at its end, half a second through all of PyTorch."""
    gc.freeze()


@pytest.fixture(scope="session")
def root():
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared():
    """Real data sets and labelled model outputs beside the repository; not part of it."""
    path = Path(os.environ.get("GRPSPO_SHARED", ROOT.parent / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(f"needs the real data sets in {path}")
    return path


# ---- commands in forked processes


class Done(NamedTuple):
    """How a command ended: its exit code and all that it printed, both streams."""

    code: int
    text: str


@pytest.fixture(scope="session")
def begin():
    """begin(command, argv, log, environment={}) -> a process that runs it; command: "maths_finetuning" and the like.

    Everything is imported already, so that a run costs seconds.
    """

    def begin_one(command, argv, log, environment=None):
        return fork(run_command, command, argv, str(log), environment or {})

    return begin_one


@pytest.fixture
def call(begin, tmp_path):
    """call(command, *argv) -> Done."""

    def call_one(command, *argv):
        log = tmp_path / f"{command}.log"
        process = begin(command, argv, log)
        process.join(LONGEST)
        if process.is_alive():
            process.kill()
            pytest.fail(f"{command} did not end in {LONGEST} s: {log.read_text()[-2000:]}")
        return Done(process.exitcode, log.read_text())

    return call_one
