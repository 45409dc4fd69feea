"""What a forked process of conftest.py runs; of its own name, since a fork looks it up by its module's.

There are several conftest.py on the path of a whole test session.
"""

import importlib
import os
import sys


def run_command(command, argv, log, environment):
    """Run a command's main with its output in a file and `environment` added to the one there is; end the process."""
    os.environ.update(environment)
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
