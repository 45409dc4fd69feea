"""Processes that are forked from one which has everything imported already: a run costs seconds in them."""

import gc
import multiprocessing
import os

from slurm.side_by_side import become


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
    become([f"{command}.py", *argv], log)
