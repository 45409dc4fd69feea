"""TRL's own command on the patched TRL: `trl grpo --config x.yaml --trust_region_method pspo`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.datasets import build_prompt

CONFIG = """
model_name_or_path: demo/model
datasets:
  - path: json
    data_files: {data}
reward_funcs: [maths_rewards.accuracy_reward]
output_dir: {run}
use_cpu: true
bf16: false
max_steps: 2
logging_steps: 1
learning_rate: 1.0e-3
lr_scheduler_type: constant
per_device_train_batch_size: 32
gradient_accumulation_steps: 1
num_generations: 8
num_iterations: 2
max_completion_length: 40
smoothing_alpha: 0.25
report_to: none
"""


@pytest.mark.slow
def test_trl_grpo_trains_with_the_method_that_its_flag_names(root, tmp_path):
    rows = [json.loads(line) for line in (root / "demo/data/train.jsonl").read_text().splitlines()[:16]]
    data = tmp_path / "problems.jsonl"
    with open(data, "w") as file:
        for row in rows:
            gold = row["answer"].rpartition("#### ")[2]
            file.write(json.dumps({"prompt": build_prompt(row["question"]), "gold": gold, "kind": "integer"}) + "\n")
    config = tmp_path / "x.yaml"
    config.write_text(CONFIG.format(data=data, run=tmp_path / "run"))
    trl = Path(sys.executable).parent / "trl"
    done = subprocess.run(
        [trl, "grpo", "--config", config, "--trust_region_method", "pspo"],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [state] = (tmp_path / "run").glob("checkpoint-2/trainer_state.json")
    log = [row for row in json.loads(state.read_text())["log_history"] if "loss" in row]
    assert [row["step"] for row in log] == [1, 2]
    learnt = [row for row in log if row["grad_norm"] > 0]
    assert learnt, log  # else no prompt had two rewards, and nothing is said of the method
    for row in learnt:  # what pspo takes from the weights of noclip: alpha
        assert row["trust_region/removed_weight"] == pytest.approx(0.25, abs=1e-6)
