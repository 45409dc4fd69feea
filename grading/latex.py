r"""Compare two LaTeX answers by their normal form, their parts, and exactly where they are numbers.

What is left open here, whether two formulas are equal, only math-verify can say."""

import re
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

from .number import SCALES, SHORT_SCALES, read_exactly, read_number, same_number
from .text import END, clean

FUNCTIONS = "(?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln|sqrt|pi|infty|theta"
ATOM = r"\d*\\pi|\d*\\sqrt\{\d+\}|\d+"  # 2\pi, 3\sqrt{13}, 14
NORMAL = [  # patterns and what they become, one after the other
    (r"_?\s?[({]?\s?(?:in )?\bbase[ -]?\s?(\d+)\s?[)}]?", r"_\1"),  # 52 (base 8)
    (r"\(?\s?(?:\\[pb]?mod\b|(?<=\()mod\b)\s?(?:\{[^{}]*\}|\d+)\s?\)?$", ""),  # 18 \pmod{23}
    (r";|\s\b(?:or|and)\b\s", " , "),
    (r"⦃\s*[A-Za-z]\s*(?:\\in\s*\(-\\infty, \\infty\)\s*)?[|:]([^⦃⦄]*)⦄", r"\1"),  # \{x \mid x > 2\}
    (r"(?:^|(?<=,))(?:[^,()]|\([a-z](?:,\s?[a-z])*\)){1,20}\\in(?![A-Za-z])", ""),  # x \in, (x,y) \in
    (r"⦃\s*⦄", r"\\emptyset"),
    (r"^\s*\(-\\infty, \\infty\)\s*(?:-|\\(?:setminus|backslash|smallsetminus))\s*⦃([^⦃⦄,]*)⦄$", r"x≠\1"),
    (r"(?<=[)\]⦄])\s*U\s*(?=[(\[⦃])", r"\\cup "),  # (-\infty,1) U (2,3)
    (r"\b(?:infinity|inf|oo)\b|\+\s*\\infty", r"\\infty"),
    (rf"(?<![\\A-Za-z])({FUNCTIONS}){END}", r"\\\1"),  # 2pi
    (r"[\[(]?\s*\\(begin|end)\s*\{(?:[a-zA-Z]*matrix|array)\}(?:\{[lcr|\s]*\})?\s*[\])]?", r"\\\1{pmatrix} "),
    (rf"(?<![\w)}}^/.!])({ATOM})\s*/\s*({ATOM})(?!\s*[\w(^/.!])", r"\\frac{\1}{\2}"),  # 14/3, 2\pi/3
    (r"(?<![\d.,(⦃\[])\d{1,3}(?:(?:,\s?\d{3})+|(?: \d{3})+)(?![\d,])", lambda m: re.sub(r"\D", "", m[0])),  # 58,500
]
NORMAL = [(re.compile(pattern), replacement) for pattern, replacement in NORMAL]
MEASURE = r"[A-Za-z]{3,}|(?:[cmk]m|[km]g|in|ft|yd|mi|lb|oz|hr|m[lL]|sq|of|to|by|(?<=\d )[mgsLh])\b"
UNIT = rf"(?!(?:{'|'.join([*SCALES, *SHORT_SCALES])})\b)(?:{MEASURE})\.?(?: ?\^ ?\{{?\d\}}?)?"  # cm^2
UNITS = rf"{UNIT}(?:(?: ?/ ?| )(?:{UNIT}|an?\b)){{0,4}}"  # square miles / hour
UNITS_RE = re.compile(rf"(?:(?<=[\d)}}!])|(?<=\\pi)) ?{UNITS}(?=\s*(?:[,)]|$))")  # 18 cm


@lru_cache(maxsize=4096)
def normal_form(text):
    r"""LaTeX with one spelling of each sign, without units and currency; \{ and \} are written ⦃ and ⦄."""
    text = clean(text).replace("\\{", "⦃").replace("\\}", "⦄")
    for pattern, replacement in NORMAL:
        text = pattern.sub(replacement, text)
    return UNITS_RE.sub("", text.rstrip(" .,;:").lstrip(" ,;:")).strip()


def squeeze(text):
    r"""A normal form without spaces but that of \sin x, and without the * of 3*\sqrt{13}."""
    text = re.sub(r"(\\[A-Za-z]+ (?=[A-Za-z]))|\s", r"\1", text)
    return re.sub(r"(?<=[\w)}])\*(?=[\\A-Za-z(])", "", text)


# ---- the parts of an answer

OPENING = "([{⦃"
DEPTH_CHANGE = {**dict.fromkeys(OPENING, 1), **dict.fromkeys(")]}⦄", -1)}
NAME = r"\\?[A-Za-z]+(?:[ \\][A-Za-z]+){0,2}(?:_(?:\{[^{}=]*\}|\w))?(?:\([^()=]*\))?'?"  # x, f(3), a_{n+1}, \angle ABC
NAME_RE = re.compile(rf"(?!\\infty|\\pi|e$)(?:{NAME}|\|[A-Za-z]\w?\||\[[A-Z]{{3,}}\]|\([A-Za-z\\,]{{1,40}}\))")
CALL_RE = re.compile(r"(?:[A-Za-z]'*|\\[A-Za-z]+)(?:\^\w)?\(.*\)|\|.*\||\\(?!frac|sqrt)[A-Za-z]+.*")  # P(X>3), \sin 2x
LETTER_RE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{1,2}(?![A-Za-z])(?:_\w)?")  # x, ab, x_1
RELATION_RE = re.compile(r"(<=|>=|≠|<|>)")
TURNED = {">": "<", ">=": "<="}
ENDS = {"<": "()", "<=": "[]"}
UNKNOWN_RE = re.compile(r"(?![ei]$)[A-Za-z](?:_\w)?(?:\([a-z]\))?")  # x, x_1, f(x)
INFINITE = {"\\infty", "-\\infty"}
DEPTH_LIMIT = 6
PARTS_LIMIT = 100


def _split(text, separator):
    """Split at separators outside brackets."""
    parts = []
    depth = 0
    begin = 0
    for i, c in enumerate(text):
        depth += DEPTH_CHANGE.get(c, 0)
        if depth <= 0 and text.startswith(separator, i):
            parts.append(text[begin:i])
            begin = i + len(separator)
    return [*parts, text[begin:]]


def _letters(text):
    return set(LETTER_RE.findall(text)) - {"e", "i"}


def _value_side(text, named_only):
    """The side of x=5 that counts; unless `named_only` also of 5=x, 2+3=5, a+b=5 and f(f(3))=5, but not of 2x=5."""
    sides = _split(text, "=")
    if len(sides) == 1 or NAME_RE.fullmatch(sides[0]):
        return sides[-1]
    if named_only or sides[-1] == "0" or RELATION_RE.search(text):
        return text
    if NAME_RE.fullmatch(sides[-1]):
        return sides[0]
    equation = len(sides) == 2 and len(_letters(sides[0])) == 1 and not CALL_RE.fullmatch(sides[0])
    return text if equation else sides[-1]


def _inside(text):
    """(brackets, what stands in them) of a text that one pair of brackets encloses, else ("", text)."""
    depths = list(accumulate(DEPTH_CHANGE.get(c, 0) for c in text))
    enclosed = text[:1] in tuple(OPENING) and 0 in depths and depths.index(0) == len(text) - 1
    if not enclosed:
        return "", text
    return text[0] + text[-1], text[1:-1]


def _interval(text):
    r"""x<1 as (-\infty,1), 4>=x>3 as (3,4], x≠1 as (-\infty,1)\cup(1,\infty); any other text as it is."""
    pieces = RELATION_RE.split(text)
    if ">" in pieces or ">=" in pieces:
        pieces = [TURNED.get(piece, piece) for piece in reversed(pieces)]
    if len(pieces) == 3:
        pieces = ["-\\infty", "<", *pieces] if UNKNOWN_RE.fullmatch(pieces[0]) else [*pieces, "<", "\\infty"]
    if len(pieces) != 5 or not UNKNOWN_RE.fullmatch(pieces[2]):
        return text
    low, low_sign, _, high_sign, high = pieces
    if (low, high_sign) == ("-\\infty", "≠"):
        return f"(-\\infty,{high})\\cup({high},\\infty)"
    return text if "≠" in text else f"{ENDS[low_sign][0]}{low},{high}{ENDS[high_sign][1]}"


def _members(part):
    """What a part of a union adds to it: the members of a set or list, or an interval itself."""
    return part[1] if isinstance(part, tuple) and part[0] in ("", "⦃⦄") else [part]


def read_parts(text, named_only=False, depth=0):
    r"""The parts of a squeezed normal form: (brackets, parts), or a number, or the text of a formula.

    Brackets are "()" and the like, "⦃⦄", "\cup" for a union, or "" for a list. `named_only`: only x= goes."""
    brackets = ""
    listed = _split(text, ",")
    if len(listed) == 1:
        text = _interval(_value_side(text, named_only))
        brackets, inside = _inside(text)
        listed = _split(inside, ",")
        union = _split(text, "\\cup")
        if len(union) > 1:
            brackets = "\\cup"
            listed = union
        elif len(listed) == 1:
            text = inside if brackets in ("()", "⦃⦄") else text
            brackets = ""
            listed = [text]
    elif all(named := [re.match("[a-z]=", part) for part in listed]):  # y=2,x=1 is (1,2), but x=1,x=2 is no point
        brackets = "" if len({name.group() for name in named}) == len(listed) else "⦃⦄"
        listed.sort()
    parts = [signed for part in listed if part for signed in _both_signs(part)]
    if not brackets and len(parts) <= 1 or depth > DEPTH_LIMIT or len(parts) > PARTS_LIMIT:
        value = read_exactly(text)
        return text if value is None else value
    read = [read_parts(part, named_only, depth + 1) for part in parts]
    if brackets == "\\cup":
        return brackets, [member for part in read for member in _members(part)]
    return brackets.replace("{}", ""), read


def _both_signs(text):
    r"""3\pm2 as 3+2, 3-2."""
    return sorted({text.replace("\\pm", p).replace("\\mp", m) for p, m in ("+-", "-+")})


def read_latex(answer):
    """The value of an answer that is a number, its parts, or the text of a formula."""
    return read_parts(squeeze(normal_form(answer)))


# ---- comparing

BASED_RE = re.compile(r"\(?((?=[A-F]*\d)[0-9A-Fa-f]+)\)?_\{?\(?(\d+)\)?\}?")  # 52_8


def same_latex(answer, gold):
    """Whether two normal forms mean the same: True, False, or None when only math-verify can say."""
    a = squeeze(answer)
    g = squeeze(gold)
    if a.replace(" ", "") == g.replace(" ", ""):
        return True
    if "~" in answer:  # 1/3 ~ 0.33
        verdicts = [same_latex(side, gold) for side in answer.split("~")[:3] if side.strip()]
        return True if True in verdicts else None if None in verdicts else False
    base_a = BASED_RE.fullmatch(a.rpartition("=")[2])
    base_g = BASED_RE.fullmatch(g)
    if base_a or base_g:  # 52_8 may be written 52, but not 52_9
        said = base_a.groups() if base_a else (a.upper(), base_g.group(2))
        return said == (base_g.groups() if base_g else (g, "10"))
    parts_a = read_parts(a, named_only="=" in g)
    parts_g = read_parts(g, named_only=True)
    if isinstance(parts_g, Fraction) and re.search(r"[A-Za-z]{3}", a) and not re.search(r"\\|\d[A-Za-z]\b", answer):
        value = read_number(answer)  # the perimeter is 18 metres
        return value is not None and same_number(value, parts_g)
    return _same(parts_a, parts_g)


def _same(a, g):
    if a == g:
        return True
    if isinstance(a, tuple) and isinstance(g, tuple):
        return _same_parts(*a, *g)
    if isinstance(a, tuple) and a[0] == "" and all(_same(part, g) for part in a[1]):  # 3/4 or 0.75
        return True
    if isinstance(a, tuple) or isinstance(g, tuple):
        formula = g if isinstance(a, tuple) else a
        return None if isinstance(formula, str) and re.search(r"\\begin|[<>≠]", formula) else False
    if isinstance(a, Fraction) and isinstance(g, Fraction):
        return same_number(a, g)
    a = str(a)
    g = str(g)
    if a in INFINITE or g in INFINITE or ("\\begin" in a) != ("\\begin" in g):
        return False
    if not re.search(r"[\d\\]", a) and not _letters(a) or bool(_letters(a)) != bool(_letters(g)):
        return False  # words; with and without a variable
    return None if not RELATION_RE.search(a) or RELATION_RE.search(g) else False


def _same_parts(brackets_a, a, brackets_g, g):
    """Tuples, intervals, sets, unions and lists. Sets, unions and lists have no order, and a list may be a tuple."""
    ordered = brackets_g[:1] in ("(", "[")
    plain = not brackets_a and brackets_g == "()"  # 1, 2 for (1,2)
    alike = brackets_a == brackets_g or plain or brackets_a in ("", "()", "[]") and len(g) > 2
    if len(a) != len(g) or ordered and not alike:
        return False
    if not ordered:
        a = sorted(a, key=repr)
        g = sorted(g, key=repr)
    verdicts = [_same(x, y) for x, y in zip(a, g, strict=True)]
    if all(verdicts):
        return True
    known = ordered or not any(isinstance(x, str) and x not in INFINITE for x in [*a, *g])
    return False if False in verdicts and known else None
