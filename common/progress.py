"""How far a long job is: a bar on a terminal, a plain line now and then where the output goes to a file.

Used by training and evaluation (Probability Smoothing Policy Optimisation, arXiv 2509.21282).

    with open_bar(160, "step", "runs/demo/pspo/seed0") as bar:
        bar.update(1)
        bar.set_postfix_str("reward 0.41")
"""

import sys
import time
from pathlib import Path

LINE_SECONDS = 30.0  # between two plain lines at least
FIRST_PART = 20  # the first line comes with a twentieth of the work, or after LINE_SECONDS: one row foretells little


def open_bar(total, unit, label, done=0):
    """A tqdm bar on a terminal, else PlainLines with the same methods; `done` of `total` units are there already."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        return tqdm(total=total, initial=done, unit=unit, desc=label, dynamic_ncols=True)
    return PlainLines(total, unit, label, done)


def label_run(output_dir):
    """What a line on a run begins with: model, method and seed, the end of its directory."""
    return str(Path(*Path(output_dir).parts[-3:]))


def note_begin(label, what):
    """Say in a log file what begins now and has no units to count; a terminal has the libraries' own bars."""
    if not sys.stderr.isatty():
        print(f"{label}: {what}", file=sys.stderr, flush=True)


class PlainLines:
    """What a log file gets in place of a bar: a line at most every LINE_SECONDS, from when the speed is known.

    The methods are those of tqdm that a bar of this project is used with.
    """

    def __init__(self, total, unit, label, done):
        self.total = total
        self.unit = unit
        self.label = label
        self.done = done
        self.done_before = done  # by an earlier process: it says nothing about the speed of this one
        self.shown = ""
        self.begun = time.monotonic()
        self.next_line = self.begun + LINE_SECONDS
        self.is_first = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def update(self, count=1):
        """Count units as done, and say so if a line is due."""
        self.done += count
        self.write_line_if_due()

    def set_postfix_str(self, text, refresh=True):
        """The figures that the next line ends with; with `refresh` a line is written now if one is due."""
        self.shown = text
        if refresh:
            self.write_line_if_due()

    def write_line_if_due(self):
        now = time.monotonic()
        done_here = self.done - self.done_before
        is_known = self.is_first and done_here * FIRST_PART >= self.total - self.done_before
        if done_here == 0 or not (is_known or now >= self.next_line):
            return
        self.is_first = False
        self.next_line = now + LINE_SECONDS
        left = (self.total - self.done) * (now - self.begun) / done_here
        parts = [f"{self.unit} {self.done} of {self.total}", f"{time_text(left)} left"]
        if self.shown:
            parts.append(self.shown)
        print(f"{self.label}: {', '.join(parts)}", file=sys.stderr, flush=True)

    def close(self):
        """Nothing is left to do: what the job has to say at its end, its script says."""


def time_text(seconds):
    """A duration for people: 40 s, 12 min, 3.4 h, 2.1 days."""
    for size, unit, digits in ((86400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"
