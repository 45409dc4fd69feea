"""What a value that somebody wrote means for the field it is for: one reading for recipes, grids and command lines.

YAML says `false`, a command line says `--use_peft false`, and both mean the boolean. What a field takes is its Kind,
which follows from the type that its dataclass or its parser states; a value that it cannot take is refused by name.
For the experiments of Probability Smoothing Policy Optimisation (arXiv 2509.21282).

    from common.values import parse_annotation, read_value
    read_value(parse_annotation("bool | None"), "no", "bf16")       # False
    read_value(parse_annotation("int"), 2.5, "num_iterations")      # BadInput: num_iterations must be a whole number...
"""

import argparse
import json
import math
import re
from collections.abc import Callable
from typing import NamedTuple

from common.files import MOST_SHOWN, BadInput

BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "t", "y", "1"), True),
    **dict.fromkeys(("false", "no", "off", "f", "n", "0"), False),
}
NULL = "null"  # how a command line says null
NAMES = {  # of the types, for messages
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "dict": "a mapping",
    "list": "a list",
    "str": "text",
}


# ---- kinds


class Kind(NamedTuple):
    """What a field takes. types: of NAMES, none for what no text can spell. booleans: {True or False: the text that
    either stands for}, for text such as eval_strategy, where `false` can only mean "no"."""

    types: frozenset
    optional: bool = False  # whether null is a value
    items: "Kind | None" = None  # of a list
    choices: tuple = ()
    booleans: dict = {}


def parse_annotation(annotation):
    """The Kind of a type as source code spells it: "float", "list[str] | None", "IntervalStrategy | str"."""
    types = set()
    optional = False
    items = None
    for part in re.split(r"\s*\|\s*(?![^\[]*\])", annotation.strip()):
        name, _, inner = part.partition("[")
        if name in NAMES:
            types.add(name)
        if name == "list":
            items = parse_annotation(inner.removesuffix("]"))
        if part == "Literal[False]":
            types.add("bool")
        optional = optional or part == "None"
    if items and not items.types:  # a list of an enumeration's members, whose texts will do
        items = Kind(frozenset({"str"}))
    return Kind(frozenset(types), optional, items)


def kinds_of_parser(parser):
    """{name: Kind} of a parser's flags. A flag whose default is None may be left out, so null may be said of it."""
    names = {read_switch: "bool", read_mapping: "dict", int: "int", float: "float"}
    kinds = {}
    for action in parser._actions:
        single = Kind(frozenset({names.get(action.type, "str")}), choices=tuple(action.choices or ()))
        optional = action.default is None and not action.required
        if action.nargs == "+" or (isinstance(action.nargs, int) and action.nargs > 1):
            kinds[action.dest] = Kind(frozenset({"list"}), optional, single)
        elif action.dest != "help":
            kinds[action.dest] = single._replace(optional=optional)
    return kinds


def read_switch(word):
    """The boolean that a word of the command line stands for; raises ArgumentTypeError, as argparse wants it."""
    if word.lower() not in BOOLEANS:
        raise argparse.ArgumentTypeError(f"must be true or false, got {word!r}")
    return BOOLEANS[word.lower()]


def read_mapping(word):
    """The JSON object in a word of the command line; raises ArgumentTypeError, as argparse wants it."""
    try:
        return convert(Kind(frozenset({"dict"})), word)
    except (ValueError, RecursionError):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {show(word)}") from None


def add_switch(parser, flag, help):
    """Add a flag that is off by default: `--flag`, `--flag true` and `--flag false` all say what they mean."""
    parser.add_argument(flag, type=read_switch, nargs="?", const=True, default=False, metavar="BOOL", help=help)


# ---- values


def read_value(kind, value, name):
    """A value as its field's Kind has it. value: from YAML, or a word of a command line, which is always text.

    Raises BadInput that begins with `name`, the field, with its file where it has one.
    """
    if value is None and kind.optional:
        return None
    try:
        typed = convert(kind, value)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise BadInput(f"{name} must be {describe(kind)}, got {show(value)}") from None
    if kind.choices and typed not in kind.choices:
        raise BadInput(f"{name} must be {describe(kind)}, got {show(value)}")
    return typed


def convert(kind, value):
    """A value in the type of a Kind that is not null; raises ValueError, TypeError or OverflowError if it has none."""
    if isinstance(value, str):
        return convert_text(kind, value)
    if isinstance(value, list):
        if "list" not in kind.types or not value:
            raise ValueError
        return [convert(kind.items, item) for item in value]
    if isinstance(value, dict):
        if "dict" not in kind.types:
            raise ValueError
        return value
    if isinstance(value, bool):
        if "bool" not in kind.types and value not in kind.booleans:
            raise ValueError
        return value if "bool" in kind.types else kind.booleans[value]
    return convert_number(kind, value)


def convert_number(kind, value):
    """An int or a float in the type of a Kind: 2.0 is a whole number too, and an int can be a name."""
    whole = math.isfinite(value) and value == int(value)
    if "int" in kind.types and whole:
        return int(value)
    if "float" in kind.types:
        return float(value)
    if "bool" in kind.types and value in (0, 1):
        return bool(value)
    if "list" in kind.types:
        return [convert_number(kind.items, value)]
    if "str" in kind.types and isinstance(value, int):
        return str(value)
    raise ValueError


def convert_text(kind, text):
    """Text in the type of a Kind; where it can be several, what is no number, boolean or mapping stays text."""
    text.encode()  # a lone surrogate, which YAML and JSON can spell, raises a ValueError
    if "\0" in text:
        raise ValueError
    if text.lower() in ("true", "false") and "bool" not in kind.types and kind.booleans:
        return kind.booleans.get(BOOLEANS[text.lower()], text)
    if "bool" in kind.types and text.lower() in BOOLEANS:
        return BOOLEANS[text.lower()]
    if {"int", "float"} & kind.types and "str" not in kind.types:
        whole = "int" in kind.types and re.fullmatch(r"\s*[+-]?\d+\s*", text)
        return int(text) if whole else convert_number(kind, float(text))
    if "dict" in kind.types and (text.lstrip().startswith("{") or "str" not in kind.types):
        mapping = json.loads(text)
        if not isinstance(mapping, dict):
            raise ValueError
        return mapping
    if "str" in kind.types:
        return text
    if "list" in kind.types:
        return [convert_text(kind.items, text)]
    raise ValueError


def describe(kind):
    """'a number or null', what a Kind takes, for a message."""
    names = [name for key, name in NAMES.items() if key in kind.types]
    if not names:
        return "left out: no text can spell it"
    if kind.choices:
        names = [f"one of {', '.join(map(str, kind.choices))}"]
    return " or ".join([*names, *([NULL] if kind.optional else [])])


def show(value):
    """A value for a message, not longer than a line."""
    text = NULL if value is None else repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def read_values(values, kinds, ranges, place):
    """{field: typed value} of {field: value}; raises BadInput naming the place, a file, and the field.

    kinds: {field: Kind} of all fields that may be there. ranges: {field: Range}.
    """
    typed = {key: read_value(kinds[key], value, f"{place}: {key}") for key, value in values.items()}
    check_ranges(typed, ranges, place)
    return typed


# ---- words of a command line


def to_text(value):
    """A value as a command line and a directory's name have it; a number has one spelling: 5e-5, 0.1, 96."""
    if value is None:
        return NULL
    if isinstance(value, bool | dict):
        return json.dumps(value)
    if isinstance(value, float):
        return re.sub(r"e([+-]?)0*", r"e\1", repr(value).removesuffix(".0"))
    return str(value)


def to_words(flags):
    """{flag: typed value} as words of a command line, which read back as the same values."""
    words = []
    for name, value in flags.items():
        items = [to_text(item) for item in (value if isinstance(value, list) else [value])]
        if isinstance(value, list) or not items[0].startswith("-"):
            words += [f"--{name}", *items]
        else:
            words.append(f"--{name}={items[0]}")  # "-x" would be taken for another flag
    return words


# ---- ranges


class Range(NamedTuple):
    """Which numbers a field can have: in words, and as a test of one number."""

    text: str
    holds: Callable


def at_least(low):
    """The finite numbers from `low` on."""
    return Range(f"at least {low}", lambda number: low <= number < math.inf)


def above(low):
    """The finite numbers above `low`."""
    return Range(f"above {low}", lambda number: low < number < math.inf)


def between(low, high):
    """The numbers from `low` to `high`, both included."""
    return Range(f"from {low} to {high}", lambda number: low <= number <= high)


FINITE = Range("a finite number", math.isfinite)


def check_ranges(values, ranges, place=""):
    """Raise BadInput for the first of {field: value} outside its Range: every number of a list, but no null."""
    for name, value in values.items():
        numbers = value if isinstance(value, list) else [value]
        for number in numbers if name in ranges else ():
            if isinstance(number, int | float) and not ranges[name].holds(number):
                where = f"{place}: {name}" if place else name
                raise BadInput(f"{where} must be {ranges[name].text}, got {to_text(number)}")
