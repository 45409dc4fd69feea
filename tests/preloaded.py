"""What the processes that tests fork have imported and loaded once already, so that a run costs seconds."""

import importlib
from pathlib import Path

import maths_report  # noqa: F401  the grid and both of its commands with it
from common.models import load_model
from maths_grid import MODULES

for name in MODULES:
    importlib.import_module(name)
load_model([Path(__file__).parent.parent / "demo" / "model"], "float32")  # compiles hundreds of patterns, once
