"""Everything that decides the rows of an evaluation: settings.json, which may be mixed, which may be compared.

Written by maths_evaluations.py, read by the grid and the report (Probability Smoothing Policy
Optimisation, arXiv 2509.21282).

    from evaluation.settings import read_settings
    settings = read_settings(Path("runs/demo/base/evaluations"))
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from common.basis import FORMAT, Basis, Continuation, find_changes, first_format_basis, read_basis, rule
from common.files import BadInput, read_json, write_json

SETTINGS_FILE = "settings.json"


@dataclass
class Settings:
    """Everything that decides the rows of an evaluation, and which of them are complete."""

    samples_per_prompt: int = rule("noted", "never")
    top_p: float = rule("unfair", "never")
    max_new_tokens: int = rule("unfair", "never")
    seed: int = rule("noted", "never")
    backend: str = rule("noted", "never")
    batch_size: int = rule("noted", "accepted")
    basis: Basis
    # what the chat template is given; a directory of an earlier version has none
    chat_template_kwargs: dict = rule("unfair", "never", default_factory=dict)
    apply_chat_template: bool = rule("unfair", "never", default=True)
    num_fewshot: int = rule("unfair", "never", default=0)  # they stand in basis.prompt
    complete: dict = field(default_factory=dict)  # {data set: {temperature: how many problems, from the first}}
    changes: list = field(default_factory=list)  # what a user accepted when results were added, see as_stored


def setting_differences(a, b):
    """[(Change, rule)] of two Settings, the rule a mapping as `rule` makes it."""
    return [*_ruled_differences(a, b), *_ruled_differences(a.basis, b.basis)]


def _ruled_differences(a, b):
    """[(Change, rule)] of the fields that have a rule."""
    found = []
    for part in dataclasses.fields(a):
        if not part.metadata:
            continue
        was = getattr(a, part.name)
        now = getattr(b, part.name)
        if part.name == "data":
            shared = was.keys() & now.keys()
            was = {name: was[name] for name in shared}
            now = {name: now[name] for name in shared}
        if part.name == "sampler" and None in (was, now):  # another backend, or not recorded
            continue
        if part.name == "device":
            was = dataclasses.asdict(was)
            now = dataclasses.asdict(now)
        changes = find_changes({part.name: was}, {part.name: now})
        found += [(change, _rule_of(part, change)) for change in changes]
    return found


def _rule_of(part, change):
    """The rule of a field; another number type is unfair, another card is not."""
    if change.name == "device number_type":
        return {**part.metadata, "compared": "unfair"}
    return part.metadata


def compare_to_add(there, here):
    """The Continuation of the results with Settings `there` by an evaluation with Settings `here`."""
    differences = setting_differences(there, here)
    refused = [change for change, rule in differences if rule["mixed"] == "never"]
    to_accept = [change for change, rule in differences if rule["mixed"] == "accepted"]
    return Continuation(refused, to_accept)


def unfair_differences(a, b):
    """[Change] that make a comparison of two evaluations unfair."""
    return [change for change, rule in setting_differences(a, b) if rule["compared"] == "unfair"]


def noted_differences(a, b):
    """[Change] that must be said beside a comparison of two evaluations."""
    return [change for change, rule in setting_differences(a, b) if rule["compared"] == "noted"]


# ---- settings.json


def read_settings(out):
    """The Settings in the directory of an evaluation, None in a fresh one. Raises BadInput if damaged or missing."""
    repair = "choose another --output_dir, or delete this one"
    file = Path(out) / SETTINGS_FILE
    stored = read_json(file, repair)
    if stored is None:
        if found := sorted(p.name for p in Path(out).glob("*.jsonl")):
            raise BadInput(f"{out} holds {found[0]} but no {SETTINGS_FILE}: choose another --output_dir")
        return None
    try:
        if "format" not in stored:
            return settings_from_first_format(stored)
        stored = {name: value for name, value in stored.items() if name != "format"}
        return Settings(**{**stored, "basis": read_basis(stored["basis"])})
    except (KeyError, TypeError, AttributeError, ValueError):
        raise BadInput(f"{file} is damaged: {repair}") from None


def write_settings(out, settings):
    """Write settings.json of an evaluation, whole or not at all."""
    write_json(Path(out) / SETTINGS_FILE, {"format": FORMAT, **dataclasses.asdict(settings)})


def settings_from_first_format(stored):
    """Settings from settings.json as it was before it had a format; what is complete is not known."""
    names = ("samples_per_prompt", "top_p", "max_new_tokens", "seed", "backend", "batch_size")
    return Settings(
        **{name: stored[name] for name in names},
        basis=first_format_basis({**stored, "grader": stored["grader"], "data": {**stored["data"]}}),
        changes=stored.get("changes", []),
    )
