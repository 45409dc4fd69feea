r"""Compare two LaTeX answers: by their value at random points, and element by element where they have parts.

What maths_rewards.py (Probability Smoothing Policy Optimisation, https://arxiv.org/abs/2509.21282) asks first about a
MATH answer, because it is exact, bounded, and some hundred times faster than math-verify, which is left for the rest.
Two formulas that agree at random points are equal with near certainty (Schwartz-Zippel lemma,
https://doi.org/10.1145/322217.322225). Text is only ever read by the small parser here; nothing is evaluated.

    python maths_latex.py '\frac{28}{6}' '\frac{14}{3}'
"""

import cmath
import math
import random
import re
import sys
import unicodedata
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

from maths_common import make_parser, run_script

ANSWER_CHARS = 1000  # of an answer that is looked at
TOLERANCE = Fraction(1, 10**6)  # for a decimal answer to a gold that is no integer

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
CHARACTERS = {  # what NFKC leaves alone
    **dict.fromkeys("−–—‐‑‒―﹣－", "-"), **dict.fromkeys("€£¥₹₩₽₪฿¢", "$"), **dict.fromkeys("×✕✖", " × "),
    **dict.fromkeys("·⋅∙∗", "*"), "÷": "/", "⁄": "/", "∕": "/", "≈": "~", "≃": "~", "≤": "<=", "≥": ">=", "≠": "!=",
    "’": "'", "‘": "'", "“": '"', "”": '"', "π": "\\pi ", "√": "\\sqrt ", "∞": "\\infty ", "∪": "\\cup ",
    "∩": "\\cap ", "°": "^\\circ ", "º": "^\\circ ", "±": "\\pm ", "∈": "\\in ", "θ": "\\theta ", "∅": "\\emptyset ",
}  # fmt: skip
CHARACTER_TABLE = str.maketrans(CHARACTERS)


def compile_table(rows):
    """Pairs of a pattern and its replacement, ready to be applied one after the other."""
    return [(re.compile(pattern), replacement) for pattern, replacement in rows]


@lru_cache(maxsize=256)
def to_ascii(text):
    """Unicode digits, minus signs, fractions, exponents and symbols as ASCII; what has no ASCII form is kept."""
    text = re.sub(r"[₀-₉]+", lambda m: "_{" + unicodedata.normalize("NFKC", m.group()) + "}", text)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda m: "^{" + m.group().translate(SUPERSCRIPTS) + "}", text)
    text = re.sub(r"[¼-¾⅐-⅞↉]", r" \g<0>", text).translate(CHARACTER_TABLE)
    text = unicodedata.normalize("NFKC", text)[: 2 * ANSWER_CHARS].translate(CHARACTER_TABLE)  # one may become eighteen
    return re.sub(r"[^\x00-\x7f]", _ascii_character, text)


def _ascii_character(found):
    """A digit of any script as its ASCII digit; nothing for an invisible character; any other as it is."""
    character = found.group()
    if unicodedata.category(character) == "Cf":
        return ""
    return str(unicodedata.decimal(character, character))


# ---------------------------------------------------------------- LaTeX: value of an expression

FUNCTIONS = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x), "csc": lambda x: 1 / cmath.sin(x), "arcsin": cmath.asin, "arccos": cmath.acos,
    "arctan": cmath.atan, "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh, "ln": cmath.log, "exp": cmath.exp,
    "log": cmath.log10,
}  # fmt: skip
GREEK_NAMES = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell"
)
GREEK = set(GREEK_NAMES.split())
TOKEN_RE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|[A-Za-z]|[-+*/^_!(){}\[\]|])|\s+$")
PROSE_RE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}")  # a word is no product of its letters
BITS_LIMIT = 4_000  # of an exact number
FORMULA_DEPTH = 30
TOKENS = 500
CLOSING = {"(": ")", "{": "}", "[": "]", "|": "|"}


class _Unclear(ValueError):
    """A formula that this small reader does not know; math-verify may."""


def _unclear(what):
    raise _Unclear(what)


def _tokens(text):
    if PROSE_RE.search(text):
        raise _Unclear(text)
    tokens, at = [], 0
    while at < len(text):
        found = TOKEN_RE.match(text, at)
        if not found or len(tokens) > TOKENS:
            raise _Unclear(text)
        tokens += [found.group(1)] if found.group(1) else []
        at = found.end()
    _check_depth(tokens)
    return [*tokens, ""]  # the empty token ends a formula


def _check_depth(tokens):
    """Brackets and commands are what the parser recurses on."""
    depth = deepest = 0
    for token in tokens:
        depth += (token in ("(", "{", "[")) - (token in (")", "}", "]"))
        deepest = max(deepest, depth)
    if deepest > FORMULA_DEPTH or sum(t[0] in "\\|" for t in tokens) > 2 * FORMULA_DEPTH:
        raise _Unclear("too deep")


@lru_cache(maxsize=4096)
def _point(name, k):
    """The value of variable `name` at test point k: positive, so that roots and logarithms stay on one branch."""
    return Fraction(random.Random(f"{name}/{k}").randint(300, 3000), 1009)


def formula_value(text, k):
    """The value of a LaTeX formula at test point k: an exact Fraction where all is rational, else complex.

    Raises _Unclear for what it does not know, and what arithmetic raises (ArithmeticError)."""
    tokens = _tokens(text)
    value, at = _terms(tokens, 0, k)
    if tokens[at]:
        raise _Unclear(text)
    return value


def _checked(value):
    if isinstance(value, Fraction) and value.numerator.bit_length() + value.denominator.bit_length() > BITS_LIMIT:
        raise _Unclear("too large")
    return value


def _terms(tokens, at, k):
    total = None
    while total is None or tokens[at] in ("+", "-"):
        sign = -1 if tokens[at] == "-" else 1
        value, at = _factors(tokens, at + (tokens[at] in ("+", "-")), k)
        total = sign * value if total is None else _checked(total + sign * value)
    return total, at


def _starts_factor(token, names=True):
    if token[:1] == "\\":
        return (
            token[1:] in GREEK or token in ("\\frac", "\\sqrt", "\\pi", "\\binom") or names and token[1:] in FUNCTIONS
        )
    return token[:1].isalnum() or token[:1] == "." or token in ("(", "{", "[")


def _factors(tokens, at, k, implicit_only=False):
    """A product. `implicit_only`: the argument of a function without brackets, as 2x in \\sin 2x \\cos y."""
    value, at = _power(tokens, at, k)
    while True:
        operator = tokens[at] if tokens[at] in ("*", "/", "\\cdot", "\\times", "\\div") else ""
        if implicit_only and operator or not operator and not _starts_factor(tokens[at], not implicit_only):
            return value, at
        at += bool(operator)
        sign = 1
        if operator and tokens[at] == "-":
            sign, at = -1, at + 1
        right, at = _power(tokens, at, k)
        value = _checked(sign * (value / right if operator in ("/", "\\div") else value * right))


def _power(tokens, at, k):
    value, at = _atom(tokens, at, k)
    while tokens[at] in ("^", "!"):
        if tokens[at] == "!":
            if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 200:
                raise _Unclear("factorial")
            value, at = Fraction(math.factorial(int(value))), at + 1
        else:
            exponent, at = _argument(tokens, at + 1, k)
            if tokens[at] == "^":
                raise _Unclear("a^b^c")
            value = _raise(value, exponent)
    return value, at


def _raise(value, exponent):
    if isinstance(exponent, Fraction) and exponent.denominator == 1 and isinstance(value, Fraction):
        size = max(value.numerator.bit_length(), value.denominator.bit_length())
        if size * abs(exponent) > BITS_LIMIT:
            raise _Unclear("too large")
        return value ** int(exponent)
    return complex(value) ** complex(exponent)


def _argument(tokens, at, k):
    """What follows ^, \\frac or \\sqrt: a group, or one token; `\\frac12` was split by tidy."""
    if tokens[at] in ("-", "+"):
        value, end = _atom(tokens, at + 1, k)
        return (-value if tokens[at] == "-" else value), end
    return _atom(tokens, at, k)


def _group(tokens, at, k):
    value, end = _terms(tokens, at + 1, k)
    if tokens[end] != CLOSING[tokens[at]]:
        raise _Unclear("brackets")
    return value, end + 1


def _atom(tokens, at, k):
    token = tokens[at]
    if token in ("(", "{", "["):
        return _group(tokens, at, k)
    if token == "|":
        value, at = _group(tokens, at, k)
        return abs(value), at
    if token[:1].isdigit() or token[:1] == ".":
        return _mixed_number(tokens, at, k)
    if token in ("i", "e", "\\pi"):
        return {"i": 1j, "e": math.e, "\\pi": math.pi}[token], at + 1
    if token in ("\\frac", "\\binom"):
        above, at = _argument(tokens, at + 1, k)
        below, at = _argument(tokens, at, k)
        return (above / below if token == "\\frac" else _binomial(above, below)), at
    if token == "\\sqrt":
        return _root(tokens, at + 1, k)
    if token[1:] in FUNCTIONS and token[0] == "\\":
        return _call(tokens, at, k)
    if len(token) == 1 and token.isalpha() or token[1:] in GREEK:
        return _variable(tokens, at, k)
    raise _Unclear(token)


def _mixed_number(tokens, at, k):
    """A number, or 1\\frac{4}{5}: a whole number before a proper fraction of whole numbers is added to it."""
    value, at = _checked(Fraction(tokens[at])), at + 1
    parts = tokens[at : at + 7]
    if value.denominator == 1 and parts[0] == "\\frac" and parts[1::3][:2] == ["{", "{"] and parts[3::3] == ["}", "}"]:
        above, below = parts[2], parts[5]
        if above.isdigit() and below.isdigit() and 0 < int(above) < int(below):
            return value + Fraction(int(above), int(below)), at + 7
    return value, at


def _binomial(above, below):
    if any(not isinstance(n, Fraction) or n.denominator != 1 or not 0 <= n <= 200 for n in (above, below)):
        raise _Unclear("binomial")
    return Fraction(math.comb(int(above), int(below)))


def _root(tokens, at, k):
    degree = Fraction(2)
    if tokens[at] == "[":
        degree, at = _group(tokens, at, k)
    value, at = _argument(tokens, at, k)
    if isinstance(value, Fraction) and degree == 2 and value >= 0:
        above, below = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if above**2 == value.numerator and below**2 == value.denominator:
            return Fraction(above, below), at
    if isinstance(value, Fraction) and isinstance(degree, Fraction) and value < 0 and degree % 2 == 1:
        return -(float(-value) ** (1 / float(degree))), at  # the real root, as in \sqrt[3]{-8}
    return complex(value) ** (1 / complex(degree)), at


def _call(tokens, at, k):
    """A function, with \\log_2, \\sin^2 and an argument with or without brackets."""
    name, at = tokens[at][1:], at + 1
    function, power, base = FUNCTIONS[name], 1, None
    while tokens[at] in ("^", "_"):
        extra, end = _argument(tokens, at + 1, k)
        if tokens[at] == "_":
            base = extra
        elif extra == -1:
            function = FUNCTIONS.get("arc" + name) or _unclear(name)
        else:
            power = extra
        at = end
    argument, at = (_group if tokens[at] in ("(", "{", "[") else _product_argument)(tokens, at, k)
    value = function(complex(argument)) if base is None else cmath.log(complex(argument)) / cmath.log(complex(base))
    return (value if power == 1 else value ** complex(power)), at


def _product_argument(tokens, at, k):
    return _factors(tokens, at, k, implicit_only=True)


def _variable(tokens, at, k):
    name, at = tokens[at], at + 1
    if tokens[at] == "_":
        end = tokens.index("}", at) + 1 if tokens[at + 1] == "{" and "}" in tokens[at:] else at + 2
        name, at = name + "_" + "".join(tokens[at + 1 : end]).strip("{}"), end
    if at >= len(tokens):
        raise _Unclear("subscript")
    return _point(name, k), at


# ---------------------------------------------------------------- LaTeX: structure of an answer

BARE_NAMES = re.compile(r"(?<![\\A-Za-z])(sqrt|pi|infty|theta|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln)(?![A-Za-z])")
NUMBER_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
BASE_NAMES = {name: base for base, name in enumerate(NUMBER_NAMES) if base > 1}
BASE = rf"(\d+|{'|'.join(BASE_NAMES)})"
TIDY = compile_table(
    [
        (rf"(?:_\s?\{{\s?)?(?:\\text\s?\{{\s?)?\(?(?:in )?\bbase[ -]?\}}?\s?{BASE}\)?\}}?(?![A-Za-z])", r"_{\1}"),
        (rf"_\s?\{{?\s?\\text[a-z]*\s?\{{\s?{BASE}\s?\}}\s?\}}?", r"_{\1}"),
        (r"\(?\s?(?:\\pmod|\\bmod|\\mod|(?<=\()mod)\b\s?(?:\{[^{}]*\}|\d+)\s?\)?$", ""),
        (r"\\equiv(?![A-Za-z])", "="),
        (r"\\(?:color\s?\{[a-z]+\}|checkmark|blacksquare|square|qed)(?![A-Za-z])", " "),
        (r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"(?<=[\d)])\s?!\s?=", "! ="),
        (r"(?<=\d)\.(\d+)[eE](-?\d{1,3})(?![\d.])", r".\1*10^{\2}"),
        (r"(?<=\)) ?U ?(?=\()|\\bigcup(?![A-Za-z])", r"\\cup "),
        (r";", ","),
        (r"^.*\\(?:implies|iff|(?:Long|Left|long)?[rR]ightarrow)(?![A-Za-z])", ""),
        (r"\\text\s?\{\s?(?:minus|negative)\s?\}", "-"),
        (r"\\mathbb\s?\{?\s?R\s?\}?(?![A-Za-z])", r"(-\\infty, \\infty)"),
        (r"\\varnothing(?![A-Za-z])|\\\{\s?\\\}", r"\\emptyset "),
        (r"(?<=[\w)}])\s?\*\*\s?(?=[\w({-])", "^"),  # Python's power, not markdown
        (r"<\|[^|<>]{1,40}\|>|\*\*|`", ""),
        (r"\\(?:left|right)\.(?!\d)", ""),
        (
            r"\\(?:left|right|big[lr]?|Big[lr]?|bigg[lr]?|[Ll]arge|displaystyle|textstyle|limits|rm|bf)(?![A-Za-z])|\\!",
            "",
        ),
        (r"\\[,;:> ]|\\q?quad(?![A-Za-z])|~", " "),
        (r"\\[()\[\]]|(?<!\\)\$|\\\$|\\?%|\\(?:euro|pounds)\b", " "),
        (
            r"\^\s*\{?\s*(?:\\circ|o\b)\s*\}?|\\(?:degrees?|circ)(?![A-Za-z])|\bdegrees?\b|(?<=\d)\s*(?:percent|pct)\b",
            " ",
        ),
        (
            r"\\(?:text[a-z]*|mbox|mathrm)\s*\{\s*,?\s*(?:or|and|,)\s*\}|\s\b(?:or|and)\b\s|\\(?:lor|land|vee|wedge)\b",
            " , ",
        ),
        (r"\\(?:math[a-z]+|operatorname|boldsymbol|boxed|fbox|underline)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}"),
        (r"(?<![\d/.])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d/.])", r"\1\\frac{\2}{\3}"),
        (r"\\(?:lbrace|\{)", "⦃"),
        (r"\\(?:rbrace|\})", "⦄"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\[lr]?vert(?![A-Za-z])|\\mid(?![A-Za-z])", "|"),
        (r"\\(?:leq?q?|leqslant)(?![A-Za-z])|=<", "<="),
        (r"\\(?:geq?q?|geqslant)(?![A-Za-z])", ">="),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\neq?(?![A-Za-z])", "!="),
        (r"\b(?:infinity|infty|inf|oo)\b(?<!\\infty)", r"\\infty"),
        (r"\+\s*\\infty", r"\\infty"),
    ]
)
SCALE = rf"(?:{'|'.join(SCALES)})\b"
TEXT_RE = re.compile(r"\\(?:text[a-z]*|mbox|mathrm)\s*\{([^{}]*)\}")
TEXT_UNIT_RE = re.compile(rf"(?!\\[a-z]+\s*\{{[^{{}}]*\b{SCALE}){TEXT_RE.pattern}" + r"(?:\s*\^\s*\{?\s*\d\s*\}?)?")
THOUSANDS_RE = re.compile(r"(?<![\d.,(⦃\[])(\d{1,3})((?:,\s?\d{3})+|(?: \d{3})+)(?![\d,])")
UNITS_OF_MEASURE = r"[A-Za-z]{3,}|(?:[cmk]m|[km]g|in|ft|yd|mi|lb|oz|hr|m[lL]|sq|of|to|by|(?<=\d )[mgsLh])\b"
UNIT_WORD = rf"(?!{SCALE})(?:{UNITS_OF_MEASURE})\.?(?: ?\^ ?\{{?\d\}}?)?"
PLAIN_UNIT_RE = re.compile(rf"(?:(?<=[\d)}}!])|(?<=\\pi)) ?{UNIT_WORD}(?:(?: ?/ ?| ){UNIT_WORD}){{0,4}}$")
NAME_RE = re.compile(  # x, f(x), f(3), a_{n+1}, BC, |z|, [ABC], \\angle ABC
    r"\s*(?:\\?[A-Za-z]+(?:\s+\\?[A-Za-z]+|\\[A-Za-z]+){0,2}\s*(?:_\s*(?:\{[^{}=]*\}|\w))?\s*(?:\([^()=]*\))?'?"
    r"|\|[A-Za-z]\w?\||\[[A-Z]{3,}\])\s*"
)
MATRIX_RE = re.compile(
    r"[\[(]?\s*\\begin\{([a-zA-Z]*matrix|array)\}(?:\{[lcr|\s]*\})?((?:(?!\\begin|\\end).)*)\\end\{\1\}\s*[\])]?", re.S
)
BASED_RE = re.compile(r"\(?\s*((?=[A-F]*\d)[0-9A-Fa-f]+)\s*\)?\s*_\s*\{?\(?\s*(\d+)\s*\)?\}?")
CALL_RE = re.compile(  # f(f(2)), P(X > 3), \\sin 2x, |z|^2, \\lfloor x \\rfloor, \\sum_k k
    r"(?:[A-Za-z]'*|\\[A-Za-z]+)(?:\s*\^\s*(?:\{[^{}]*\}|\w))?\s*\(.*\)|\|+[^|=]*\|+\s*(?:\^\s*\d)?"
    rf"|\\(?:{'|'.join(FUNCTIONS)}|lfloor|lceil|lim|sum|prod|int|max|min|gcd|overline)(?![A-Za-z])[^=]*"
)
VARIABLE_RE = re.compile(rf"(?:(?<![\\A-Za-z])[A-Za-z]|\\(?:{'|'.join(GREEK)})(?![A-Za-z]))(?:_(?:\{{[^{{}}]*\}}|\w))?")
SET_RE = re.compile(r"⦃\s*[A-Za-z]\s*(?:\\in\s*\(-\\infty, \\infty\)\s*)?[|:]([^⦃⦄]*)⦄")  # the condition of a set
REPEATING_RE = re.compile(r"(\d{0,20})\.(\d{0,20})\\(?:overline|bar)\s?\{(\d{1,20})\}")
RELATION_RE = re.compile(r"(<=|>=|<|>|!=)")
OPENING, CLOSERS = "([{⦃", ")]}⦄"


@lru_cache(maxsize=4096)
def tidy(text):
    """LaTeX without spacing, units, currency, degrees and its many spellings of the same sign; \\{ \\} become ⦃ ⦄."""
    text = text if text.isascii() else to_ascii(text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\\\\(?:\[\w*\])?", "⏎", text) if "\\begin" in text else text.replace("\\\\", "\\")
    text = re.sub(r"(?<=\d),?\\[!,]\s*(?=\d{3}(?!\d))|(?<=\d)\{,\}(?=\d{3})|,\\!\s*(?=\d{3})", "", text)
    for pattern, replacement in TIDY:
        text = pattern.sub(replacement, text)
    text = re.sub(rf"_\{{({'|'.join(BASE_NAMES)})\}}", lambda m: f"_{{{BASE_NAMES[m[1]]}}}", text)
    text = REPEATING_RE.sub(_repeating_decimal, text)
    without = TEXT_UNIT_RE.sub(" ", text)
    text = without if re.search(r"[\w]", without) else TEXT_RE.sub(r"\1", text)
    text = BARE_NAMES.sub(r"\\\1", text)
    text = THOUSANDS_RE.sub(lambda m: re.sub(r"[,\s]", "", m.group()), text)
    return re.sub(r"\s*⏎\s*(?=\\end)", "", " ".join(text.split())).rstrip(" .,;:").lstrip(" ,;:")


def _repeating_decimal(found):
    """0.1\\overline{6} as the fraction (16 - 1) / 90."""
    start, period = found[1] + found[2], found[3]
    return f"\\frac{{{int(start + period) - int(start or 0)}}}{{{(10 ** len(period) - 1) * 10 ** len(found[2])}}}"


def same_latex(a, g):
    """Whether two answers mean the same: True, False, or None when only math-verify can say.

    Args: a, g: the answer and the gold answer, both from tidy()."""
    if not a:
        return False
    if "".join(a.split()) == "".join(g.split()):
        return True
    based = _same_in_base(a, g)
    if based is not None:
        return based
    if not re.search(r"(?<![\\A-Za-z])[A-Za-z]", PLAIN_UNIT_RE.sub("", g)):
        a, g = PLAIN_UNIT_RE.sub("", a), PLAIN_UNIT_RE.sub("", g)
    return _same_structure(a, g, 0)


def _same_in_base(a, g):
    """52_8 may be written 52, but not 52_9; None when neither has a base."""
    gold, answer = BASED_RE.fullmatch(g), BASED_RE.fullmatch(_split(a, "=")[-1])
    if gold:
        return answer.groups() == gold.groups() if answer else a.lower() == gold.group(1).lower()
    if answer:
        return answer.group(1) == g and answer.group(2) == "10"
    return None


def _split(text, separator):
    """Split at separators outside brackets."""
    parts, depth, begin = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in OPENING) - (c in CLOSERS)
        if not depth and text.startswith(separator, i):
            parts.append(text[begin:i])
            begin = i + len(separator)
    return [p.strip() for p in [*parts, text[begin:]]]


def _bracketed(text):
    """'(3, 4]' -> ('(', '3, 4', ']') when the first bracket closes at the very end, else ('', text, '')."""
    depths = list(accumulate((c in OPENING) - (c in CLOSERS) for c in text))
    if text[:1] in tuple(OPENING) and 0 in depths and depths.index(0) == len(text) - 1:
        return text[0], text[1:-1].strip(), text[-1]
    return "", text, ""


def _same_structure(a, g, depth):
    if depth > 6:
        return None
    a, g = (re.sub(r"^(?:[^,()]|\([a-z]\)){0,20}\\in(?![A-Za-z])", "", SET_RE.sub(r"\1", t)).strip() for t in (a, g))
    a, g = _as_intervals(_without_name(a)), _as_intervals(_without_name(g))
    if "\\cup" in a or "\\cup" in g:
        unions = [_split(t, "\\cup" if "\\cup" in t else ",") for t in (a, g)]
        return _same_elements(*unions, False, depth)
    rows_a, rows_g = _matrix(a), _matrix(g)
    if rows_a or rows_g:
        return _same_matrix(rows_a, rows_g, a, g, depth)
    (open_a, inner_a, close_a), (open_g, inner_g, close_g) = _bracketed(a), _bracketed(g)
    list_a, list_g = (_expand_signs(_split(inner, ",")) for inner in (inner_a, inner_g))
    if not open_a and len(list_a) > 1 == len(list_g) and all(_same_relation(part, g) for part in list_a[:3]):
        return True  # 3/4 or 0.75
    if len(list_a) == 1 and len(list_g) == 1 and "⦃" not in (open_a, open_g):
        return _same_relation(a, g)
    return _same_lists(list_a, list_g, open_a + close_a, open_g + close_g, depth)


def _same_lists(list_a, list_g, brackets_a, brackets_g, depth):
    """Tuples, intervals, sets and bare lists of which one at least has several elements."""
    names = sorted(part[0] for part in list_a if re.match(r"[a-z]\s*=", part))
    if len(names) == len(list_a) and names == [chr(ord(names[0]) + i) for i in range(len(names))]:
        list_a.sort()  # y = 2, x = 1 is (1, 2)
    interval = "[" in brackets_g or "]" in brackets_g or "\\infty" in "".join(list_g)
    if not brackets_a and brackets_g[:1] in ("(", "[") and (interval or len(names) > len(set(names))):
        return False  # the ends of an interval are not the interval, nor are x = 1, x = 2 a point
    if brackets_g in ("", "{}", "⦃⦄"):
        return _same_elements(list_a, list_g, brackets_a[:1] in ("(", "["), depth)
    pair = len(list_g) == 2  # of coordinates or of ends: brackets count
    if brackets_a == "⦃⦄" or pair and brackets_a[:1] in ("(", "[") and brackets_a != brackets_g:
        return False
    return _same_elements(list_a, list_g, True, depth)


def _without_name(text):
    """'(x, y) = (1, 2)' -> '(1, 2)', 'S = ⦃1, 2⦄' -> '⦃1, 2⦄'; anything else unchanged."""
    sides = _split(text, "=")
    named = len(sides) == 2 and (NAME_RE.fullmatch(sides[0]) or re.fullmatch(r"\([A-Za-z\\, ]{1,40}\)", sides[0]))
    if sides[-1].startswith("\\begin"):
        return sides[-1]
    if CALL_RE.fullmatch(sides[0]) and re.search(r"[<>]|\\cup", sides[0]):  # P(X > 3) = 1/2
        return sides[-1]
    return sides[1] if named and sides[1].startswith(("(", "[", "⦃")) else text


def _expand_signs(parts):
    """'3 \\pm 2' -> '3 + 2', '3 - 2'."""
    signs = [[("\\pm", "+"), ("\\mp", "-")], [("\\pm", "-"), ("\\mp", "+")]]
    out = []
    for part in (p for p in parts if p):
        if "\\pm" in part or "\\mp" in part:
            out += [part.replace(s[0][0], s[0][1]).replace(s[1][0], s[1][1]) for s in signs]
        else:
            out.append(part)
    return out[:100]


def _same_elements(answers, golds, ordered, depth):
    if len(answers) != len(golds):
        return False
    if ordered:
        verdicts = [_same_structure(a, g, depth + 1) for a, g in zip(answers, golds, strict=True)]
        return False if False in verdicts else None if None in verdicts else True
    if len(golds) + sum(g.count(",") for g in golds) > 30:
        return None
    rest, unclear = list(answers), False
    for g in golds:
        verdicts = [_same_structure(a, g, depth + 1) for a in rest]
        if True in verdicts:
            rest.pop(verdicts.index(True))
        elif None in verdicts:
            unclear = True
        else:
            return False
    return None if unclear else True


def _matrix(text):
    """Rows of cells of a text that is one matrix; None for any other."""
    found = MATRIX_RE.fullmatch(text)
    rows = found.group(2).strip("⏎ ").split("⏎") if found else []
    return [[cell.strip() for cell in row.split("&")] for row in rows] or None


def _same_matrix(rows_a, rows_g, a, g, depth):
    """Entry by entry; a column may be written as a tuple."""
    if rows_a and rows_g:
        if [len(r) for r in rows_a] != [len(r) for r in rows_g]:
            return False
        return _same_elements(sum(rows_a, []), sum(rows_g, []), True, depth)
    opening, inner, _ = _bracketed(a if rows_g else g)
    rows = rows_g or rows_a
    if opening not in ("(", "[") or any(len(r) > 1 for r in rows) or "\\" in inner and "begin" in inner:
        return None if "\\begin" in a and "\\begin" in g or re.search(r"matrix|array", a if rows_g else g) else False
    vector, column = _split(inner, ","), [r[0] for r in rows]
    return _same_elements(vector, column, True, depth) if rows_g else _same_elements(column, vector, True, depth)


def _as_intervals(text):
    """'-2 <= x < 7' -> '[-2, 7)'; 'x < 2 , x > 3' -> '(-\\infty, 2) \\cup (3, \\infty)'; anything else unchanged."""
    if not RELATION_RE.search(text):
        return text
    intervals = [_interval(part) for part in _split(text, ",") if part]
    return " \\cup ".join(intervals) if intervals and all(intervals) else text


def _interval(text):
    parts = [p.strip() for p in RELATION_RE.split(text)]
    if any(r in (">", ">=") for r in parts[1::2]):
        parts = [{">": "<", ">=": "<="}.get(p, p) for p in reversed(parts)]
    sides, relations = parts[::2], parts[1::2]
    names = [bool(NAME_RE.fullmatch(s)) and s not in ("\\infty", "\\pi", "e") for s in sides]
    if any(r not in ("<", "<=") for r in relations):
        return None
    if names == [False, True, False]:
        return f"{'(['[relations[0] == '<=']}{sides[0]}, {sides[2]}{')]'[relations[1] == '<=']}"
    if names == [True, False]:
        return f"(-\\infty, {sides[1]}{')]'[relations[0] == '<=']}"
    if names == [False, True]:
        return f"{'(['[relations[0] == '<=']}{sides[0]}, \\infty)"
    return None


def _same_relation(a, g):
    """Two formulas, equations or inequalities without commas."""
    if RELATION_RE.search(a) or RELATION_RE.search(g):
        return _same_chain(a, g)
    a = re.sub(r"^\s*\\(?:approx|sim)", "", a)
    exact, _, rounded = re.sub(r"\\sim(?![A-Za-z])", r"\\approx", a).partition("\\approx")  # 1/3 \approx 0.33
    a = rounded if rounded and ("." in g or NAME_RE.fullmatch(exact)) else exact
    sides_a, sides_g = _split(a, "="), _split(g, "=")
    if len(sides_a) > 1 and len(sides_g) > 1:
        if NAME_RE.fullmatch(sides_a[0]) and NAME_RE.fullmatch(sides_g[0]) and sides_a[0] == sides_g[0]:
            return same_value(sides_a[-1], sides_g[-1])
        return _same_equation(sides_a[0], sides_a[-1], sides_g[0], sides_g[-1])
    side_a, side_g = _value_side(sides_a, True), _value_side(sides_g, False)
    return False if side_a is None or side_g is None else same_value(side_a, side_g)


def _value_side(sides, of_answer):
    """The side of `x = 5` or `2 + 3 = 5` that counts; in an answer also of `a + b = 5`, `f(f(3)) = 5`, `a = b = 5`."""
    first, last = sides[0], sides[-1]
    if len(sides) == 1 or not first or NAME_RE.fullmatch(first) or all(map(_is_constant, sides)):
        return last
    if NAME_RE.fullmatch(last):
        return first
    if not of_answer or last == "0":
        return None
    quantity = len(sides) > 2 or CALL_RE.fullmatch(first) or BASED_RE.fullmatch(first)
    names = set(VARIABLE_RE.findall("".join(first.split()))) - {"e", "i"}
    return last if quantity or len(names) > 1 or same_value(first, last) else None


def _is_constant(formula):
    values = _values(formula)
    return values is not None and len(set(values)) == 1


@lru_cache(maxsize=4096)
def _values(formula):
    """The values of a formula at three test points; None for what the reader does not know."""
    try:
        return [formula_value(formula, k) for k in range(3)]
    except (ValueError, ArithmeticError, RecursionError):  # _Unclear, log(0), numbers beyond floating point
        return None


def _same_chain(a, g):
    """f(2) < f(1) < f(4): the same relations between the same things, read in either direction."""
    chains = [[p.strip() for p in RELATION_RE.split(t)] for t in (a, g)]
    turn = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
    turned = [turn.get(p, p) for p in reversed(chains[0])]
    if len(chains[0]) != len(chains[1]):
        return False if RELATION_RE.search(g) is None or RELATION_RE.search(a) is None else None
    for chain in (chains[0], turned):
        if chain[1::2] == chains[1][1::2]:
            verdicts = [same_value(x, y) for x, y in zip(chain[::2], chains[1][::2], strict=True)]
            if all(verdicts):
                return True
    return None


def same_value(a, g):
    """Whether two formulas have the same value at random points: True, False, or None when one cannot be read.

    Rational values are compared exactly; a decimal may differ from a gold that is no integer by 1e-6 of its size."""
    bare_a, bare_g = ("".join(t.split()) for t in (a, g))
    if bare_a == bare_g:
        return True
    if "\\infty" in bare_a or "\\infty" in bare_g:
        return False
    values_a, values_g = _values(a), _values(g)
    if values_a is None or values_g is None:
        return None
    constant = len(set(values_a)) == len(set(values_g)) == 1
    try:
        verdicts = [close(x, y, "." in a and constant) for x, y in zip(values_a, values_g, strict=True)]
    except OverflowError:  # beyond floating point
        return None
    return False if False in verdicts else None if None in verdicts else True


def close(x, y, decimal):
    """Whether value x of an answer equals the gold's y: True, False, or None when rounding leaves it open.

    `decimal`: the answer is a decimal number and may be rounded. Raises OverflowError beyond floating point."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y or decimal and y.denominator != 1 and abs(x - y) <= TOLERANCE * min(1, abs(y))
    difference, size = abs(complex(x) - complex(y)), max(1e-30, abs(complex(y)))
    if not math.isfinite(difference) or not math.isfinite(size):
        return None
    if difference <= (1e-6 * min(1, size) if decimal else 1e-9 * size):
        return True
    return False if difference > 1e-7 * size else None


def _same_equation(left_a, right_a, left_g, right_g):
    """Whether left - right of one equation is a constant multiple of the other's."""
    values = [_values(side) for side in (left_a, right_a, left_g, right_g)]
    if None in values:
        return None
    try:
        ratios = [(complex(p) - complex(q)) / (complex(r) - complex(s)) for p, q, r, s in zip(*values, strict=True)]
    except ArithmeticError:  # no difference, or numbers beyond floating point
        return None
    if not abs(ratios[0]) or not all(cmath.isfinite(r) for r in ratios):
        return None
    return all(abs(r - ratios[0]) <= 1e-9 * abs(ratios[0]) for r in ratios)


def main():
    parser = make_parser(__doc__)
    parser.add_argument("answer", help="LaTeX of an answer")
    parser.add_argument("gold", help="LaTeX of the right answer")
    args = parser.parse_args()
    verdict = same_latex(tidy(args.answer[:ANSWER_CHARS]), tidy(args.gold[:ANSWER_CHARS]))
    print({True: "equal", False: "not equal", None: "not for this reader: math-verify decides"}[verdict])
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
