"""Ask math-verify whether two LaTeX answers are equal, in worker processes that can be killed.

It raises in threads, cancels an outer SIGALRM, and takes seconds and hundreds of megabytes over hostile text."""

import contextlib
import importlib.util
import json
import os
import queue
import resource
import select
import signal
import sys
from subprocess import DEVNULL, PIPE, Popen

TIME_LIMIT = 5.0  # seconds for one question
START_LIMIT = 60.0  # seconds for a worker to load math-verify
MEMORY_LIMIT = 2 * 2**30  # bytes of address space of one worker
WORKERS = min(4, os.cpu_count() or 1)

_idle = {}  # process id -> its idle workers: a forked child must not talk to its parent's, nor wait for its locks


def check_grader(kinds):
    """Raise ModuleNotFoundError if a gold answer of these kinds may need math-verify and it is not installed."""
    if "latex" in kinds and importlib.util.find_spec("math_verify") is None:
        raise ModuleNotFoundError("math-verify is missing, and LaTeX answers need it: pip install -r requirements.txt")


def _take_idle_worker(idle):
    """An idle worker that is alive; None when there is none."""
    with contextlib.suppress(queue.Empty):
        while True:
            worker = idle.get_nowait()
            if worker.poll() is None:
                return worker
            _stop_worker(worker)
    return None


def _start_worker():
    """A new worker, which shares nothing with us but two pipes; it says a line once math-verify is loaded."""
    check_grader(["latex"])
    command = [sys.executable, os.path.abspath(__file__)]
    pipes = dict(stdin=PIPE, stdout=PIPE, stderr=DEVNULL, bufsize=0)  # a buffer would hide a line from poll
    return Popen(command, start_new_session=True, **pipes)


def _stop_worker(worker):
    with worker:  # closes its pipes and waits for its end
        worker.kill()


def _read_line(worker, seconds):
    """One line from a worker; raises TimeoutError after `seconds` and EOFError when it died."""
    ready = select.poll()
    ready.register(worker.stdout, select.POLLIN | select.POLLHUP)
    if not ready.poll(seconds * 1000):
        raise TimeoutError
    line = worker.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return line


def ask_math_verify(answer, gold):
    """Whether math-verify holds two LaTeX answers to be equal: True, False, or None when it hung or died over them."""
    idle = _idle.setdefault(os.getpid(), queue.LifoQueue())
    worker = _take_idle_worker(idle)
    is_new = worker is None
    if is_new:
        worker = _start_worker()
    try:
        worker.stdin.write(json.dumps([answer, gold]).encode() + b"\n")
        if is_new:
            _read_line(worker, START_LIMIT)
        verdict = json.loads(_read_line(worker, TIME_LIMIT))
    except BaseException as error:  # also an outer signal handler's: a worker in mid-question is of no more use
        _stop_worker(worker)
        if not isinstance(error, (TimeoutError, EOFError, BrokenPipeError)):
            raise
        return None
    idle.put(worker)
    return verdict


def main():
    """Answer JSON lines [answer, gold] with true or false until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # nothing that a library prints may look like an answer
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text):
        return parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)

    answers.write(b"null\n")  # math-verify is loaded
    for line in sys.stdin.buffer:
        signal.alarm(int(TIME_LIMIT) + 5)  # should the parent be gone: die, do not spin
        answer, gold = json.loads(line)
        verdict = verify(read(gold), read(answer), allow_set_relation_comp=True, timeout_seconds=None)
        signal.alarm(0)
        answers.write(json.dumps(bool(verdict)).encode() + b"\n")


if __name__ == "__main__":
    main()
