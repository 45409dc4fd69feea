"""Trackers with their real packages, offline: a run that was killed goes on in the same curve. Skipped without them."""

import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from common.files import BadInput
from training.trackers import check_trackers, name_curve

FLAGS = (
    "--model demo --trust_region_method pspo --max_steps 6 --per_device_train_batch_size 8 --num_generations 4 "
    "--gradient_accumulation_steps 2 --warmup_steps 0 --learning_rate 1e-3 --save_steps 2 --eval_strategy no "
    "--load_best_model_at_end False --max_completion_length 16"
).split()
WANDB_BLOCK, WANDB_HEAD = 32768, 7  # bytes
VARIABLES = ("TENSORBOARD_LOGGING_DIR", "WANDB_MODE", "WANDB_DIR", "WANDB_RUN_ID", "WANDB_RESUME")


@pytest.fixture
def no_variables(monkeypatch):
    """The variables of trackers, unset; what a test makes name_curve set is put back."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def curve(started, run_name=None, output_dir="runs/demo/pspo/seed0"):
    """(name, variables) that name_curve gives to a run."""
    for name in VARIABLES:
        os.environ.pop(name, None)
    config = SimpleNamespace(output_dir=output_dir, run_name=run_name)
    name_curve(config, started)
    return config.run_name, {name: os.environ[name] for name in VARIABLES}


def test_a_curve_is_the_same_at_each_start_and_another_for_another_run(no_variables):
    first = curve("2026-11-28T00:28:21+0000")
    assert curve("2026-11-28T00:28:21+0000") == first
    overwritten, elsewhere = curve("2026-11-29T00:00:00+0000"), curve("2026-11-28T00:28:21+0000", output_dir="runs/b")
    assert len({first[0], overwritten[0], elsewhere[0]}) == 3
    assert len({found["WANDB_RUN_ID"] for _, found in (first, overwritten, elsewhere)}) == 3
    assert first[0].startswith("demo/pspo/seed0 ")


def test_what_the_user_chose_is_left_alone(no_variables, monkeypatch):
    assert curve("now", run_name="mine")[0] == "mine"
    monkeypatch.setenv("WANDB_MODE", "online")
    config = SimpleNamespace(output_dir="runs/a", run_name="mine")
    name_curve(config, "now")
    assert os.environ["WANDB_MODE"] == "online"


def test_a_tracker_that_is_not_installed_is_named_with_its_package():
    missing = next(name for name in ("swanlab", "clearml", "dagshub") if find_spec(name) is None)
    with pytest.raises(BadInput, match=f"pip install {missing}"):
        check_trackers([missing])


def train(root, tmp_path, tracker):
    """The command as a process of its own, since a tracker reads its variables from the environment."""
    command = [sys.executable, "maths_finetuning.py", *FLAGS, "--report_to", tracker, "--output_dir", tmp_path / "run"]
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "a") as log:
        return subprocess.Popen(list(map(str, command)), cwd=root, env=environment, stdout=log, stderr=log)


def read_tensorboard(tmp_path):
    """[curves], each the steps of its losses."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = [path.parent for path in (tmp_path / "run").rglob("events.out.*")]
    accumulators = [EventAccumulator(str(folder)).Reload() for folder in dict.fromkeys(curves)]
    return [[event.step for event in found.Scalars("train/loss")] for found in accumulators]


def read_trackio(tmp_path):
    """[curves], each the steps of its losses; from the data base that its dashboard reads."""
    found = {}
    with sqlite3.connect(tmp_path / "trackio" / "huggingface.db") as database:
        rows = "SELECT run_name, json_extract(metrics, '$.\"train/global_step\"') FROM metrics"
        for name, step in database.execute(f"{rows} WHERE json_extract(metrics, '$.\"train/loss\"') IS NOT NULL"):
            found.setdefault(name, []).append(step)
    return list(found.values())


def wandb_records(path):
    """The records of a .wandb file, as LevelDB's log: a head, then blocks of pieces with a head each."""
    data, at, record = path.read_bytes(), WANDB_HEAD, b""
    while at + WANDB_HEAD <= len(data):
        left = WANDB_BLOCK - at % WANDB_BLOCK
        if left < WANDB_HEAD:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + WANDB_HEAD])
        record += data[at + WANDB_HEAD : at + WANDB_HEAD + size]
        at += WANDB_HEAD + size
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def read_wandb(tmp_path):
    """[curves], each the steps of its losses; `wandb sync` makes one run of the folders with one id."""
    from wandb.proto import wandb_internal_pb2

    found = {}
    for file in sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")):
        for data in wandb_records(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            if "train/loss" in items:
                found.setdefault(file.stem, []).append(json.loads(items["train/global_step"]))
    return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["trackio", "tensorboard", "wandb"])
def test_a_killed_run_goes_on_in_the_same_curve(tracker, root, tmp_path):
    if find_spec(tracker) is None:
        pytest.skip(f"needs {tracker}: pip install {tracker}")
    process = train(root, tmp_path, tracker)
    while not (tmp_path / "run" / "checkpoint-2" / "sealed.json").exists():
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75, (tmp_path / "log").read_text()
    assert train(root, tmp_path, tracker).wait() == 0, (tmp_path / "log").read_text()
    [steps] = {"trackio": read_trackio, "tensorboard": read_tensorboard, "wandb": read_wandb}[tracker](tmp_path)
    assert steps == [1, 2, 3, 4, 5, 6]
