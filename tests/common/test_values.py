"""common/values.py and YAML: a value means what its field's type says, wherever it was written."""

import argparse
import dataclasses
import json
import math
import typing
from enum import Enum

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from common.files import BadInput, read_yaml, to_yaml
from common.values import Kind, add_switch, kinds_of_parser, parse_annotation, read_value, to_text, to_words


def kind(annotation, **more):
    return parse_annotation(annotation)._replace(**more)


STRATEGY = kind("IntervalStrategy | str", booleans={False: "no"})


@pytest.mark.parametrize(
    ("annotation", "value", "meant"),
    [
        ("bool", True, True),
        ("bool", "no", False),
        ("bool | None", "Yes", True),
        ("bool | None", None, None),
        ("bool", 0, False),
        ("int", 3, 3),
        ("int", "3", 3),
        ("int", 2.0, 2),
        ("int", "1e2", 100),
        ("int", "9007199254740993", 9007199254740993),  # 2^53 + 1, which no float holds
        ("float", 3, 3.0),
        ("float", "1e-6", 1e-6),
        ("float | None", None, None),
        ("str", "no", "no"),
        ("str", 7, "7"),
        ("str | None", "null", "null"),  # in quotes; a bare null is None
        ("list[float] | None", [1, "2"], [1.0, 2.0]),
        ("list[float]", 1, [1.0]),
        ("list[str] | None", "q_proj", ["q_proj"]),
        ("None | str | list[str]", ["a", "b"], ["a", "b"]),
        ("dict | str | None", '{"a": false}', {"a": False}),
        ("dict | str | None", {"a": 1}, {"a": 1}),
        ("dict | str | None", "file.json", "file.json"),
        ("dict[str, bool] | None", '{"a": true}', {"a": True}),
        ("int | str | None", "auto", "auto"),
        ("str | bool", "all", "all"),
        ("str | bool", True, True),
    ],
)
def test_a_value_means_what_the_type_says(annotation, value, meant):
    read = read_value(kind(annotation), value, "x")
    assert read == meant and type(read) is type(meant)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        ("bool", None),
        ("bool", "maybe"),
        ("bool", 2),
        ("int", True),
        ("int", 2.5),
        ("int", "two"),
        ("int", math.nan),
        ("int", math.inf),
        ("int", [1]),
        ("float", False),
        ("float", {}),
        ("float", 10**400),
        ("float", None),
        ("str", True),
        ("str", 1.5),
        ("str", ["a"]),
        ("list[float]", []),
        ("list[float]", ["a"]),
        ("list[float]", [None]),
        ("list[str]", [["a"]]),
        ("dict | str | None", "{a"),
        ("dict | str | None", "{" * 100_000),
        ("dict | str | None", [1]),
        ("dict", "[1]"),
        ("ParallelismConfig | None", "x"),
    ],
)
def test_what_a_field_cannot_take_is_refused_by_name_in_a_short_line(annotation, value):
    with pytest.raises(BadInput, match="^recipe r.yaml: x must be ") as error:
        read_value(kind(annotation), value, "recipe r.yaml: x")
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("value", [False, "false", "no", "False"])
def test_false_is_no_where_a_field_says_so(value):
    assert read_value(STRATEGY, value, "eval_strategy") == "no"
    assert read_value(STRATEGY, "steps", "eval_strategy") == "steps"
    for wrong in (True, None):
        with pytest.raises(BadInput, match="eval_strategy"):
            read_value(STRATEGY, wrong, "eval_strategy")


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass
class Fields:
    a: bool = False
    b: bool | None = None
    c: int = 1
    d: float | None = None
    e: list[str] | None = None
    f: dict[str, typing.Any] | str | None = None
    g: Colour | str = "red"
    h: str | None | typing.Literal[False] = None


def test_the_kind_of_an_annotation_is_the_type_that_python_makes_of_it():
    names = {bool: "bool", int: "int", float: "float", str: "str", dict: "dict", list: "list", False: "bool"}
    spelt = {
        "a": "bool",
        "b": "bool | None",
        "c": "int",
        "d": "float | None",
        "e": "list[str] | None",
        "f": "dict[str, Any] | str | None",
        "g": "Colour | str",
        "h": "str | None | Literal[False]",
    }
    for name, hint in typing.get_type_hints(Fields).items():
        parts = typing.get_args(hint) if typing.get_origin(hint) not in (list, dict, None) else (hint,)
        bases = set()
        for part in parts:
            origin = typing.get_origin(part)
            bases |= {*typing.get_args(part)} if origin is typing.Literal else {origin or part}
        expected = frozenset(names[base] for base in bases if base in names)
        assert parse_annotation(spelt[name]).types == expected, name
        assert parse_annotation(spelt[name]).optional is (type(None) in parts), name


# ---- our own flags


def make_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0])
    add_switch(parser, "--overwrite", "x")
    return parser


@pytest.mark.parametrize(
    ("words", "meant"),
    [([], False), (["--overwrite"], True), (["--overwrite", "true"], True), (["--overwrite", "false"], False)],
)
def test_a_switch_says_what_it_means(words, meant):
    assert make_parser().parse_args(["--name", "x", *words]).overwrite is meant
    assert make_parser().parse_args([*words, "--name", "x"]).overwrite is meant


def test_the_kinds_of_a_parsers_flags():
    kinds = kinds_of_parser(make_parser())
    assert kinds == {
        "name": Kind(frozenset({"str"})),
        "seed": Kind(frozenset({"int"})),
        "limit": Kind(frozenset({"int"}), optional=True),
        "device": Kind(frozenset({"str"}), choices=("cpu", "cuda")),
        "temperatures": Kind(frozenset({"list"}), items=Kind(frozenset({"float"}))),
        "overwrite": Kind(frozenset({"bool"})),
    }
    assert read_value(kinds["temperatures"], 1, "x") == [1.0]
    with pytest.raises(BadInput, match="x must be one of cpu, cuda, got 'gpu'"):
        read_value(kinds["device"], "gpu", "x")


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
TYPED = {
    "bool": st.booleans(),
    "int": st.integers(-(10**18), 10**18),
    "float": st.floats(allow_nan=False),
    "str": TEXTS,
    "dict | str | None": st.dictionaries(TEXTS, st.booleans() | st.integers(-9, 9) | TEXTS, max_size=3) | st.none(),
    "list[float]": st.lists(st.floats(0, allow_nan=False), min_size=1, max_size=3),
    "list[str]": st.lists(st.text("abc", min_size=1), min_size=1, max_size=3),
}


@given(st.data())
def test_words_of_a_command_line_read_back_as_the_value(data):
    annotation = data.draw(st.sampled_from(sorted(TYPED)))
    value = data.draw(TYPED[annotation])
    words = to_words({"x": value})
    parser = argparse.ArgumentParser()
    parser.add_argument("--x", nargs="+" if isinstance(value, list) else None)
    read = parser.parse_args(words).x
    if value is None:
        assert read == "null"
    else:
        assert read_value(kind(annotation), read, "x") == value


@pytest.mark.parametrize(
    ("number", "text"), [(5e-5, "5e-5"), (1e-6, "1e-6"), (0.1, "0.1"), (96.0, "96"), (1e22, "1e+22"), (3, "3")]
)
def test_a_number_has_one_spelling(number, text):
    assert to_text(number) == text and float(text) == number


# ---- YAML


def read(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "values.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path, "recipe")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("1e-6", 1e-6),
        ("-1E3", -1000.0),
        (".5", 0.5),
        (".inf", math.inf),
        ("012", 12),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("'1e-6'", "1e-6"),
        ("'no'", "no"),
    ],
)
def test_yaml_is_read_by_its_version_1_2(tmp_path_factory, text, meant):
    value = read(tmp_path_factory, f"x: {text}")["x"]
    assert value == meant and type(value) is type(meant)


def test_a_key_is_a_name_as_it_is_spelt(tmp_path_factory):
    assert list(read(tmp_path_factory, "no: 1\n1: 2\nnull: 3\ntrue: 4\n1e3: 5")) == ["no", "1", "null", "true", "1e3"]
    with pytest.raises(BadInput, match="line 1: a name must be one word"):
        read(tmp_path_factory, "? [a]\n: 1")


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=80), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), NESTED, max_size=3))
def test_what_is_written_as_yaml_reads_back(tmp_path_factory, value):
    assert read(tmp_path_factory, to_yaml(value)) == value


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=80), NESTED, max_size=3))
def test_json_is_yaml(tmp_path_factory, value):
    """Where a key has at most 1024 characters as it is written, escapes included: YAML 1.2, section 7.4."""
    text = json.dumps(value)
    assert json.loads(text) == read(tmp_path_factory, text) or "\\u" in text  # a pair of surrogates is JSON's alone


def test_strings_that_only_yaml_1_1_takes_for_something_else_stay_strings(tmp_path_factory):
    for word in ("no", "1e5", "012", "1:30", "=", "null", "1_000"):
        assert read(tmp_path_factory, to_yaml({"x": word}))["x"] == word
    assert yaml.safe_load("x: no")["x"] is False  # what PyYAML alone would have made of it
