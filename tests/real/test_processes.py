"""Several processes (gloo): the same losses as one, and a run that is killed, continued, loaded and evaluated.

recipes/ddp.yaml and recipes/fsdp.yaml are used as they are, by accelerate launch.
"""

import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from common.runs import LOG_FILE, read_log

TRAIN = (
    "--device cpu --model demo --trust_region_method pspo --num_generations 4 --num_iterations 2 --warmup_steps 0 "
    "--eval_strategy no --load_best_model_at_end False --max_completion_length 16"
).split()
ALIKE = "--sampler own --num_generations 16 --max_steps 2 --save_steps 2 --learning_rate 1e-4".split()
KILLED = (
    "--sampler trl --max_steps 4 --save_steps 2 --learning_rate 1e-3 --per_device_train_batch_size 8 "
    "--gradient_accumulation_steps 1"
).split()
SCRIPTS = {"ddp": ["maths_finetuning.py"], "fsdp": ["tests/real/shard_on_cpu.py", "maths_finetuning.py"]}


def ranks(count):
    """The environments of `count` processes of one run, as srun and accelerate launch set them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [{**where, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def run_together(begin, count, argv, log):
    """A training command in `count` processes; fails unless all of them end well."""
    environments = ranks(count) if count > 1 else [{}]
    logs = [log.with_suffix(f".{rank}") for rank in range(count)]
    processes = [
        begin("maths_finetuning", argv, file, environment) for file, environment in zip(logs, environments, strict=True)
    ]
    for process, file in zip(processes, logs, strict=True):
        process.join()
        assert process.exitcode == 0, file.read_text()[-3000:]


@pytest.mark.slow
def test_one_two_and_four_processes_have_the_same_losses(begin, tmp_path):
    """Of the same 32 sequences a step: their completions do not depend on where they are drawn, nor do the sums.

    A group of 16 is whole in two processes and split over four.
    """
    logs = {}
    for count in (1, 2, 4):
        batch = ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", str(4 // count)]
        run = tmp_path / f"run{count}"
        run_together(begin, count, [*TRAIN, *ALIKE, *batch, "--output_dir", run], tmp_path / f"log{count}")
        logs[count] = read_log(run / LOG_FILE)
    assert [row["step"] for row in logs[1]] == [1, 2]
    for count in (2, 4):
        for ours, theirs in zip(logs[count], logs[1], strict=True):
            for name in ("loss", "reward", "grad_norm", "completions/mean_length"):
                if theirs.get(name) is None:
                    assert ours.get(name) is None
                else:
                    assert ours[name] == pytest.approx(theirs[name], abs=1e-5), (count, ours["step"], name)


# ---- killed, continued, loaded, evaluated


def launch(root, recipe, run, log, *more):
    """accelerate launch with a recipe of ours -> the launcher, a process."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"recipes/{recipe}.yaml", *more]
    with open(log, "a") as file:
        return subprocess.Popen(
            [*command, *SCRIPTS[recipe], *TRAIN, *KILLED, "--output_dir", str(run)],
            cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=file,
        )


def kill_with_children(process):
    """Kill a launcher and the processes that it started, all of which have sessions of their own."""
    children = psutil.Process(process.pid).children(recursive=True)
    for one in (process, *children):
        one.kill()
    process.wait()
    psutil.wait_procs(children)


@pytest.fixture(scope="session")
def trained(root, begin, tmp_path_factory):
    """trained(recipe) -> the directory of a run that was killed after its first checkpoint and continued.

    Copies of the model are continued by processes that know their rank alone, as srun starts them.
    """
    folder = tmp_path_factory.mktemp("processes")
    made = {}

    def train(recipe):
        if recipe not in made:
            run = folder / recipe
            log = folder / f"{recipe}.log"
            process = launch(root, recipe, run, log)
            while not (run / "checkpoint-2" / "sealed.json").exists():
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.05)
            kill_with_children(process)
            if recipe == "ddp":
                run_together(begin, 2, [*TRAIN, *KILLED, "--output_dir", run], log)
                log = log.with_suffix(".0")
            else:
                assert launch(root, recipe, run, log).wait() == 0, log.read_text()[-3000:]
            assert f"continuing from {run}/checkpoint-2" in log.read_text()
            assert "2 processes" in log.read_text()
            made[recipe] = run
        return made[recipe]

    return train


def plain_weights(path):
    """{name: tensor} of a finished model, as transformers loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype="float32").state_dict()


@pytest.mark.slow
def test_shards_train_what_copies_train(trained):
    """The same completions are drawn, so that the weights agree but for the order of sums; shards were really made."""
    import torch

    copies = trained("ddp")
    shards = trained("fsdp")
    assert (shards / "checkpoint-4" / "pytorch_model_fsdp.bin").exists()
    assert not (copies / "checkpoint-4" / "pytorch_model_fsdp.bin").exists()
    base = plain_weights("demo/model")
    ours = plain_weights(copies)
    theirs = plain_weights(shards)
    assert ours.keys() == theirs.keys() == base.keys()
    for name, weight in ours.items():
        assert torch.allclose(weight, theirs[name], atol=1e-5), name
    assert any(not torch.allclose(weight, base[name], atol=1e-4) for name, weight in ours.items())


@pytest.mark.slow
def test_what_shards_trained_is_evaluated(trained, call):
    run = trained("fsdp")
    flags = ["--datasets", "demo", "--limit", "4", "--temperatures", "0", "--max_new_tokens", "16"]
    done = call("maths_evaluations", "--model_path", run, *flags)
    assert done.code == 0, done.text
    assert len((run / "evaluations" / "demo.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_model_that_is_not_sharded_although_it_was_asked_for_is_said(begin, tmp_path):
    log = tmp_path / "log"
    sharded = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # what accelerate launch sets for recipes/fsdp.yaml
    process = begin("maths_finetuning", [*TRAIN, *KILLED, "--output_dir", tmp_path / "run"], log, sharded)
    process.join()
    assert process.exitcode == 2
    assert "error: accelerate does not shard a model over CPUs" in log.read_text()
