"""What a forked process of conftest.py runs; in a module of its own, since a fork looks it up by its module's name."""

import gc
import importlib
import os
import sys

import torch


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
