"""Fixtures that several test files share."""

import gc
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: minutes rather than seconds; runs with GRPSPO_SLOW_TESTS=1")


def pytest_collection_modifyitems(items):
    """Skip the slow tests, and say how to run them, unless GRPSPO_SLOW_TESTS is set."""
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
