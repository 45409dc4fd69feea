"""The data sets, one row of one table each, as every other script sees them: one prompt, one schema, one split.

Serves the experiment of Probability Smoothing Policy Optimisation (arXiv 2509.21282). Nothing here touches the network:
rows come from the cache that save_model_locally.py makes, from the demo, or from a file of your own. Any set with
training rows can be trained on. Of GSM8K's, 7000 are trained on and the other 473 validate, each of the 7473 is used
(the published scripts lost one); of other sets and files a tenth validates, at most 500 rows.

Wherever a data set is named, FILE.jsonl will do: GSM8K's schema (`question`, `answer` that ends in `#### number`), one
row a line, with `category` and `difficulty` if you like; its results are named after the file.

Look at what a script will see (the first rows of a data set, as JSON lines):

    python -m common.datasets demo --split test
    python -m common.datasets gsm8k --split train --rows 3 --cache_dir cached_files
    python -m common.datasets my_problems.jsonl
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from common.files import (
    DEFAULT_CACHE_DIR,
    DEMO_DIR,
    BadInput,
    check_sizes,
    fetch_command,
    get_cache_dir,
    go_offline,
    make_parser,
    number_json_lines,
    read_json_lines,
    run_script,
)
from grading import parse_gold

COLUMNS = ["id", "question", "solution", "gold", "kind", "category", "difficulty", "family"]
NUMBER_KINDS = ("integer", "decimal", "fraction")  # kinds of a gold answer that is one number
# Rows to validate on, whichever is fewer: 500 of MATH, 70 of SVAMP.
HELD_OUT_ROWS = 500
HELD_OUT_SHARE = 0.1

SYSTEM_PROMPT = "Solve the problem step by step. End with #### and the final answer."
CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")  # `<<48/2=24>>`: github.com/openai/grade-school-math, README


# ---- how a row maps: text(column, default) is the row's value as text, and raises ValueError where there is none


def _gsm8k(text):
    reasoning, marker, gold = text("answer").rpartition("####")
    if not marker:
        raise ValueError("no #### line in its answer")
    solution = CALCULATOR_NOTE.sub("", reasoning) + marker + gold
    groups = {column: text(column, "") for column in ("category", "difficulty", "family")}
    return {"question": text("question"), "solution": solution, "gold": gold.strip(), **groups}


def _math(text):
    return {
        "id": text("unique_id"),
        "question": text("problem"),
        "solution": text("solution"),
        "gold": text("answer"),
        "category": text("subject"),
        "difficulty": text("level"),
    }


def _asdiv(text):
    # Body and question are raw element text of the XML, with stray spaces and line ends.
    question = " ".join(f"{text('body')} {text('question')}".split())
    return {"question": question, "gold": text("answer"), "category": text("solution_type")}


def _svamp(text):
    question = " ".join(text("question_concat").split())
    return {"id": text("ID"), "question": question, "gold": text("Answer"), "category": text("Type")}


# ---- the table


class DataSet(NamedTuple):
    """All that the scripts know of one data set; `train` is trained on, a `validation` beside it validates."""

    fields: Callable  # how a row maps
    gold: str  # kind of its gold answers: "number", "latex", or "any", which each text tells
    splits: dict  # {split: rows at that revision}
    hub_id: str | None = None  # None: not on the Hub
    revision: str | None = None  # a commit; None: the newest, which the manifest then names
    folder: str = ""  # the repository's, where it holds several configurations
    columns: str = ""  # the Hub's
    held_out: int | None = None  # training rows that validate; None: see HELD_OUT_ROWS

    @property
    def eval_split(self):
        """The split that is evaluated."""
        return "test" if "test" in self.splits else "validation"


DATASETS = {
    "gsm8k": DataSet(
        fields=_gsm8k,
        gold="number",
        splits={"train": 7473, "test": 1319},
        hub_id="openai/gsm8k",
        revision="740312add88f781978c0658806c59bc2815b9866",
        folder="main",
        columns="question answer",
        held_out=473,  # the paper's
    ),
    "MATH-500": DataSet(
        fields=_math,
        gold="latex",
        splits={"test": 500},
        hub_id="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        columns="problem solution answer subject level unique_id",
    ),
    "asdiv": DataSet(
        fields=_asdiv,
        gold="any",
        splits={"validation": 2305},
        hub_id="EleutherAI/asdiv",
        revision="8f95807222d87b4c688c3c22a6ba2801e1fa03e2",
        folder="asdiv",
        columns="body question solution_type answer formula",
    ),
    "SVAMP": DataSet(
        fields=_svamp,
        gold="number",
        splits={"train": 700, "test": 300},
        hub_id="ChilleD/SVAMP",
        revision="5e0bf1e5e7c0e9c4bc39180d224f41f3f801b7ef",
        columns="ID Body Question Equation Answer Type question_concat",
    ),
    "MATH": DataSet(  # PRM800K's split: none of MATH-500 is in its training rows; its commit is to be pinned
        fields=_math,
        gold="latex",
        splits={"train": 12000, "test": 500},
        hub_id="nlile/hendrycks-MATH-benchmark",
        columns="problem solution answer subject level unique_id",
    ),
    "demo": DataSet(fields=_gsm8k, gold="number", splits={"train": 3000, "validation": 128, "test": 500}),
}
FILE = DataSet(fields=_gsm8k, gold="number", splits={"train": None, "test": None})
DEFAULT_DATASETS = ["gsm8k", "MATH-500", "asdiv", "SVAMP"]  # fetched and evaluated where none is named


def find_dataset(name):
    """(name in results, DataSet) of a name in DATASETS or of a FILE.jsonl, whose every split is all its rows.

    Raises BadInput for an unknown name, and for a file that results could not tell from a known data set.
    """
    path = Path(name)
    if name in DATASETS:
        return name, DATASETS[name]
    if path.suffix != ".jsonl":
        raise BadInput(f"unknown data set {name}: choose from {', '.join(DATASETS)}, or FILE.jsonl")
    if path.stem.lower() in map(str.lower, DATASETS):
        raise BadInput(f"{name}: its results would be taken for those of the data set {path.stem}; rename the file")
    if not re.fullmatch(r"\w[\w.-]*", path.stem):
        raise BadInput(f"{name}: results are named after the file; rename it to letters, digits and . _ - alone")
    return path.stem, FILE


# ---- rows


def map_row(name, split, index, row, line=None):
    """One row of a data set's own schema -> dict of COLUMNS, all strings; `gold` and `kind` as parse_gold has them.

    line: its line in a file of the user's. Raises BadInput naming data set and row, or file and line, if a field is
    missing, the question is empty, or the gold answer is not of the data set's kind.
    """
    known, data = find_dataset(name)
    if data is FILE:
        place = f"{name}, line {line}"
        row_id = f"{known}-{index}"
    else:
        place = f"{name} {split}, row {index}"
        row_id = f"{known}-{split}-{index}"

    def text(column, default=None):
        return read_text(row, column, default)

    try:
        fields = data.fields(text)
        if not fields["question"].strip():
            raise ValueError("its question is empty")
        gold = parse_gold(fields["gold"], "latex" if data.gold == "latex" else None)
        if data.gold == "number" and gold.kind not in NUMBER_KINDS:
            raise ValueError(f"its gold answer {fields['gold']!r} is not a number")
    except ValueError as error:
        raise BadInput(f"{place}: {error}") from None
    return {**dict.fromkeys(COLUMNS, ""), "id": row_id, **fields, "gold": gold.text, "kind": gold.kind}


def read_text(row, column, default=None):
    """A column of a row as text; `default` where a column that may be missing is not there, or is null or NaN.

    Such a column may hold a decimal too: pandas makes one of a whole number where a column has gaps. Raises ValueError
    where there is no text.
    """
    value = row.get(column)
    if value is None or value != value:  # NaN, as pandas and Python's json spell a gap
        value = default
    number = isinstance(value, int) and not isinstance(value, bool)
    if not (isinstance(value, str) or number or (isinstance(value, float) and default is not None)):
        raise ValueError(f"no text in column {column!r} (columns: {', '.join(row)})")
    str(value).encode()  # a lone surrogate, which JSON can spell, raises a ValueError
    return str(value)


def load_maths_dataset(name, split, cache_dir):
    """A data set's split as a datasets.Dataset held in memory, with exactly COLUMNS, in the source's order.

    Raises BadInput for an unknown name or split, an item that is not cached (with the command that fetches it), changed
    columns, or a gold answer that cannot be parsed.
    """
    if find_dataset(name)[1] is FILE:
        rows = number_json_lines(Path(name))
        mapped = [map_row(name, split, index, row, line) for index, (line, row) in enumerate(rows)]
    else:
        rows = read_rows(name, split, cache_dir)
        mapped = [map_row(name, split, index, row) for index, row in enumerate(rows)]
    if not mapped:
        raise BadInput(f"{name} {split} has no rows")

    from datasets import Dataset  # slow to import: the checks above come first

    return Dataset.from_list(mapped)


def read_rows(name, split, cache_dir):
    """Rows (dicts in their own schema) of a data set's split, in the source's order."""
    if find_dataset(name)[1] is FILE:
        return [row for _, row in number_json_lines(Path(name))]
    if DATASETS[name].hub_id:
        return read_cached_rows(name, split, cache_dir)
    return read_json_lines(DEMO_DIR / "data" / f"{split}.jsonl")


def read_cached_rows(name, split, cache_dir):
    """Rows (dicts in the Hub's schema) of a cached data set's split; raises BadInput if the cache lacks it."""
    path = Path(cache_dir) / name
    command = fetch_command("--datasets", name, cache_dir)
    if not path.is_dir():
        raise BadInput(f"data set {name} is not in {cache_dir}; where there is internet, run: {command}")
    check_sizes(cache_dir, name, command)

    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"cannot read {path} ({error}); delete it, then run: {command}") from None
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise BadInput(f"data set {name} in {cache_dir} has no split {split}; it has {', '.join(saved)}")
        saved = saved[split]
    return saved.to_list()


def build_prompt(question, system_role=True, examples=()):
    """The conversation a model is given: system prompt, then the question; list of {"role", "content"} messages.

    Without a system role, which some chat templates refuse, both are the user's. examples: [(question, solution)] that
    are asked and answered before.
    """
    messages = []
    for asked, answered in examples:
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answered})
    messages.append({"role": "user", "content": question})
    if system_role:
        return [{"role": "system", "content": SYSTEM_PROMPT}, *messages]
    messages[0]["content"] = f"{SYSTEM_PROMPT}\n\n{messages[0]['content']}"
    return messages


# ---- training


def load_examples(name, count, seed, cache_dir, with_notes=False):
    """[(question, worked solution)]: the first `count` training rows of a data set in an order that `seed` decides.

    with_notes: solutions with GSM8K's calculator notes, as lm-evaluation-harness shows them.
    Raises BadInput as load_maths_dataset does, for a set without training rows or without solutions, or with too few.
    """
    if "train" not in find_dataset(name)[1].splits:
        raise BadInput(f"{name} has no training rows, of which examples are made: name another with --fewshot_dataset")
    rows = load_maths_dataset(name, "train", cache_dir)
    if "" in rows["solution"]:
        raise BadInput(f"{name} has no worked solutions: name another data set with --fewshot_dataset")
    if len(rows) < count:
        raise BadInput(f"--num_fewshot {count}: {name} has {len(rows)} training rows")
    if with_notes and find_dataset(name)[1].fields is _gsm8k:
        answers = [str(row["answer"]) for row in read_rows(name, "train", cache_dir)]
        rows = rows.remove_columns("solution").add_column("solution", answers)
    chosen = rows.shuffle(seed=seed).select(range(count))
    return list(zip(chosen["question"], chosen["solution"], strict=True))


def load_training_split(name, seed, cache_dir, need_solution=False):
    """(rows to train on, rows to validate on) of a data set: its own validation split, else a cut that `seed` decides.

    Raises BadInput as load_maths_dataset does, for a set without training rows, and, with `need_solution` (SFT learns
    from worked solutions), for one without them.
    """
    data = find_dataset(name)[1]
    if "train" not in data.splits:
        trainable = ", ".join(known for known in DATASETS if "train" in DATASETS[known].splits)
        raise BadInput(f"{name} has no rows to train on: choose from {trainable}, or FILE.jsonl")
    rows = load_maths_dataset(name, "train", cache_dir)
    if need_solution and "" in rows["solution"]:
        raise BadInput(f"{name} has no worked solutions, which SFT learns from: choose another data set or method")
    if "validation" in data.splits:
        return rows, load_maths_dataset(name, "validation", cache_dir)
    return split_train_validation(rows, seed, data.held_out)


def split_train_validation(dataset, seed, held_out=None):
    """Shuffle rows by seed -> (all but `held_out` to train on, the others to validate on); no row is dropped.

    held_out: rows, for None a tenth of them but at most 500 (see HELD_OUT_ROWS). Raises BadInput if either part would
    be empty.
    """
    count = len(dataset)
    held_out = held_out or min(HELD_OUT_ROWS, max(1, int(count * HELD_OUT_SHARE)))
    if count <= held_out:
        raise BadInput(f"{count} rows cannot be split: {held_out} are to validate on, the others to train on")
    shuffled = dataset.shuffle(seed=seed)
    return shuffled.select(range(count - held_out)), shuffled.select(range(count - held_out, count))


def main():
    parser = make_parser(__doc__)
    parser.add_argument("dataset", help=f"{', '.join(DATASETS)} or FILE.jsonl")
    parser.add_argument("--split", help="default: the split that is evaluated")
    parser.add_argument("--rows", type=int, default=5, help="how many rows to print (default: %(default)s)")
    parser.add_argument("--cache_dir", help=f"default: $GRPSPO_CACHE, else ./{DEFAULT_CACHE_DIR}")
    args = parser.parse_args()
    go_offline()
    split = args.split or find_dataset(args.dataset)[1].eval_split
    dataset = load_maths_dataset(args.dataset, split, get_cache_dir(args.cache_dir))
    for row in dataset.select(range(min(args.rows, len(dataset)))):
        print(json.dumps(row, ensure_ascii=False))
    print(f"{len(dataset)} rows in {args.dataset} {split}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_script(main))
