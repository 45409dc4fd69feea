"""lm-evaluation-harness's verdicts beside ours on the same completions: where do they part, and why?

For Probability Smoothing Policy Optimisation (arXiv 2509.21282). The completions are labelled outputs of models, and
cases that people wrote to test graders (DIR/labelled/*.dev.jsonl, see benchmarks/grading.py). The verdicts are those of
the harness's own code and files: the filters and the metric of its tasks gsm8k and asdiv_cot_llama, process_results of
its task minerva_math. It needs an environment of its own, named by LM_EVAL_PYTHON:

    python -m venv lm_eval_env && lm_eval_env/bin/pip install "lm_eval[math]==0.4.13"
    LM_EVAL_PYTHON=lm_eval_env/bin/python python benchmarks/agreement.py --data_dir DIR
    LM_EVAL_PYTHON=lm_eval_env/bin/python python benchmarks/agreement.py --data_dir DIR --list strict-match
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.files import BadInput, make_parser, read_json_lines, run_script
from grading import Grade, grade_batch

FAMILIES = {"gsm8k": "number", "asdiv": "number", "math": "latex"}  # labelled data set: how it is judged
WRITTEN = ("handmade_edge", "mathverify_tests")  # sources whose completions no model made
INVALID = "[invalid]"  # what the harness's filter reads where its pattern is not found

# Runs in LM_EVAL_PYTHON: reads rows of {"dataset", "completion", "gold"}, writes {judge: [answer, correct]} for each.
THEIRS = r"""
import json, sys
from pathlib import Path
import lm_eval, yaml
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter
from lm_eval.tasks.minerva_math import utils as minerva
folder = Path(lm_eval.__file__).parent / "tasks"
class Loader(yaml.SafeLoader): pass
Loader.add_constructor("!function", lambda loader, node: None)
read = lambda name: yaml.load((folder / name).read_text(), Loader)
tasks = {"gsm8k": read("gsm8k/gsm8k.yaml"), "asdiv": read("asdiv/asdiv-cot-llama.yaml")}
found = []
for line in open(sys.argv[1], encoding="utf-8"):
    row = json.loads(line)
    text, gold = row["completion"], row["gold"]
    verdicts = {}
    if row["dataset"] == "math":
        doc = {"answer": minerva.normalize_final_answer(gold), "solution": "$\\boxed{" + gold + "}$"}
        scores = minerva.process_results(doc, [text])
        read_answer = minerva.normalize_final_answer(minerva.get_unnormalized_answer(text))
        verdicts = {"exact_match": [read_answer, bool(scores["exact_match"])],
                    "math_verify": ["", bool(scores["math_verify"])]}
    else:
        task = tasks[row["dataset"]]
        target = "#### " + gold if row["dataset"] == "gsm8k" else gold.split(" (")[0]
        for pipeline in task["filter_list"]:
            options = {k: v for k, v in pipeline["filter"][0].items() if k != "function"}
            [[answer]] = RegexFilter(**options).apply([[text]], [{}])
            metric = {k: v for k, v in task["metric_list"][0].items() if k.startswith(("ignore", "regexes"))}
            score = exact_match_hf_evaluate(predictions=[answer], references=[target], **metric)["exact_match"]
            verdicts[pipeline["name"]] = [answer, bool(score)]
    found.append(verdicts)
json.dump({"version": lm_eval.__version__, "verdicts": found}, open(sys.argv[2], "w"))
"""


@dataclass
class Row:
    """A completion, its label, our Grade, and what one of the harness's judges read and said."""

    source: str
    dataset: str
    completion: str
    gold: str
    label: bool
    ours: Grade
    judge: str
    answer: str
    theirs: bool


# ---- both verdicts


def read_labelled(folder):
    """Labelled rows of DIR/labelled, with their file's name as "source". Raises BadInput where there are none."""
    files = sorted((folder / "labelled").glob("*.dev.jsonl"))
    if not files:
        raise BadInput(f"{folder} holds no labelled/*.dev.jsonl")
    return [
        {**row, "source": file.name.removesuffix(".dev.jsonl")}
        for file in files
        for row in read_json_lines(file)
        if row["dataset"] in FAMILIES
    ]


def ask_harness(python, rows):
    """(version, [{judge: [answer, correct]}]) of lm_eval for rows. Raises BadInput where it cannot be asked."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder, "rows.jsonl")
        answered = Path(folder, "verdicts.json")
        asked.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        command = [python, "-c", THEIRS, str(asked), str(answered)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BadInput(f"LM_EVAL_PYTHON {python}: {done.stderr.strip()[-400:]}")
        found = json.loads(answered.read_text(encoding="utf-8"))
    return found["version"], found["verdicts"]


def judge(labelled, verdicts):
    """A Row for each labelled row and judge of the harness."""
    kinds = ["latex" if FAMILIES[row["dataset"]] == "latex" else None for row in labelled]
    grades = grade_batch([row["completion"] for row in labelled], [row["gold"] for row in labelled], kinds)
    rows = []
    for row, grade, theirs in zip(labelled, grades, verdicts, strict=True):
        fixed = [row[name] for name in ("source", "dataset", "completion", "gold", "label_correct")]
        rows += [Row(*fixed, grade, name, answer, right) for name, (answer, right) in theirs.items()]
    return rows


# ---- why they part


def number(text):
    """The number that a text is, None for other texts; commas, currency and a full stop at the end do not count."""
    try:
        return Fraction(re.sub(r"[,$\s]|\.$", "", text))
    except (ValueError, ZeroDivisionError):
        return None


def find_reason(row):
    """Why the harness's verdict on a Row is not ours, in words that many rows share."""
    if row.judge == "math_verify":
        return "reads other parts of the text" if row.theirs else "cannot read the answer, or not as equal"
    if row.judge == "exact_match":
        return "takes a set for the text it begins with" if row.theirs else "reads `Final Answer: ...` alone"
    if row.judge == "strict-match" and row.completion.count("####") > 1:
        return "takes the first `####`, ours the last"
    if row.theirs:
        return "takes a number out of a range, a unit, a fraction or code: `17 or 18`, `$18 million`, `1/2`"
    if row.answer == INVALID:
        return "finds no answer in the form that it knows"
    if number(row.answer) is not None and number(row.answer) == number(row.gold):
        return "compares letters: `5.00` and `5` differ"
    return "takes another number of the text than the one that is marked"


def count_completions(labelled):
    """'8,069 completions, 7,810 of them different; ...' of labelled rows."""
    different = {(row["source"], row["completion"], row["gold"]) for row in labelled}
    written = sum(row["source"] in WRITTEN for row in labelled)
    return (
        f"{len(labelled):,} completions, {len(different):,} of them different; {written} were written to test graders, "
        "the others by models"
    )


def print_tables(rows, heading):
    """Markdown: how often the verdicts part, who is right by the label, and why."""
    print(heading + "\n")
    print("| problems | judge | completions | same verdict | parted: ours is right | parted: theirs is right |")
    print("|---|---|---|---|---|---|")
    parted = [row for row in rows if row.ours.correct != row.theirs]
    for dataset, name in sorted({(row.dataset, row.judge) for row in rows}):
        all_rows = [row for row in rows if (row.dataset, row.judge) == (dataset, name)]
        apart = [row for row in parted if (row.dataset, row.judge) == (dataset, name)]
        right = sum(row.ours.correct == row.label for row in apart)
        shown = (dataset, f"`{name}`", len(all_rows), len(all_rows) - len(apart), right, len(apart) - right)
        print("| " + " | ".join(map(str, shown)) + " |")
    print("\n| problems | judge | rows | it is | the harness |\n|---|---|---|---|---|")
    reasons = Counter((row.dataset, row.judge, row.theirs == row.label, find_reason(row)) for row in parted)
    for (dataset, name, is_right, reason), count in sorted(reasons.items()):
        print(f"| {dataset} | `{name}` | {count} | {'right' if is_right else 'wrong'} | {reason} |")


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--data_dir", type=Path, default=os.environ.get("GRPSPO_SHARED"), help="default: GRPSPO_SHARED")
    parser.add_argument("--list", metavar="JUDGE", help="print the completions on which this judge and ours part")
    args = parser.parse_args()
    python = os.environ.get("LM_EVAL_PYTHON")
    if not python or args.data_dir is None:
        raise BadInput("needs LM_EVAL_PYTHON, a Python with lm_eval, and --data_dir, labelled outputs: see --help")
    labelled = read_labelled(Path(args.data_dir))
    version, verdicts = ask_harness(python, labelled)
    rows = judge(labelled, verdicts)
    if not args.list:
        print_tables(rows, f"lm_eval {version}; {count_completions(labelled)}")
        return 0
    for row in rows:
        if row.judge == args.list and row.ours.correct != row.theirs:
            print(json.dumps({"reason": find_reason(row), **vars(row), "ours": row.ours._asdict()}))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
