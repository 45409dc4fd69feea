"""The grader of grading/ beside math-verify on labelled model outputs: wrong verdicts and verdicts a second.

For Probability Smoothing Policy Optimisation (arXiv 2509.21282) each of a step's completions is graded, so a grader has
to be right and must cost nothing. Both graders see the same rows in the same run and on one core. Seconds are processor
time; a question that ours passes on to a math-verify worker adds the wall-clock time of its answer. Labelled rows are
JSON lines with gold, completion, label_correct and dataset, in DIR/labelled/*.dev.jsonl.

    python benchmarks/grading.py --data_dir DIR            # about 2 minutes on one core
    python benchmarks/grading.py --data_dir DIR --list     # and our disagreements with the labels
    python benchmarks/grading.py --data_dir DIR --limit 200
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grading
import grading.latex
import grading.text
import grading.verdict
from common.files import BadInput, make_parser, run_script

PASSES = 5  # of ours over a file, each with empty caches; the median is reported
NUMERIC = ("gsm8k", "mr_gsm8k", "tora")  # beginnings of the names of files whose gold answers are numbers
HOSTILE = ["1", "1,", "(", "\\frac{", "#### ", "\\boxed{", "answer is ", "1 or ", "= ", "½", "ﷺ", "\n", "^", "a 1 "]


def read_rows(path, limit):
    """Labelled rows of a file. Raises BadInput for a line that is no labelled row."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[:limit], 1):
        try:
            row = json.loads(line)
            rows.append((row["completion"], row["gold"], row["label_correct"], row["dataset"] == "math"))
        except (ValueError, KeyError, TypeError):
            raise BadInput(f"{path} line {number} is no labelled row; expected gold, completion, ...") from None
    return rows


def grade_ours(rows):
    """(grades, seconds, questions to math-verify) of one pass with empty caches."""
    completions, golds, _, latex = zip(*rows, strict=True)
    kinds = ["latex" if is_latex else None for is_latex in latex]
    for cached in (grading.parse_gold, grading.latex.normal_form, grading.text.clean):
        cached.cache_clear()
    waited = []
    ask = grading.verdict.ask_math_verify

    def timed(answer, gold):
        started = time.perf_counter()
        verdict = ask(answer, gold)
        waited.append(time.perf_counter() - started)
        return verdict

    grading.verdict.ask_math_verify = timed
    started = time.process_time()
    grades = grading.grade_batch(completions, golds, kinds)
    seconds = time.process_time() - started + sum(waited)
    grading.verdict.ask_math_verify = ask
    return grades, seconds, len(waited)


def grade_math_verify(rows):
    """(verdicts, seconds) of math-verify, used as its README does: both texts parsed, then compared."""
    from math_verify import parse, verify

    started = time.process_time()
    verdicts = [verify(parse(f"${gold}$" if latex else gold), parse(text)) for text, gold, _, latex in rows]
    return verdicts, time.process_time() - started


def count_wrong(verdicts, rows):
    """(right answers marked wrong, wrong answers marked right)."""
    labels = [row[2] for row in rows]
    missed = sum(label and not verdict for verdict, label in zip(verdicts, labels, strict=True))
    return missed, sum(verdict and not label for verdict, label in zip(verdicts, labels, strict=True))


def print_header():
    print("agreement in %; m: right answers marked wrong; f: wrong answers marked right")
    print(f"{'':28}{'ours':^33}{'math-verify':^27}")
    ours = f"{'agree':>9}{'m':>4}{'f':>4}{'/s':>10}{'asked':>6}"
    theirs = f"{'agree':>10}{'m':>5}{'f':>4}{'/s':>8}"
    print(f"{'file':22}{'rows':>6}{ours}{theirs}{'ratio':>9}")


def compare(name, rows):
    """Print one line of the table; returns (rows, our seconds, math-verify's seconds, our grades)."""
    passes = [grade_ours(rows) for _ in range(PASSES)]
    grades, _, asked = passes[0]
    seconds = sorted(p[1] for p in passes)[PASSES // 2]
    theirs, their_seconds = grade_math_verify(rows)
    ours_wrong = count_wrong([g.correct for g in grades], rows)
    theirs_wrong = count_wrong(theirs, rows)
    agree, their_agree = (100 * (1 - sum(wrong) / len(rows)) for wrong in (ours_wrong, theirs_wrong))
    print(
        f"{name:22}{len(rows):6}{agree:9.2f} {ours_wrong[0]:3} {ours_wrong[1]:3}{len(rows) / seconds:10.0f}{asked:6}"
        f"{their_agree:10.2f} {theirs_wrong[0]:4} {theirs_wrong[1]:3}{len(rows) / their_seconds:8.0f}"
        f"{their_seconds / seconds:8.0f}x"
    )
    return len(rows), seconds, their_seconds, grades


def list_disagreements(rows, grades):
    """Print each row where we disagree with its label."""
    for (completion, gold, label, _), grade in zip(rows, grades, strict=True):
        if grade.correct != label:
            said = f"{grade.answer!r:.60} by {grade.rule}"
            print(f"    label {'right' if label else 'wrong'}, gold {gold!r:.60}, read {said}: {completion[-80:]!r}")


def slowest_hostile():
    """The longest processor time of one numeric verdict on 100,000 characters of hostile text, in milliseconds."""
    slowest = 0.0
    for piece in HOSTILE:
        text = piece * (100_000 // len(piece))
        for completion in (text, f"#### {text}", f"\\boxed{{{text[:990]}}}"):
            started = time.process_time()
            grading.grade(completion, "18", "integer")
            slowest = max(slowest, time.process_time() - started)
    return 1000 * slowest


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--data_dir", required=True, type=Path, help="directory that holds labelled/*.dev.jsonl")
    parser.add_argument("--limit", type=int, help="at most so many rows of each file")
    parser.add_argument("--list", action="store_true", help="also list our disagreements with the labels")
    args = parser.parse_args()
    paths = sorted((args.data_dir / "labelled").glob("*.dev.jsonl"))
    if not paths:
        raise BadInput(f"no *.dev.jsonl in {args.data_dir / 'labelled'}; --data_dir names the directory above it")
    grading.check_grader(["latex"])
    files = {path.name.removesuffix(".dev.jsonl"): read_rows(path, args.limit) for path in paths}
    print_header()
    totals = {True: [0, 0.0, 0.0], False: [0, 0.0, 0.0]}
    for name, rows in files.items():
        *sums, grades = compare(name, rows)
        totals[name.startswith(NUMERIC)] = [a + b for a, b in zip(totals[name.startswith(NUMERIC)], sums, strict=True)]
        if args.list:
            list_disagreements(rows, grades)
    for numeric, (count, ours, theirs) in totals.items():
        if count:
            kind = "numeric" if numeric else "LaTeX and handmade"
            print(f"{kind}: ours {count / ours:.0f}/s, math-verify {count / theirs:.0f}/s, ratio {theirs / ours:.0f}")
    print(f"slowest numeric verdict on 100,000 hostile characters: {slowest_hostile():.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
