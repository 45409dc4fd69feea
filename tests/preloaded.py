"""What the processes that tests fork have imported and loaded once already, so that a run costs seconds."""

from pathlib import Path

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import transformers.models.qwen2.tokenization_qwen2  # noqa: F401
import trl.trainer.grpo_trainer
import trl.trainer.sft_trainer  # noqa: F401

import maths_evaluations  # noqa: F401
import maths_finetuning  # noqa: F401
import maths_report  # noqa: F401
import reporting.figures  # noqa: F401
import training.callbacks
import training.completions
import training.memory
import training.rollout
import training.trainer  # noqa: F401
from common.models import load_model

load_model([Path(__file__).parent.parent / "demo" / "model"], "float32")  # compiles hundreds of patterns, once
