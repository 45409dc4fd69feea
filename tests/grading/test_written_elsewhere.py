r"""Numbers and solution sets as people elsewhere write them: 1.234.567, 3.5k, 0.(3), x < 1 or x > 2.

What is written is made here from exact values by rules of its own (slices, long division, membership of points)."""

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from grading import grade, parse_gold, verdict
from tests.grading.tables import IN_A_SENTENCE, TABLES

CASES = [
    (gold, kind, answer, correct)
    for gold, kind, right, wrong in TABLES
    for correct, answers in ((True, right), (False, wrong))
    for answer in answers
]


@pytest.mark.parametrize(("gold", "kind", "answer", "correct"), CASES)
def test_answers_as_written_elsewhere(gold, kind, answer, correct):
    completion = f"\\boxed{{{answer}}}" if kind == "latex" else f"#### {answer}"
    assert grade(completion, gold, kind).correct is correct


@pytest.mark.parametrize(("completion", "gold", "correct"), IN_A_SENTENCE)
def test_sentences_as_written_elsewhere(completion, gold, correct):
    assert grade(completion, gold).correct is correct


@pytest.mark.parametrize(
    ("answer", "gold", "rule"),
    [
        ("17 or 18", "18", "####, not read"),
        ("1,23,4", "1234", "####, not read"),
        ("5'6\"", "5", "####, not read"),
        ("3.14159...", "3.14", "####, not read"),
        ("8 or 40", "8; 40", "####, not read"),
        ("none", "3:4", "####, not read"),
        ("17", "18", "####"),
        ("8 and 41", "8; 40", "####"),
        ("4:3", "3:4", "####"),
        ("18", "18", "####"),
    ],
)
def test_what_cannot_be_read_says_so(answer, gold, rule):
    assert grade(f"#### {answer}", gold).rule == rule


# ---- thousands marks


def grouped(digits, mark):
    """'1234567' -> '1.234.567'"""
    first = len(digits) % 3 or 3
    return mark.join([digits[:first], *(digits[i : i + 3] for i in range(first, len(digits), 3))])


MARKS = st.sampled_from([",", " ", "'", "_", ".", "\u202f", "\u2019"])
DECIMAL_MARKS = {",": ".", " ": ",", "'": ".", "_": ".", ".": ",", "\u202f": ",", "\u2019": ","}


@given(st.integers(1000, 10**15), MARKS, st.sampled_from(["####", "so it makes", "The answer is"]))
def test_groups_of_digits_are_one_number(number, mark, lead):
    written = grouped(str(number), mark)
    assume(mark != "." or written.count(".") > 1)
    completion = f"{lead} {written}"
    assert grade(completion, str(number)).correct
    for part in {written.split(mark)[0], written.split(mark)[-1], written.partition(mark)[2]} - {str(number)}:
        assert not grade(completion, str(int(part.replace(mark, "")))).correct
    assert not grade(completion, str(number + 1)).correct


@given(st.integers(1000, 10**9), st.text("0123456789", min_size=1, max_size=4), MARKS)
def test_a_decimal_mark_is_told_from_a_thousands_mark(number, decimals, mark):
    written = f"{grouped(str(number), mark)}{DECIMAL_MARKS[mark]}{decimals}"
    exact = f"{number}.{decimals}"
    assert grade(f"#### {written}", exact).correct
    assert grade(f"#### {written}", str(number)).correct == (int(decimals) == 0)


# ---- decimals that repeat


def long_division(numerator, denominator):
    """1/6 -> ('0', '1', '6'): the whole part, the digits that do not repeat, and those that do ('' if none)."""
    whole, rest = divmod(numerator, denominator)
    digits, seen = "", {}
    while rest and rest not in seen:
        seen[rest] = len(digits)
        digit, rest = divmod(10 * rest, denominator)
        digits += str(digit)
    begin = seen[rest] if rest else len(digits)
    return str(whole), digits[:begin], digits[begin:]


FORMS = [
    "{0}.{1}({2})", "{0},{1}({2})", "{0}.{1}\\overline{{{2}}}", "${0}.{1}\\bar{{{2}}}$", "{0}.{1}{2}{2}{2}...",
    "{0}.{1}{2}{2}\u2026", "{0}.{1}{2}{2}\\ldots", "{0}.{1}{2}{2} repeating", "{0}.{1}({2}{2})",
]  # fmt: skip


@given(
    st.integers(1, 400), st.sampled_from([3, 6, 7, 9, 11, 12, 13, 15, 22, 30, 37, 41, 75, 99]), st.sampled_from(FORMS)
)
def test_repeating_decimals_are_exact(numerator, denominator, form):
    whole, fixed, block = long_division(numerator, denominator)
    assume(block)
    written = form.format(whole, fixed, block)
    gold = f"{numerator}/{denominator}"
    assert grade(f"#### {written}", gold).correct
    assert grade(f"\\boxed{{{written}}}", f"\\frac{{{numerator}}}{{{denominator}}}", "latex").correct or "," in form
    cut_off = f"{whole}.{fixed}{block}"
    if abs(Fraction(cut_off) - Fraction(gold)) > Fraction(1, 10**6):
        assert not grade(f"#### {written}", cut_off).correct


# ---- unions


@st.composite
def unions(draw):
    """Disjoint intervals [(low, whether it belongs, high, whether it belongs)], None for infinity."""
    ends = sorted(draw(st.sets(st.integers(-9, 9), min_size=4, max_size=4)))
    low, high = draw(st.booleans()), draw(st.booleans())
    closed = draw(st.lists(st.booleans(), min_size=4, max_size=4))
    first = (None if low else ends[0], closed[0] and not low, ends[1], closed[1])
    second = (ends[2], closed[2], None if high else ends[3], closed[3] and not high)
    return draw(st.permutations([first, second]))


def as_interval(low, has_low, high, has_high):
    left = "-\\infty" if low is None else str(low)
    right = "\\infty" if high is None else str(high)
    return f"{'[' if has_low else '('}{left}, {right}{']' if has_high else ')'}"


def as_inequality(low, has_low, high, has_high):
    below = "x \\le" if has_high else "x <"
    above = "x \\ge" if has_low else "x >"
    if low is None:
        return f"{below} {high}"
    if high is None:
        return f"{above} {low}"
    return f"{low} {'<=' if has_low else '<'} {below} {high}"


def contains(union, point):
    def within(low, has_low, high, has_high):
        above = low is None or point > low or has_low and point == low
        below = high is None or point < high or has_high and point == high
        return above and below

    return any(within(*interval) for interval in union)


FORMS_OF_A_UNION = [
    lambda union: " \\cup ".join(as_interval(*part) for part in union),
    lambda union: "x \\in " + " \\cup ".join(as_interval(*part) for part in union),
    lambda union: " \\text{ or } ".join(as_inequality(*part) for part in union),
    lambda union: " \\text{ or } ".join("x \\in " + as_interval(*part) for part in union),
    lambda union: "\\{x \\mid " + " \\text{ or } ".join(as_inequality(*part) for part in union) + "\\}",
]


@given(unions(), unions(), st.booleans(), st.sampled_from(FORMS_OF_A_UNION))
def test_unions_agree_with_the_points_that_they_hold(union, other, same, form):
    """Decided here: no question to math-verify, whatever the form of the answer."""
    answered = union if same else other
    points = [Fraction(n, 2) for n in range(-25, 26)]
    equal = [contains(union, point) for point in points] == [contains(answered, point) for point in points]
    gold = parse_gold(" \\cup ".join(as_interval(*part) for part in sorted(union, key=repr)), "latex")
    assert verdict._settle(f"\\boxed{{{form(answered)}}}", gold).correct is equal


@given(st.sets(st.integers(-20, 20), min_size=2, max_size=4), st.sets(st.integers(-20, 20), min_size=2, max_size=4))
def test_solutions_joined_by_or_are_a_set(numbers, others):
    listed = ", ".join(map(str, sorted(numbers)))
    for answered in (numbers, others):
        named = [f"x = {n}" for n in answered]
        for form in (" or ".join(named), "x \\in \\{" + ", ".join(map(str, answered)) + "\\}"):
            assert grade(f"\\boxed{{{form}}}", listed, "latex").correct is (answered == numbers)
            assert grade(f"#### {form}", listed.replace(",", ";"), "numbers").correct is (answered == numbers)
            assert not grade(f"#### {form}", str(max(answered)), "integer").correct
