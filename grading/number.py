r"""Read the one number that an answer says, exactly: '$1,234.50', 'x = 18 cm', 'eighteen', '9*2', '\frac{1}{2}'.

Text is read by the small parser here, never evaluated, and is at most ANSWER_CHARS long."""

import re
from fractions import Fraction

from .text import ANSWER_CHARS, clean

BITS_LIMIT = 4_000  # of a product; a sum is bounded by the length of its text
TOLERANCE = Fraction(1, 10**6)  # for an answer to a gold that is no integer

NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
).split()
WORD_VALUES = {name: n if n < 20 else 10 * (n - 18) for n, name in enumerate(NAMES)}
ZEROS = dict(hundred=2, thousand=3, lakh=5, lac=5, million=6, crore=7, billion=9, milliard=9, trillion=12)
SCALES = {name: 10**zeros for name, zeros in ZEROS.items()}
SHORT = {"thousand": "k K", "million": "M MM mn mln mil mio Mio", "billion": "B bn bln", "trillion": "T tn"}
SHORT_SCALES = {short: scale for scale, names in SHORT.items() for short in names.split()}  # 5 M, but 5 m are metres
PART_VALUES = {f"{name}th": n for name, n in WORD_VALUES.items() if n > 3}
PART_VALUES |= dict(half=2, halve=2, third=3, quarter=4, fifth=5, eighth=8, ninth=9, twelfth=12)

# ---- what a number looks like

GROUPS = r"[1-9]\d{0,2}(?P<mark>,\ ?|[ '_])\d{3}(?:(?P=mark)\d{3})*(?!\d)"  # 1,234  1, 234  1 234  1'234  1_234
POINTS = r"[1-9]\d{0,2}(?:(?:\.\d{3}){2,}(?![.\d])|(?:\.\d{3})+(?=,\d))"  # 1.234.567  1.234,5
LAKHS = r"[1-9]\d?(?:,\d\d)+,\d{3}(?!\d)"  # 12,34,567
COMMA = r",(?<!,\d{3},)(?<!, \d{3},)(?:(?!\d{3}(?!\d))|(?<=[. '_]\d{3},)|(?<=(?<!\d)0,))"  # 2,74  1.234,567  0,234
WHOLE = rf"(?P<whole>{GROUPS}|{POINTS}|{LAKHS}|\d+)"
NOT_BEFORE = r"(?<![\d.])(?<!\d[,:_'])"  # the end of 1.2, 1,2, 1:2
NOT_AFTER = r"(?![.,:_']?\d|[A-Za-z]{1,4}\d|[ij]\b|\.\.)"  # 1.2.3, 5'6, 0x12, 18i, 18...
EXPONENT = r"(?P<exponent>[eE][+-]?[12]?\d{1,2}(?!\w))"  # 1.2e3, at most e299: keeps exact numbers small
NUMBER = rf"{NOT_BEFORE}(?:{WHOLE}(?:(?:\.|{COMMA})(?P<decimals>\d+))?|\.(?P<only>\d+)){EXPONENT}?{NOT_AFTER}"
NUMBER_RE = re.compile(rf"(?:(?<![^\s(:=~])- ?)?{NUMBER}")  # with its minus, if that is none between two numbers
FACTOR_RE = re.compile(rf"\s*(?P<sign>[-+]?)\s*{NUMBER}")
SIMPLE_RE = re.compile(r"\s*\$?\s*(-?\d{1,300})(?:\.0{0,9})?\s*")  # nearly all real answers: 18, $18.00
WORD = rf"\b(?<!\bno )(?:{'|'.join([*WORD_VALUES, *SCALES])})\b"
WORDS_RE = re.compile(rf"(?<!\d ){WORD}(?:(?:[\s-]|\sand\s)+{WORD})*", re.I)  # one hundred and twenty-five
SCALE_RE = re.compile(rf"[\s-]*({'|'.join(SCALES)})s?\b", re.I)
SHORT_SCALE_RE = re.compile(rf"(?<=\d)\s?({'|'.join(SHORT_SCALES)})(?![\w&]|[-.][A-Za-z])")  # no T-shirts
PORTION = rf"\s+(?:of\s+(?:an?\s+|the\s+)?|an?\s+)(?:\d|(?:{'|'.join(SCALES)})s?\b)"  # half a million, half of 18
PART = rf"({'|'.join(PART_VALUES)})s?\b"
PART_RE = re.compile(rf"(?<!\d[ -])\b(?:({WORD}(?:[\s-]+{WORD})*|an?)[\s-]+)?{PART}(?!{PORTION})", re.I)  # two thirds
DIGIT_RE = re.compile(r"\d")

MEMBER_RE = re.compile(r"^[^\\]{0,20}\\in\b")  # x \in
SLASH_RE = re.compile(r"\\frac\s*\{\s*(-?[\d.]+)\s*\}\s*\{\s*([\d.]+)\s*\}")  # \frac{1}{2}
BRACKETED_RE = re.compile(r"((?:^|[-+*/=~])\s*)\(\s*([-+]?\s*[\d.,]+(?:\s*/\s*\d+)?)\s*\)")  # (-5), -(1/3)
UNIT_POWER_RE = re.compile(r"(?<=[A-Za-z])\s?\^\s*[({]*-?\d+[)}]*")  # m^2
MIXED_RE = re.compile(r"(?:\s+|-|\s+and\s+)(\d{1,9})\s*/\s*(\d{1,9})(?![\d.,/]\d)")  # 2 1/2
POWER_RE = re.compile(r"\s*\^\s*\{?\s*(-?\d+)\s*\}?")
TIMES_RE = re.compile(r"\s*(?:([*/])|\b[xX]\b|(?<=\d)[xX](?=\d))\s*(?=-?\s*\.?\d)")
PLUS_RE = re.compile(r"\s*\+\s*(?=-?\s*\.?\d)")

# ---- what is said around it

CODE_RE = re.compile(r"[)\]]\s*[(\[]|\(\)|[A-Za-z]\((?!e?s\))|\blambda\b|\bif\b.{0,40}\belse\b|\*\*|\^.*\^|\d\s*\[")
MORE = r"(?:more|less|fewer|greater|larger|smaller|higher|lower|above|below|over|under)\b"
COMPARED = rf"\b(?:or {MORE}|{MORE} than\s*-?\d|(?:between|either)\s+-?[\d.])"
BOUND = rf"[<>≠]|{COMPARED}|\b(?:at (?:least|most)|up to)\b|\b(?:not|except)\s+-?[\d.,]+\W*$"
BOUND_RE = re.compile(rf"{BOUND}|\b{PART}{PORTION}", re.I)
JOINT = r"(?:\b(?:to|and|through)\b|[,;&|/*+-]|\+/-)\s*(?:(?:or|and)\b\s*)?"  # 17 to 18, 17 boys and 18 girls
ANOTHER = rf"(?:\s+[A-Za-z]+){{0,3}}\s*{JOINT}[a-z]?\s*[-(]?\s*\.?\d|\s+-?\.?\d|\.?\(\s*-?\.?\d"
SMALLER = r"\s+(?!(?:in|of|out|per|for|from|at|by|on|with|after|x)\b)[A-Za-z]+\.?\s+\d"  # 3 hours 20 minutes
HEDGE_RE = re.compile(rf"{ANOTHER}|{SMALLER}|\s*[+*/^]\s*$", re.I)
WHICH = r"which (?:is|was|are|were|equals?|means)\b(?!.*=)"  # 18, which is 2 times 9
REASON = rf"[\s,(]\s*(?:because|since|given)\b|,\s*(?:{WHICH}|as\b[^=]*=)"
CLAUSE = rf"(?:{REASON}|,\s*(?:and |but )?not\s+-?\d|\s(?:is|are) the (?:number|amount|total|answer)\b).*"
BRACKETS = r"(?:\s+\((?![^()]*\)\s*/)[^()]*\))+\W*$"  # 18 dollars (9 eggs at $2)
REMARK_RE = re.compile(rf"(?<=[\w%.]){BRACKETS}|{CLAUSE}", re.I | re.S)
LEAD_RE = re.compile(r"(?<![\w.])(?:is|are|was|were|be|equals?|makes?|gives?|gets?)\b[:\s]*|(?<!\d):(?!\d)", re.I)
ABOUT = r"(?:(?:about|around|approximately|roughly|nearly|usd?)\s+)?"
SOLUTIONS_RE = re.compile(r"=[^=]*(?:,|;|\bor\b|\band\b)\s*(?:(?:or|and)\s+)?[A-Za-z][\d_]{0,3}\s*=")  # x = 1 or x = 2
START_RE = re.compile(rf"[\s=~\[{{'\"]*{ABOUT}(?=[-+(\s]*\.?\d)(?!\D*\d+(?:st|nd|rd|th)\b)", re.I)  # but 2nd: 18


def plain_text(text):
    """An answer with fractions as a/b, results after an =, and no unit's power: ready for read_plain_number."""
    text = clean(text)
    if "\\" in text:
        text = SLASH_RE.sub(r" \1/\2", text).replace("\\to", "=")
        text = MEMBER_RE.sub("", text).replace("\\{", "{").replace("\\}", "}")
    text = BRACKETED_RE.sub(r"\1\2", UNIT_POWER_RE.sub("", text.replace("<=", "<").replace(">=", ">")))
    return " ".join(text.split())


def says_number(text):
    """Whether there is a digit or a number word in a text."""
    return bool(DIGIT_RE.search(text) or WORDS_RE.search(text))


def same_number(value, gold):
    """Integers exactly; anything else within 1e-6, of its size where that is below 1."""
    if gold.denominator == 1:
        return value == gold
    return abs(value - gold) <= TOLERANCE * min(1, abs(gold))


def _sum(text, at):
    """(value, end) of the sum at `at`; a minus between two numbers ends it, because 17-18 is a range."""
    value, at = _product(text, at)
    while plus := PLUS_RE.match(text, at):
        right, at = _product(text, plus.end())
        value += right
    return value, at


def _product(text, at):
    """(value, end) of factors in a row; a scale word is a factor, too: 2 hundred thousand, 1/2 million."""
    value, at = _factor(text, at)
    while operator := SCALE_RE.match(text, at) or TIMES_RE.match(text, at):
        if operator.re is SCALE_RE:
            right = Fraction(SCALES[operator[1].lower()])
            at = operator.end()
        else:
            right, at = _factor(text, operator.end())
        if sum(n.bit_length() for v in (value, right) for n in v.as_integer_ratio()) > BITS_LIMIT:
            raise ValueError("a number of too many digits")
        value = value / right if operator[1] == "/" else value * right
    return value, at


def _factor(text, at):
    """A number, mixed number or power of a number, with its sign."""
    number = FACTOR_RE.match(text, at)
    if not number:
        raise ValueError("no number here")
    whole = re.sub(r"\D", "", number["whole"] or "0")
    decimals = number["decimals"] or number["only"] or "0"
    value = Fraction(f"{whole}.{decimals}{number['exponent'] or ''}")
    at = number.end()
    mixed = MIXED_RE.match(text, at)
    power = POWER_RE.match(text, at)
    if mixed and value.denominator == 1 and 0 < int(mixed[1]) < int(mixed[2]):
        value += Fraction(int(mixed[1]), int(mixed[2]))
        at = mixed.end()
    elif power:
        if len(power[1]) > 3 or len(str(value)) > 12:
            raise ValueError("a power of too many digits")
        value **= int(power[1])
        at = power.end()
    return (-value if number["sign"] == "-" else value), at


def _in_digits(words):
    """A match of WORDS_RE in digits: 'one hundred and twenty-five' -> '125'."""
    total = group = 0
    for word in re.findall("[a-z]+", words.group().lower()):
        if word == "hundred":
            group = (group or 1) * 100
        elif word in SCALES:
            total += (group or 1) * SCALES[word]
            group = 0
        else:
            group += WORD_VALUES.get(word, 0)
    return str(total + group)


def _part(found):
    """A match of PART_RE as a fraction: 'two thirds' -> '2/3', 'half' and 'a half' -> '1/2'."""
    count, name = found.groups()
    count = WORDS_RE.sub(_in_digits, count) if count and WORDS_RE.search(count) else "1"
    return f"{count}/{PART_VALUES[name.lower()]}"


def without_remark(text):
    """A text up to the remark that ends it: '9, which is half of 18' -> '9'."""
    remark = REMARK_RE.search(text)
    return text[: remark.start()] if remark and DIGIT_RE.search(text, 0, remark.start()) else text


def _result(text):
    """What stands after the last "=" that a number follows, with that "=" if it does so at once; without remarks."""
    parts = without_remark(text).split("=")
    result = next((part for part in reversed(parts) if DIGIT_RE.search(part)), parts[-1])
    return "=" + result if len(parts) > 1 and START_RE.match(result) else result


def read_plain_number(text):
    """The one number that a plain_text says, a Fraction. Raises ValueError for none, several, a bound, or code."""
    if SOLUTIONS_RE.search(text):
        raise ValueError("several solutions")
    text = _result(text)
    alternatives = [part for part in text.split(" or ") if says_number(part)]
    if len(alternatives) > 1:
        [value] = {read_plain_number(part) for part in alternatives}  # 5/2 or 2.5; 17 or 18 is a ValueError
        return value
    if CODE_RE.search(text) or re.search(r"\\[A-Za-z]", text):
        raise ValueError("code or a formula")
    in_words = not DIGIT_RE.search(text)
    text = PART_RE.sub(_part, text)
    text = SHORT_SCALE_RE.sub(lambda short: f" {SHORT_SCALES[short[1]]}", text)
    if in_words:
        text = WORDS_RE.sub(_in_digits, text)
    if not text.startswith("="):  # = 12 days for it to be 600 inches
        text = next((part for part in reversed(LEAD_RE.split(text)) if DIGIT_RE.search(part)), text)
    if BOUND_RE.search(text):
        raise ValueError("a bound")
    start = START_RE.match(text)  # else the last number
    at = start.end() if start else max((number.start() for number in NUMBER_RE.finditer(text)), default=len(text))
    value, end = _sum(text, at)
    if HEDGE_RE.match(text, end) or re.search(r"\d\s*(?:to|-)\s*$", text[:at]):
        raise ValueError("a range, or one number of several")
    return value


def read_number(answer):
    r"""The number that a raw answer says, exactly; None when it does not say exactly one rational number."""
    if simple := SIMPLE_RE.fullmatch(answer):  # same as the long way
        return int(simple.group(1))
    try:
        return read_plain_number(plain_text(answer[:ANSWER_CHARS]))
    except (ValueError, ArithmeticError):  # no number, a division by zero
        return None


def read_exactly(text):
    """The value of a text that is one number, fraction, sum or product and nothing else; None for any other text."""
    text = SLASH_RE.sub(r" \1/\2", text)
    try:
        value, end = _sum(text, 0)
        return value if end == len(text) else None
    except (ValueError, ArithmeticError):
        return None
