r"""Model output as plain text: one spelling of each sign, without markup and without LaTeX that only formats.

`clean` is applied to answer and gold alike: a wrapper or a space on one side makes no difference."""

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

ANSWER_CHARS = 1000  # of an answer that is looked at
CHARACTERS = {  # what characters that NFKC leaves alone are written as
    "-": "−–—‐‑‒―﹣－", "$": "€£¥₹₩₽₪฿¢", "*": "×✕✖·⋅∙∗", "/": "÷⁄∕", "'": "’‘", '"': "“”", "<=": "≤", ">=": "≥",
    "\\to ": "→⇒⟹⟶➔", "\\approx ": "≈≃", "\\pi ": "π", "\\sqrt ": "√", "\\infty ": "∞", "\\cup ": "∪", "\\cap ": "∩",
    "^\\circ ": "°º", "\\pm ": "±", "\\in ": "∈", "\\theta ": "θ", "\\emptyset ": "∅",
}  # fmt: skip
CHARACTER_TABLE = str.maketrans({c: symbol for symbol, characters in CHARACTERS.items() for c in characters})
SYMBOLS = {  # what a LaTeX command is written as: \leq as <=
    "": "left right big bigl bigr Big Bigl Bigr bigg biggl biggr displaystyle textstyle limits large Large rm bf",
    " ": "quad qquad square blacksquare checkmark degree degrees", "*": "times cdot ast", "/": "div", "=": "equiv",
    "~": "approx sim simeq", "<=": "le leq leqq leqslant", ">=": "ge geq geqq geqslant", "<": "lt", ">": "gt",
    "≠": "ne neq", "\\to ": "implies iff rightarrow longrightarrow Rightarrow Longrightarrow", ":": "colon",
    "|": "mid vert lvert rvert", "⦃": "lbrace", "⦄": "rbrace", "(": "langle", ")": "rangle", 
    "\\emptyset ": "varnothing", "\\cup ": "bigcup", "\\frac": "dfrac tfrac cfrac", " , ": "lor land vee wedge",
}  # fmt: skip
COMMANDS = {name: symbol for symbol, names in SYMBOLS.items() for name in names.split()}
COMMAND_RE = re.compile(r"\\(?:left|right)\s*\.(?!\d)|\\([A-Za-z]+)")
END = r"(?![A-Za-z])"  # of a LaTeX command's name
WRAPPERS = "text[a-z]*|math(?:rm|bf|it|sf|tt|bb|cal)|[mh]box|[fF]?boxed|fbox|operatorname|underline|boldsymbol|emph"

CLEAN = [  # patterns and what they become, one after the other
    (r"(?<=\d)(?:,?\\[!,;: ]\s*|\{,\})(?=\d{3}(?!\d))", ""),  # 1,\!234  1{,}234  1\,234
    (r"(?<=\d)\{,\}(?=\d)", "."),  # 3{,}5
    (r"\\[!,;:> ()\[\]]|\\(?:text)?color\s*\{[a-z]+\}", " "),
    (r"\\mathbb\s*\{?\s*R\s*\}?", r"(-\\infty, \\infty)"),
    *2 * [(rf"\\(?:{WRAPPERS})\s*\{{([^{{}}]*)\}}", r" \1 ")],  # \text{ cm}; one may be inside another
    (r"\\?\$|\\?%", " "),
    (rf"\^\s*\{{?\s*(?:\\circ{END}|o\b)\s*\}}?|\\circ{END}", " "),  # 90^\circ
    (r"\\frac\s*(\d)(?=\s*[\w{])", r"\\frac{\1}"),  # \frac12
    (r"\\frac\s*(\{[^{}]*\})\s*(\w)", r"\\frac\1{\2}"),
    (rf"\{{([^{{}}]*)\\over{END}([^{{}}]*)\}}", r"\\frac{\1}{\2}"),
    (r"\\?\bsqrt\s*(?:\(([^()]*)\)|(\d+|[a-z]\b))", r"\\sqrt{\1\2}"),  # sqrt(13), \sqrt 3
    (r"(?<![\d)])!=|(?<![\d)!]) !=", "≠"),  # but 5! = 120
    (r"[-=]+>", r" \\to "),
    (r"\b(?:[mM]inus|[nN]egative)\s+", "-"),
]
CLEAN = [(re.compile(pattern), replacement) for pattern, replacement in CLEAN]


def _fraction(found):
    r"""A repeating decimal as a fraction: 0.1(6) -> \frac{1}{6}."""
    whole, fixed, block = (digits.replace(",", "") for digits in found.groups())
    numerator = int(whole + fixed + block) - int(whole + fixed or "0")
    value = Fraction(numerator, 10 ** len(fixed) * (10 ** len(block) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


AGAIN = r"\(?(?:repeating|recurring)\b\)?"
DOTS = rf"(?:\.\.+|\\[lc]?dots{END}|{AGAIN})"
REPEATS_RE = re.compile(rf"[\d.,](?:\(\d|\\(?:overline|bar|dot){END}|\s?{DOTS})")  # whether a decimal may repeat
REPEATS = [  # the ways to write 0.1(6), and what that is
    (r"\}\\overline\s*\{", ""),
    (rf"(?<=[\d.,])\\(?:overline|bar){END}\s*(?:\{{\s*(\d+)\s*\}}|(\d))", r"(\1\2)"),  # 0.1\overline{6}
    (r"(?<=[\d.,])\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?", r"(\1\2\3)"),  # 0.\dot{1}4285\dot{7}
    (rf"(?<=[.,])(\d{{0,9}}?)(\d{{1,9}}?)\2+\s?{DOTS}", r"\1(\2)"),  # 0.1666..., but not 0.16...
    (rf"(?<=[.,])(\d{{1,9}})\s?{AGAIN}", r"(\1)"),  # 0.25 repeating
    (r"(?<![\d.,])((?:\d{1,3},(?=\d{3}[,.]))*\d{0,30})[.,](\d{0,30})\((\d{1,30})\)", _fraction),
]
REPEATS = [(re.compile(pattern), replacement) for pattern, replacement in REPEATS]
TAGS = r"<<[^<>]*>>|<\|[^|<>]{1,40}\|>|</?[A-Za-z]\w{0,19}>|`+"  # <<9*2=18>>, <|im_end|>, <answer>
EMPHASIS = r"(?<![\w)}*_])[*_]++(?=\S)|(?<=[^\s*_])[*_]++(?![\w({])|[*_]{2,}+(?=[A-Za-z])"  # **18**
MARKUP_RE = re.compile(rf"{TAGS}|{EMPHASIS}")


def cut(text):
    """At most ANSWER_CHARS characters, cut between words, so that no number loses digits."""
    return text if len(text) <= ANSWER_CHARS else text[:ANSWER_CHARS].rpartition(" ")[0]


def to_ascii(text):
    """Unicode digits, minus signs, fractions, exponents and symbols as ASCII; what has no ASCII form is kept."""
    text = re.sub(r"[₀-₉]+", r"_{\g<0>}", re.sub(r"[⁰¹²³⁴-⁹⁺⁻]+", r"^{\g<0>}", text))
    text = re.sub("(\\d)[\u0304\u0305]", r"\\overline{\1}", re.sub("(\\d)\u0307", r"\\dot{\1}", text))
    text = re.sub(r"[¼-¾⅐-⅞↉]", r" \g<0>", text).translate(CHARACTER_TABLE)
    text = unicodedata.normalize("NFKC", text)[: 2 * ANSWER_CHARS].translate(CHARACTER_TABLE)  # one may become eighteen
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")  # invisible
    return re.sub(r"[^\x00-\x7f]", lambda m: str(unicodedata.decimal(m[0], m[0])), text)


@lru_cache(maxsize=4096)
def clean(text):
    """One line of an answer in the spelling that all comparisons share; see the tables above for what goes."""
    text = text if text.isascii() else cut(to_ascii(text))
    if "\\" in text:
        text = re.sub(r"\\\\(?:\[\w*\])?", "⏎", text) if "\\begin" in text else text.replace("\\\\", "\\")
    text = MARKUP_RE.sub(" ", " ".join(text.split()).replace("~", " "))  # a space in LaTeX, and ~18 is 18
    text = COMMAND_RE.sub(lambda m: COMMANDS.get(m[1], m[0]) if m[1] else " ", text)
    for pattern, replacement in CLEAN:
        text = pattern.sub(replacement, text)
    if REPEATS_RE.search(text):
        for pattern, replacement in REPEATS:
            text = pattern.sub(replacement, text)
    return " ".join(text.split())


BRACE_RE = re.compile(r"\\.|[{}]", re.S)  # an escaped character is no brace


def _box(text, at):
    r"""(start, end) of the content of the box whose name begins at `at`; None when it is never closed."""
    start = text.index("{", at) + 1
    depth = 1
    for brace in BRACE_RE.finditer(text, start, start + 2 * ANSWER_CHARS):
        if brace.group() == "{":
            depth += 1
        elif brace.group() == "}":
            depth -= 1
        if depth == 0:
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
        contents.insert(0, text[place[0] : place[1]])
        at = before
    return ", ".join(contents if len(set(contents)) > 1 else contents[:1]), True
