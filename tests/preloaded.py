"""What the processes that tests fork have imported and loaded once already, so that a run costs seconds."""

import importlib
from pathlib import Path

from common.models import load_model

MODULES = (
    "maths_evaluations",
    "maths_finetuning",
    "maths_grid",
    "maths_report",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "reporting.figures",
    "training.callbacks",
    "training.completions",
    "training.memory",
    "training.rollout",
    "training.trainer",
    "transformers.models.qwen2.tokenization_qwen2",
    "trl.trainer.grpo_trainer",
    "trl.trainer.sft_trainer",
)
for name in MODULES:
    importlib.import_module(name)
load_model([Path(__file__).parent.parent / "demo" / "model"], "float32")  # compiles hundreds of patterns, once
