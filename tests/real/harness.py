"""lm-evaluation-harness's own task gsm8k, asked the same problems with the same worked examples as an evaluation."""

import json
import os
import subprocess

import pytest

from common.datasets import load_examples
from evaluation.settings import read_settings

NEW_TOKENS = 128
# The harness's task, but for where its rows lie and which training rows are shown: those of the folder, in order.
LM_EVAL = """
import json, sys
from pathlib import Path
import lm_eval, yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
folder, model, shots, new_tokens = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
task = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text())
del task["dataset_name"]
files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
task |= {"task": "few_shot", "dataset_path": "json", "dataset_kwargs": {"data_files": files}}
task["fewshot_config"] = {"sampler": "first_n"}
task["num_fewshot"] = shots
task["generation_kwargs"]["max_gen_toks"] = new_tokens
(folder / "few_shot.yaml").write_text(yaml.safe_dump(task))
lm = HFLM(pretrained=model, device="cpu", dtype="float32", batch_size=1)
tasks = TaskManager(include_path=str(folder))
result = lm_eval.simple_evaluate(lm, tasks=["few_shot"], task_manager=tasks, log_samples=True)
samples = {sample["doc_id"]: sample for sample in result["samples"]["few_shot"]}  # once for each filter
found = [(samples[i]["arguments"][0][0], samples[i]["resps"][0][0]) for i in sorted(samples)]
(folder / "found.json").write_text(json.dumps(found))
"""


def read_lines(path):
    """The rows of a file of JSON lines, in GSM8K's schema where it is a data set's."""
    with open(path, encoding="utf-8") as lines:  # splitlines would cut at line ends within a text
        return [json.loads(line) for line in lines]


def ask_lm_eval(folder, model, shown, asked):
    """[(prompt, greedy completion)] of the harness for the rows `asked`, with the rows `shown` as examples."""
    python = os.environ.get("LM_EVAL_PYTHON")
    if not python:
        pytest.skip("needs LM_EVAL_PYTHON, a Python with lm_eval")
    folder.mkdir()
    for split, rows in (("train", shown), ("test", asked)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [python, "-c", LM_EVAL, str(folder), str(model), str(len(shown)), str(NEW_TOKENS)]
    environment = {**os.environ, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(pair) for pair in json.loads((folder / "found.json").read_text())]


def choose_examples(dataset, shots, written, cache_dir):
    """The rows among `written`, a data set's own training rows, that an evaluation shows."""
    answers = {row["question"]: row["answer"] for row in written}
    chosen = [question for question, _ in load_examples(dataset, shots, 0, cache_dir)]
    return [{"question": question, "answer": answers[question]} for question in chosen]


def ask_ours(call, out, asked, *flags):
    """[(prompt, greedy completion)] of an evaluation of the first problems of a data set, which are `asked`.

    flags: the model, the data set, how many examples.
    """
    alike = ["--temperatures", 0, "--apply_chat_template", "false", "--max_new_tokens", NEW_TOKENS]
    done = call("maths_evaluations", *flags, *alike, "--limit", len(asked), "--output_dir", out)
    assert done.code == 0, done.text
    prompt = read_settings(out).basis.prompt
    [file] = out.glob("*.jsonl")
    rows = sorted(read_lines(file), key=lambda row: int(row["id"].rpartition("-")[2]))
    pairs = zip(asked, rows, strict=True)
    return [(prompt.replace("QUESTION", problem["question"]), row["completion"]) for problem, row in pairs]
