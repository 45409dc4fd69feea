"""common/datasets.py: what each data set becomes, the split, the prompt, and what a broken cache is told."""

import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import datasets as m
from common import files, models
from common.datasets import load_maths_dataset
from common.files import ROOT, BadInput, read_json_lines
from common.models import find_model

GSM8K = {"question": "How many?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}
MATHS = {
    "problem": "Half?",
    "solution": r"It is \boxed{\frac12}.",
    "answer": r"\frac12",
    "subject": "Algebra",
    "level": 3,
    "unique_id": "test/algebra/1.json",
}
ASDIV = {
    "body": "\n Ann has 2 pens. ",
    "question": "How many? ",
    "solution_type": "Sum",
    "answer": "9 (pens)",
    "formula": "",
}
SVAMP = {
    "ID": "chal-1",
    "Body": "Ann has 2 pens.",
    "Question": "How many?",
    "Equation": "2",
    "Answer": "2",
    "Type": "Sum",
    "question_concat": "Ann has 2 pens. How many?",
}


@pytest.fixture
def save(tmp_path):
    """Put rows into a cache by hand: save(name, split, rows); returns the cache."""

    def write(name, split, rows):
        from datasets import Dataset, DatasetDict

        DatasetDict({split: Dataset.from_list(rows)}).save_to_disk(str(tmp_path / name))
        return tmp_path

    return write


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """A cache of the real data sets, and their rows: (cache, {(name, split): rows})."""
    cache = tmp_path_factory.mktemp("real")
    script = ROOT / "save_model_locally.py"
    command = [sys.executable, script, "--from_files", shared / "data", "--cache_dir", cache]
    subprocess.run(command, check=True, capture_output=True)
    files = {
        (name, split): f"{name.lower()}.{split}" for name in m.DEFAULT_DATASETS for split in m.DATASETS[name].splits
    }
    files[("MATH-500", "test")] = "math500.test"
    return cache, {key: read_json_lines(shared / "data" / f"{stem}.jsonl") for key, stem in files.items()}


# ---- what a row becomes


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("gsm8k", GSM8K, ["gsm8k-test-0", "How many?", "2 + 3 = 5\n#### 5", "5", "integer", "", ""]),
        (
            "MATH-500",
            MATHS,
            ["test/algebra/1.json", "Half?", MATHS["solution"], r"\frac12", "latex", "Algebra", "3"],
        ),
        ("asdiv", ASDIV, ["asdiv-test-0", "Ann has 2 pens. How many?", "", "9", "integer", "Sum", ""]),
        ("SVAMP", SVAMP, ["chal-1", "Ann has 2 pens. How many?", "", "2", "integer", "Sum", ""]),
    ],
)
def test_row_of_each_data_set(save, name, row, expected):
    dataset = load_maths_dataset(name, "test", save(name, "test", [row]))
    assert dataset.column_names == m.COLUMNS
    assert list(dataset[0].values()) == [*expected, ""]  # of no family


def test_a_saved_dataset_without_splits_is_read_too(tmp_path):
    from datasets import Dataset

    Dataset.from_list([GSM8K]).save_to_disk(str(tmp_path / "gsm8k"))
    assert load_maths_dataset("gsm8k", "test", tmp_path)["gold"][:] == ["5"]


def test_the_last_marker_holds_the_gold_answer(save):
    row = {**GSM8K, "answer": "#### is how it ends\n#### 1,234"}
    gold = load_maths_dataset("gsm8k", "test", save("gsm8k", "test", [row]))["gold"][0]
    assert Fraction(gold.replace(",", "")) == 1234


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_demo_rows(split):
    dataset = load_maths_dataset("demo", split, "no cache is needed")
    source = list(map(json.loads, (m.DEMO_DIR / "data" / f"{split}.jsonl").read_text("utf-8").splitlines()))
    assert dataset["question"][:] == [row["question"] for row in source]
    assert [Fraction(g) for g in dataset["gold"]] == [Fraction(row["answer"].split("#### ")[-1]) for row in source]


def test_every_real_question_is_there_in_order(real):
    cache, source = real
    whole = {"gsm8k": "question", "MATH-500": "problem", "SVAMP": "question_concat"}
    for (name, split), rows in source.items():
        dataset = load_maths_dataset(name, split, cache)
        questions = [row[whole[name]] if name in whole else f"{row['body']} {row['question']}" for row in rows]
        assert [q.split() for q in dataset["question"]] == [q.split() for q in questions]
        assert len(set(dataset["id"])) == len(rows)
        assert all(isinstance(value, str) for row in dataset for value in row.values())


def test_real_gold_answers_are_the_published_ones(real):
    cache, source = real
    for (name, split), rows in source.items():
        dataset = load_maths_dataset(name, split, cache)
        if name == "gsm8k":
            published = [Fraction(row["answer"].split("#### ")[-1].replace(",", "")) for row in rows]
        elif name == "SVAMP":
            published = [Fraction(row["Answer"]) for row in rows]
        elif name == "MATH-500":
            assert dataset["gold"][:] == [row["answer"] for row in rows] and set(dataset["kind"]) == {"latex"}
            continue
        else:
            plain = re.compile(r"(\d+) \([^()]*\)")  # `9 (apples)`, most of ASDiv; the others are the grader's tests
            found = [plain.fullmatch(row["answer"]) for row in rows]
            assert sum(map(bool, found)) > 1900
            pairs = [(f[1], gold) for f, gold in zip(found, dataset["gold"], strict=True) if f]
            assert all(Fraction(number) == Fraction(gold) for number, gold in pairs)
            continue
        assert [Fraction(gold.replace(",", "")) for gold in dataset["gold"]] == published


def test_canonical_gold_is_read_back_as_itself(real):
    from grading import parse_gold

    cache, source = real
    for name, split in source:
        for row in load_maths_dataset(name, split, cache):
            assert parse_gold(row["gold"], row["kind"])[:2] == (row["gold"], row["kind"])


def test_real_solutions_have_no_calculator_notes_and_keep_the_answer_line(real):
    cache, source = real
    dataset = load_maths_dataset("gsm8k", "train", cache)
    for row, original in zip(dataset, source[("gsm8k", "train")], strict=True):
        assert "<<" not in row["solution"] and ">>" not in row["solution"]
        assert row["solution"].splitlines()[-1] == original["answer"].splitlines()[-1]
        assert len(row["solution"]) == len(original["answer"]) - sum(
            len(note) for note in re.findall("<<.*?>>", original["answer"])
        )


# ---- split and prompt


def made_up(count):
    from datasets import Dataset

    return Dataset.from_dict({"id": [str(n) for n in range(count)]})


@pytest.mark.parametrize(
    ("rows", "held_out", "expected"),
    [(7473, 473, 473), (12000, None, 500), (5001, None, 500), (700, None, 70), (19, None, 1), (2, None, 1)],
)
def test_split_uses_every_row_once(rows, held_out, expected):
    train, validation = m.split_train_validation(made_up(rows), 3, held_out)
    assert (len(train), len(validation)) == (rows - expected, expected)
    assert sorted(map(int, [*train["id"], *validation["id"]])) == list(range(rows))


def test_split_follows_the_seed_alone():
    first, again, other = (m.split_train_validation(made_up(7473), seed)[0]["id"][:] for seed in (0, 0, 1))
    assert first == again != other
    assert first != sorted(first, key=int)


@pytest.mark.parametrize(("rows", "held_out"), [(473, 473), (1, None)])
def test_split_leaves_no_part_empty(rows, held_out):
    with pytest.raises(BadInput, match=f"{rows} rows cannot be split"):
        m.split_train_validation(made_up(rows), 0, held_out)


def test_every_set_with_training_rows_can_be_trained_on(real):
    cache, source = real
    for name, held_out in (("gsm8k", 473), ("SVAMP", 70)):
        train, validation = m.load_training_split(name, 0, cache)
        assert len(validation) == held_out and train.column_names == m.COLUMNS
        whole = load_maths_dataset(name, "train", cache)["id"]
        assert sorted([*train["id"], *validation["id"]]) == sorted(whole) and len(whole) == len(source[name, "train"])
    train, validation = m.load_training_split("gsm8k", 0, cache, need_solution=True)
    assert train["id"][:] != sorted(train["id"]) and all(train["solution"])


def test_maths_training_rows_are_latex_with_a_level_and_a_solution(save):
    rows = [{**MATHS, "unique_id": f"train/algebra/{n}.json", "level": n % 5 + 1} for n in range(20)]
    train, validation = m.load_training_split("MATH", 0, save("MATH", "train", rows), need_solution=True)
    assert (len(train), len(validation)) == (18, 2)
    assert {row["id"]: row["difficulty"] for row in [*train, *validation]} == {
        row["unique_id"]: str(row["level"]) for row in rows
    }
    assert set(train["kind"]) == {"latex"} and set(train["solution"]) == {MATHS["solution"]}


def test_the_demo_validates_on_its_own_file():
    train, validation = m.load_training_split("demo", 0, "")
    assert train["question"][:] == load_maths_dataset("demo", "train", "")["question"][:]
    assert validation["question"][:] == load_maths_dataset("demo", "validation", "")["question"][:]


def test_the_table_states_the_rows_of_the_demo():
    counts = {path.stem: len(path.read_text().splitlines()) for path in (ROOT / "demo" / "data").glob("*.jsonl")}
    assert counts == m.DATASETS["demo"].splits


def test_what_cannot_be_trained_on_is_told_what_can(save):
    for name in ("asdiv", "MATH-500"):
        trained = ", ".join(name for name, data in m.DATASETS.items() if "train" in data.splits)
        with pytest.raises(BadInput, match=f"{name} has no rows to train on: choose from {trained}"):
            m.load_training_split(name, 0, "")
    cache = save("SVAMP", "train", [SVAMP] * 20)
    assert len(m.load_training_split("SVAMP", 0, cache)[0]) == 18
    with pytest.raises(BadInput, match="SVAMP has no worked solutions"):
        m.load_training_split("SVAMP", 0, cache, need_solution=True)


# ---- a file of one's own


@pytest.fixture
def own(tmp_path):
    """Write FILE.jsonl: own(rows, name) -> its path as it is typed."""

    def write(rows, name="mine.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


def test_a_file_is_evaluated_whole_and_split_to_train_on(own):
    rows = [{"question": f"{n} and 1?", "answer": f"{n}+1\n#### {n + 1}", "id": "x", "more": [n]} for n in range(30)]
    path = own([*rows, {**rows[0], "category": "sum", "difficulty": 3}])
    name, data = m.find_dataset(path)
    assert name == "mine"
    evaluated = load_maths_dataset(path, data.eval_split, "")
    assert evaluated["gold"][:] == [*(str(n + 1) for n in range(30)), "1"]
    assert evaluated["id"][:] == [f"mine-{n}" for n in range(31)]
    assert evaluated[30]["category"] == "sum" and evaluated[30]["difficulty"] == "3"
    train, validation = m.load_training_split(path, 0, "", need_solution=True)
    assert (len(train), len(validation)) == (28, 3)
    assert sorted([*train["id"], *validation["id"]]) == sorted(evaluated["id"])
    assert m.load_training_split(path, 1, "")[0]["id"][:] != train["id"][:]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "?", "answer": "5"}, "no #### line"),
        ({"question": "?", "answer": "#### x"}, "line 2"),
        ({"question": "?", "answer": "#### (1, 2)"}, "line 2"),
        ({"question": "?"}, "no text in column 'answer'"),
        ({"question": None, "answer": "#### 5"}, "no text in column 'question'"),
        ({"question": True, "answer": "#### 5"}, "no text in column 'question'"),
        ({"question": 1.5, "answer": "#### 5"}, "no text in column 'question'"),
        ({"question": " \n", "answer": "#### 5"}, "its question is empty"),
        ({"question": "?", "answer": "#### $(1, 2)"}, "'$(1, 2)' is not a number"),
        ({"question": "\ud800", "answer": "#### 5"}, "surrogate"),
        ({"question": "?", "answer": "#### 5", "category": []}, "'category'"),
    ],
)
def test_bad_row_of_a_file_is_named_by_its_line(own, row, words):
    path = own([GSM8K, row, GSM8K])
    for load in (lambda: load_maths_dataset(path, "test", ""), lambda: m.load_training_split(path, 0, "")):
        with pytest.raises(BadInput, match="mine.jsonl, line 2: ") as error:
            load()
        assert words in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_editors_write_is_read_and_errors_name_the_files_own_line(own, encoding, end):
    path = Path(own([]))
    lines = [json.dumps({**GSM8K, "question": f"é {n}?"}, ensure_ascii=False) for n in range(3)]
    path.write_bytes(end.join(["", lines[0], "", "  ", *lines[1:], "", ""]).encode(encoding))
    assert load_maths_dataset(str(path), "test", "")["question"][:] == ["é 0?", "é 1?", "é 2?"]
    path.write_bytes(end.join([lines[0], "", '{"question": "?", "answer": "5"}', ""]).encode(encoding))
    with pytest.raises(BadInput, match="mine.jsonl, line 3: no #### line"):
        load_maths_dataset(str(path), "test", "")
    path.write_bytes(end.join(["", lines[0], "", "{'question': 1}"]).encode(encoding))
    with pytest.raises(BadInput, match="mine.jsonl, line 4: not a JSON object: {'question': 1}"):
        load_maths_dataset(str(path), "test", "")


def test_what_pandas_writes_is_read(tmp_path):
    import pandas

    rows = [{**GSM8K, "category": "sum", "difficulty": 3}, {**GSM8K, "category": None}]
    path = tmp_path / "mine.jsonl"
    pandas.DataFrame(rows).to_json(path, orient="records", lines=True)
    assert '"category":null' in path.read_text() and '"difficulty":3.0' in path.read_text()
    read = load_maths_dataset(str(path), "test", "")
    assert (read["category"][:], read["difficulty"][:]) == (["sum", ""], ["3.0", ""])


@pytest.mark.parametrize("name", ["gsm8k.jsonl", "svamp.jsonl", "MATH-500.jsonl", "demo.jsonl"])
def test_a_file_named_like_a_data_set_is_refused(own, name):
    with pytest.raises(BadInput, match="rename the file"):
        load_maths_dataset(own([GSM8K], name), "test", "")


@pytest.mark.parametrize("name", ["my file.jsonl", ".x.jsonl", "-x.jsonl", "..jsonl", "mine.json", "x\n.jsonl"])
def test_a_file_whose_name_results_cannot_take_is_refused(own, name):
    with pytest.raises(BadInput, match="rename it|unknown data set"):
        load_maths_dataset(own([GSM8K], name), "test", "")


def test_empty_and_missing_files(own, tmp_path):
    with pytest.raises(BadInput, match="has no rows"):
        load_maths_dataset(own([]), "test", "")
    with pytest.raises(BadInput, match="cannot read .*none.jsonl: No such file"):
        load_maths_dataset(str(tmp_path / "none.jsonl"), "test", "")


SCALARS = st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))


@given(question=VALUES, reasoning=st.text(), number=st.integers(), more=st.dictionaries(st.text(), VALUES, max_size=3))
def test_a_row_is_read_as_it_stands_or_refused_with_its_line(question, reasoning, number, more):
    row = {**more, "question": question, "answer": f"{reasoning}\n#### {number}"}
    optional = [row[column] for column in ("category", "difficulty") if column in row]
    readable = isinstance(question, (str, int)) and not any(isinstance(value, (list, dict)) for value in optional)
    if not readable or not str(question).strip():
        words = "its question is empty" if readable else "no text in column"
        with pytest.raises(BadInput, match=f"a.jsonl, line 9: {words}"):
            m.map_row("a.jsonl", "test", 7, row, line=9)
        return
    mapped = m.map_row("a.jsonl", "test", 7, row, line=9)
    assert list(mapped) == m.COLUMNS and all(isinstance(value, str) for value in mapped.values())
    assert (mapped["question"], mapped["id"], int(mapped["gold"])) == (str(question), "a-7", number)
    if "<<" not in reasoning:
        assert mapped["solution"] == row["answer"]


def test_prompt():
    prompt = m.build_prompt("How many?")
    assert [message["role"] for message in prompt] == ["system", "user"]
    assert "####" in prompt[0]["content"] and prompt[1]["content"] == "How many?"


# ---- what is wrong, and the way out


def test_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(BadInput, match=f"{', '.join(m.DATASETS)}, or FILE.jsonl"):
        load_maths_dataset("gsm9k", "test", tmp_path)


def test_missing_data_set_names_the_command(tmp_path):
    with pytest.raises(BadInput) as error:
        load_maths_dataset("SVAMP", "test", tmp_path / "my cache")
    assert f"python save_model_locally.py --datasets SVAMP --cache_dir '{tmp_path / 'my cache'}'" in str(error.value)


def test_missing_split_lists_the_splits(save):
    with pytest.raises(BadInput, match="no split validation.*test"):
        load_maths_dataset("gsm8k", "validation", save("gsm8k", "test", [GSM8K]))
    with pytest.raises(BadInput, match="dev.jsonl"):
        load_maths_dataset("demo", "dev", "")


@pytest.mark.parametrize("answer", ["5", "#### ", "#### five or six", "", None])
def test_unreadable_gold_answer_stops_the_load_with_its_row(save, answer):
    with pytest.raises(BadInput, match="gsm8k test, row 1"):
        load_maths_dataset("gsm8k", "test", save("gsm8k", "test", [GSM8K, {**GSM8K, "answer": answer}]))


@pytest.mark.parametrize(("name", "row"), [("gsm8k", GSM8K), ("MATH-500", MATHS), ("asdiv", ASDIV), ("SVAMP", SVAMP)])
def test_renamed_column_is_named(save, name, row):
    for column in set(row) - {"Body", "Question", "Equation", "formula"}:
        renamed = {("other" if key == column else key): value for key, value in row.items()}
        with pytest.raises(BadInput, match=f"{name} test, row 0: no text in column '{column}'"):
            load_maths_dataset(name, "test", save(name, "test", [renamed]))


def test_cut_or_missing_file_is_found_by_its_size(save):
    cache = save("gsm8k", "test", [GSM8K])
    arrow = next((cache / "gsm8k" / "test").glob("*.arrow"))
    file = {"size": arrow.stat().st_size, "sha256": ""}
    manifest = {"items": {"gsm8k": {"files": {f"test/{arrow.name}": file}}}}
    (cache / "manifest.json").write_text(json.dumps(manifest))
    assert len(load_maths_dataset("gsm8k", "test", cache)) == 1
    arrow.write_bytes(arrow.read_bytes()[:-1])
    with pytest.raises(BadInput, match=f"{arrow.name} has .* --datasets gsm8k"):
        load_maths_dataset("gsm8k", "test", cache)
    arrow.unlink()
    with pytest.raises(BadInput, match=f"{arrow.name} is missing.* --datasets gsm8k"):
        load_maths_dataset("gsm8k", "test", cache)


def test_directory_that_is_no_data_set(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    with pytest.raises(BadInput, match="cannot read"):
        load_maths_dataset("gsm8k", "test", tmp_path)


@pytest.mark.parametrize("content", ["[1]", "{}", '{"splits": 3}', '{"splits": [1]}', "{"])
def test_damaged_data_set_is_told_the_way_out(tmp_path, content):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "dataset_dict.json").write_text(content)
    with pytest.raises(BadInput, match="cannot read .*delete it, then run: .* --datasets gsm8k"):
        load_maths_dataset("gsm8k", "test", tmp_path)


ROWS = st.dictionaries(st.text(max_size=5), VALUES, max_size=3)


@given(st.lists(ROWS, max_size=4), st.lists(VALUES | ROWS, max_size=2), st.booleans())
def test_json_lines_are_the_rows_or_the_first_that_is_none_is_named(tmp_path_factory, rows, more, ascii_only):
    path, values = tmp_path_factory.getbasetemp() / "file.jsonl", [*rows, *more]
    path.write_text("".join(json.dumps(value, ensure_ascii=ascii_only) + "\n" for value in values), "utf-8")
    bad = next((number for number, value in enumerate(values, 1) if type(value) is not dict), None)
    if bad is None:
        assert read_json_lines(path) == values
    else:
        with pytest.raises(BadInput, match=rf"file.jsonl, line {bad}: not a JSON object"):
            read_json_lines(path)


@given(st.lists(ROWS, min_size=1, max_size=4), st.integers(0), st.binary(max_size=3))
def test_json_lines_with_wrong_bytes_are_rows_or_bad_input(tmp_path_factory, rows, where, wrong):
    path = tmp_path_factory.getbasetemp() / "file.jsonl"
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    where %= len(data)
    path.write_bytes(data[:where] + wrong + data[where + 1 :])
    try:
        assert all(type(row) is dict for row in read_json_lines(path))
    except BadInput as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    "line", ["[1]", "1", "null", "{", "[" * 100_000, '{"a": ' * 100_000, '{"a": 1' + "0" * 5000 + "}"]
)
def test_bad_json_line_is_named(tmp_path, line):
    path = tmp_path / "file.jsonl"
    path.write_text('{"question": "?"}\n' + line + "\n")
    with pytest.raises(BadInput, match="file.jsonl, line 2"):
        read_json_lines(path)


# ---- models


def make_model(path):
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_find_model(tmp_path, monkeypatch):
    cached = make_model(tmp_path / "cache" / "Qwen2.5-0.5B")
    run = make_model(tmp_path / "runs" / "seed0")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    for name, path in (
        ("Qwen2.5-0.5B", cached),
        ("Qwen/Qwen2.5-0.5B", cached),
        (str(run), run),
        (str(adapter), adapter),
    ):
        assert find_model(name, tmp_path / "cache") == path
    monkeypatch.setattr(models, "DEMO_DIR", tmp_path / "demo")
    with pytest.raises(BadInput, match="demo/model is missing"):
        find_model("demo", tmp_path / "cache")
    demo = make_model(tmp_path / "demo" / "model")
    assert find_model("demo", tmp_path / "cache") == demo
    monkeypatch.chdir(tmp_path)
    assert find_model("runs/seed0", "cache").resolve() == run


def test_missing_models_are_told_the_way_out(tmp_path):
    for name in ("Qwen2.5-3B", "Qwen/Qwen2-Math-1.5B"):
        with pytest.raises(BadInput, match=f"save_model_locally.py --models {name} --cache_dir {tmp_path}"):
            find_model(name, tmp_path)
    with pytest.raises(BadInput, match="demo, Qwen2.5-0.5B"):
        find_model("Qwen9", tmp_path)
    with pytest.raises(BadInput, match="neither config.json nor adapter_config.json"):
        find_model(str(tmp_path), tmp_path)


def test_somebody_elses_model_of_the_same_name_is_not_taken(tmp_path):
    make_model(tmp_path / "Qwen2.5-0.5B")
    with pytest.raises(BadInput, match="other/Qwen2.5-0.5B is not in"):
        find_model("other/Qwen2.5-0.5B", tmp_path)


def test_cut_model_is_not_loaded(tmp_path):
    make_model(tmp_path / "Qwen2.5-0.5B")
    file = {"size": 10**9, "sha256": ""}
    item = {"hub_id": "Qwen/Qwen2.5-0.5B", "files": {"model.safetensors": file}}
    (tmp_path / "manifest.json").write_text(json.dumps({"items": {"Qwen2.5-0.5B": item}}))
    with pytest.raises(BadInput, match="model.safetensors is missing.* --models Qwen2.5-0.5B"):
        find_model("Qwen2.5-0.5B", tmp_path)


# ---- scripts


def test_cache_dir_of_argument_environment_or_default(monkeypatch):
    monkeypatch.setenv("GRPSPO_CACHE", "/from/environment")
    assert str(files.get_cache_dir("/from/argument")) == "/from/argument"
    assert str(files.get_cache_dir()) == "/from/environment"
    monkeypatch.delenv("GRPSPO_CACHE")
    assert str(files.get_cache_dir()) == "cached_files"


def test_bad_input_is_one_line_and_exit_code_2(capsys, monkeypatch):
    def main():
        raise BadInput("first\nsecond")

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["/some/where/script.py"])
    assert files.run_script(main) == 2
    assert capsys.readouterr().err == "script.py: error: first second\n"
    assert files.run_script(lambda: 0) == 0
    assert files.run_script(interrupted) == 130


@pytest.mark.parametrize(
    "arguments", [["gsm9k"], ["demo", "--rows", "many"], ["demo", "--unknown"], [], ["demo", "--split", "x"]]
)
def test_wrong_arguments_are_one_line(arguments):
    command = [sys.executable, "-m", "common.datasets", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2 and result.stdout == ""
    assert re.fullmatch(r"datasets\.py: error: .+\n", result.stderr)


def test_preview_prints_rows():
    command = [sys.executable, "-m", "common.datasets", "demo", "--rows", "2"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0
    assert [sorted(json.loads(line)) for line in result.stdout.splitlines()] == [sorted(m.COLUMNS)] * 2


def test_import_is_light_and_offline_switches_come_first():
    code = "import sys; from common import datasets, files"
    code += "; print({'torch', 'datasets', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    code += "; files.go_offline(); from huggingface_hub import constants; print(constants.is_offline_mode())"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT)
    assert result.stdout.split("\n")[:2] == ["set()", "True"]
