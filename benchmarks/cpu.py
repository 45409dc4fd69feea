"""Every figure of a CPU by one command: patch, rewards, training, evaluation, start-up, memory, growth.

For Probability Smoothing Policy Optimisation (arXiv 2509.21282). Each part runs in a process of its own; the JSON is
written after every row, and the same command again goes on with what is missing. It takes about half an hour of two
quiet cores.

    python benchmarks/cpu.py                                      # all parts -> benchmarks/results/cpu.json
    python benchmarks/cpu.py --only patch training --again
    python benchmarks/cpu.py --quick                              # every part at its smallest size: does it run?
    LM_EVAL_PYTHON=lm_eval_env/bin/python python benchmarks/cpu.py --data_dir DIR

Rows of lm-evaluation-harness need LM_EVAL_PYTHON (see evaluation.py), MATH rows --data_dir, the directory of labelled
outputs (see grading.py); without them they say so. `python benchmarks/readme.py` puts the figures into the README.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import evaluation, patch_cost, rewards, startup, training
from benchmarks.common import Part, run_benchmarks
from common.files import run_script

PARTS = {
    "startup": Part(startup.measure, 400),
    "patch": Part(patch_cost.measure, 800),
    "rewards": Part(rewards.compare_with_math_verify, 400),
    "filters": Part(rewards.compare_with_filters, 200),
    "training": Part(training.compare_with_stock, 1200),
    "evaluation": Part(evaluation.compare_with_published, 600),
    "harness": Part(evaluation.compare_with_harness, 600),
    "growth": Part(evaluation.measure_growth, 300),
    "memory": Part(evaluation.measure_memory, 400),
}


def add_flags(parser):
    """What cpu.py alone takes."""
    parser.add_argument("--data_dir", default=os.environ.get("GRPSPO_SHARED"), help="holds labelled/*.dev.jsonl")
    parser.add_argument("--lm_eval_python", default=os.environ.get("LM_EVAL_PYTHON"), help="default: $LM_EVAL_PYTHON")
    parser.add_argument("--seconds", type=float, default=7200, help="start no part after so long (default: 7200)")


def main():
    return run_benchmarks(__doc__, PARTS, __file__, add_flags)


if __name__ == "__main__":
    sys.exit(run_script(main))
