r"""Grade an answer to a maths problem: the rewards of training and the verdicts of evaluation.

Probability Smoothing Policy Optimisation (https://arxiv.org/abs/2509.21282) pays 1 for a right final answer and a
small bonus for GSM8K's `#### <number>` ending; here the two are separate reward functions that TRL adds up with
the weights of REWARDS. Evaluation asks `grade` for the verdict, the answer that was read, and the rule that found it.

Policy, where another choice could be defended:

| case | verdict |
|---|---|
| several `####` lines | the last that is not empty; `#### Step 2` is a heading, for numbers any words above a text |
| order of rules | `####`, `\boxed{}`, "answer is", last number; for LaTeX `\boxed{}` first and the last formula last |
| no marker | several numbers: the last sentence, or the list that ends the text; text: the last sentence |
| remarks | ignored: `60 minutes (1 hour)` is 60, `9, which is half of 18` is 9; `9 eggs and 18 cups` says two |
| "Answer:" before a whole solution | no marker: the last number counts |
| a box that is never closed | no answer |
| percent | `25%` is 25, never 0.25 |
| units, currency | ignored: `$18`, `18 dollars`, `18 cents` are 18, `2 dozen` is 2; `3 hours 20 minutes` says two |
| scales | `$3 million`, `3M`, `3 mn` are 3000000, `3.5k` is 3500, `2 lakh` is 200000; `3 m` are metres |
| thousands | `1,234`, `1 234`, `1, 234`, `1'234`, `1_234` are 1234; `1.234.567` and `12,34,567` too; `1,23,4` is none |
| decimals | one point is a decimal point: `1.234` is not 1234; the comma of `2,74` and `0,234` is one, of `1,234` not |
| both marks | the second is the decimal mark: `1,234.5`, `1.234,5`, `1 234,567` |
| repeating decimals | exact: `0.(3)`, `0.\overline{3}`, `0.333...` are 1/3; `0.25 repeating` 25/99; `0.16...` none |
| number words | read where an answer is marked: `#### eighteen`, `#### two thirds`, `#### seven twelfths` |
| sums | `#### 9*2` is 18, `9*2 = 18` is 18, and so is `9+8 = 18`: only the result counts; `17-18` is a range |
| hedges | `17 or 18`, `17-18`, `>18` are wrong; `about 18`, `~18` and `18 or 18.0` are 18 |
| rounding | integers exactly, all else within 1e-6, of its size where that is below 1; 0.333333 is not 0.33 |
| several numbers | all of them, in any order, each as often as in the gold answer |
| ratios | `15:18 = 5:6` and `5/6` are 5:6; `15:18` alone and `6:5` are not |
| times | `3:30` for `3:30 p.m.` is right, `3:30 a.m.` is wrong, `15:30` is right |
| text | equal to the gold answer or begins with it, after "so" or "is" perhaps; case, articles, plurals do not count |
| shortened text | later lower-case words may go: `Lisa` is `Lisa's soccer team`, but `Rug` or `B` is not `Rug B` |
| unions | `x = 1 or x = 2`, `x \in \{1, 2\}` are the two; `x < 1 or x > 2` is the union of two intervals |
| LaTeX | units, degrees, currency, `\text{}` are ignored, a base and `x =` may go; (3,4] is not [3,4] |
| equations | `a + b = 5`, `f(3) = 5` and `2 + 3 = 5` are 5; `2x = 5` is not |
| nan, inf, code | wrong; nothing of a text is ever evaluated |
| an answer that cannot be read | wrong, and the rule says so: `####, not read` |
| math-verify hangs or dies over a formula | wrong, and the rule says that it gave up |

    python maths_rewards.py --gold 18 --completion 'She makes 9 * 2 = $18. #### 18'
    echo '\boxed{\frac{28}{6}}' | python maths_rewards.py --gold '\frac{14}{3}' --kind latex --completion -
"""

import re
import sys

import grading
from common.files import BadInput, make_parser, run_script
from grading import KINDS, grade, grade_batch


def check_grader(kinds):
    """Raise BadInput if a gold answer of these kinds may need math-verify and it is not installed."""
    try:
        grading.check_grader(kinds)
    except ModuleNotFoundError as error:
        raise BadInput(str(error)) from None


# ---- rewards in TRL's form


def _text(said):
    """The text of a completion in TRL's forms: a string, None, or a list of parts or messages of the assistant."""
    if isinstance(said, list):
        said = [m for m in said if m.get("role", "assistant") == "assistant"]
        return "\n".join(_text(m.get("content", m.get("text"))) for m in said)
    return said or ""


def accuracy_reward(completions, gold=None, kind=None, log_extra=None, **kwargs):
    """1.0 for each completion whose final answer is right, else 0.0.

    gold, kind: the data set's columns. log_extra: TRL's function for columns of its table of completions; it gets the
    answer that was read and the rule that found it. Raises ValueError for a data set without a column `gold`."""
    if gold is None:
        raise ValueError("accuracy_reward: the data set has no column gold, the right answer to each prompt")
    grades = grade_batch([_text(c) for c in completions], gold, kind)
    if log_extra is not None:
        log_extra("answer", [g.answer for g in grades])
        log_extra("rule", [g.rule for g in grades])
    return [float(g.correct) for g in grades]


FORMAT_RE = re.compile(r"(?:\A|\n)#### -?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?\s*\Z")


def format_reward(completions, **kwargs):
    """1.0 for each completion that ends with its only `####` line, well formed: `#### -1,234.5`; else 0."""
    texts = [_text(c) for c in completions]
    return [float(text.count("####") == 1 and FORMAT_RE.search(text) is not None) for text in texts]


REWARDS = {accuracy_reward: 1.0, format_reward: 0.05}  # TRL adds them up with these weights


# ---- command line


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--gold", required=True, help="gold answer, as the data set has it")
    parser.add_argument("--completion", default="-", help="text to grade; - reads standard input")
    parser.add_argument("--kind", choices=KINDS, help="kind of gold answer (inferred when left out; MATH-500: latex)")
    args = parser.parse_args()

    completion = sys.stdin.read() if args.completion == "-" else args.completion
    try:
        verdict = grade(completion, args.gold, args.kind)
    except ValueError as error:
        raise BadInput(f"--gold: {error}") from None
    print(f"verdict: {'correct' if verdict.correct else 'wrong'}\nanswer: {verdict.answer}\nrule: {verdict.rule}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
