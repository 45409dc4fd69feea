"""Cutting a training run off where something has happened so many times, never after so many seconds."""

import os
import signal
from dataclasses import dataclass

SIGNAL = "signal"
KILL = "kill"


class Killed(BaseException):
    """In place of SIGKILL where the run shares its process with the test: nothing but locks is tidied up after it."""


@dataclass
class Stop:
    """The place: the count-th call of a method of TrainerCallback, as on_step_end or on_save.

    It comes before what the project's own callback does there: a run that is killed in on_save leaves a checkpoint
    that is not sealed.
    """

    what: str
    count: int
    how: str  # SIGNAL (SIGTERM, or `number`) or KILL
    number: int = signal.SIGTERM
    own_process: bool = False  # a KILL is then a real SIGKILL

    def strike(self):
        if self.how == SIGNAL:
            signal.raise_signal(self.number)
        elif self.own_process:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise Killed


def add_stop(make_trainer, stop):
    """maths_finetuning's make_trainer, whose trainer is cut off as a Stop says."""
    from transformers import TrainerCallback

    calls = []

    def happened(*_, **__):
        calls.append(1)
        if len(calls) == stop.count:
            stop.strike()

    def make(*args, **kwargs):
        trainer = make_trainer(*args, **kwargs)
        trainer.add_callback(type("Stopper", (TrainerCallback,), {stop.what: happened})())
        return trainer

    return make
