"""A cell's commands: run with their output in a log, and what that log says last.

Used by maths_grid.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282), on a cluster or without one.

    from slurm.commands import last_line, run_command
    code, signals = run_command(["true"], Path("logs/x.log"))
"""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from common.runs import EXIT_SAVED

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # with which a batch system asks a job to end


@dataclass
class Children:
    """Processes that are sent what we are sent: the signals in `passed_on`, also those that came before they began."""

    passed_on: tuple
    received: list = field(default_factory=list)
    pids: set = field(default_factory=set)

    def add(self, pid):
        """Send signals on to a process from now on."""
        self.pids.add(pid)
        for number in self.received:
            self.send(pid, number)

    def send(self, pid, number):
        """Send a signal on to a process, which may have ended."""
        if number in self.passed_on:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def on_signal(self, number, frame):
        """Take note of a signal, and send it on."""
        self.received.append(number)
        for pid in tuple(self.pids):
            self.send(pid, number)


@contextmanager
def pass_signals_on(passed_on):
    """Gives the Children to which SIGNALS in `passed_on` that we are sent meanwhile go on."""
    children = Children(passed_on)
    before = {number: signal.signal(number, children.on_signal) for number in SIGNALS}
    try:
        yield children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_command(command, log, passed_on=SIGNALS):
    """Run a command, its output on ours and at the end of its log -> (exit code, signals we were sent meanwhile).

    Signals in `passed_on` are sent on to it. A command that one of them ended counts as EXIT_SAVED.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with pass_signals_on(passed_on) as children, open(log, "ab") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        children.add(process.pid)
        while chunk := process.stdout.read1(65536):
            for stream in (file, sys.stdout.buffer):
                stream.write(chunk)
                stream.flush()
        return close_log(file, process.wait(), children.received)


def close_log(file, code, received):
    """What run_command returns of an exit code; a command that was killed is named at the end of its log."""
    if code < 0 and not received:
        file.write(f"\nended by {signal.Signals(-code).name}; if nobody sent it, out of memory\n".encode())
    return EXIT_SAVED if code and received else code, received


def last_line(path, width=200):
    """The last line of a log that says something, its first `width` characters; "" for none. Progress bars do not:
    tqdm draws its own once more when a program ends, after what that had to say."""
    try:
        with open(path, "rb") as file:
            start = file.seek(max(0, os.path.getsize(path) - 8192))
            lines = re.split(r"[\r\n]+", file.read().decode("utf-8", errors="replace"))
    except FileNotFoundError:
        return ""
    lines = lines[1:] if start and lines[1:] else lines  # whole ones, if there are any
    lines = [text for line in lines if (text := re.sub(r".*?\d+%\|[^|]*\|[^\]]*\]", "", line).strip())]
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", lines[-1][:width]) if lines else ""
