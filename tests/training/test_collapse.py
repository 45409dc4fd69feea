"""When a run collapsed: by hand, against a search written out here, and in real runs whose rate is far too high."""

import json
import random
import subprocess
import sys
from itertools import pairwise
from math import sqrt
from statistics import fmean

import numpy as np
import pytest

from training.collapse import collapse_of, find_collapse


def search(steps, rewards):
    """The definition, word for word: try every update from the first on."""
    window = min(max(len(rewards) // 20, 3), 20)
    averages = {i: fmean(rewards[i - window + 1 : i + 1]) for i in range(window - 1, len(rewards))}

    def is_low(i):
        best = max(averages[j] for j in averages if j <= i)
        error = sqrt(fmean((b - a) ** 2 for a, b in pairwise(rewards[: i + 1])) / window)
        return best > 0 and averages[i] < 0.5 * best and averages[i] < best - 3 * error

    for first in averages:
        later = [i for i in averages if i >= first]
        if len(later) >= window and all(is_low(i) for i in later):
            return steps[first]
    return None


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([0.4] * 6 + [0.0] * 5, 8),  # the first average over 3 with less than half of 0.4: 0.4 0 0
        ([0.4] * 6 + [0.15] * 5, 9),  # 0.4 0.15 0.15 has 0.23, 0.15 0.15 0.15 is below 0.2
        ([0.4] * 6 + [0.25] * 20, None),  # more than half
        ([0.4] * 6 + [0.0] * 3, None),  # not for long enough: two averages
        ([0.4] * 6 + [0.0] * 6 + [0.4] * 3, None),  # it came back
        ([0.0] * 30, None),  # never learnt
        ([-0.4] * 6 + [-0.9] * 20, None),  # nothing to halve
        ([0.4], None),
        ([], None),
    ],
)
def test_rewards_by_hand(rewards, expected):
    assert find_collapse(range(1, len(rewards) + 1), rewards) == expected


def test_random_walks_against_the_search():
    generator, found = random.Random(0), []
    for _ in range(300):
        level, rewards = generator.uniform(0, 1), []
        for _ in range(generator.randrange(60)):
            level = max(0.0, level + generator.gauss(-0.02, 0.1))
            rewards.append(level * generator.uniform(0.5, 1.5))
        steps = sorted(generator.sample(range(1, 1000), len(rewards)))
        assert find_collapse(steps, rewards) == search(steps, rewards)
        found.append(find_collapse(steps, rewards))
    assert 30 < sum(step is not None for step in found) < 270


@pytest.mark.parametrize(("length", "chance", "completions"), [(40, 0.01, 16), (100, 0.01, 64), (40, 0.1, 16)])
def test_a_low_reward_that_stays_as_it_is_hardly_ever_collapses(length, chance, completions):
    """The mean of a few completions' rewards falls to half of its best by chance in up to half of such runs."""
    rewards = np.random.default_rng(0).binomial(completions, chance, (500, length)) / completions
    collapsed = [find_collapse(range(length), row) is not None for row in rewards]
    assert np.mean(collapsed) < 0.1


def test_a_reward_that_falls_to_a_twentieth_always_does():
    drawn = np.random.default_rng(0).binomial
    for _ in range(200):
        rewards = np.r_[drawn(16, 0.4, 20), drawn(16, 0.02, 20)] / 16
        assert find_collapse(range(40), rewards) in range(18, 30)


def test_rows_without_a_reward_are_no_rewards():
    rows = [{"step": i, "loss": 0.0, **({"reward": 0.4 if i < 20 else 0.0} if i % 2 else {})} for i in range(1, 40)]
    assert collapse_of(rows) == search(list(range(1, 40, 2)), [0.4] * 10 + [0.0] * 10)
    assert collapse_of([{"step": 1, "eval_reward": 0.5}]) is None


PLANTED = (
    "--model demo --trust_region_method noclip --max_steps 24 --per_device_train_batch_size 16 --num_generations 4 "
    "--gradient_accumulation_steps 1 --steps_per_generation 1 --num_iterations 1 --learning_rate 3e-3 "
    "--lr_scheduler_type constant_with_warmup --warmup_steps 6 --max_completion_length 24 --eval_strategy no "
    "--load_best_model_at_end False --save_steps 8"
).split()


def train_planted(call, folder, *flags):
    """A run whose rate is far too high -> (its record, the rows of its log, its output)."""
    done = call("maths_finetuning", *PLANTED, "--output_dir", folder, *flags)
    assert done.code == 0, done.text
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return json.loads((folder / "run.json").read_text()), rows, done.text


@pytest.mark.slow
def test_a_planted_collapse_is_noted_listed_and_can_end_the_run(root, call, tmp_path):
    record, rows, output = train_planted(call, tmp_path / "whole")
    graded = [(row["step"], row["reward"]) for row in rows if "reward" in row]
    expected = search(*zip(*graded, strict=True))
    assert expected is not None and record["outcome"]["collapsed_at"] == expected
    assert f"its reward collapsed at step {expected}" in output
    state = subprocess.run(
        [sys.executable, "-m", "common.runs", tmp_path / "whole"], capture_output=True, text=True, cwd=root
    )
    assert f"collapsed at step {expected}" in state.stdout

    record, stopped, output = train_planted(call, tmp_path / "stopped", "--stop_on_collapse")
    assert record["outcome"]["status"] == "finished" and (tmp_path / "stopped" / "model.safetensors").exists()
    assert record["outcome"]["collapsed_at"] == expected
    last = stopped[-1]["step"]
    assert last < 24 and [row["loss"] for row in stopped] == [row["loss"] for row in rows[: len(stopped)]]
    for length in range(1, last + 1):  # it stopped as soon as it could know
        seen = [pair for pair in graded if pair[0] <= length]
        assert (search(*zip(*seen, strict=True)) is not None) == (length == last)
