r"""Read the one number that a line of model output says: '$1,234.50', 'x = 18 cm', 'eighteen', '\frac{1}{2}'.

What maths_rewards.py (Probability Smoothing Policy Optimisation, https://arxiv.org/abs/2509.21282) asks for answers
that are numbers. Numbers are exact fractions, text is only ever read by the small parser here and never evaluated, and
each regular expression takes time in proportion to the line, which is at most ANSWER_CHARS long.
"""

import re
from fractions import Fraction

from maths_latex import ANSWER_CHARS, BITS_LIMIT, NUMBER_NAMES, SCALES, compile_table, formula_value, tidy, to_ascii

OPERATORS = 100  # of a sum that is worked out
EXPONENT_LIMIT = 300  # 1e300 is read, 1e301 is not: keeps exact numbers small

# ---------------------------------------------------------------- plain text

LATEX_TO_PLAIN = compile_table(
    [
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
        (r"\\(?:long)?rightarrow\b|\\Rightarrow\b|\\implies\b|\\to\b", " = "),
        (r"\\colon\b|\{:\}", ":"),
        (r"\\(?:text[a-z]*|math[a-z]+|mbox|boxed|fbox|operatorname|underline)\s*\{([^{}]*)\}", r" \1 "),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\(?:degrees?|[Ll]arge|LARGE|[Hh]uge)\b", " "),
        (r"\\([$%&#_{}])", r"\1"),
    ]
)
MARKUP = re.compile(
    r"<<[^<>]*>>|<\|[^|<>]{1,40}\|>|</?[A-Za-z]\w{0,19}>|`+|(?<![\w)])[*_]+|(?<![*_])[*_]+(?![\w(])|[*_]{2,}+(?=[A-Za-z])"
)
DOLLARS_AND_CENTS = re.compile(r"(?:\$ ?(\d{1,9})|(\d{1,9}) dollars?),?(?: and)? (\d{1,2}) cents?\b")


def cut(text):
    """At most ANSWER_CHARS characters, cut between words, so that no number loses digits."""
    return text if len(text) <= ANSWER_CHARS else text[:ANSWER_CHARS].rpartition(" ")[0]


def plain_text(text):
    """One line of model output without markdown, currency, LaTeX and exotic characters, ready for read_plain_number."""
    text = text if text.isascii() else cut(to_ascii(text))  # which may be longer
    text = " ".join(text.split())
    if "\\" in text or "{" in text:
        for _ in range(2):  # \text{} inside \frac{}{} and the like
            for pattern, replacement in LATEX_TO_PLAIN:
                text = pattern.sub(replacement, text)
    text = re.sub(r"(?<=[\d)]) \* (?=[-$(.\d])", " × ", re.sub(r"[-=]+>|[→⇒⟹⟶➔]|(?<=\d)\s?!=", " = ", text))
    text = re.sub(r"(?:(?<=[A-Za-z])|(?<=[A-Za-z]\s))\^\s*[({]*-?\d+[)}]*", "", text)  # m^2
    text = DOLLARS_AND_CENTS.sub(lambda m: f"{m[1] or m[2]}.{int(m[3]):02d} dollars", MARKUP.sub(" ", text))
    text = re.sub(r"<\s*(-?\$?[\d.,]+)\s*>", r" \1 ", text)  # the prompt's <number>, taken at its word
    text = re.sub(r"(?:-\s*\$|\$\s*-)\s*(?=[\d.])", "-", text)
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
SCALE_RE = re.compile(rf"\s*({'|'.join(SCALES)})s?\b", re.I)
TEN_NAMES = "twenty thirty forty fifty sixty seventy eighty ninety"
WORD_VALUES = dict(zip(NUMBER_NAMES, range(20), strict=True))
WORD_VALUES |= dict(zip(TEN_NAMES.split(), range(20, 100, 10), strict=True))
NUMBER_WORD_RE = re.compile(rf"\b(?<!\bno )(?:{'|'.join([*WORD_VALUES, *SCALES])})\b", re.I)
CODE_RE = re.compile(r"[)\]]\s*[(\[]|\(\)|[A-Za-z]\((?!e?s\))|\blambda\b|\bif\b.{0,40}\belse\b|\*\*|\^.*\^|\d\s*\[")
BOUND_RE = re.compile(
    r"[<>]|!=|\b(?:more|less|fewer|greater|larger|smaller) than\s*\$?\s*-?\d|\b(?:between|either)\s+\$?-?[\d.]"
    r"|\bnot\s+-?\$?[\d.,]+(?![\d.,])\W*$",
    re.I,
)
MORE_RE = re.compile(r"\bor (?:more|less|fewer|greater|higher|lower|above|below|over|under)\b", re.I)
HEDGE_RE = re.compile(
    r"(?:\s+[A-Za-z]+){0,3}\s*(?:\b(?:to|and|through)\b|[,;&|/-]|\+/-)\s*(?:(?:or|and)\b\s*)?[a-z]?\s*[-$(]?\s*\.?\d"
    r"|\s+[-$]?\.?\d|\s*\+\s*$",
    re.I,
)
CLAUSE = (  # , which is 2 times 9
    r"(?<!and)(?<!so)[\s,(]\s*(?:because|since(?! (?:19|20)\d\d\b)|given (?:that|the))\b.*"
    r"|,\s*which (?:is|was|are|were|equals?|means|matches|includes|adds?)\b(?!.*=).*|,\s*where\b(?!.*\b(?:so|thus)\b).*"
    r"|,\s*(?:and |but )?not\s+\$?-?\d.*|,\s*as\b[^=]*=.*"
    r"|\s(?:is|are) the (?:number|amount|total|answer)\b.*"
)
ROUNDED_RE = re.compile(r"\bround(?:s|ed|ing)?\b[^.\d]{0,30}\bto\s+(?=\$?\d[\d,.]*+(?! decimal))", re.I)
CLAUSE_RE = re.compile(CLAUSE, re.I | re.S)
REMARK_RE = re.compile(rf"(?<=[\w%.])(?:\s+\((?![^()]*\)\s*/)[^()]*\))+\W*$|{CLAUSE}", re.I | re.S)  # (9 eggs at $2)
LEAD_RE = re.compile(
    r"(?<![\w.])(?:is|are|was|were|be|equals?|makes?|gives?|get|gets|answer)\b[:\s]*|(?<!\d):(?!\d)", re.I
)
START_RE = re.compile(
    r"[\s~=\[{'\"]*(?:(?:about|around|approximately|approx\.?|roughly|nearly|us|usd|rs\.?)\s*)?"
    r"(?=[-+]?\s*\(?\s*[-+]?\s*\.?\d)",
    re.I,
)
PART_NAMES = "half third quarter fifth sixth seventh eighth ninth tenth"
PARTS = dict(zip(PART_NAMES.split(), (Fraction(1, n) for n in range(2, 11)), strict=True))
PART_RE = re.compile(rf"\s+and\s+(?:a|one)\s+({'|'.join(PARTS)})\b", re.I)
SIGN_RE = re.compile(r"\s*([-+]?)\s*")
CLOSING_RE = re.compile(r"\s*\)")
MIXED_RE = re.compile(r"(?:\s+|-|\s+and\s+)(?:(\d{1,9})\s*/\s*(\d{1,9})|\((\d{1,9})\)/\((\d{1,9})\))(?![\d.,/]\d)")
POWER_RE = re.compile(r"\s*\^\s*[{(]?\s*(-?\d{1,3})(?!\d)\s*[})]?")
TIMES_RE = re.compile(r"\s*(?:([*×/])|\b[xX]\b|(?<=\d)[xX](?=\d))\s*(?=[-(]?\s*\.?\d)")
PLUS_RE = re.compile(r"\s*\+\s*(?=[-(]?\s*\.?\d)")
LAST_DIGIT_RE = re.compile(r"(?s).*\d")
DIGIT_RE = re.compile(r"\d")


class NotANumber(ValueError):
    """The text does not say one number."""


def _exact(token):
    """'1,234.50', '.5', '1.2e3' -> Fraction. Never float: 1000000.5 and 22090604 keep their last digit."""
    token = token.replace(",", "").replace(" ", "").lower()
    mantissa, _, exponent = token.partition("e")
    if exponent and abs(int(exponent)) > EXPONENT_LIMIT:
        raise NotANumber
    return Fraction(mantissa) * Fraction(10) ** int(exponent or 0)


def _factor(text, at):
    """A number, mixed number, power of a number or bracketed sum at `at`, with its sign -> (Fraction, end)."""
    sign = SIGN_RE.match(text, at)
    at = sign.end()
    if text.startswith("(", at):
        value, end = _sum(text, at + 1)
        bracket = CLOSING_RE.match(text, end)
        if not bracket:
            raise NotANumber
        end = bracket.end()
    else:
        value, end = _unsigned(text, at)
    return (-value if sign.group(1) == "-" else value), end


def _unsigned(text, at):
    number = NUMBER_RE.match(text, at)
    if not number:
        raise NotANumber
    value, end = _exact(number.group()), number.end()
    mixed, power = MIXED_RE.match(text, end), POWER_RE.match(text, end)
    if mixed and value.denominator == 1:
        above, below = (int(d) for d in mixed.groups() if d)
        if 0 < above < below:
            return value + Fraction(above, below), mixed.end()
    if power:
        exponent = int(power.group(1))
        if abs(exponent) > EXPONENT_LIMIT or len(str(value)) > 12 or (value == 0 and exponent < 0):
            raise NotANumber
        return value**exponent, power.end()
    return value, end


def _product(text, at):
    value, end = _factor(text, at)
    while True:
        operator = TIMES_RE.match(text, end)
        if not operator:
            return value, end
        right, end = _factor(text, operator.end())
        if sum(n.bit_length() for v in (value, right) for n in v.as_integer_ratio()) > BITS_LIMIT:
            raise NotANumber
        if operator.group(1) == "/":
            if right == 0:
                raise NotANumber
            value /= right
        else:
            value *= right


def _sum(text, at):
    """`at` must stand at a number; a minus between two numbers ends the sum, because 17-18 is a range."""
    if text.count("(") > 20:
        raise NotANumber
    value, end = _product(text, at)
    while plus := PLUS_RE.match(text, end):
        right, end = _product(text, plus.end())
        value += right
    return value, end


def _words_to_number(text):
    """'one hundred and twenty-five dollars' -> 125, 'two and a half' -> 5/2. Raises NotANumber without words."""
    first = NUMBER_WORD_RE.search(text)
    if not first or re.search(r"\bto\s+" + NUMBER_WORD_RE.pattern, text, re.I):
        raise NotANumber
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
            return _words_sign(text[: first.start()]) * (total + group) * PARTS[word.rstrip("s")]
        elif word != "and":
            break
    value = total + group + (PARTS[part.group(1).lower()] if part else 0)
    return Fraction(_words_sign(text[: first.start()]) * value)


def _words_sign(before):
    return -1 if re.search(r"\b(?:minus|negative)\s*$", before, re.I) else 1


def _same_alternatives(text):
    """'5/2 or 2.5' -> 5/2; '17 or 18' is a hedge."""
    if MORE_RE.search(text):
        raise NotANumber
    parts = [part for part in text.split(" or ") if DIGIT_RE.search(part) or NUMBER_WORD_RE.search(part)]
    values = {read_plain_number(part) for part in parts}
    if len(values) != 1:
        raise NotANumber
    return values.pop()


def _number_start(text):
    """Where the number that a marked answer means begins: the first of a line that starts with one, else the last."""
    start = START_RE.match(text)
    if start and not re.match(r"[^\d]*\d+(?:st|nd|rd|th)\b", text):
        return start.end()
    numbers = list(NUMBER_RE.finditer(text))
    if not numbers:
        raise NotANumber
    at = numbers[-1].start()
    sign = re.search(r"(?:^|[\s(:=~])(-|minus |negative )$", text[:at])
    return sign.start(1) if sign else at


def _result(text):
    """What stands after the last "=" that a number follows, with that "=" if it does so at once; without remarks."""
    remark = REMARK_RE.search(text)
    rounded = ROUNDED_RE.search(text)
    if rounded:
        text = text[rounded.end() :]
    elif remark and DIGIT_RE.search(text, 0, remark.start()):
        text = text[: remark.start()]
    parts = text.split("=")
    result = next((part for part in reversed(parts) if DIGIT_RE.search(part)), text)
    return "=" + result if len(parts) > 1 and START_RE.match(result) else result


def read_plain_number(text):
    """The one number that a marked answer says, exactly.

    Args: text: cleaned by plain_text. Returns a Fraction. Raises NotANumber for none, several, a bound, or code."""
    text = _result(text)
    if " or " in text:
        return _same_alternatives(text)
    if CODE_RE.search(text) or sum(map(text.count, "+*/×^")) > OPERATORS:
        raise NotANumber
    if not DIGIT_RE.search(text):
        return _words_to_number(text)
    if not text.startswith("="):  # = 12 days for it to be 600 inches
        last_digit = LAST_DIGIT_RE.match(text).end() - 1
        text = text[max((lead.end() for lead in LEAD_RE.finditer(text, 0, last_digit)), default=0) :]
    if BOUND_RE.search(text):
        raise NotANumber
    text = re.sub(r"^\s*(?:minus|negative)\s+(?=\d)", "-", text, flags=re.I)
    at = _number_start(text)
    value, end = _sum(text, at)
    part = PART_RE.match(text, end)
    if part:
        return value + (PARTS[part.group(1).lower()] if value >= 0 else -PARTS[part.group(1).lower()])
    if HEDGE_RE.match(text, end) or re.search(r"\d\s*(?:to|-)\s*$", text[:at]):
        raise NotANumber
    scale = SCALE_RE.match(text, end)
    return value * SCALES[scale.group(1).lower()] if scale else value


def read_number(answer):
    r"""The number that a raw answer says: '$1,234.50', 'x = 18 cm', 'eighteen', '\frac{1}{2}', '\sqrt{324}'.

    Returns an exact Fraction, or None when the answer does not say exactly one rational number."""
    text = plain_text(answer)
    try:
        if re.search(r"\\[A-Za-z]", text):
            value = formula_value(tidy(answer).rpartition("=")[2], 0)
            return value if isinstance(value, Fraction) and not re.search(r"(?<!\\)\b[a-z]\b", tidy(answer)) else None
        return read_plain_number(text)
    except (ValueError, ArithmeticError, RecursionError):  # NotANumber, and what formula_value raises
        return None
