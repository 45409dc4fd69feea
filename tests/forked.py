"""Processes that are forked from one which has everything imported already: a run costs seconds in them."""

import gc
import multiprocessing
import os
import subprocess
import tempfile
from pathlib import Path

from slurm.side_by_side import become, run_main


def fork(target, *args):
    """A started process that runs target(*args); target is a function of a module, by whose name a fork finds it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    process = context.Process(target=target, args=args)
    process.start()
    return process


def run_command(command, argv, log, environment):
    """Run a command's main with its output in a file and `environment` added to the one there is; end the process."""
    gc.freeze()  # what is imported is not looked through again
    os.environ.update(environment)
    open(log, "w").close()
    become([f"{command}.py", *argv], log)


def run_and_read(command, argv, folder, environment, longest=900):
    """run_apart in a fork -> CompletedProcess; raises TimeoutError after `longest` seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        streams = [Path(scratch, name) for name in ("out", "err")]
        process = fork(run_apart, command, list(map(str, argv)), folder, environment, streams)
        process.join(longest)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"{command} {argv} did not end in {longest} s: {streams[1].read_text()[-2000:]}")
        return subprocess.CompletedProcess(argv, process.exitcode, *(file.read_text() for file in streams))


def run_apart(command, argv, folder, environment, streams):
    """Run a command's main in a folder, with `environment` and no other, its output and errors in two files."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    run_main([f"{command}.py", *argv])
