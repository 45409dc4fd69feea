"""A real pretrained model goes the whole way on real rows: SmolLM2-135M-Instruct, which a package on the index carries.

The fewest steps and tokens that pass through everything. Skipped where the index or the folder of shared inputs is out
of reach.
"""

import json
import time

import pytest
from smollm import NAME, SETS

pytestmark = pytest.mark.slow

TRAIN = (
    f"--model {NAME} --learning_rate 1e-5 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 "
    "--warmup_steps 0 --eval_strategy no --load_best_model_at_end False --save_total_limit 1"
).split()
# The entropy bonus moves the weights also where no reward differs, as in so few and short completions.
GRPO = ("--dataset SVAMP --num_generations 2 --max_completion_length 8 --num_iterations 2 --entropy_coef 0.1").split()
LORA = "--use_peft --lora_r 4 --lora_dropout 0 --lora_target_modules q_proj v_proj --merge_adapter".split()
EVALUATE = "--temperatures 0 --limit 2 --max_new_tokens 8".split()


@pytest.fixture(scope="session")
def pspo(cache, begin, tmp_path_factory):
    """A run of all weights with pspo that was killed after its first checkpoint and continued."""
    folder = tmp_path_factory.mktemp("pspo")
    run = folder / "run"
    flags = [*TRAIN, *GRPO, "--trust_region_method", "pspo", "--max_steps", "4", "--save_steps", "2"]
    flags += ["--cache_dir", cache, "--output_dir", run]
    first = begin("maths_finetuning", flags, folder / "first")
    while not (run / "checkpoint-2" / "sealed.json").exists():
        assert first.is_alive(), (folder / "first").read_text()
        time.sleep(0.05)
    first.kill()
    first.join()
    second = begin("maths_finetuning", flags, folder / "second")
    second.join()
    assert second.exitcode == 0, (folder / "second").read_text()
    assert f"continuing from {run}/checkpoint-2" in (folder / "second").read_text()
    return run


@pytest.fixture(scope="session")
def clip(cache, begin, tmp_path_factory):
    """A run with clip that trained an adapter and merged it."""
    folder = tmp_path_factory.mktemp("clip")
    flags = [*TRAIN, *GRPO, *LORA, "--trust_region_method", "clip", "--max_steps", "2", "--save_steps", "2"]
    process = begin("maths_finetuning", [*flags, "--cache_dir", cache, "--output_dir", folder / "run"], folder / "log")
    process.join()
    assert process.exitcode == 0, (folder / "log").read_text()
    return folder / "run"


def read_metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_sft_learns_from_real_solutions(cache, call, shared, tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join((shared / "data/gsm8k.train.jsonl").open().readlines()[:40]))
    flags = ["--trust_region_method", "sft", "--dataset", problems, "--max_steps", "1", "--save_strategy", "no"]
    done = call("maths_finetuning", *TRAIN, *flags, "--cache_dir", cache, "--output_dir", tmp_path / "run")
    assert done.code == 0, done.text
    [row] = read_metrics(tmp_path / "run")
    assert 0.5 < row["loss"] < 2.5, row  # of a pretrained model; random weights have log(49152), 10.8


def test_all_weights_are_trained_and_continued_and_load_in_plain_transformers(cache, pspo):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert [row["step"] for row in read_metrics(pspo)] == [1, 2, 3, 4]
    trained = AutoModelForCausalLM.from_pretrained(pspo, dtype="float32").state_dict()
    base = AutoModelForCausalLM.from_pretrained(cache / NAME, dtype="float32").state_dict()
    assert trained.keys() == base.keys()
    moves = [(weight - base[name]).abs().max().item() for name, weight in trained.items()]
    assert 1e-6 < max(moves) < 1e-3, max(moves)  # four steps of AdamW at 1e-5
    assert AutoTokenizer.from_pretrained(pspo).chat_template


def test_the_merged_adapter_is_the_adapter_on_its_base(cache, clip):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = AutoModelForCausalLM.from_pretrained(clip, dtype="float32")
    base = AutoModelForCausalLM.from_pretrained(cache / NAME, dtype="float32")
    ids = AutoTokenizer.from_pretrained(clip)("Ann has 3 apples.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, clip / "adapter")(ids).logits
        folded = merged(ids).logits
    assert torch.allclose(adapted, folded, atol=1e-3)
    assert not torch.equal(plain, folded)


def test_both_runs_are_evaluated_and_compared(cache, call, pspo, clip):
    for run, sets in ((pspo, SETS), (clip, ["SVAMP"])):
        done = call("maths_evaluations", "--model_path", run, "--datasets", *sets, *EVALUATE, "--cache_dir", cache)
        assert done.code == 0, done.text
        assert {path.stem for path in (run / "evaluations").glob("*.jsonl")} == set(sets)
    report = call("maths_report", clip, pspo, "--cache_dir", cache)
    assert report.code == 0 and "SVAMP" in report.text, report.text
    assert "difference, paired" in report.text
