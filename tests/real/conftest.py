"""Commands in forked processes that have the libraries imported already: a run costs seconds."""

import multiprocessing
from typing import NamedTuple

import pytest
from forked import run_command

COMMANDS = ("maths_finetuning", "maths_evaluations", "maths_report")
LONGEST = 900  # seconds, after which a command hangs


class Done(NamedTuple):
    """How a command ended: its exit code and all that it printed, both streams."""

    code: int
    text: str


@pytest.fixture(scope="session")
def begin():
    """begin(command, argv, log, environment={}) -> a process that runs it; command: "maths_finetuning" and the like."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "trl.trainer.grpo_trainer", "trl.trainer.sft_trainer", *COMMANDS])

    def begin_one(command, argv, log, environment=None):
        process = context.Process(target=run_command, args=(command, argv, str(log), environment or {}))
        process.start()
        return process

    return begin_one


@pytest.fixture
def call(begin, tmp_path):
    """call(command, *argv) -> Done."""

    def call_one(command, *argv):
        log = tmp_path / f"{command}.log"
        process = begin(command, argv, log)
        process.join(LONGEST)
        if process.is_alive():
            process.kill()
            pytest.fail(f"{command} did not end in {LONGEST} s: {log.read_text()[-2000:]}")
        return Done(process.exitcode, log.read_text())

    return call_one
