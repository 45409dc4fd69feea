r"""Compare two LaTeX answers by their normal form, exactly where they are numbers, part by part where they have parts.

What is left open here, whether two formulas are equal, only math-verify can say.
"""

import re
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

from .number import NUMBER_NAMES, SCALES, read_number
from .text import ANSWER_CHARS, END, clean

TOLERANCE = Fraction(1, 10**6)  # for a decimal answer to a gold that is no integer
DEPTH_LIMIT = 6  # of lists in lists
LIST_LIMIT = 30  # parts of a list whose order does not count

# ---- the normal form

BASE_NAMES = {name: str(base) for base, name in enumerate(NUMBER_NAMES) if base > 1}
BASE = rf"(\d+|{'|'.join(BASE_NAMES)})"
FUNCTIONS = "(?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln|sqrt|pi|infty|theta"
OPENING, CLOSING = "([{⦃", ")]}⦄"
NORMAL = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (rf"^.*\\to{END}", ""),  # x + 2 = 20 \implies x = 18
        (rf"_?\s?[({{]?\s?(?:in )?\bbase[ -]?\s?{BASE}\s?[)}}]?{END}", r"_{\1}"),  # 52 (base 8)
        (rf"_\s?\{{?\s?{BASE}\s?\}}?{END}", r"_{\1}"),  # 52_{\text{eight}}
        (r"\(?\s?(?:\\[pb]?mod\b|(?<=\()mod\b)\s?(?:\{[^{}]*\}|\d+)\s?\)?$", ""),  # 18 \pmod{23}
        (rf";|\s\b(?:or|and)\b\s|^(?:or|and)\b|\\(?:lor|land|vee|wedge){END}", " , "),
        (r"\b(?:minus|negative)\s", "-"),
        (r"\\(?:lbrace\b|\{)", "⦃"),
        (r"\\(?:rbrace\b|\})", "⦄"),
        (rf"\\varnothing{END}|⦃\s*⦄", r"\\emptyset"),
        (rf"\\langle{END}", "("),
        (rf"\\rangle{END}", ")"),
        (rf"(?<=\)) ?U ?(?=\()|\\bigcup{END}", r"\\cup "),
        (r"\b(?:infinity|inf|oo)\b|\+\s*\\infty", r"\\infty"),
        (rf"(?<![\\A-Za-z])({FUNCTIONS}){END}", r"\\\1"),
        (r"(?<=[\w)}])\s?\*\*\s?(?=[\w({-])", "^"),  # Python's power
        (r"(?<=\d)[eE](-?\d{1,3})(?![\d.])", r"*10^{\1}"),  # 6.72e-5
        (r"(?<![\d/.])(\d+)\s+\(?(\d+)\)?\s*/\s*\(?(\d+)\)?(?![\d/.])", r"\1\\frac{\2}{\3}"),  # 4 2/3
        (r"^⦃\s*[A-Za-z]\s*(?:\\in\s*\(-\\infty, \\infty\)\s*)?[|:]([^⦃⦄]*)⦄$", r"\1"),  # \{x \mid x > 2\}
        (r"^(?:[^,()]|\([a-z]\)){0,20}\\in(?![A-Za-z])", ""),  # x \in
    ]
]
THOUSANDS_RE = re.compile(r"(?<![\d.,(⦃\[])(\d{1,3})((?:,\s?\d{3})+|(?: \d{3})+)(?![\d,])")
SCALE = rf"(?:{'|'.join(SCALES)})\b"
MEASURE = r"[A-Za-z]{3,}|(?:[cmk]m|[km]g|in|ft|yd|mi|lb|oz|hr|m[lL]|sq|of|to|by|(?<=\d )[mgsLh])\b"
UNIT = rf"(?!{SCALE})(?:{MEASURE})\.?(?: ?\^ ?\{{?\d\}}?)?"  # cm^2
UNITS_RE = re.compile(rf"(?:(?<=[\d)}}!])|(?<=\\pi)) ?{UNIT}(?:(?: ?/ ?| ){UNIT}){{0,4}}$")  # 18 square miles / hour
MATRIX_RE = re.compile(
    r"[\[(]?\s*\\begin\s*\{([a-zA-Z]*matrix|array)\}(?:\{[lcr|\s]*\})?([^\\]*(?:\\(?!begin|end)[^\\]*)*)\\end\s*\{\1\}\s*[\])]?"
)


def _box(text, at):
    r"""(start, end) of the content of the box whose name begins at `at`; None when it is never closed."""
    start = text.index("{", at) + 1
    end = text.find("}", start, start + 2 * ANSWER_CHARS)
    if end >= 0 and text[start:end].isalnum():  # nearly all real answers
        return start, end
    depth = 1
    for brace in re.compile(r"\\.|[{}]", re.S).finditer(text, start, start + 2 * ANSWER_CHARS):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if not depth:
            return start, brace.start()
    return None


def boxed(text, joint=None):
    r"""(content of the last `\boxed{}` or None, True when there is a box at all); a box never closed has no content.

    Boxes with nothing but `joint`, a pattern, between them are one answer, unless they all say the same."""
    at = text.rfind("boxed{")
    place = _box(text, at) if at >= 0 else None
    if place is None:
        return None, at >= 0
    contents = [text[place[0] : place[1]]]
    while joint and (before := text.rfind("boxed{", 0, at)) >= 0 and len(contents) < 10:
        place = _box(text, before)
        if place is None or at - place[1] > 200 or not joint.fullmatch(text, place[1], at):
            break
        at, contents = before, [text[place[0] : place[1]], *contents]
    return ", ".join(contents if len(set(contents)) > 1 else contents[:1]), True


@lru_cache(maxsize=4096)
def normal_form(text):
    r"""LaTeX with one spelling of each sign, without units or currency; \{ \} become ⦃ ⦄, a matrix nested tuples."""
    text = clean(text)
    for pattern, replacement in NORMAL:
        text = pattern.sub(replacement, text)
    text = re.sub(rf"_\{{({'|'.join(BASE_NAMES)})\}}", lambda m: f"_{{{BASE_NAMES[m[1]]}}}", text)
    text = THOUSANDS_RE.sub(lambda m: re.sub(r"[,\s]", "", m.group()), text)
    text = UNITS_RE.sub("", text.rstrip(" .,;:").lstrip(" ,;:"))
    return " ".join(_as_tuple(text).split())


def _as_tuple(text):
    """A text that is one matrix as a tuple of its rows, a column as a tuple; any other text unchanged."""
    found = MATRIX_RE.fullmatch(text)
    if not found:
        return text
    rows = [row.split("&") for row in found.group(2).strip("⏎ ").split("⏎")]
    if all(len(row) == 1 for row in rows):
        return f"({','.join(row[0] for row in rows)})"
    return f"({','.join('(' + ','.join(row) + ')' for row in rows)})"


def squeeze(text):
    r"""A normal form as it is compared: without spaces, and without the * of 3*\sqrt{13}."""
    return re.sub(r"(?<=[\w)}])\*(?=[\\A-Za-z(])", "", "".join(text.split()))


# ---- numbers

DECIMAL = r"\d{1,300}(?:\.\d{0,300})?|\.\d{1,300}"
RATIONAL_RE = re.compile(
    rf"\(?([-+]?)(?:({DECIMAL})(?:\*?10\^\{{?(-?\d{{1,3}})\}}?)?"  # 6.72*10^{-5}
    r"|(\d{1,9})?\\frac\{(-?\d{1,300})\}\{(-?\d{1,300})\}|\(?(-?\d{1,300})\)?/\(?(\d{1,300})\)?)\)?"
)
REPEATING_RE = re.compile(r"(-?\d{0,20})\.(\d{0,20})\\(?:overline|bar)\{?(\d{1,20})\}?")  # 0.1\overline{6}


def rational(text):
    r"""The exact value of a squeezed normal form that is a number, 18, 6.72*10^{-5}, \frac{1}{2} or 1/2; else None."""
    found, repeating = RATIONAL_RE.fullmatch(text), REPEATING_RE.fullmatch(text)
    if repeating:
        start, period = repeating[1] + repeating[2], repeating[3]
        return Fraction(int(start + period) - int(start or 0), (10 ** len(period) - 1) * 10 ** len(repeating[2]))
    if not found:
        return None
    sign, decimal, power, whole, above, below, numerator, denominator = found.groups()
    if decimal:
        value = Fraction(decimal) * Fraction(10) ** int(power or 0)
    elif int(below or denominator) == 0:
        return None
    else:
        value = Fraction(int(whole or 0)) + Fraction(int(above or numerator), int(below or denominator))
    return -value if sign == "-" else value


def close(value, gold, decimal):
    """Whether two exact values are equal; `decimal`: the answer is a decimal number, which may be rounded at 1e-6."""
    return value == gold or decimal and gold.denominator != 1 and abs(value - gold) <= TOLERANCE * min(1, abs(gold))


# ---- comparing

NAME = r"\\?[A-Za-z]+(?:\\[A-Za-z]+){0,2}(?:_(?:\{[^{}=]*\}|\w))?(?:\([^()=]*\))?'?"  # x, f(3), a_{n+1}, \angleABC
NAME_RE = re.compile(rf"(?!\\infty|\\pi|e$)(?:{NAME}|\|[A-Za-z]\w?\||\[[A-Z]{{3,}}\]|\([A-Za-z\\,]{{1,40}}\))")
CALL_RE = re.compile(r"(?:[A-Za-z]'*|\\[A-Za-z]+)(?:\^\w)?\(.*\)|\|.*\||\\(?!frac|sqrt)[A-Za-z]+.*")  # P(X>3), \sin2x
LETTER_RE = re.compile(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])")
BASED_RE = re.compile(r"\(?((?=[A-F]*\d)[0-9A-Fa-f]+)\)?_\{?\(?(\d+)\)?\}?")
RELATION_RE = re.compile(r"(<=|>=|!=|<|>)")
TURNED = {">": "<", ">=": "<="}
BOUND_RE = re.compile(
    r"\b(?:(?:less|more|fewer|greater|larger|smaller) than|at (?:least|most)|or more|up to|not|except)\b"
)


def same_latex(answer, gold):
    """Whether two answers mean the same: True, False, or None when only math-verify can say.

    Args: answer, gold: both from normal_form()."""
    a, g = squeeze(answer), squeeze(gold)
    if a == g or not a:
        return a == g
    if BOUND_RE.search(answer) and not BOUND_RE.search(gold):
        return False
    base_a, base_g = BASED_RE.fullmatch(a.rpartition("=")[2]), BASED_RE.fullmatch(g)
    if base_g:  # 52_8 may be written 52, but not 52_9
        return base_a.groups() == base_g.groups() if base_a else a.lower() == base_g.group(1).lower()
    if base_a:
        return base_a.groups() == (g, "10")
    value = rational(g)
    if value is not None and re.search(r"[A-Za-z]{4}", answer) and not LETTER_RE.search(answer) and "\\" not in answer:
        said = read_number(answer)  # the perimeter is 18 metres
        return said is not None and close(said, value, "." in a)
    return _same(a, g, 0)


def _split(text, separator):
    """Split at separators outside brackets."""
    parts, depth, begin = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in OPENING) - (c in CLOSING)
        if depth <= 0 and text.startswith(separator, i):
            parts.append(text[begin:i])
            begin = i + len(separator)
    return [*parts, text[begin:]]


def _read(text):
    r"""(brackets or "", parts) of a tuple, set, interval, list or union ("\cup")."""
    sides = _split(text, "=")
    if len(sides) == 2 and sides[1][:1] in OPENING and (NAME_RE.fullmatch(sides[0]) or CALL_RE.fullmatch(sides[0])):
        text = sides[1]  # (x,y)=(1,2)
    parts = _split(text, ",")
    intervals = [_interval(part) for part in parts]
    if all(intervals):
        return ("\\cup", intervals) if len(parts) > 1 else _read(intervals[0])
    if "\\cup" in text:
        return "\\cup", _split(text, "\\cup")
    depths = list(accumulate((c in OPENING) - (c in CLOSING) for c in text))
    if text[:1] in ("(", "[", "⦃") and 0 in depths and depths.index(0) == len(text) - 1:
        inner = _split(text[1:-1], ",")
        if len(inner) > 1 or text[0] == "⦃":
            return text[0] + text[-1], _expand_signs(inner)
    return "", _expand_signs(parts)


def _interval(text):
    r"""-2<=x<7 as [-2,7), x>3 as (3,\infty); None for anything else."""
    parts = RELATION_RE.split(text)
    if ">" in text:
        parts = [TURNED.get(part, part) for part in reversed(parts)]
    names = [bool(NAME_RE.fullmatch(part)) for part in parts[::2]]
    if (
        set(parts[1::2]) - {"<", "<="}
        or sum(names) != 1
        or names not in ([True, False], [False, True], [False, True, False])
    ):
        return None
    at = 2 * names.index(True)
    lower = "(["[parts[1] == "<="] + parts[0] if at else "(-\\infty"
    upper = parts[at + 2] + ")]"[parts[at + 1] == "<="] if parts[at + 1 :] else "\\infty)"
    return f"{lower},{upper}"


def _expand_signs(parts):
    r"""3\pm2 -> 3+2, 3-2."""
    signs = [[("\\pm", "+"), ("\\mp", "-")], [("\\pm", "-"), ("\\mp", "+")]]
    out = []
    for part in (p for p in parts if p):
        if "\\pm" in part or "\\mp" in part:
            out += [part.replace(*s[0]).replace(*s[1]) for s in signs]
        else:
            out.append(part)
    return out[:100]


def _same(a, g, depth):
    if a == g or depth > DEPTH_LIMIT:
        return True if a == g else None
    (brackets_a, parts_a), (brackets_g, parts_g) = _read(a), _read(g)
    if len(parts_a) <= 1 and len(parts_g) <= 1 and "⦃" not in brackets_a + brackets_g:
        return _same_value(a, g)
    if not brackets_a and len(parts_g) == 1 < len(parts_a) and not brackets_g:
        return all(_same_value(part, g) for part in parts_a[:10])  # 3/4 or 0.75
    names = sorted(part[0] for part in parts_a if re.match(r"[a-z]=", part))
    if len(names) == len(parts_a) and names == [chr(ord(names[0]) + i) for i in range(len(names))]:
        parts_a.sort()  # y=2, x=1 is (1,2)
    if brackets_g[:1] in ("(", "["):
        interval = brackets_g in ("[]", "[)", "(]") or "\\infty" in g
        if brackets_a == "⦃⦄" or not brackets_a and (interval or len(names) > len(set(names))):
            return False  # the ends of an interval are not the interval, nor are x=1, x=2 a point
        if len(parts_g) == 2 and brackets_a and brackets_a != brackets_g:
            return False
        return _same_parts(parts_a, parts_g, True, depth)
    return _same_parts(parts_a, parts_g, brackets_a[:1] in ("(", "["), depth)


def _same_parts(answers, golds, ordered, depth):
    if len(answers) != len(golds):
        return False
    if ordered:
        verdicts = [_same(a, g, depth + 1) for a, g in zip(answers, golds, strict=True)]
        return False if False in verdicts else None if None in verdicts else True
    if len(golds) + sum(g.count(",") for g in golds) > LIST_LIMIT:
        return None
    rest, unclear = list(answers), False
    for g in golds:
        verdicts = [_same(a, g, depth + 1) for a in rest]
        if True in verdicts:
            rest.pop(verdicts.index(True))
        elif None in verdicts:
            unclear = True
        else:
            return False
    return None if unclear else True


def _same_value(a, g):
    """Two formulas, equations or inequalities without parts."""
    if bool(RELATION_RE.search(a)) != bool(RELATION_RE.search(g)):
        return False
    exact, _, rounded = a.partition("~")  # 1/3 ~ 0.33
    a = rounded if rounded and ("." in g or NAME_RE.fullmatch(exact)) else exact
    sides_a, sides_g = _split(a, "="), _split(g, "=")
    if len(sides_g) > 1:
        if len(sides_a) == 1 and rational(a) is not None and not NAME_RE.fullmatch(sides_g[0]):
            return False
        if len(sides_a) > 1 and sides_a[0] != sides_g[0] or not NAME_RE.fullmatch(sides_g[0]):
            return None
        a, g = sides_a[-1], sides_g[-1]
    elif len(sides_a) > 1 and (a := _value_side(sides_a)) is None:
        return False
    return _same_formula(a, g)


def _value_side(sides):
    """The side of x=5, 5=x, 2+3=5, a+b=5, f(f(3))=5 that counts; None for an equation such as 2x=5."""
    first, last = sides[0], sides[-1]
    if NAME_RE.fullmatch(last) and not NAME_RE.fullmatch(first):
        return first
    one_letter = len(set(LETTER_RE.findall(first)) - {"e", "i"}) == 1
    equation = one_letter and not NAME_RE.fullmatch(first) and not CALL_RE.fullmatch(first)
    return None if equation and len(sides) == 2 or last == "0" and not NAME_RE.fullmatch(first) else last


def _same_formula(a, g):
    if a == g:
        return True
    value, gold = rational(a), rational(g)
    if value is not None and gold is not None:
        return close(value, gold, "." in a)
    letters_a, letters_g = (set(LETTER_RE.findall(t)) - {"e", "i"} for t in (a, g))
    if bool(letters_a) != bool(letters_g) or not re.search(r"[\d\\]", a) and not letters_a:
        return False  # with and without a variable; words
    return None
