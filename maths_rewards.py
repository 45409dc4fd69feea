r"""Grade an answer to a maths problem: the rewards of training and the verdicts of evaluation.

Probability Smoothing Policy Optimisation (https://arxiv.org/abs/2509.21282) pays 1 for a right final answer and a
small bonus for GSM8K's `#### <number>` ending; here the two are separate reward functions that TRL adds up with
REWARD_WEIGHTS. Evaluation asks `grade` for the verdict, the answer that was read, and the rule that found it.

Policy, where another choice could be defended:

| case | verdict |
|---|---|
| several `####` lines | the last one that is not empty; `#### Step 2` and its like are headings, not answers |
| order of rules | `####`, `\boxed{}`, "answer is", last number; for LaTeX `\boxed{}` first and the last formula last |
| text after the answer | ignored after a marker: `60 minutes (1 hour)` is 60 |
| a box that is never closed | no answer |
| percent | `25%` is 25, never 0.25 |
| units, currency | ignored: `$18`, `18 dollars`, `18 cents` are 18; but `$3 million` is 3000000 |
| thousands | `1,234`, `1 234`, `1, 234` are 1234; `1,23,4` is no number; a decimal comma is not read |
| number words | read where an answer is marked: `#### eighteen` |
| sums | `#### 9*2` is 18, `9*2 = 18` is 18; `17-18` is a range |
| hedges | `17 or 18`, `17-18`, `>18` are wrong; `about 18`, `~18` are 18 |
| rounding | integers exactly, all else within 1e-6; 0.333333 is not 0.33 |
| several numbers | all of them, in any order, each as often as in the gold answer |
| times | `3:30` for `3:30 p.m.` is right, `3:30 a.m.` is wrong, `15:30` is right |
| text | right when it equals the gold answer or begins with it; case, articles and punctuation do not count |
| LaTeX | units, degrees, currency, a number base and `x =` may be left out; (3,4] is not [3,4]; 4.6667 is not 14/3 |
| nan, inf, code | wrong; nothing of a text is ever evaluated |

    python maths_rewards.py --gold 18 --completion 'She makes 9 * 2 = $18. #### 18'
    echo '\boxed{\frac{28}{6}}' | python maths_rewards.py --gold '\frac{14}{3}' --kind latex --completion -
"""

import argparse
import atexit
import importlib.util
import json
import math
import os
import queue
import re
import resource
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from maths_datasets import BadInput, make_parser, run_script
from maths_latex import BITS_LIMIT, TOLERANCE, close, formula_value, same_latex, tidy, to_ascii

KINDS = ("integer", "decimal", "fraction", "numbers", "ratio", "text", "latex")
REWARD_WEIGHTS = [1.0, 0.05]  # accuracy_reward, format_reward

ANSWER_CHARS = 1000  # of a marked answer; what is longer is cut, and a number that touches the cut is no number
GOLD_CHARS = 4000
EXPONENT_LIMIT = 300  # 1e300 is read, 1e301 is not: keeps exact numbers small
TIME_LIMIT = 5.0  # seconds for one question to math-verify, of which the first to a worker also loads it
START_LIMIT = 60.0  # seconds for a worker to load math-verify
MEMORY_LIMIT = 2 * 2**30  # bytes of address space of one worker
WORKERS = min(4, os.cpu_count() or 1)


class Gold(NamedTuple):
    """A gold answer: canonical text (parse_gold of it gives the same), kind (one of KINDS), value to compare with."""

    text: str
    kind: str
    value: object


class Grade(NamedTuple):
    """A verdict, the answer that was read (None when there is none), and the rule that found it."""

    correct: bool
    answer: str | None
    rule: str


# ---------------------------------------------------------------- plain text

LATEX_TO_PLAIN = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"(?<=\d),?\\[!,;:]\s*(?=\d{3}(?!\d))|(?<=\d)\{,\}(?=\d{3})|(?<=\d)\\ (?=\d{3})", ""),
        (r"\\[!,;: ]|\\q?quad\b|\\(?:left|right)(?:\.(?!\d)|\b)|\\displaystyle\b|\\[()\[\]]", " "),
        (r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r" (\1)/(\2)"),
        (r"\\[dtc]?frac\s*(\d)\s*(\d)", r" (\1)/(\2)"),
        (r"\\[dtc]?frac\s*(\d)\s*\{\s*(\d+)\s*\}", r" (\1)/(\2)"),
        (r"\\[dtc]?frac\s*\{\s*(\d+)\s*\}\s*(\d)", r" (\1)/(\2)"),
        (r"\\times\b", " × "),
        (r"\\cdot\b", "*"),
        (r"\\div\b", "/"),
        (r"\\approx\b|\\sim\b", "~"),
        (r"\\(?:leq?|lt)\b", "<"),
        (r"\\(?:geq?|gt)\b", ">"),
        (r"\\(?:text[a-z]*|math[a-z]+|mbox|boxed|fbox|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degrees?\b", " "),
        (r"\\([$%&#_{}])", r"\1"),
    ]
]
MARKUP = re.compile(
    r"<<[^<>]*>>|<\|[^|<>]{1,40}\|>|</?[A-Za-z]\w{0,19}>|`+|(?<![\w)])[*_]+|[*_]+(?![\w(])|[*_]{2,}(?=[A-Za-z])"
)
DOLLARS_AND_CENTS = re.compile(r"(\d{1,9}) dollars?,? and (\d{1,2}) cents?\b")


def _plain(text):
    """One line of model output without markdown, currency, LaTeX and exotic characters, ready for _read_number."""
    text = text if text.isascii() else _cut(to_ascii(text))  # which may be longer
    if "\\" in text or "{,}" in text:
        for _ in range(2):  # \text{} inside \frac{}{} and the like
            for pattern, replacement in LATEX_TO_PLAIN:
                text = pattern.sub(replacement, text)
    text = re.sub(r"(?<=[A-Za-z])\^\s*[({]*-?\d+[)}]*|(?<=[A-Za-z]\s)\^\s*[({]*-?\d+[)}]*", "", text)  # m^2
    text = DOLLARS_AND_CENTS.sub(lambda m: f"{m[1]}.{int(m[2]):02d} dollars", MARKUP.sub(" ", text))
    text = re.sub(r"<\s*(-?\$?[\d.,]+)\s*>", r" \1 ", text)  # the prompt's <number>, taken at its word
    text = re.sub(r"-\s*\$\s*(?=[\d.])|\$\s*-\s*(?=[\d.])", "-", text)
    text = re.sub(r"(?<![\d.,])\$|\$(?![\d.])", " ", text)  # but 1$234 stays what it is
    return " ".join(text.split())


# ---------------------------------------------------------------- numbers

DIGITS = r"(?:\d{1,3}(?:,\ ?\d{3})+(?!\d)|\d{1,3}(?:\ \d{3})+(?!\d)|\d+)"
NUMBER = (
    rf"(?<![\d.])(?<!\d[,:_])(?:{DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{{1,3}}(?!\w))?"
    r"(?![.,:_]?\d|[A-Za-z]{1,4}\d(?<![a-z]2)(?<![a-z]3)|[ij]\b|\.\.|\$\d)"
)
NUMBER_RE = re.compile(NUMBER)
SIMPLE_RE = re.compile(r"\s*\$?\s*(-?\d{1,300})(?:\.0{0,9})?\s*")
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SCALE_RE = re.compile(rf"\s*({'|'.join(SCALES)})s?\b", re.I)
UNIT_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TEN_NAMES = "twenty thirty forty fifty sixty seventy eighty ninety"
WORD_VALUES = dict(zip(UNIT_NAMES.split(), range(20), strict=True))
WORD_VALUES |= dict(zip(TEN_NAMES.split(), range(20, 100, 10), strict=True))
WORD_RE = re.compile(rf"\b(?<!\bno )(?:{'|'.join([*WORD_VALUES, *SCALES])})\b", re.I)
CODE_RE = re.compile(r"[)\]]\s*[(\[]|\(\)|[A-Za-z]\((?!e?s\))|\blambda\b|\bif\b.*\belse\b|\*\*|\^.*\^|\d\s*\[")
BOUND_RE = re.compile(
    r"[<>]|!=|\b(?:more|less|fewer|greater|larger|smaller) than\s*\$?\s*-?\d|\bbetween\b|\beither\b"
    r"|\bnot\s+-?\$?[\d.,]+\W*$",
    re.I,
)
HEDGE_RE = re.compile(
    r"(?:\s+[A-Za-z]+){0,3}\s*(?:\b(?:or|to|and|through)\b|[,;&|/-]|\+/-)\s*(?:(?:or|and)\b\s*)?[a-z]?\s*[-$(]?\s*\.?\d"
    r"|\s+[-$]?\.?\d|\s*\+\s*$",
    re.I,
)
LEAD_RE = re.compile(
    r"(?<![\w.])(?:is|are|was|were|be|equals?|makes?|gives?|get|gets|answer)\b[:\s]*|(?<!\d):(?!\d)", re.I
)
START_RE = re.compile(
    r"[\s~=\[{'\"]*(?:(?:about|around|approximately|approx\.?|roughly|nearly|us|usd|rs\.?)\s*)?"
    r"(?=[-+]?\s*\(?\s*[-+]?\s*\.?\d)",
    re.I,
)
PARTS = {"half": Fraction(1, 2), "third": Fraction(1, 3), "quarter": Fraction(1, 4)}
PART_RE = re.compile(rf"\s+and\s+(?:a|one)\s+({'|'.join(PARTS)})\b", re.I)
SIGN_RE = re.compile(r"\s*([-+]?)\s*")
CLOSING_RE = re.compile(r"\s*\)")
MIXED_RE = re.compile(r"(?:\s+|-|\s+and\s+)(?:(\d{1,9})\s*/\s*(\d{1,9})|\((\d{1,9})\)/\((\d{1,9})\))(?![\d.,/]\d)")
POWER_RE = re.compile(r"\s*\^\s*[{(]?\s*(-?\d{1,3})(?!\d)\s*[})]?")
TIMES_RE = re.compile(r"\s*(?:([*×/])|\b[xX]\b|(?<=\d)[xX](?=\d))\s*(?=[-(]?\s*\.?\d)")
PLUS_RE = re.compile(r"\s*\+\s*(?=[-(]?\s*\.?\d)")
LAST_DIGIT_RE = re.compile(r"(?s).*\d")
DIGIT_RE = re.compile(r"\d")


class _NotANumber(ValueError):
    """The text does not say one number."""


def _exact(token):
    """'1,234.50', '.5', '1.2e3' -> Fraction. Never float: 1000000.5 and 22090604 keep their last digit."""
    token = token.replace(",", "").replace(" ", "").lower()
    mantissa, _, exponent = token.partition("e")
    if exponent and abs(int(exponent)) > EXPONENT_LIMIT:
        raise _NotANumber
    return Fraction(mantissa if mantissa[0] != "." else "0" + mantissa) * Fraction(10) ** int(exponent or 0)


def _factor(text, at):
    """A number, mixed number, power of a number or bracketed sum at `at`, with its sign -> (Fraction, end)."""
    sign = SIGN_RE.match(text, at)
    at = sign.end()
    if text.startswith("(", at):
        value, end = _sum(text, at + 1)
        bracket = CLOSING_RE.match(text, end)
        if not bracket:
            raise _NotANumber
        end = bracket.end()
    else:
        value, end = _unsigned(text, at)
    return (-value if sign.group(1) == "-" else value), end


def _unsigned(text, at):
    number = NUMBER_RE.match(text, at)
    if not number:
        raise _NotANumber
    value, end = _exact(number.group()), number.end()
    mixed, power = MIXED_RE.match(text, end), POWER_RE.match(text, end)
    if mixed and value.denominator == 1:
        above, below = (int(d) for d in mixed.groups() if d)
        if 0 < above < below:
            return value + Fraction(above, below), mixed.end()
    if power:
        exponent = int(power.group(1))
        if abs(exponent) > EXPONENT_LIMIT or len(str(value)) > 12 or (value == 0 and exponent < 0):
            raise _NotANumber
        return value**exponent, power.end()
    return value, end


def _product(text, at):
    value, end = _factor(text, at)
    while True:
        operator = TIMES_RE.match(text, end)
        if not operator:
            return value, end
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > BITS_LIMIT:
            raise _NotANumber
        right, end = _factor(text, operator.end())
        if operator.group(1) == "/":
            if right == 0:
                raise _NotANumber
            value /= right
        else:
            value *= right


def _sum(text, at):
    """`at` must stand at a number; a minus between two numbers ends the sum, because 17-18 is a range."""
    if text.count("(") > 20:
        raise _NotANumber
    value, end = _product(text, at)
    while plus := PLUS_RE.match(text, end):
        right, end = _product(text, plus.end())
        value += right
    return value, end


def _words_to_number(text):
    """'one hundred and twenty-five dollars' -> 125, 'two and a half' -> 5/2. Raises _NotANumber without words."""
    first = WORD_RE.search(text)
    if not first or re.search(r"\b(?:or|to)\s+" + WORD_RE.pattern, text, re.I):
        raise _NotANumber
    part = PART_RE.search(text)
    words = re.split(r"[\s-]+", text[first.start() : part.start() if part else len(text)].lower())
    total = group = 0
    for word in (w.strip(".,;:!?") for w in words):
        if word in WORD_VALUES:
            group += WORD_VALUES[word]
        elif word == "hundred":
            group = (group or 1) * 100
        elif word in SCALES:
            total, group = total + (group or 1) * SCALES[word], 0
        elif word.rstrip("s") in PARTS:  # three quarters
            raise _NotANumber
        elif word != "and":
            break
    value = total + group + (PARTS[part.group(1).lower()] if part else 0)
    return Fraction(-value if re.search(r"\b(?:minus|negative)\s*$", text[: first.start()], re.I) else value)


def _number_start(text):
    """Where the number that a marked answer means begins: the first of a line that starts with one, else the last."""
    start = START_RE.match(text)
    if start and not re.match(r"[^\d]*\d+(?:st|nd|rd|th)\b", text):
        return start.end()
    numbers = list(NUMBER_RE.finditer(text))
    if not numbers:
        raise _NotANumber
    at = numbers[-1].start()
    sign = re.search(r"(?:^|[\s(:=~])(-|minus |negative )$", text[:at])
    return sign.start(1) if sign else at


def _read_number(text):
    """The one number that a marked answer says, exactly.

    Args: text: cleaned by _plain. Returns a Fraction. Raises _NotANumber for none, several, a bound, or code."""
    if CODE_RE.search(text) or BOUND_RE.search(text):
        raise _NotANumber
    if "=" in text:
        text = next((part for part in reversed(text.split("=")) if DIGIT_RE.search(part)), text)
    if not DIGIT_RE.search(text):
        return _words_to_number(text)
    last_digit = LAST_DIGIT_RE.match(text).end() - 1
    text = text[max((lead.end() for lead in LEAD_RE.finditer(text, 0, last_digit)), default=0) :]
    text = re.sub(r"^\s*(?:minus|negative)\s+(?=\d)", "-", text, flags=re.I)
    at = _number_start(text)
    value, end = _sum(text, at)
    part = PART_RE.match(text, end)
    if part:
        return value + (PARTS[part.group(1).lower()] if value >= 0 else -PARTS[part.group(1).lower()])
    if HEDGE_RE.match(text, end) or re.search(r"\d\s*(?:or|to|-)\s*$", text[:at]):
        raise _NotANumber
    scale = SCALE_RE.match(text, end)
    return value * SCALES[scale.group(1).lower()] if scale else value


def read_number(answer):
    r"""The number that a raw answer says: '$1,234.50', 'x = 18 cm', 'eighteen', '\frac{1}{2}', '\sqrt{324}'.

    Returns an exact Fraction, or None when the answer does not say exactly one rational number."""
    text = _plain(answer)
    try:
        if re.search(r"\\[A-Za-z]", text):
            value = formula_value(tidy(answer).rpartition("=")[2], 0)
            return value if isinstance(value, Fraction) and not re.search(r"(?<!\\)\b[a-z]\b", tidy(answer)) else None
        return _read_number(text)
    except (ValueError, ArithmeticError):  # _NotANumber, and what formula_value raises
        return None


# ---------------------------------------------------------------- finding the answer

HEADING_RE = re.compile(
    r"[\s*_]*(?:step|part|case|problem|question|example|method)\b[\s*_]*(?:\d|[a-z]\b|[ivx]+\b)", re.I
)
LABEL_RE = re.compile(
    r"[\s#:>*_=.-]*(?:(?:the\s+)?(?:final\s+)?(?:answer|solution|result|conclusion)\s*(?:is)?[\s:*_]*)?$", re.I
)
ANSWER_IS_RE = re.compile(
    r"answer(?:\s+to\s+(?:the|this)\s+(?:question|problem))?[\s*_]*"
    r"(?:\s(?:is|was|would\s+be|will\s+be|equals)\b|[:=])[\s:*_]*",
    re.I,
)
SENTENCE_END_RE = re.compile(r"(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bMrs)[.!?](?=\s|$)|\n")
END_RE = re.compile(r"(?<=\S)\s*<\|(?:im_end|im_start|endoftext|eot_id|end_of_text|end)\|>")
FORMULA_RE = re.compile(
    r"\$\$([^$]+)\$\$|(?<!\\)\$((?:[^$\\]|\\.)+)\$|\\\(((?:[^\\]|\\[^)])+)\\\)|\\\[((?:[^\\]|\\[^\]])+)\\\]", re.S
)
BRACE_RE = re.compile(r"\\?[{}]")
SPACING = r"(?:\s|\$|\\q?quad|\\[()\[\],;: ])"
JOINT_RE = re.compile(r"\s*(?:/|\s|or|to|-|and)\s*|\)/\(")  # between the numbers of a fraction or a range
BOX_JOINT_RE = re.compile(
    rf"\}}{SPACING}*(?:,|and|or|\\text\{{\s*(?:and|or)\s*\}}){SPACING}*(?:(?:and|or){SPACING}*)?\\f?"
)


def _cut(text):
    """At most ANSWER_CHARS characters, cut between words, so that no number loses digits."""
    return text if len(text) <= ANSWER_CHARS else text[:ANSWER_CHARS].rpartition(" ")[0]


def _after_marker(text):
    """What stands after the last `####` line that is not empty and no heading; None when there is none."""
    at = len(text)
    for _ in range(8):  # more empty markers than this are noise
        at = text.rfind("####", 0, at)
        if at < 0:
            return None
        end = text.find("\n", at)
        line = _cut(text[at + 4 : len(text) if end < 0 else min(end, at + 2 * ANSWER_CHARS)].lstrip("# \t:"))
        if not LABEL_RE.match(line):
            if not HEADING_RE.match(line):
                return line
        elif end >= 0:  # `####` alone or `#### Answer:`: the answer is on the next line
            following = _cut(text[end : end + 2 * ANSWER_CHARS].lstrip().partition("\n")[0])
            if following and not following.startswith("#"):
                return following
    return None


def _box(text, at):
    r"""(start, end) of the content of the box whose name begins at `at`; None when it is never closed."""
    start = text.index("{", at) + 1
    depth = 1
    for brace in BRACE_RE.finditer(text, start, start + 2 * ANSWER_CHARS):
        if len(brace.group()) == 1:
            depth += 1 if brace.group() == "{" else -1
            if not depth:
                return start, brace.start()
    return None


def _boxed(text):
    r"""(content of the last `\boxed{}` or None, True when there is a box at all); a box never closed has no content.

    Boxes joined by a comma, "and" or "or" are one answer with several parts."""
    at = text.rfind("boxed{")
    if at < 0:
        return None, False
    place = _box(text, at)
    if place is None:
        return None, True
    contents = [text[place[0] : place[1]]]
    while (before := text.rfind("boxed{", 0, at)) >= 0 and len(contents) < 10:
        place = _box(text, before)
        if place is None or not BOX_JOINT_RE.fullmatch(text, place[1], at):
            break
        at, contents = before, [text[place[0] : place[1]], *contents]
    return ", ".join(dict.fromkeys(contents)), True


def _answer_is(text):
    """The rest of the sentence after the last "answer is", "Answer:" or line that begins with "A:"; or None."""
    at, start = len(text), -1
    for _ in range(8):
        at = max(text.rfind(word, 0, at) for word in ("answer", "Answer", "ANSWER"))
        found = ANSWER_IS_RE.match(text, at) if at >= 0 else None
        if found or at < 0:
            start = found.end() if found else -1
            break
    line = text.rfind("\nA:")
    start = max(start, line + 3 if line >= 0 else (2 if text.startswith("A:") else -1))
    if start < 0:
        return None
    tail = _cut(text[start : start + 2 * ANSWER_CHARS].lstrip())
    end = SENTENCE_END_RE.search(tail)
    return (tail[: end.start()] if end else tail) or None


def _last_number(text):
    """The last number of a text, with what makes it a fraction, a sum's result or a range; None without one."""
    last = LAST_DIGIT_RE.match(text)
    if not last:
        return None
    begin = text.rfind("\n", 0, last.end()) + 1
    if last.end() - begin > ANSWER_CHARS // 2:
        begin = text.find(" ", last.end() - ANSWER_CHARS // 2, last.end()) + 1 or last.end()
    end = text.find("\n", last.end())
    end = min(len(text) if end < 0 else end, last.end() + 40)
    line = _plain(text[begin:end])
    numbers = list(NUMBER_RE.finditer(line))
    if not numbers or any(c.isdigit() for c in line[numbers[-1].end() :]):
        return None
    first = len(numbers) - 1
    while first and JOINT_RE.fullmatch(line, numbers[first - 1].end(), numbers[first].start()):
        first -= 1
    at = numbers[first].start()
    sign = re.search(r"(?:^|[\s(:=~])-\(?$|\($", line[:at])
    return line[sign.end() - len(sign.group().lstrip(" :=~")) if sign else at :]


def extract_answer(completion, kind="integer"):
    r"""Where the final answer of a completion stands.

    Args: completion: any text. kind: one of KINDS; it decides which rule goes first and what the last resort is.
    Returns (answer, rule): the raw answer text or None, and the rule: "####", "boxed", "answer is", "last number",
    "last formula", "last sentence", or "none"."""
    if "<|" in completion:
        completion = END_RE.split(completion, maxsplit=1)[0]
    marked = _after_marker(completion)
    if marked is not None and kind != "latex":
        return marked, "####"
    box, has_box = _boxed(completion)
    if has_box:
        return box, "boxed" if box is not None else "none"
    if marked is not None:
        return marked, "####"
    if kind == "latex":
        return _last_formula(completion)
    answer = _answer_is(completion)
    if answer is not None and (kind in ("text", "ratio") or any(c.isdigit() for c in answer)):
        return answer, "answer is"
    if kind in ("text", "ratio", "numbers"):
        return _last_sentence(completion)
    answer = _last_number(completion)
    return answer, "none" if answer is None else "last number"


def _last_sentence(text):
    lines = text[-2 * ANSWER_CHARS :].strip().rsplit("\n", 1)
    sentence = re.split(r"(?<=[^.]{4}[.!?])\s+", lines[-1][-ANSWER_CHARS:].strip())[-1]
    return (sentence, "last sentence") if sentence else (None, "none")


def _last_formula(text):
    """For LaTeX golds without a marker: "answer is", else the last formula or number of the last line."""
    answer = _answer_is(text)
    tail = answer if answer is not None else text[-2 * ANSWER_CHARS :].strip()
    formulas = list(FORMULA_RE.finditer(tail))
    if formulas and not DIGIT_RE.search(tail, formulas[-1].end()):
        formula = next(g for g in formulas[-1].groups() if g)
        return formula, "answer is" if answer is not None else "last formula"
    if answer is not None and not formulas:
        return answer, "answer is"
    sentence, rule = _last_sentence(tail)
    number = _last_number(sentence) if sentence and len(sentence) > 40 else None
    return (number, "last number") if number else (sentence, rule)


# ---------------------------------------------------------------- gold answers

PLAIN_NUMBER_RE = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+")
FRACTION_RE = re.compile(r"(-?)\(?(\d+)/(\d+)\)?")
TIME_RE = re.compile(r"(?<!\d)(\d{1,6}(?: ?: ?\d{1,6})+)(?!\d)(?: ?([ap])\.?\s*m\b\.?)?", re.I)
UNIT_RE = re.compile(r"(?<=\d)\s*\([^()]*\)\s*$")


@lru_cache(maxsize=100_000)
def parse_gold(text, kind=None):
    r"""Read a gold answer strictly: a data set's row that this refuses must stop the load.

    Args: text: a gold answer such as "18", "9 (apples)", "5 (cm); 8 (cm)", "3:4", "Rug B", "\frac{14}{3}".
    kind: one of KINDS, or None to infer it.
    Returns a Gold whose text is canonical: parse_gold(gold.text, gold.kind) == gold.
    Raises ValueError, naming the text, when there is no answer in it or it is not of the kind."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"empty gold answer {text!r}")
    if len(text) > GOLD_CHARS:
        raise ValueError(f"gold answer of {len(text)} characters; at most {GOLD_CHARS} are read: {text[:40]!r}...")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind of gold answer {kind!r}: choose one of {', '.join(KINDS)}")
    read = {"latex": _latex_gold, "text": _text_gold, "ratio": _ratio_gold, "numbers": _numbers_gold}
    kind = kind or _infer_kind(text)
    return read[kind](text.strip()) if kind in read else _number_gold(text.strip(), kind)


def _number_gold(text, kind):
    bare = re.sub(r"(?<=\d)(?:st|nd|rd|th)$", "", UNIT_RE.sub("", text))
    value = _strict_number(bare, text)
    if kind == "integer" and value.denominator != 1:
        raise ValueError(f"gold answer {text!r} is no integer")
    return Gold(bare, kind, value)


def _numbers_gold(text):
    parts = [UNIT_RE.sub("", part).strip() for part in text.split(";")]
    return Gold("; ".join(parts), "numbers", sorted(_strict_number(part, text) for part in parts))


def _ratio_gold(text):
    found = TIME_RE.match(text)
    if not found:
        raise ValueError(f"gold answer {text!r} is no ratio or time")
    return Gold(found.group(), "ratio", _ratio(found))


def _text_gold(text):
    if not _words(text):
        raise ValueError(f"gold answer {text!r} has no words")
    return Gold(text, "text", _words(text))


def _latex_gold(text):
    """A LaTeX gold: its value is the letter of a choice, a tuple of words, or None for a formula."""
    latex = (_boxed(text)[0] or text).strip()
    tidied = tidy(latex)
    if not tidied:
        raise ValueError(f"empty gold answer {text!r}")
    choice = re.fullmatch(r"\(?([A-Z])\)?", tidied)
    if choice and ("\\text" in latex or "(" in latex):
        return Gold(latex, "latex", choice.group(1))
    in_words = re.fullmatch(r"[A-Za-z][A-Za-z\s,.'()-]*", tidied) and re.search(r"[A-Za-z]{4}|\\text", tidied + latex)
    return Gold(latex, "latex", _words(tidied) if in_words else None)


def _strict_number(text, whole):
    fraction = FRACTION_RE.fullmatch(text)
    if fraction and int(fraction.group(3)):
        value = Fraction(int(fraction.group(2)), int(fraction.group(3)))
        return -value if fraction.group(1) else value
    if not PLAIN_NUMBER_RE.fullmatch(text) or len(text) > ANSWER_CHARS:
        raise ValueError(f"gold answer {whole!r} is no number")
    return Fraction(text.replace(",", ""))


def _infer_kind(text):
    text = text.strip()
    if "\\" in text or "$" in text:
        return "latex"
    if ";" in text:
        return "numbers"
    bare = re.sub(r"(?<=\d)(?:st|nd|rd|th)$", "", UNIT_RE.sub("", text).strip() or text)
    if TIME_RE.match(bare):
        return "ratio"
    if FRACTION_RE.fullmatch(bare):
        return "fraction"
    if PLAIN_NUMBER_RE.fullmatch(bare):
        return "integer" if Fraction(bare.replace(",", "")).denominator == 1 else "decimal"
    return "latex" if re.search(r"[\^_{}=+*<>\[\]]|\d[A-Za-z]\b|,\s*-?\d", bare) else "text"


# ---------------------------------------------------------------- comparing, without LaTeX


def _same_number(value, gold):
    """Integers exactly; anything else within 1e-6."""
    if gold.denominator == 1:
        return value == gold
    return abs(value - gold) <= TOLERANCE


def _ratio(found):
    """A match of TIME_RE -> (numbers, 'a', 'p' or '')."""
    return tuple(int(n) for n in found.group(1).split(":")), (found.group(2) or "").lower()


def _same_ratio(text, gold):
    """Same numbers and no contradiction of a.m. and p.m.; 24-hour and 12-hour clock agree."""
    text = _plain(text)
    found = list(TIME_RE.finditer(text)) or list(TIME_RE.finditer(re.sub(r"(?<=\d) ?(?:/|\bto\b) ?(?=\d)", ":", text)))
    if not found or len({_ratio(f) for f in found}) > 1:
        return False
    numbers, half = _ratio(found[0])
    gold_numbers, gold_half = gold
    if half and gold_half:
        return (numbers, half) == (gold_numbers, gold_half)
    return numbers == gold_numbers or (half or gold_half) and _clock(numbers, half) == _clock(gold_numbers, gold_half)


def _clock(numbers, half):
    hour = numbers[0] % 12 + (12 if half == "p" else 0) if half else numbers[0]
    return (hour, *numbers[1:])


def _numbers(text):
    """All numbers of a marked answer, sorted; None when a part of it is not clear."""
    parts = re.split(r";|,(?!\d{3}(?!\d))|\band\b|&", _plain(text).strip(" ()[]{}."))
    if len(parts) > 30:
        return None
    try:
        return sorted(_read_number(part) for part in parts if any(c.isdigit() for c in part) or WORD_RE.search(part))
    except _NotANumber:
        return None


ARTICLES = {"the", "a", "an"}


def _words(text):
    """'The 60th caller.' -> ('60', 'caller'): lower case, no articles, no punctuation, no ordinal endings."""
    text = text if text.isascii() else to_ascii(text)
    text = re.sub(r"\\(?:text[a-z]*|math[a-z]+|mbox|boxed)\b|[`*_\\]|'(?=\s|$)|(?<=\b\w)\.(?=\w\b)", "", text.lower())
    text = re.sub(r"\b(\d+)(?:st|nd|rd|th)\b", r"\1", text)
    return tuple(w for w in re.findall(r"[^\W_]+(?:'[^\W_]+)?", text) if w not in ARTICLES)


def _same_words(text, gold):
    """Equal, or the answer begins or (after "is") ends with the gold answer, and offers no alternative."""
    words = _words(text[:ANSWER_CHARS])
    lead = next((i for i, w in enumerate(words[:6]) if w in ("is", "answer")), -1)
    for start in {0, lead + 1, next((i + 1 for i, w in enumerate(words[: lead + 2]) if w == "is"), 0)}:
        if words[start : start + len(gold)] == gold:
            following = words[start + len(gold) :]
            return not following or following[0] not in ("or", "and", "not", "nor")
    return False


# ---------------------------------------------------------------- grading


def _latex_verdict(answer, gold):
    """True, False, or None when only math-verify can say. `gold.value` is a choice, words, or None for a formula."""
    a, g = tidy(answer), tidy(gold.text)
    if isinstance(gold.value, str):
        choice = re.match(r"\W*([A-Za-z])\b", a)
        return bool(choice) and choice.group(1).upper() == gold.value
    if gold.value is not None:
        return _same_words(answer, gold.value)
    verdict = same_latex(a, g)
    if verdict is not None or "\\text" in gold.text and _words(a) == _words(g):
        return verdict is not False
    if re.search(r"(?<![A-Za-z\\])(?!(?<=\d)[mgsLh]\b)[A-Za-z](?![A-Za-z])", a):  # a variable: no number in words
        return None
    value = read_number(answer)  # "the perimeter is 18 metres"
    if value is None:
        return False if re.fullmatch(r"[A-Za-z\s,.'-]+", a) else None
    try:
        exact = formula_value(g, 0)
        return close(value, exact, "." in a) if isinstance(exact, Fraction) else None
    except (ValueError, ArithmeticError):
        return None


def _numeric_verdict(answer, gold):
    if gold.kind == "numbers":
        return _numbers(answer) == gold.value
    if gold.kind == "ratio":
        return bool(_same_ratio(answer, gold.value))
    if gold.kind == "text":
        return _same_words(answer, gold.value)
    value = read_number(answer)
    return value is not None and _same_number(value, gold.value)


def _settle(completion, gold):
    """Grade without a worker process. Returns a Grade, or the answer text that only math-verify can judge."""
    answer, rule = extract_answer(completion, gold.kind)
    if answer is None or len(answer) > ANSWER_CHARS:
        return Grade(False, None, "none" if answer is None else rule)
    answer = answer.strip()
    if gold.kind == "latex":
        verdict = _latex_verdict(answer, gold)
        return (answer, rule) if verdict is None else Grade(verdict, answer, rule)
    simple = SIMPLE_RE.fullmatch(answer)
    if simple and gold.kind in ("integer", "decimal", "fraction"):  # nearly all real answers; same as the long way
        return Grade(_same_number(int(simple.group(1)), gold.value), answer, rule)
    return Grade(_numeric_verdict(answer, gold), answer, rule)


def grade(completion, gold, kind=None):
    r"""Grade one completion.

    Args: completion: any text. gold: the gold answer, canonical or raw. kind: one of KINDS; None infers it.
    Returns a Grade. Raises ValueError for a gold answer that cannot be read, never for a completion."""
    return grade_batch([completion], [gold], [kind])[0]


def grade_batch(completions, golds, kinds=None):
    """Grade many completions; what needs math-verify is asked in parallel. Returns a Grade for each, in order."""
    kinds = kinds or [None] * len(golds)
    results = [_settle(c, parse_gold(g, k)) for c, g, k in zip(completions, golds, kinds, strict=True)]
    open_ones = [i for i, result in enumerate(results) if not isinstance(result, Grade)]
    if not open_ones:
        return results
    with ThreadPoolExecutor(min(WORKERS, len(open_ones))) as threads:
        verdicts = threads.map(lambda i: ask_math_verify(results[i][0], golds[i]), open_ones)
        for i, verdict in zip(open_ones, verdicts, strict=True):
            results[i] = Grade(verdict, *results[i])
    return results


# ---------------------------------------------------------------- math-verify in worker processes

_states = {}  # process id -> state: a forked child must not talk to its parent's workers, nor wait for its locks


def _state():
    """This process's idle workers, counts of what happened to them, and the lock for the counts."""
    state = {"idle": queue.LifoQueue(), "counts": dict(asked=0, timeouts=0, deaths=0), "lock": threading.Lock()}
    if _states.setdefault(os.getpid(), state) is state:
        atexit.register(_stop_idle_workers, state["idle"])
    return _states[os.getpid()]


def grader_stats():
    """How often this process asked math-verify, and how many workers hung or died over it: a dict of counts."""
    return dict(_state()["counts"])


def _count(event):
    state = _state()
    with state["lock"]:
        state["counts"][event] += 1


def check_grader(kinds):
    """Raise BadInput if a gold answer of these kinds may need math-verify and it is not installed."""
    if "latex" in kinds and importlib.util.find_spec("math_verify") is None:
        raise BadInput("math-verify is missing, and LaTeX answers need it: pip install -r requirements.txt")


def _start_worker():
    """A child process that judges one line at a time; it shares nothing with this process but two pipes."""
    worker = subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), "--worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _read_line(worker, START_LIMIT)
    except BaseException as error:
        _stop_worker(worker)
        if isinstance(error, EOFError):
            check_grader(["latex"])
        raise
    return worker


def _stop_worker(worker):
    worker.kill()
    worker.wait()
    worker.stdin.close()
    worker.stdout.close()


def _stop_idle_workers(idle):
    while not idle.empty():
        _stop_worker(idle.get_nowait())


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
    """Whether math-verify holds two LaTeX answers to be equal; False when it hangs, dies or cannot say."""
    idle = _state()["idle"]
    _count("asked")
    worker, finished = None, False
    try:
        try:
            worker = idle.get_nowait()
        except queue.Empty:
            worker = _start_worker()
        worker.stdin.write(json.dumps([answer, gold]).encode() + b"\n")
        worker.stdin.flush()
        verdict = json.loads(_read_line(worker, TIME_LIMIT))
        finished = True
        return verdict
    except TimeoutError:
        _count("timeouts")
    except (EOFError, BrokenPipeError):
        _count("deaths")
    finally:  # also when an outer signal handler raises: a worker in the middle of a question is of no more use
        if finished:
            idle.put(worker)
        elif worker is not None:
            _stop_worker(worker)
    return False


def _worker_main():
    """Answer JSON lines [answer, gold] with true, false or null until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # nothing that a library prints may look like an answer
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text):
        return parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)

    answers.write(b"ready\n")
    for line in sys.stdin.buffer:
        signal.alarm(math.ceil(TIME_LIMIT) + 5)  # should the parent be gone: die, do not spin
        answer, gold = json.loads(line)
        verdict = verify(read(gold), read(answer), timeout_seconds=None, raise_on_error=False)
        signal.alarm(0)
        answers.write(json.dumps(bool(verdict)).encode() + b"\n")
    return 0


# ---------------------------------------------------------------- rewards in TRL's form


def _text(completion):
    """The text of a completion in TRL's two forms: a string, or a list of messages."""
    return completion if isinstance(completion, str) else "".join(m["content"] or "" for m in completion)


def accuracy_reward(completions, gold, kind=None, **kwargs):
    """1.0 for each completion whose final answer is right, else 0.0.

    Args: completions: strings or lists of messages. gold, kind: the data set's columns of the same length."""
    return [float(g.correct) for g in grade_batch([_text(c) for c in completions], gold, kind)]


FORMAT_RE = re.compile(r"#### ?-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?\s*")


def format_reward(completions, **kwargs):
    """1.0 for each completion that ends with its only `####` line, well formed: `#### -1,234.5`; else 0."""
    return [float(_well_formed(_text(c))) for c in completions]


def _well_formed(text):
    at = text.find("####")
    return at >= 0 and text[:at][-1:] in ("", "\n") and FORMAT_RE.fullmatch(text, at) is not None


# ---------------------------------------------------------------- command line


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--gold", help="gold answer, as the data set has it")
    parser.add_argument("--completion", default="-", help="text to grade; - reads standard input")
    parser.add_argument("--kind", choices=KINDS, help="kind of gold answer (inferred when left out; MATH-500: latex)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return _worker_main()
    if args.gold is None:
        raise BadInput("--gold is missing: give the right answer, as in --gold 18")
    try:
        parse_gold(args.gold, args.kind)
    except ValueError as error:
        raise BadInput(f"--gold: {error}") from None
    completion = sys.stdin.read() if args.completion == "-" else args.completion
    verdict = grade(completion, args.gold, args.kind)
    print(f"verdict: {'correct' if verdict.correct else 'wrong'}\nanswer: {verdict.answer}\nrule: {verdict.rule}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
