"""What decides a number beside the configuration, and how two records of that are held against each other.

Shared by the record of a training run (common/record.py) and the settings of an evaluation (evaluation/settings.py),
for the experiments of Probability Smoothing Policy Optimisation (arXiv 2509.21282).

    from common.basis import list_changes, make_basis
    print(list_changes(basis_changes(basis_there, make_basis([model_dir], data, ["torch"]))))
"""

import dataclasses
import time
from dataclasses import dataclass, field
from importlib.metadata import version

from common.datasets import build_prompt
from common.models import Device, choose_precision, describe_device, hash_model
from grading import GRADER_VERSION

FORMAT = 2  # of run.json and settings.json; what has none was written before there was a format


# ---- what decides


def rule(compared, mixed, **given):
    """What a difference in this field means for two evaluations.

    compared: "unfair" if they cannot be compared, "noted" if the difference is said beside the comparison, "ignored" if
    it is what is compared. mixed: "never" if rows made with both may not lie in one directory, "accepted" if they may
    with --accept_changes. given: a default, as dataclasses.field takes it.
    """
    return field(metadata={"compared": compared, "mixed": mixed}, **given)


@dataclass
class Basis:
    """What decides a number beside the configuration: inputs, code, device."""

    # SHA-256 of each model directory: the model's, or the adapter's and its base's
    model: list = rule("ignored", "never")
    # {data set: what identifies its rows}; only data sets that both have are held against each other
    data: dict = rule("unfair", "never")
    # the chat around a question, or the text around it where there is no chat template
    prompt: list | str = rule("unfair", "never")
    grader: int = rule("unfair", "never")
    device: Device = rule("noted", "accepted")
    # {library: version}
    versions: dict = rule("noted", "accepted")
    patches: dict = field(default_factory=dict)  # {patch file: SHA-256}, for what trains with them
    # SAMPLER_VERSION, for what draws with our sampler; None also where it was not recorded
    sampler: int | None = rule("noted", "accepted", default=None)


def make_basis(model_dirs, data, packages, device=None, prompt=None):
    """The Basis of what is about to be computed here.

    model_dirs: as find_model_dirs has them. data: {name: hash of its rows}. packages: names of libraries that compute.
    device: (kind, number type) of choose_precision; None asks for this machine's. prompt: what stands around
    QUESTION, where that is not the usual chat.
    """
    return Basis(
        model=[hash_model(directory) for directory in model_dirs],
        data=data,
        prompt=prompt or build_prompt("QUESTION"),
        grader=GRADER_VERSION,
        device=describe_device(*(device or choose_precision())),
        versions={name: version(name) for name in packages},
    )


def read_basis(stored):
    """A Basis from its JSON object."""
    return Basis(**{**stored, "device": Device(**stored["device"])})


def first_format_basis(stored):
    """A Basis from what run.json and settings.json called it before they had a format: the device was one string."""
    kind, *name, number_type = str(stored.get("device", "unknown, unknown, unknown")).split(", ")
    return Basis(
        model=stored.get("model", []),
        data=stored.get("data", {}),
        prompt=stored.get("prompt", []),
        grader=stored.get("grader", 0),
        device=Device(kind, ", ".join(name), number_type),
        versions=stored.get("versions", {}),
        patches=stored.get("patches", {}),
        sampler=stored.get("sampler") if isinstance(stored.get("sampler"), int) else None,
    )


# ---- differences


@dataclass(frozen=True)
class Change:
    """A value that is not what it was: `was` in the record that is there, `now` in the one that begins."""

    name: str
    was: object
    now: object

    def __str__(self):
        return f"{self.name} ({self.was}, now {self.now})" if self.is_readable() else self.name

    def between_two(self):
        """'top_p (1.0 and 0.9)': of two things that stand side by side, where none of them came first."""
        return f"{self.name} ({self.was} and {self.now})" if self.is_readable() else self.name

    def is_readable(self):
        """Whether both values say something to a person, as hashes and chats do not."""
        return max(len(str(self.was)), len(str(self.now))) < 40


def find_changes(was, now, prefix=""):
    """[Change] of two nested dicts; a key that one of them lacks counts as None there."""
    changes = []
    for key in sorted({*was, *now}):
        old = was.get(key)
        new = now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += find_changes(old, new, f"{prefix}{key} ")
        elif old != new:
            changes.append(Change(f"{prefix}{key}", old, new))
    return changes


def basis_changes(was, now):
    """[Change] of two Basis."""
    return find_changes(dataclasses.asdict(was), dataclasses.asdict(now))


def list_changes(changes):
    """'torch (2.13.0, now 2.14.0); device name'; a value that nobody can read, as a hash is, is left out."""
    return "; ".join(str(change) for change in changes)


def as_stored(changes):
    """{"time": now, "changed": {name: [was, now]}}: changes that a user accepted, as a record keeps them."""
    changed = {change.name: [change.was, change.now] for change in changes}
    return {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "changed": changed}


@dataclass
class Continuation:
    """What stands between a run that is there and the command that would continue it."""

    refused: list  # [Change] of the configuration: another run
    to_accept: list  # [Change] of code, data, device or of how it is computed: goes on with --accept_changes
