"""The grader: tables of answers and verdicts, properties over arbitrary text, and the worker processes.

HYPOTHESIS_PROFILE=nightly runs each property on 100,000 examples."""

import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import maths_rewards
from grading import GRADER_VERSION, KINDS, Grade, grade, grade_batch, parse_gold, verdict, vote, worker
from grading.answer import extract_answer
from grading.latex import normal_form, same_latex
from grading.number import SIMPLE_RE, plain_text, read_number, read_plain_number
from grading.text import ANSWER_CHARS
from grading.worker import ask_math_verify
from maths_rewards import accuracy_reward, format_reward
from tests.grading.tables import TABLES

ROOT = os.path.dirname(os.path.abspath(maths_rewards.__file__))


def is_right(completion, gold, kind=None):
    return grade(completion, gold, kind).correct


# ---- tables

RIGHT_NUMBERS = [
    ("18", ["18", " 18\t", "18.", "$18", "£18", "18€", "18 USD", "18.00", "018", "18kg", "18 (apples)", "$18/hour"]),
    ("18", ["**18**", "`18`", "<answer>18</answer>", "\\boxed{18}", "$\\boxed{18}$", "\\[18\\]", "\\text{18 cm}",
     "18°C"]),
    ("18", ["x = 18", "9*2", "9*2 = 18", "2 × 9 = 18 apples", "36/2", "\\frac{36}{2}", "The answer is 18"]),
    ("18", ["about 18", "~18", "eighteen", "18 m^2", "18 cm²", "18 out of 20", "She makes $18 every day.",
     "18 cents"]),
    ("18", ["18 dollars (9 eggs at $2)", "18, which is 2 times 9", "18 since 9 * 2 = 18", "18 or 18.0", "9 * 2",
     "9 eggs -> 18 dollars", "2(9) = 18", "\\underline{18}", "the difference between 20 and 2 is 18"]),
    ("18", ["54 - 36 → 18", "180/10 = 18 days for it to be 600 inches", "18, not 20", "18, as 9 * 2 = 18",
     "18 miles between his first and second stop"]),
    ("18", ["9, which is 9 * 2 = 18", "5! - 102 = 18", "18 boxes of either size"]),
    ("-18", ["minus eighteen", "negative 18"]),
    ("60", ["60 minutes in 1 hour", "60 minutes (1 hour)", "1 hour = 60 minutes"]),
    ("1234", ["1,234", "1 234", "1, 234", "1,234.00", "1\xa0234", "1{,}234", "1\\,234", "$1,234", "１２３４", "١٢٣٤"]),
    ("3000000", ["$3 million", "3,000,000", "3e6", "3 x 10^6", "3 \\times 10^6", "3×10⁶", "three million"]),
    ("0.75", ["3/4 or 0.75", "3/4", "¾", "\\frac34", "\\dfrac{3}{4}", ".75", "0.750", "75e-2"]),
    ("-1.5", ["-1 1/2", "-3/2", "−1.5", "\\frac{-3}{2}", "-$1.50", "minus 1.5"]),
    ("2.5", ["2½", "2 1/2", "2 and a half", "two and a half", "2\\frac{1}{2}"]),
    ("25", ["25%", "25 percent", "25\\%"]),
    ("8; 40", ["8, 40", "40 and 8", "(8, 40)", "x = 8, y = 40", "8 ft and 40 ft^2", "$8 & $40"]),
    ("8; 40", ["- width: 8 m\n- length: 40 m", "8 m by 40 m", "8 x 40"]),
    ("336; 144", ["336,144", "336 and 144"]),
    ("3:30 p.m.", ["3:30 PM", "3:30", "15:30", "at 3:30 p.m.", "2:00 + 90 minutes = 3:30",
     "15:30 p.m.", "3:30 p.m. (90 minutes after 2:00)"]),
    ("6:01:00 p.m.", ["6:01 p.m.", "18:01"]),
    ("3:4", ["3:4", "3 to 4", "3 : 4", "3/4", "\\frac{3}{4}", "15:20 = 3:4", "3 boys to 4 girls"]),
    ("Bryan", ["Since 50 > 20, Bryan has more.", "So Bryan", "Bryan's"]),
    ("Lisa's soccer team", ["Lisa's team", "Lisa", "So Lisa's soccer team is.", "The answer is Lisa's soccer teams"]),
    ("Mrs. Hilt", ["Mrs. Hilt", "mrs hilt", "The answer is Mrs. Hilt.", "**Mrs. Hilt**"]),
    ("Yes", ["Yes, she can.", "YES"]),
    ("The 60th caller.", ["60th caller", "the 60th caller", "60"]),
]  # fmt: skip
WRONG_NUMBERS = [
    ("18", ["17 or 18", "17-18", "18, 19", "18 and 19", "18 19", "18±1", ">18", "x \\geq 18", "more than 18",
     "not 18"]),
    ("4.5", ["2 5/2"]),
    ("8; 40", ["1/0, 40", "0^-1, 40"]),
    ("soccer team", ["team"]),
    ("18", ["either 18 or 19", "18 or about 19"]),
    ("18", ["18 or more", "9, not 18", "9 → 8", "18 = 9", "She sells 18 eggs, which gives her $36"]),
    ("Bryan", ["Ann beat Bryan", "Ben, who is Bryan's brother", "Bryan or Ben", "Ben"]),
    ("18", ["9 (9 * 2 = 18)", "9, which is half of 18", "18 or 9", "between 17 and 18"]),
    ("18", ["18.5", "18.000001", "180", "1", "-18", "18 million", "18_000", "18:00", "18i", "18j", "0x12", "0b10010"]),
    ("18", ["", "N/A", "nan", "inf", "-Infinity", "1e999999999", "18/0", "\\boxed{}", "no answer",
     "eighteen or nineteen"]),
    ("18", ["int('18')", "(lambda:18)()", "[18][0]", "18 if 1 else 0", "9**9**9**9", "9^9^9^9", "factorial(10**7)"]),
    ("1234", ["1,23,4", "12,34", "1.234", "1,2,3,4"]),
    ("22090603", ["22090604", "22090603.5"]),
    ("0.33", ["0.333333", "1/3"]),
    ("0.2", ["20%"]),
    ("1", ["100%", "no one knows", "none", "1_000"]),
    ("324", ["√324", "\\sqrt{324}"]),
    ("2", ["2 and a half", "1/2", "two and a half", "3 - 1"]),
    ("8; 40", ["8", "40", "8, 40, 5", "8, 8", "8 or 40"]),
    ("3:30 p.m.", ["3:30 a.m.", "3:31 p.m.", "3.30", "30"]),
    ("3:4", ["4:3", "3", "4", "1 3/4", "3:4.5", "13:4", "3:4 = 15:25"]),
    ("Rug B", ["Rug A", "Rug", "Rug B or Rug A", "B", "Rug B/Rug A"]),
    ("Lisa's soccer team", ["Susan's soccer team", "soccer team", "Lisa ate"]),
    ("Yes", ["No", "Yes or no"]),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), [(gold, a) for gold, answers in RIGHT_NUMBERS for a in answers])
def test_right_answers(gold, answer):
    marker = "#### " if "\n" not in answer else "In the end:\n"
    assert is_right(f"3 and 4 make 7.\n{marker}{answer}", gold)


@pytest.mark.parametrize(("gold", "answer"), [(gold, a) for gold, answers in WRONG_NUMBERS for a in answers])
def test_wrong_answers(gold, answer):
    assert not is_right(f"#### {answer}", gold)


LATEX = [
    (r"\frac{14}{3}", [r"14/3", r"4\frac{2}{3}", "4 2/3", r"\frac{28}{6}", r"\dfrac{14}{3}\text{ cm}", "4.666666667"]),
    (r"3\sqrt{13}", [r"\sqrt{117}", "3*sqrt(13)",
     r"3 \cdot \sqrt{13}", r"x = 3\sqrt{13}", "3√13", r"3*13^{1/2}"]),
    (r"6 - 5i", ["-5i+6", "6-5i"]),
    (r"1 \pm \sqrt{19}", [r"1+\sqrt{19}, 1-\sqrt{19}", r"x = 1 \pm \sqrt{19}", r"\{1-\sqrt{19}, 1+\sqrt{19}\}"]),
    (r"(3,4]", [r"3 < x \le 4", r"x \in (3, 4]", r"\left(3,4\right]"]),
    (r"(-\infty, 2) \cup (3, \infty)", [r"(3,\infty)\cup(-\infty,2)"]),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", [r"\begin{bmatrix}0.2\\[4pt]-\frac{18}{5}\end{bmatrix}"]),
    (r"\text{(C)}", ["C", r"\text{C}", "(C) 12"]),
    (r"\text{Evelyn}", ["Evelyn", r"\textbf{evelyn}"]),
    (r"90^\circ", ["90", "90 degrees", r"\angle ABC = 90^{\circ}"]),
    (r".0000672", [r"6.72 \times 10^{-5}", "0.0000672", "6.72e-5"]),
    (r"15\mbox{ cm}^2", ["15", "15 cm^2", r"15\,\text{cm}^2"]),
    (r"5x - 7y + 11z + 4 = 0", ["-5x+7y-11z-4=0", "10x-14y+22z=-8"]),
    (r"y = 2x + 3", ["2x+3", "y-2x=3", "y=3+2x"]),
    (r"\cot x", [r"\frac{\cos x}{\sin x}", r"\frac{1}{\tan x}"]),
    (r"3, 5, 7", ["7, 5, 3", "3; 5; 7", r"\{3,5,7\}", "x=3, x=5, x=7", r"3, 5,\text{ and }7"]),
    (r"(6,31,-1)", ["[6,31,-1]", r"\langle 6,31,-1 \rangle", "(a,b,c) = (6,31,-1)", "6, 31, -1", "a=6, b=31, c=-1"]),
    (r"52_8", ["52", "52_{8}", "(52)_8", r"52\text{ (base 8)}", "52 base 8", "52₈",
     "42_{10} = 52_8"]),
    (r"58,500", ["58500", r"58,\!500", "58 500"]),
    (r"\$18.90", ["18.9", r"\$18.90", "18.90 dollars"]),
    (r"50\%", ["50", r"50\%", "50 percent"]),
    (r"x^5 - x^4 + x^3 - x^2 + x - 1", ["(x-1)(x^4+x^2+1)"]),
    (r"\frac{n(n+1)}{2}", [r"\frac{n^2+n}{2}", r"\frac12 n(n+1)"]),
    (r"18", ["f(3) = 18", "a + b = 18", "|z| = 18", "a_{n+1} = 18", r"\sin x + y = 18", r"18 \pmod{23}",
     "17 + 1 = 18"]),
    (r"18", [r"x + 2 = 20 \implies x = 18", r"P(X > 3) = 18", "2x + 3 = 2(7.5) + 3 = 18", r"\sin 2x = 18",
     r"f(f(3)) = 18", r"x_1 + x_2 = 18", r"\alpha + \beta = 18"]),
    (r"[1,3]", [r"1 \le x \le 3", r"x \in [1,3]"]),
    (r"[3,\infty)", [r"x \geq 3", r"[3, +\infty)", "[3, infinity)"]),
    (r"28", [r"{8 \choose 2}", r"\binom{8}{2}", "28 = x", r"x \equiv 28 \pmod{30}"]),
    (r"120", ["5!=120", "5! = 120"]),
    (r"-5", [r"\text{minus } 5"]),
    (r"\emptyset", [r"\{\}", r"\varnothing"]),
    (r"(-\infty,-2) \cup (2,\infty)", [r"(-\infty,-2), (2,\infty)",
     r"x \in (-\infty,-2) \text{ or } x \in (2,\infty)"]),
    (r"\mathbb{R}", [r"(-\infty, \infty)"]),
    (r"2(k + 1)", ["(-k + 4) + (3k - 2) = 2k + 2", r"\underline{2k+2}"]),
    (r"(2,\infty)", ["x > 2", r"\{x \mid x > 2\}", r"\{x \in \mathbb{R} : x > 2\}", "f(x) > 2",
     r"f(x) \in (2, \infty)"]),
    (r"(1,2)", ["x = 1, y = 2", "y = 2, x = 1", r"P = (1, 2)"]),
    (r"12\pi", ["12π inches per second", r"12\pi\text{ cm}", r"12 \pi cm^2"]),
    (r"\frac{1}{6}", [r"{1 \over 6}"]),
    (r"\frac{20000}{\pi}", [r"\frac{20,000}{\pi}"]),
    (r"18", [r"\text{eighteen}", "n = 18", r"3 \times 6 = 18", "18 square units", r"\approx 18"]),
]  # fmt: skip
WRONG_LATEX = [
    (r"\frac{14}{3}", ["4.67", "4.6667", r"\frac{3}{14}", "14", "3"]),
    (r"3\sqrt{13}", ["10.8167", "3", "13", r"3\sqrt{31}"]),
    (r"6 - 5i", ["6+5i", "6", "5"]),
    (r"1 \pm \sqrt{19}", [r"1+\sqrt{19}", r"1-\sqrt{19}"]),
    (r"(3,4]", ["[3,4]", "(3,4)", "4", "(3,5]"]),
    (r"(0,9) \cup (9,36)", ["(0,36)", "(0,9)"]),
    (r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}", [r"\begin{pmatrix}1&0\\0&1\end{pmatrix}", "-1"]),
    (r"\text{(C)}", ["B", "3", r"\text{C or D}"]),
    (r"\frac{x}{3}", ["0.33333333x"]),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", [r"\begin{pmatrix}1&2&3&4\end{pmatrix}"]),
    (r"f(2) < f(1) < f(4)", ["f(1) < f(2) < f(4)"]),
    (r"18", [r"\text{at least } 18", "18x = 18y", r"\text{all real numbers except } 18"]),
    (r"52", ["52_8"]),
    (r".0000672", ["0.0000671", "0"]),
    (r"5x - 7y + 11z + 4 = 0", ["5x-7y+11z-4=0", "0"]),
    (r"0", ["5x - 7y + 11z + 4 = 0"]),
    (r"52_8", ["52_9", "8", "42"]),
    (r"(6,31,-1)", ["(6,-1,31)", "(6,31)", "6"]),
    (r"2k+2", ["2n+2", "2k", "2"]),
    (r"2, 2, 3", ["2, 3, 3", "2, 3"]),
    (r"50\%", ["0.5"]),
    (r"18", ["2x = 18", "x^2 = 18", "-x = 18", r"\sqrt{x} = 18", r"\text{less than } 18", r"18 \text{ million}"]),
    (r"(1,2)", ["y = 1, x = 2", "(2,1)", "x = 1, x = 2"]),
    (r"[1,3]", ["1,3", "x = 1, x = 3", "(1,3)"]),
    (r"(x-2)^2 + (y+3)^2 = 25", ["25"]),
    (r"-5", [r"5", r"\text{minus } 4"]),
    (r"3", ["3ab", "3h"]),
    (r"52_8", ["52 base 9", "52₉", r"52\text{ (base 10)}"]),
    (r"(2,\infty)", ["x < 2", r"\{x \mid x \ge 2\}", "2"]),
    (r"18", ["18x", "18i", "17, 18", "", r"\text{none}", r"18 \text{ or } 19"]),
    (r"\text{Evelyn}", ["Navin", "18"]),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), [(gold, a) for gold, answers in LATEX for a in answers])
def test_right_latex(gold, answer):
    assert is_right(f"Thus $y=3$ and \\(\\boxed{{{answer}}}\\).", gold, "latex")


@pytest.mark.parametrize(("gold", "answer"), [(gold, a) for gold, answers in WRONG_LATEX for a in answers])
def test_wrong_latex(gold, answer):
    assert not is_right(f"\\boxed{{{answer}}}", gold, "latex")


EXTRACTION = [
    ("#### 17\nWait.\n#### 18", "integer", "18", "####"),
    ("#### 18\n####", "integer", "18", "####"),
    ("####\n18", "integer", "18", "####"),
    ("#### Final Answer\n18", "integer", "18", "####"),
    ("#### Step 2: add 5\nSo \\boxed{18}", "integer", "18", "boxed"),
    ("\\boxed{17}\n#### 18", "integer", "18", "####"),
    ("\\boxed{17}\n#### 18", "latex", "17", "boxed"),
    ("\\boxed{\\frac{1}{2}} and \\boxed{\\text{a \\} brace}}", "latex", "\\frac{1}{2}, \\text{a \\} brace}", "boxed"),
    ("\\boxed{1}. No: \\boxed{2}", "latex", "2", "boxed"),
    ("so \\boxed{28", "latex", None, "none"),
    ("The answer is 18. That took 5 minutes.", "integer", "18", "answer is"),
    ("3 + 4\nA: 18", "integer", "18", "answer is"),
    ("#### 18<|im_end|>\n#### 19", "integer", "18", "####"),
    ("She pays 3 dollars for 6 eggs, $18 in all.", "integer", "18 in all.", "last number"),
    ("It is 17 or 18", "integer", "17 or 18", "last number"),
    ("I cannot answer.", "integer", None, "none"),
    ("We find that $x \\lt 3$.", "latex", "x \\lt 3", "last formula"),
    ("", "latex", None, "none"),
    ("#### Income\n9 * 2 = 18\n\\boxed{18}", "integer", "18", "boxed"),
    ("#### 2. Income\n9 * 2 = 18\n\\boxed{18}", "integer", "18", "boxed"),
    ("#### Rug B\nIt is larger.", "text", "Rug B", "####"),
    ("#### 18\n#### Explanation: 9 * 2", "integer", "18", "####"),
    ("#### Answer:\n- 18 dollars", "integer", "18 dollars", "####"),
    ("Answer: 16 - 7 = 9.\n9 * 2 = 18", "integer", "18", "last number"),
    ("Answer: She has 16 eggs. So she makes 18", "integer", "18", "last number"),
    ("Answer: 18. She sells 9 eggs at 2 = 18", "integer", "18", "answer is"),
    ("The answer is 18. To verify our answer: 18 / 2 = 9", "integer", "18", "answer is"),
    ("#### Answer:\n\n16 - 7 = 9 eggs.\nShe makes 9 * 2 = $18", "integer", "18", "last number"),
    ("16 - 3 = 13 eggs out of the 16 eggs.", "integer", "13 eggs out of the 16 eggs.", "last number"),
    ("It takes 4 pans (48 cupcakes).", "integer", "4 pans", "last number"),
    ("She has 180 left, not 240.", "integer", "180 left", "last number"),
    ("The answer is 36 and 12.\n\nCheck:\n- 3 * 12 = 36\n- 36 + 12 = 48", "numbers", "36 and 12", "answer is"),
    ("Answer: He had 15 eggs. He ate 6 eggs. He has 9 eggs left.", "integer", "9 eggs left.", "last number"),
    ("The answer is 18. So our answer is correct.", "integer", "18", "answer is"),
    ("The answer is $3! + 12 = 18$.", "integer", "$3! + 12 = 18$", "answer is"),
    ("= 8 weeks to collect 200 eggs. I hope this helps!", "integer", "8 weeks to collect 200 eggs.", "last number"),
    ("12 eggs.\n\nNote: a dozen is 12.\n\n3 * 12 = 36 eggs.", "integer", "36 eggs.", "last number"),
    ("- 16 got on.\n- 11 are left.", "integer", "11 are left.", "last number"),
    ("The answer is Mrs. Hilt. She won.", "text", "Mrs. Hilt", "answer is"),
    ("Ann lost. So it is Dr. Smith.", "text", "So it is Dr. Smith.", "last sentence"),
    ("- Ana: 17\n- Jo: 12", "numbers", "Ana: 17; Jo: 12", "last sentence"),
    ("## Answer\n18\n\n## Check\n9 eggs", "integer", "18", "answer is"),
    ("The answer is forty-two. 6 * 7", "integer", "forty-two", "answer is"),
    ("<think>\\boxed{17}</think>It is \\boxed{18}", "integer", "18", "boxed"),
    ("<think>\\boxed{17}</think>", "integer", "17", "boxed"),
    ("#### 18</s>\n#### 19", "integer", "18", "####"),
    ("she needs $2\\frac{1}{2}$ cups", "decimal", "2 1/2 cups", "last number"),
    ("so $x = -\\frac{5}{2}$", "decimal", "- 5/2", "last number"),
    ("Ana is \\boxed{17} years old and Jo is \\boxed{12}", "numbers", "17, 12", "boxed"),
    ("\\boxed{45}, \\boxed{45}, \\boxed{90}", "numbers", "45, 45, 90", "boxed"),
    ("So:\n- Ana: 17\n- Jo: 12", "numbers", "Ana: 17; Jo: 12", "last sentence"),
    ("Red costs $11.63. Blue is cheaper.", "text", "Blue is cheaper.", "last sentence"),
    ("$x = \\boxed{1}$ or $x = \\boxed{-2}$", "latex", "1, -2", "boxed"),
    ("\\boxed{\\begin{bmatrix}{-7}\\\\{16}\\end{bmatrix}}", "latex",
     "\\begin{bmatrix}{-7}\\\\{16}\\end{bmatrix}", "boxed"),
    ("We have $x = 5$. Because $n = 2x$, the value of $n$ is $10$.", "latex", "10", "last formula"),
    ("so $x = \\begin{pmatrix} 1 & 2 \\end{pmatrix}$", "latex",
     "x = \\begin{pmatrix} 1 & 2 \\end{pmatrix}", "last formula"),
    ("So $a + b$ is 14. This completes the solution.", "latex", "14", "last sentence"),
    ("It costs \\$3 each.\n\nSo $$5 \\times \\$14 = 70.$$", "latex", "5 \\times \\$14 = 70.", "last formula"),
    ("So P(A) is 1/2.", "latex", "1/2", "last sentence"),
    ("In all, the simplified form is 2k + 17.", "latex", "2k + 17", "last sentence"),
]  # fmt: skip


@pytest.mark.parametrize(("completion", "kind", "answer", "rule"), EXTRACTION)
def test_extraction(completion, kind, answer, rule):
    found, found_rule = extract_answer(completion, kind)
    assert (found and found.strip(), found_rule) == (answer, rule)


# ---- gold answers


@pytest.mark.parametrize(
    ("raw", "text", "kind"),
    [
        ("18", "18", "integer"),
        ("1,450,000", "1,450,000", "integer"),
        ("9 (apples)", "9", "integer"),
        ("14  (seats)", "14", "integer"),
        ("6th", "6", "integer"),
        ("3.5 (dollars)", "3.5", "decimal"),
        ("-(1/3)", "-(1/3)", "fraction"),
        ("5 (years old); 15 (years old)", "5; 15", "numbers"),
        ("11:55 p.m. on 24 December 2014.", "11:55 p.m.", "ratio"),
        ("3:4", "3:4", "ratio"),
        ("Lisa's soccer team", "Lisa's soccer team", "text"),
        (r"\frac{14}{3}", r"\frac{14}{3}", "latex"),
    ],
)
def test_gold_is_typed_and_canonical(raw, text, kind):
    gold = parse_gold(raw)
    assert (gold.text, gold.kind) == (text, kind)
    assert parse_gold(gold.text, gold.kind) == gold


@pytest.mark.parametrize(
    ("text", "kind"),
    [("", None), ("  ", "latex"), ("x", "integer"), ("1.5", "integer"), ("1/0", "fraction"), ("3", "ratio"),
     ("$", "latex"), ("5; x", "numbers"), ("...", "text"), ("18", "roman"), (18, None), ("1" * 5000, None),
     ("1;" * 1000, "numbers")],
)  # fmt: skip
def test_unreadable_gold_is_refused(text, kind):
    with pytest.raises(ValueError, match="gold answer"):
        parse_gold(text, kind)


# ---- rewards


def test_rewards_in_trl_form():
    texts = ["9*2\n#### 18", "#### 5", "\\boxed{18}", ""]
    chats = [[{"role": "assistant", "content": t}] for t in texts]
    for completions in (texts, chats):
        with_columns = accuracy_reward(completions, gold=["18"] * 4, kind=["integer"] * 4, prompts=[""] * 4)
        assert with_columns == accuracy_reward(completions, gold=["18"] * 4) == [1.0, 0.0, 1.0, 0.0]
        assert format_reward(completions, trainer_state=None) == [1.0, 1.0, 0.0, 0.0]


def test_only_what_the_assistant_says_counts():
    said = {"role": "assistant", "content": [{"type": "text", "text": "#### 18"}]}
    call, tool = {"role": "assistant", "content": None}, {"role": "tool", "content": "#### 5"}
    chats = [[said], [call, tool, said], [call, tool], [{"role": "assistant", "tool_calls": []}], []]
    assert accuracy_reward(chats, gold=["18"] * 5) == format_reward(chats) == [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "reward"),
    [("#### 5", 1), ("a\n#### -1,234.5\n", 1), ("a #### 5", 0), ("#### 5\nmore", 0), ("#### 5\n#### 5", 0),
     ("####5", 0), ("#### ５", 0), ("#### five", 0), ("#### 5 apples", 0), ("### 5", 0), ("##### 5", 0), 
     ("#### 1,23", 0), ("#### ", 0), ("#### 5.", 0)],
)  # fmt: skip
def test_format_reward(completion, reward):
    assert format_reward([completion]) == [reward]


# ---- properties

PIECES = st.sampled_from([
    "\\sqrt[", "i", "e", "\\pi ", "\\sin^", "\\overline{", "\\over ", "\\approx ", " base 8", "\\pmod{", "\\mid ",
    "\\in ", ";",
    "half", "thirds", " because ", ", which ", " by ", " x ", "a.m.", " in the morning", "so ", "is ", "- ",
    "Answer:\n", "</think>",
    "####", "#### ", "\n", " ", "\\boxed{", "{", "}", "\\frac", "\\frac{", "\\sqrt",
    "\\text{", "\\left(", "\\pm", "\\cup", "$", "answer is ", "A: ", " or ", " and ", "^", "_", "**", "*", "/", "-",
    "+", "=", "<", ">", "(", ")", "[", "]", ",", ".", ":", "1", "23", "456", "0.5", "1,000", "1e5", "1e999",
    "eighteen", " million", "%", "x", "\\sin ", "\\log_", "!", "|", "\\infty", "½", "²", "１", "−", "\u202f", "\ufeff",
    "ﷺ", "İ", "\\begin{pmatrix}", "&", "\\\\", "\\end{pmatrix}", "sq. cm/", "<|im_end|>",
    "__import__('os').system('touch marker')", "open('marker','w')", "\\input{marker}", "exec('1')",
    "9**9**9", "'", "1'234", "1.234", "1_000", "12,34", "k", "M ", " thousand ", "0.(", "0.3", "...", "\\ldots",
    "\\overline{3}", "\\dot{1}", "3\u0305", " repeating", "one ", "thirds ", " or x=", "x<", "x>=", "\\setminus",
    " U ", "\\{1\\}",
])  # fmt: skip
ANY = st.text(st.characters(exclude_categories=()), max_size=200)  # half of a surrogate pair too
TEXT = st.one_of(ANY, st.lists(PIECES, max_size=40).map("".join))
GOLDS = st.sampled_from([("18", "integer"), ("0.5", "decimal"), ("1/3", "fraction"), ("8; 40", "numbers"),
                         ("3:30 p.m.", "ratio"), ("Rug B", "text")])  # fmt: skip
LATEX_GOLDS = st.sampled_from(["18", r"\frac{14}{3}", "(3,4]", r"1 \pm \sqrt{19}", r"\text{(C)}", "x^2 + 1", "y = 2x",
                               r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "52_8", r"(0,9) \cup (9,36)"])  # fmt: skip


@given(TEXT, GOLDS)
def test_any_text_has_a_verdict(text, gold):
    result = grade(text, *gold)
    assert isinstance(result, Grade) and type(result.correct) is bool
    assert format_reward([text])[0] in (0.0, 1.0)
    assert not os.path.exists("marker")


@given(TEXT, LATEX_GOLDS)
def test_any_latex_is_settled_or_left_to_math_verify(text, gold):
    result = verdict._settle("\\boxed{" + text + "}", parse_gold(gold, "latex"))
    assert isinstance(result, Grade) and (result.correct is None or type(result.correct) is bool)
    if result.rule == "boxed" and not text.endswith("\\"):  # which would escape the space
        assert verdict._settle("\\boxed{ " + text + " }", parse_gold(gold, "latex")).correct is result.correct
    assert not os.path.exists("marker")


@given(TEXT, TEXT)
def test_two_latex_answers_are_the_same_or_not_or_open(a, g):
    a, g = (normal_form(text[:ANSWER_CHARS]) for text in (a, g))
    assert same_latex(a, g) in (True, False, None)
    assert same_latex(a, a) is True


@given(st.lists(TEXT, min_size=2, max_size=6), GOLDS, st.randoms())
def test_verdicts_do_not_depend_on_the_batch(texts, gold, random):
    order = list(range(len(texts)))
    random.shuffle(order)
    golds, kinds = [gold[0]] * len(texts), [gold[1]] * len(texts)
    together = grade_batch(texts, golds, kinds)
    assert together == [grade(t, *gold) for t in texts]
    assert [together[i] for i in order] == grade_batch([texts[i] for i in order], golds, kinds)


@given(st.integers(-(10**15), 10**15), st.integers(-3, 3))
def test_integers_are_told_apart_exactly(number, off):
    assert is_right(f"#### {number + off}", str(number)) == (off == 0)
    assert is_right(f"#### {number + off}.0", str(number)) == (off == 0)
    assert is_right(f"\\boxed{{{number + off}}}", str(number), "latex") == (off == 0)


@given(
    st.decimals(min_value=-(10**6), max_value=10**6, places=3),
    st.decimals(min_value=-(10**6), max_value=10**6, places=3),
)
def test_decimals_agree_with_exact_arithmetic(a, b):
    gold = Fraction(b)
    near = a == b if gold.denominator == 1 else abs(Fraction(a) - gold) <= Fraction(1, 10**6)
    assert is_right(f"#### {a:f}", f"{b:f}") == near
    assert is_right(f"#### {b:f}", f"{b:f}")


@given(st.integers(-999, 999), st.integers(1, 99), st.integers(-999, 999), st.integers(1, 99))
def test_fractions_agree_with_exact_arithmetic(a, b, c, d):
    same = Fraction(a, b) == Fraction(c, d)
    assert is_right(f"\\boxed{{\\frac{{{a}}}{{{b}}}}}", f"\\frac{{{c}}}{{{d}}}", "latex") == same
    assert is_right(f"#### {a}/{b}", f"{c}/{d}") == (same or abs(Fraction(a, b) - Fraction(c, d)) <= Fraction(1, 10**6))


@settings(max_examples=5)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=4), st.lists(st.integers(-9, 9), min_size=1, max_size=4))
def test_polynomials_agree_with_their_coefficients(p, q):
    def written(coefficients):
        return " + ".join(f"({c}) x^{{{i}}}" for i, c in enumerate(coefficients))

    product = [0] * (len(p) + len(q) - 1)
    for i, a in enumerate(p):
        for j, b in enumerate(q):
            product[i + j] += a * b
    completion = f"\\boxed{{({written(p)})({written(q)})}}"
    assert is_right(completion, written(product), "latex")
    product[0] += 1
    assert not is_right(completion, written(product), "latex")


REWRITINGS = [
    lambda a: f"  {a}\t",
    lambda a: f"**{a}**",
    lambda a: f"`{a}`",
    lambda a: f"${a}$",
    lambda a: f"\\boxed{{{a}}}",
    lambda a: a.replace("-", "−"),
    lambda a: f"{a} dollars",
    lambda a: re.sub(r"^-?", r"\g<0>$", a),
    lambda a: re.sub(r"\d+", lambda m: f"{int(m.group()):,}", a, count=1),
    lambda a: re.sub(r"\d+", lambda m: f"{int(m.group()):,}".replace(",", "\u202f"), a, count=1),
    lambda a: a.translate(str.maketrans("0123456789", "０１２３４５６７８９")),
]


@given(st.integers(-(10**9), 10**9), st.sampled_from(["", ".5", ".25"]), st.integers(0, 1), st.sampled_from(REWRITINGS))
@example(-1234, ".5", 0, REWRITINGS[8])
def test_rewriting_an_answer_does_not_change_its_verdict(number, decimals, off, rewrite):
    gold, answer = f"{number}{decimals}", f"{number + off}{decimals}"
    assert is_right(f"#### {rewrite(answer)}", gold) == is_right(f"#### {answer}", gold) == (off == 0)


@given(st.integers(-(10**9), 10**9), st.sampled_from(["{:,}", " {} ", "{} (apples)", "{:,} (sq. ft)"]))
def test_rewriting_a_gold_does_not_change_its_verdict(number, form):
    assert is_right(f"#### {number}", form.format(number))
    assert not is_right(f"#### {number + 1}", form.format(number))


@given(
    LATEX_GOLDS, st.sampled_from(["{}", " {} ", "${}$", "\\[{}\\]", "\\left. {} \\right.", "{}.", "\\displaystyle {}"])
)
def test_spacing_and_dollars_do_not_change_a_latex_verdict(gold, form):
    assert is_right(f"\\boxed{{{form.format(gold)}}}", gold, "latex")
    assert not is_right(f"\\boxed{{{form.format('7y')}}}", gold, "latex")


@given(st.integers(0, 300), TEXT)
def test_the_short_way_for_plain_integers_agrees_with_the_long_way(number, text):
    for answer in (f"{number}", f" -{number}.0", f"${number}", text):
        if SIMPLE_RE.fullmatch(answer):
            assert read_number(answer) == read_plain_number(plain_text(answer))


# ---- safety

LONG = ["1", "1,", "1 ", "(", "-", "\\frac{", "{", "}", "#### ", "####\n", "boxed{", "\\boxed{1}", "answer is ",
        "1 or ", "and ", "= ", "is ", "is:", "a b ", "sq. cm/", "ﷺ", "½", "\\sqrt", "\\sin ", "^{", "$", "<", "\n",
        "\\\\", ":1", "x^", "(1+", "0.3", "1.1(", "0.(3)", "1'234", "1.234", "1,23", "1_", "half ", "half a ", "3k ",
        "million ", "1 million ", "x<", "1<", "\\cup ", "x=1 or ", "\\overline{3}", "3\u0305", "U", "12,"]  # fmt: skip


@pytest.mark.parametrize("piece", LONG)
def test_long_text_costs_little(piece):
    """Processor time against blow-ups only: a hundred times what a grade of such a text takes."""
    started = time.process_time()
    for text in (piece * (100_000 // len(piece)), "#### 1" + piece * (ANSWER_CHARS // len(piece) - 6)):
        for gold in ("18", "8; 40", "3:4", "Rug B"):
            grade(text, gold)
        verdict._settle(text, parse_gold(r"\frac{1}{2}", "latex"))
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "formula", [r"\sqrt[e]{-8}", r"\sqrt[i]{-8}", r"\sqrt[0]{-8}", r"\sin^{1+0i} x", r"\sin^{i/i} 2"]
)
def test_odd_degrees_and_powers_have_a_verdict(formula):
    for gold, kind in (("18", "integer"), (r"\frac{1}{2}", "latex")):
        assert not is_right(f"#### {formula}", gold, kind)


def test_a_verdict_needs_little_stack():
    def deep(frames):
        if frames:
            return deep(frames - 1)
        return verdict._settle(f"\\boxed{{{text}}}", parse_gold("x", "latex"))

    text = r"\pi" + r"\sqrt{" * 25 + r"\sin " * 29 + "y" + "}" * 25
    deep(sys.getrecursionlimit() - 250)


HOSTILE = ["__import__('os').system('touch {}')", "open({!r},'w').write('x')", "\\immediate\\write18{{touch {}}}",
           "exec(\"open('{}','w')\")", "x = eval('open(\"{}\",\"w\")')"]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_is_evaluated(text, tmp_path):
    marker = tmp_path / "marker"
    for form in ("#### {}", "\\boxed{{{}}}", "{}"):
        completion = form.format(text.format(marker))
        assert not is_right(completion, "18")
        assert not is_right(completion, r"\frac{1}{2}", "latex")
        ask_math_verify(text.format(marker), "18")
    assert not marker.exists()


# ---- worker processes

FOR_MATH_VERIFY = (
    r"\begin{pmatrix}1 & 2\end{pmatrix} + \begin{pmatrix}5 & 6\end{pmatrix}",
    r"\begin{pmatrix}6 & 8\end{pmatrix}",
)


def hard_verdict():
    return is_right(f"\\boxed{{{FOR_MATH_VERIFY[0]}}}", FOR_MATH_VERIFY[1], "latex")


def test_math_verify_is_asked_for_the_rest(monkeypatch):
    asked = []
    monkeypatch.setattr(verdict, "ask_math_verify", lambda *pair: asked.append(pair) or ask_math_verify(*pair))
    assert hard_verdict()
    assert not is_right(f"\\boxed{{{FOR_MATH_VERIFY[0]}}}", r"\begin{pmatrix}6 & 9\end{pmatrix}", "latex")
    assert not is_right(r"\boxed{17}", "18", "latex")
    assert len(asked) == 2


@pytest.mark.parametrize(
    "text", ["10^{10^{10^{10}}}!", "(x+1)^{99999999}", r"\sum_{n=1}^{10^9} \frac{1}{n}", "(" * 500, "\\"]
)
def test_math_verify_is_cut_short(text, monkeypatch):
    """Whether it hangs, dies or refuses, the verdict is "not equal" and the next question is answered."""
    hard_verdict()
    monkeypatch.setattr(worker, "TIME_LIMIT", 1.0)
    assert not ask_math_verify(text, "17")
    monkeypatch.undo()
    assert hard_verdict()


def test_math_verify_in_other_threads():
    results = []
    threads = [threading.Thread(target=lambda: results.append(hard_verdict())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 3


@pytest.mark.slow
def test_math_verify_in_a_data_loader_worker():
    code = "from torch.utils.data import DataLoader; from tests.grading.test_rewards import hard_verdict;"
    code += "import multiprocessing; multiprocessing.set_start_method('fork'); hard_verdict();"
    code += "print(list(DataLoader([0, 1], num_workers=2, collate_fn=lambda _: hard_verdict())))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[True, True]\n", done.stderr


def _grade_into(pipe):
    pipe.send((hard_verdict(), worker._idle[os.getpid()].qsize()))


def test_math_verify_in_a_forked_process():
    assert hard_verdict()  # this process now has an idle worker that the child must not use
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_grade_into, args=(theirs,))
    child.start()
    assert ours.poll(60) and ours.recv() == (True, 1)
    child.join()
    assert hard_verdict()


def test_an_outer_alarm_keeps_ringing():
    rings = []
    previous = signal.signal(signal.SIGALRM, lambda *_: rings.append(time.monotonic()))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        assert hard_verdict()
        during = len(rings)
        while len(rings) < during + 3:
            signal.pause()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


class Interrupted(Exception):
    pass


def test_a_handler_that_raises_leaves_no_worker_in_a_question(monkeypatch):
    def ring(*_):
        raise Interrupted

    assert hard_verdict()
    monkeypatch.setattr(worker, "_read_line", ring)
    with pytest.raises(Interrupted):
        hard_verdict()
    monkeypatch.undo()
    assert hard_verdict()


def test_a_worker_killed_while_it_waits_costs_no_verdict():
    assert hard_verdict()
    for idle in list(worker._idle[os.getpid()].queue):
        idle.kill()
        idle.wait()
    assert hard_verdict()


@pytest.fixture
def fake_worker(monkeypatch):
    """Workers that run the given Python instead of math-verify."""
    hard_verdict()
    real, idle = subprocess.Popen, worker._idle[os.getpid()]

    def stop_idle():
        while not idle.empty():
            worker._stop_worker(idle.get_nowait())

    def use(code):
        stop_idle()
        monkeypatch.setattr(worker, "Popen", lambda command, **kw: real([sys.executable, "-c", code], **kw))

    yield use
    stop_idle()


@pytest.mark.parametrize(
    "code",
    [
        "print('null', flush=True); input(); import time; time.sleep(60)",
        "print('null', flush=True); input(); raise MemoryError",
        "print('null', flush=True); input(); print('tru', end='')",
    ],
)
def test_a_worker_that_hangs_or_dies_is_said_and_replaced(fake_worker, monkeypatch, code):
    with monkeypatch.context() as patch:
        patch.setattr(worker, "TIME_LIMIT", 0.5)
        fake_worker(code)
        given_up = grade(f"\\boxed{{{FOR_MATH_VERIFY[0]}}}", FOR_MATH_VERIFY[1], "latex")
        assert not given_up.correct and given_up.rule == "boxed, math-verify gave up"
    monkeypatch.undo()
    assert hard_verdict()


def test_worker_memory_is_bounded():
    code = "import resource, io, sys; from grading import worker; sys.stdin = io.TextIOWrapper(io.BytesIO());"
    code += "worker.main();"
    code += "print(*resource.getrlimit(resource.RLIMIT_AS), file=sys.stderr); bytearray(4 * 2**30)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert done.returncode != 0 and b"MemoryError" in done.stderr
    assert f"{2 * 2**30} {2 * 2**30}".encode() in done.stderr


def test_neither_grader_nor_worker_imports_torch():
    code = "import maths_rewards, sys, math_verify; maths_rewards.grade('1', '1');"
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_grading_stands_alone():
    """No file of grading/ imports a script; a worker loads nothing but its own file and math-verify."""
    for path in pathlib.Path(ROOT, "grading").glob("*.py"):
        imported = re.findall(r"^\s*(?:from|import)\s+([\w.]+)", path.read_text(), re.M)
        assert not [name for name in imported if name.startswith("maths_")], path
        assert path.name != "worker.py" or not [name for name in imported if name.startswith(".")]


def test_missing_math_verify_is_said_at_the_start(monkeypatch):
    monkeypatch.setattr(worker.importlib.util, "find_spec", lambda name: None)
    maths_rewards.check_grader(["integer", "text"])
    with pytest.raises(maths_rewards.BadInput, match="pip install"):
        maths_rewards.check_grader(["latex"])


# ---- command line


def run(root, *arguments, stdin=""):
    command = [sys.executable, str(root / "maths_rewards.py"), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)


def test_command_line(root):
    done = run(root, "--gold", "18", "--completion", "It is\n#### $18.00")
    assert done.returncode == 0 and done.stdout == "verdict: correct\nanswer: $18.00\nrule: ####\n"
    done = run(root, "--gold", r"\frac{14}{3}", "--kind", "latex", stdin=r"\boxed{\frac{28}{6}}")
    assert "correct" in done.stdout


@pytest.mark.parametrize(
    "arguments", [(), ("--gold", ""), ("--gold", "x", "--kind", "integer"), ("--gold", "1", "--kind", "roman")]
)
def test_bad_input_is_one_line(root, arguments):
    done = run(root, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_all_kinds_are_graded():
    examples = dict(integer="5", decimal="0.5", fraction="1/3", numbers="1; 2", ratio="1:2", text="Ann", latex="x")
    assert set(examples) == set(KINDS)
    assert all(is_right(f"#### {gold}", gold, kind) for kind, gold in examples.items())


# ---- votes


@pytest.mark.parametrize(
    ("kind", "same", "others"),
    [
        ("integer", ["17", "$17", "17 dollars", "17.0", " 17 ", "x = 17"], ["18", "-17", "17 or 18", "1.7"]),
        ("integer", ["1,200", "1200", "1200.0"], ["120"]),
        ("decimal", ["0.5", "1/2", ".50"], ["0.51"]),
        ("latex", [r"\frac{1}{2}", "0.5", r"\dfrac12\text{ cm}", r"$\frac 12$"], ["2", r"\frac{1}{3}"]),
        ("latex", [r"3\sqrt{13}", r"3 \cdot \sqrt{13}", "3√13"], [r"3\sqrt{31}"]),
        ("text", ["Rug B", "the rug B", "**Rug B**"], ["Rug A"]),
        ("numbers", ["8, 40", "40 and 8"], ["8", "8, 41"]),
        ("ratio", ["3:4", "3 to 4"], ["4:3"]),
        ("integer", [" x +  y", "x + y"], ["x+y"]),  # no number: the text itself, spaces folded
    ],
)  # fmt: skip
def test_votes_are_pooled_by_what_the_grader_reads(kind, same, others):
    assert len({vote(answer, kind) for answer in same}) == 1
    assert not {vote(answer, kind) for answer in same} & {vote(answer, kind) for answer in others}


@given(TEXT, st.sampled_from(KINDS))
def test_any_answer_has_a_vote(text, kind):
    assert isinstance(vote(text, kind), str)


# ---- what is logged


def test_accuracy_reward_names_the_column_that_a_data_set_lacks():
    with pytest.raises(ValueError, match="no column gold"):
        accuracy_reward(["#### 1"], solution=["1"])


def test_accuracy_reward_logs_what_it_read():
    table = {}
    rewards = accuracy_reward(
        ["9\n#### 18", "none"], gold=["18", "18"], kind=["integer"] * 2, log_extra=table.__setitem__
    )
    assert rewards == [1.0, 0.0]
    assert table == {"answer": ["18", None], "rule": ["####", "none"]}


# ---- the version


def corpus():
    """(completion, gold, kind) of the tables, of texts made by a seeded generator, and of each kind."""
    for table in (RIGHT_NUMBERS, WRONG_NUMBERS):
        yield from ((f"#### {answer}", gold, parse_gold(gold).kind) for gold, answers in table for answer in answers)
    for gold, kind, *answers in (row for row in TABLES if row[1] != "latex"):
        yield from ((f"#### {answer}", gold, kind or parse_gold(gold).kind) for answer in sum(answers, []))
    golds = dict(integer="18", decimal="0.5", fraction="1/3", numbers="8; 40", ratio="3:4", text="Rug B")
    yield from ((text, golds[kind], kind) for text, kind, *_ in EXTRACTION if kind != "latex")
    words = "18 17 9 * = + - / or and $ dollars 1,234 0.5 is so answer: #### 3:4 Rug B . x".split()
    generator = random.Random(7)
    for kind in sorted(golds) * 60:
        yield " ".join(generator.choices(words, k=generator.randint(1, 9))), golds[kind], kind


FORMULAS = [
    (r"\frac{n(n+1)}{2}", r"\frac12 n(n+1)"), (r"3\sqrt{13}", r"\sqrt{117}"), (r"6 - 5i", "-5i+6"), ("2k+2", "2(k+1)"),
    (r"\cot x", r"\frac{\cos x}{\sin x}"), ("y = 2x + 3", "y-2x=3"), ("28", r"\binom{8}{2}"), ("2k+2", "2n+2"),
    (r"3\sqrt{13}", "10.8167"), ("5x - 7y + 4 = 0", "5x-7y-4=0"), (r"\sqrt{51}", "51"),
    (r"(3,\frac{\pi}{2})", r"(3,\pi/2)"),
]  # fmt: skip
"""Pairs that math-verify decides, in the version that VERDICTS names."""

# GRADER_VERSION -> digest of all verdicts, and the version of math-verify that FORMULAS had their verdicts from.
VERDICTS = {4: ("5cf2d92f20ab295e", "0.9.0")}


def digest_of_verdicts():
    rows = [[*grade(text, gold, kind), vote(text, kind)] for text, gold, kind in corpus()]
    settled = [(a, g) for table in (LATEX, WRONG_LATEX) for g, answers in table for a in answers]
    settled += [(a, g) for g, kind, *answers in TABLES if kind == "latex" for a in sum(answers, [])]
    for answer, gold in settled:
        result = verdict._settle(f"\\boxed{{{answer}}}", parse_gold(gold, "latex"))
        rows.append([*result, vote(answer, "latex")])
    rows += [[*grade(f"\\boxed{{{answer}}}", gold, "latex"), vote(answer, "latex")] for gold, answer in FORMULAS]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def test_the_version_changes_when_verdicts_do():
    installed = importlib.metadata.version("math-verify")
    now = (digest_of_verdicts(), installed)
    if VERDICTS.get(GRADER_VERSION) != now:
        pytest.fail(
            f"verdicts, answers, rules, votes or math-verify changed, and GRADER_VERSION is still {GRADER_VERSION}. "
            f"If that is meant, set GRADER_VERSION = {GRADER_VERSION + 1} in grading/verdict.py and write here "
            f"VERDICTS = {{{GRADER_VERSION + 1}: {now!r}}}; if only cases were added to the tables, keep the "
            f"version and write the digest; if neither, something broke."
        )
