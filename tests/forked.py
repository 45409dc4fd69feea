"""Processes that are forked from one which has everything imported already: a run costs seconds in them."""

import gc
import importlib
import multiprocessing
import os
import sys

import torch


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
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # the library has read it before the fork
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [f"{command}.py", *map(str, argv)]
    module = importlib.import_module(command)
    try:
        code = module.run_script(module.main)
    except SystemExit as stopped:  # as the interpreter does at the top of a script
        print(stopped.code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    os._exit(code)
