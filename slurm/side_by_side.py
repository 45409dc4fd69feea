"""Several cells at a time on one machine, in forks of a process that has imported everything.

Used by maths_grid.py --run --jobs N (Probability Smoothing Policy Optimisation, arXiv 2509.21282). To import PyTorch
and TRL takes as long as a short run of the embedded model; here it is done once. On a machine with a card each command
is a process of its own, since CUDA does not outlive a fork.

    from slurm.side_by_side import run_side_by_side
    for cell, code, signals in run_side_by_side(cells, 2, ()): ...
"""

import gc
import importlib
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import wait
from pathlib import Path

from slurm.cells import run_cell
from slurm.commands import SIGNALS, close_log, pass_signals_on, run_command

fork = multiprocessing.get_context("fork").Process


def run_side_by_side(cells, jobs, modules):
    """Run cells, `jobs` at a time with the cores shared among them; yields (cell, exit code, signals) as they end.

    Their output is in their logs. modules: names of what their commands import, imported here once. signals: what we
    were sent so far; SIGTERM and SIGUSR1 are passed on, and no cell begins after one.
    """
    import torch

    run = run_command if torch.cuda.is_available() else run_forked
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // jobs))
    if run is run_forked:
        for name in modules:
            importlib.import_module(name)
        gc.freeze()  # what is imported is not looked through again
    waiting = list(reversed(cells))
    running = {}
    with pass_signals_on(SIGNALS) as children:
        while running or (waiting and not children.received):
            while waiting and len(running) < jobs and not children.received:
                process = begin(run_quietly, waiting[-1], run, threads)
                running[process.sentinel] = process, waiting.pop()
                children.add(process.pid)
            for sentinel in wait(running):
                process, cell = running.pop(sentinel)
                process.join()
                children.pids.remove(process.pid)
                yield cell, process.exitcode, children.received


def begin(target, *args):
    """A started fork that runs target(*args), which is to call take_signals; none is lost until it does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    process = fork(target=target, args=args)
    process.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return process


def take_signals():
    """Let a fork end by the signals that it is sent, unless it has its own use for them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def run_quietly(cell, run, threads):
    """Run a cell in a fork whose own output is nobody's: what its commands print is in their log."""
    take_signals()
    os.environ["OMP_NUM_THREADS"] = threads
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    try:
        code, _ = run_cell(cell, run=run)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def run_forked(command, log, passed_on=SIGNALS):
    """As run_command, in a fork of this process and with the output in the log alone.

    command: of a script of ours, [interpreter, path, words...].
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with pass_signals_on(passed_on) as children, open(log, "ab") as file:
        process = begin(become, command[1:], log)
        children.add(process.pid)
        process.join()
        return close_log(file, process.exitcode, children.received)


def become(words, log):
    """Be the script words[0] with the arguments that follow it, in a fork, with its output at the end of a log."""
    import torch

    take_signals()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # the library has read it before the fork
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    run_main(words)


def run_main(words):
    """Run the main function of the script words[0] with the arguments that follow it, and end the process."""
    sys.argv = [str(word) for word in words]
    module = importlib.import_module(Path(words[0]).stem)
    sys.exit(module.run_script(module.main))
