"""Grade completions: read the answer, compare it with the gold answer, ask math-verify where only it can say."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from .answer import extract_answer
from .gold import parse_gold, read_numbers, read_ratios, read_words, same_numbers, same_ratio, same_words
from .latex import normal_form, read_latex, same_latex
from .number import read_number, same_number
from .text import ANSWER_CHARS, clean
from .worker import WORKERS, ask_math_verify

GRADER_VERSION = 4  # goes up when a verdict, an answer read, a rule or a vote can change; a test holds it to that
READERS = {"numbers": read_numbers, "ratio": read_ratios, "text": read_words, "latex": read_latex}  # else read_number
NOT_READ = ", not read"  # said behind the rule: there is an answer, but it is no number, ratio or list of numbers
COMPARE = {"numbers": same_numbers, "ratio": same_ratio, "text": same_words, "latex": same_words}
AS_LATEX = str.maketrans({"⦃": "\\{", "⦄": "\\}", "⏎": "\\\\", "≠": "\\neq "})


class Grade(NamedTuple):
    """A verdict, the answer that was read (None when there is none), and the rule that found it."""

    correct: bool
    answer: str | None
    rule: str


CHOICE = r"\W*(?:(?:the )?(?:correct )?(?:option|choice|answer)\b(?: is)?)?\W*([A-Za-z])\b"
CHOICE_RE = re.compile(rf"{CHOICE}(?!.*\b(?:or|and)\b\W*[A-Za-z]\b)", re.I)  # but not: C or D


def _verdict(answer, gold):
    """(True, False, or None when only math-verify can say; NOT_READ where nothing was read in the answer, or "")."""
    if gold.kind == "latex" and gold.value is None:
        return same_latex(normal_form(answer), normal_form(gold.text)), ""
    if isinstance(gold.value, str):
        choice = CHOICE_RE.match(clean(answer))
        return bool(choice) and choice.group(1).upper() == gold.value, ""
    if gold.kind in COMPARE:
        correct = COMPARE[gold.kind](answer, gold)
        return correct, "" if correct or READERS[gold.kind](answer) else NOT_READ
    value = read_number(answer)
    return (False, NOT_READ) if value is None else (same_number(value, gold.value), "")


def _settle(completion, gold):
    """The Grade of a completion as far as it can be said here: correct is None where only math-verify can judge."""
    answer, rule = extract_answer(completion, gold.kind)
    if answer is None or len(answer) > ANSWER_CHARS:
        return Grade(False, None, rule)
    answer = answer.strip()
    correct, remark = _verdict(answer, gold)
    return Grade(correct, answer, rule + remark)


def grade(completion, gold, kind=None):
    """The Grade of one completion; kind None infers it. Raises ValueError for a gold that cannot be read, only."""
    return grade_batch([completion], [gold], [kind])[0]


def grade_batch(completions, golds, kinds=None):
    """Grade many completions; what needs math-verify is asked in parallel. Returns a Grade for each, in order."""
    golds = [parse_gold(g, k) for g, k in zip(golds, kinds or [None] * len(golds), strict=True)]
    results = [_settle(c, g) for c, g in zip(completions, golds, strict=True)]
    questions = {(r.answer, g.text) for r, g in zip(results, golds, strict=True) if r.correct is None}
    asked = [[normal_form(text).translate(AS_LATEX) for text in question] for question in questions]
    with ThreadPoolExecutor(WORKERS) as threads:
        verdicts = dict(zip(questions, threads.map(lambda pair: ask_math_verify(*pair), asked), strict=True))
    for i, (result, gold) in enumerate(zip(results, golds, strict=True)):
        if result.correct is None:
            verdict = verdicts[result.answer, gold.text]
            rule = result.rule if verdict is not None else f"{result.rule}, math-verify gave up"
            results[i] = Grade(bool(verdict), result.answer, rule)
    return results


def vote(answer, kind):
    """What an answer counts as in a majority vote, a text: its value as the grader reads it, else the text itself.

    `17`, `$17`, `17 dollars` and `17.0` are one vote; LaTeX votes by its normal form, text by its words."""
    value = READERS.get(kind, read_number)(answer) if len(answer) <= ANSWER_CHARS else None
    return str(value) if value or value == 0 else " ".join(answer.split())
