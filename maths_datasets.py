"""The four maths data sets and the demo's, as every other script sees them: one prompt, one schema, one split.

Serves the experiment of Probability Smoothing Policy Optimisation (arXiv 2509.21282). Nothing here touches the network:
data sets and models are read from the cache that save_model_locally.py makes. Training uses 7000 of GSM8K's training
rows and validates on the other 473; each of the 7473 rows is used (the published scripts lost one).

Look at what a script will see (the first rows of a data set, as JSON lines):

    python maths_datasets.py demo --split test
    python maths_datasets.py gsm8k --split train --rows 3 --cache_dir cached_files
"""

import json
import re
import sys
from pathlib import Path

from maths_common import (
    DEFAULT_CACHE_DIR,
    DEMO_DIR,
    BadInput,
    check_sizes,
    fetch_command,
    get_cache_dir,
    go_offline,
    make_parser,
    read_json_lines,
    run_script,
)

EVAL_SPLIT = {"gsm8k": "test", "MATH-500": "test", "asdiv": "validation", "SVAMP": "test", "demo": "test"}
NUMBER_KINDS = ("integer", "decimal", "fraction")  # what a gold answer is in the sets whose answers are one number
NUMBER_SETS = ("gsm8k", "SVAMP", "demo")
COLUMNS = ["id", "question", "solution", "gold", "kind", "category", "difficulty"]
TRAIN_ROWS = 7000  # of GSM8K's 7473 training rows; the paper validates on the other 473

SYSTEM_PROMPT = "Solve the problem step by step. End with #### and the final answer."
CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")  # `<<48/2=24>>`: github.com/openai/grade-school-math, README


def _gsm8k(text):
    reasoning, marker, gold = text("answer").rpartition("####")
    if not marker:
        raise ValueError("no #### line in its answer")
    solution = CALCULATOR_NOTE.sub("", reasoning) + marker + gold
    return {"question": text("question"), "solution": solution, "gold": gold.strip()}


def _math500(text):
    return {
        "id": text("unique_id"),
        "question": text("problem"),
        "solution": text("solution"),
        "gold": text("answer"),
        "kind": "latex",
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


def _demo(text):
    return {**_gsm8k(text), "difficulty": text("difficulty", "")}


FIELDS = {"gsm8k": _gsm8k, "MATH-500": _math500, "asdiv": _asdiv, "SVAMP": _svamp, "demo": _demo}


def map_row(name, split, index, row):
    """One row of a data set's own schema -> dict of COLUMNS, all strings; `gold` and `kind` as parse_gold has them.

    Raises BadInput naming data set and row if a field is missing or the gold answer cannot be parsed.
    """
    from maths_rewards import parse_gold  # maths_rewards imports this file for BadInput

    def text(column, default=None):
        value = row.get(column, default)
        if not isinstance(value, (str, int)):
            raise ValueError(f"no text in column {column!r} (columns: {', '.join(row)})")
        return str(value)

    try:
        fields = FIELDS[name](text)
        gold = parse_gold(fields["gold"], fields.get("kind"))
        if name in NUMBER_SETS and gold.kind not in NUMBER_KINDS:
            raise ValueError(f"its gold answer {gold.text!r} is not a number")
    except ValueError as error:
        raise BadInput(f"{name} {split}, row {index}: {error}") from None
    defaults = {**dict.fromkeys(COLUMNS, ""), "id": f"{name}-{split}-{index}"}
    return {**defaults, **fields, "gold": gold.text, "kind": gold.kind}


def load_maths_dataset(name, split, cache_dir):
    """A data set's split as a datasets.Dataset held in memory, with exactly COLUMNS, in the source's order.

    Raises BadInput for an unknown name or split, an item that is not cached (with the command that fetches it), changed
    columns, or a gold answer that cannot be parsed.
    """
    if name not in FIELDS:
        raise BadInput(f"unknown data set {name}: choose from {', '.join(FIELDS)}")
    rows = read_demo_rows(split) if name == "demo" else read_cached_rows(name, split, cache_dir)
    mapped = [map_row(name, split, index, row) for index, row in enumerate(rows)]
    if not mapped:
        raise BadInput(f"{name} {split} has no rows")

    from datasets import Dataset  # slow to import: the checks above come first

    return Dataset.from_dict({column: [row[column] for row in mapped] for column in COLUMNS})


def read_cached_rows(name, split, cache_dir):
    """Rows (dicts in the Hub's schema) of a cached data set's split; raises BadInput if the cache lacks it."""
    path, command = Path(cache_dir) / name, fetch_command("--datasets", name, cache_dir)
    if not path.is_dir():
        raise BadInput(f"data set {name} is not in {cache_dir}; where there is internet, run: {command}")
    check_sizes(cache_dir, name, command)

    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"cannot read {path} ({error}); delete it, then run: {command}") from None
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise BadInput(f"data set {name} in {cache_dir} has no split {split}; it has {', '.join(saved)}")
        saved = saved[split]
    return saved.to_list()


def read_demo_rows(split):
    """Rows of the demo's own data, read without any Hugging Face library; raises BadInput naming file and line."""
    return read_json_lines(DEMO_DIR / "data" / f"{split}.jsonl")


def build_prompt(question):
    """The conversation a model is given: system prompt, then the question; list of {"role", "content"} messages."""
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}]


def split_train_validation(dataset, seed):
    """Shuffle GSM8K's training rows by seed -> (7000 rows to train on, the rest to validate on); no row is dropped.

    Raises BadInput if there are not more than 7000 rows. The demo has a validation file of its own and needs no split.
    """
    if len(dataset) <= TRAIN_ROWS:
        raise BadInput(f"{len(dataset)} rows cannot be split: {TRAIN_ROWS} are to train on, the rest to validate on")
    shuffled = dataset.shuffle(seed=seed)
    return shuffled.select(range(TRAIN_ROWS)), shuffled.select(range(TRAIN_ROWS, len(dataset)))


def main():
    parser = make_parser(__doc__)
    parser.add_argument("dataset", choices=list(FIELDS))
    parser.add_argument("--split", help="default: the split that is evaluated")
    parser.add_argument("--rows", type=int, default=5, help="how many rows to print (default: %(default)s)")
    parser.add_argument("--cache_dir", help=f"default: $GRPSPO_CACHE, else ./{DEFAULT_CACHE_DIR}")
    args = parser.parse_args()
    go_offline()
    split = args.split or EVAL_SPLIT[args.dataset]
    dataset = load_maths_dataset(args.dataset, split, get_cache_dir(args.cache_dir))
    for row in dataset.select(range(min(args.rows, len(dataset)))):
        print(json.dumps(row, ensure_ascii=False))
    print(f"{len(dataset)} rows in {args.dataset} {split}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_script(main))
