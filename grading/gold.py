r"""Read gold answers strictly, and compare the kinds that are neither one number nor LaTeX: several, ratios, text."""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from .latex import normal_form
from .number import DIGIT_RE, plain_text, read_plain_number, says_number, without_remark
from .text import ANSWER_CHARS, boxed, clean

KINDS = ("integer", "decimal", "fraction", "numbers", "ratio", "text", "latex")
GOLD_CHARS = 4000


class Gold(NamedTuple):
    """A gold answer: canonical text (parse_gold of it gives the same), kind (one of KINDS), value to compare with."""

    text: str
    kind: str
    value: object


NUMBER_RE = re.compile(r"-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+|\(?\d+/0*[1-9]\d*\)?)")  # -1,234.5, -(1/3)
UNIT_RE = re.compile(r"(?<=\d)(?:\s*\([^()]*\)\s*|st|nd|rd|th)$")  # 9 (apples), 6th
CLOCK = r"(?<![\d./:])(?<!\d )(?<!(?<!\d)-)(\d{1,6}(?: ?: ?\d{1,6})+)(?![\d/]|\.\d)"  # 3:30, 3 : 4 : 5
TIME_RE = re.compile(rf"{CLOCK}(?: ?([ap])\.?\s*m\b\.?)?", re.I)  # 3:30 p.m.


@lru_cache(maxsize=100_000)
def parse_gold(text, kind=None):
    """Read a gold answer strictly, such as "9 (apples)", "5 (cm); 8 (cm)", "3:4" or "Rug B"; kind None infers it.

    Returns a Gold. Raises ValueError, naming the text, when there is no answer in it or it is not of the kind."""
    if not isinstance(text, str) or not text.strip() or len(text) > GOLD_CHARS:
        raise ValueError(f"gold answer {text!r:.40} is no text, empty, or longer than {GOLD_CHARS} characters")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind of gold answer {kind!r}: choose one of {', '.join(KINDS)}")
    text = text.strip()
    kind = kind or _infer_kind(text)
    if kind == "latex":
        return _latex_gold(text)
    if kind == "ratio" and (found := TIME_RE.match(text)):
        return Gold(found.group(), kind, _ratio(found))
    if kind == "text" and read_words(text):
        return Gold(text, kind, read_words(text))
    if kind == "numbers":
        parts = [_strict_number(part) for part in text.split(";")]
        return Gold("; ".join(part for part, _ in parts), kind, sorted(value for _, value in parts))
    bare, value = _strict_number(text)
    if kind in ("ratio", "text") or kind == "integer" and value.denominator != 1:
        raise ValueError(f"gold answer {text!r} is no {kind}")
    return Gold(bare, kind, value)


def _latex_gold(text):
    """A LaTeX gold: its value is the letter of a choice, a tuple of words, or None for a formula."""
    latex = (boxed(text)[0] or text).strip()
    formula = normal_form(latex)
    if not formula:
        raise ValueError(f"empty gold answer {text!r}")
    choice = re.fullmatch(r"\(?([A-Z])\)?", formula)
    if choice and ("\\text" in latex or "(" in latex):
        return Gold(latex, "latex", choice.group(1))
    in_words = re.fullmatch(r"[A-Za-z][A-Za-z\s,.'()-]*", formula) and re.search(r"[A-Za-z]{4}|\\text", formula + latex)
    return Gold(latex, "latex", read_words(latex) if in_words else None)


def _strict_number(text):
    """(text without its unit, exact value) of a gold answer that is one number."""
    bare = UNIT_RE.sub("", text.strip())
    if not NUMBER_RE.fullmatch(bare) or len(bare) > ANSWER_CHARS:
        raise ValueError(f"gold answer {text!r} is no number")
    return bare, Fraction(re.sub("[,()]", "", bare))


def _infer_kind(text):
    if "\\" in text or "$" in text:
        return "latex"
    if ";" in text:
        return "numbers"
    bare = UNIT_RE.sub("", text)
    if TIME_RE.match(bare):
        return "ratio"
    if NUMBER_RE.fullmatch(bare):
        whole = "/" not in bare and Fraction(bare.replace(",", "")).denominator == 1
        return "fraction" if "/" in bare else "integer" if whole else "decimal"
    return "latex" if re.search(r"[\^_{}=+*<>\[\]]|\d[A-Za-z]\b|,\s*-?\d", bare) else "text"


# ---- several numbers

OR = r"\bor\b(?=\s*[A-Za-z]\w?\s*=)|\\cup\b"  # x = 8 or x = 40, but not 8 or 40
BY = r"|\bby\b|(?<=\w) [x*] (?=\d)|(?<=\d)[x*](?=\d)"  # 8 m by 40 m, 8 x 40


def read_numbers(answer, thousands=True):
    """All numbers of an answer, sorted, or None when a part is not clear. `thousands`: whether 1,234 is one number."""
    text = plain_text(answer).strip(" ()[]{}.")
    comma = r",(?!\d)" if ";" in text else r",(?!\d{3}(?!\d))" if thousands else ","
    parts = re.split(rf";|{comma}|\band\b|&|\. |{OR}" + ("" if "=" in text else BY), text)
    try:
        said = [part for part in parts if says_number(part)]
        return sorted(map(read_plain_number, said)) if 0 < len(said) <= 30 else None
    except (ValueError, ArithmeticError):
        return None


def same_numbers(answer, gold):
    """Whether an answer says all numbers of a gold answer, in any order; `336,144` may be one number or two."""
    return read_numbers(answer) == gold.value or "," in answer and read_numbers(answer, thousands=False) == gold.value


# ---- ratios and times

TO = r"/|\bto\b(?: every)?|\bfor every\b|\bout of\b|:"
RATIO_JOINT_RE = re.compile(rf"(?<=\d)(?: [A-Za-z-]{{2,15}}){{0,3}}?[ -]?(?:{TO})[ -]?(?=\d)")  # 7 boys to 6 girls


def _ratio(found):
    """A match of TIME_RE -> (numbers, 'a', 'p' or ''); 6:01:00 is 6:01, and 15:30 is 3:30 p.m."""
    numbers = tuple(int(n) for n in found.group(1).split(":"))
    if numbers[2:] == (0,):
        numbers = numbers[:2]
    half = (found.group(2) or "").lower()
    return numbers, "" if numbers[0] > 12 else half


def read_ratios(answer):
    """Every ratio or time that an answer says once its working is left out."""
    text = without_remark(plain_text(answer))
    text = next((p for p in reversed(re.split(r"=|\bsimplif\w+|\breduc\w+", text)) if DIGIT_RE.search(p)), text)
    return [_ratio(found) for found in TIME_RE.finditer(RATIO_JOINT_RE.sub(":", text))]


def same_ratio(answer, gold):
    """Whether all that the answer says are the gold answer; by the clock where one of them names the half of a day."""
    found = read_ratios(answer)
    return bool(found) and all(f == gold.value or _same_time(f, gold.value) for f in found)


def _same_time(time, gold):
    """3:30, 15:30 and 15:30 p.m. are 3:30 p.m., but 3:30 a.m. is not; 15:30 is not 3:30."""
    return (time[1] or gold[1]) and not _moments(*time).isdisjoint(_moments(*gold))


def _moments(numbers, half):
    """The moments of a day that a time may name: two for 3:30, one for 3:30 p.m. or 15:30."""
    halves = "p" if numbers[0] > 12 else half or "ap"
    return {(h, numbers[0] % 12, *numbers[1:]) for h in halves}


# ---- words

ARTICLE_RE = re.compile(r"\b(?:[Tt]he|[Aa]n|a)\b|\A\W*A(?=\s+[a-z])")  # but Rug A
LEADING = {"so", "therefore", "thus", "hence", "in", "on", "at", "it"}
SAID = {"is", "was", "are", "answer"}
ALTERNATIVES = {"or", "and", "not", "nor", "vs", "/", "&", "yes", "no"}
SINCE_RE = re.compile(r"\A\W{0,9}(?:since|because|as|comparing)\b[^,]*,\s*", re.I)  # Since 50 > 20, Bryan has more.


def read_words(text):
    """'The 60th callers.' -> ('60', 'caller'): lower case, no articles, punctuation, ordinal or plural endings."""
    text = re.sub(r"(?<=\b\w)\.(?=\w\b)", "", ARTICLE_RE.sub(" ", clean(text)).lower())  # p.m.
    text = re.sub(r"\b(\d+)(?:st|nd|rd|th)\b|'s?(?=\s|$)", r"\1", text)
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?|[/&]", text)
    return tuple(w[:-1] if len(w) > 3 and w[-1] == "s" and w[-2] not in "us" else w for w in words)


def same_words(answer, gold):
    """Equal, or the answer begins with the gold answer, after "so" or "is" perhaps, and offers no alternative.

    Or it leaves out words in lower case: "Lisa" for "Lisa's soccer team", but not "Rug" or "B" for "Rug B"."""
    words = read_words(SINCE_RE.sub("", answer, count=1))
    first = next((i for i, w in enumerate(words) if w not in LEADING), 0)
    said = (i + 1 for i, w in enumerate(words) if w in SAID and words[max(0, i - 1)] not in ("who", "which", "that"))
    for start in [0, first, *said]:
        if words[start : start + len(gold.value)] == gold.value:
            following = words[start + len(gold.value) :]
            return not following or following[0] not in ALTERNATIVES
    needed = {word for capital in re.findall(r"\b[A-Z0-9]\S*", gold.text) for word in read_words(capital)}
    rest = iter(gold.value)
    return words[:1] == gold.value[:1] and all(word in rest for word in words) and needed <= set(words)
