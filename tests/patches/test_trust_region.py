"""The patched GRPOTrainer: clip against the pristine release, and every method against formulas written out here."""

import gc
import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from forked import fork
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from apply_patches import trust_region_methods

METHODS = trust_region_methods()
AGGREGATIONS = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
LOSS_TYPES = (*AGGREGATIONS, "cispo", "sapo", "vespo")
TIMINGS = ("step_time", "runtime", "_per_second")
WORDS = ("<pad>", "<eos>", "<unk>", *map(str, range(20)))
ALPHA, EPSILON, EPSILON_HIGH = 0.3, 0.1, 0.2
# Exact in float32, which is what torch makes of them before it meets the float64 of these tests
TEMPERATURE_POS, TEMPERATURE_NEG = 0.75, 1.25
CAP, DELTA, M2_BOUND, PENALTY = 1.25, 0.05, 0.0625, 1.5
K_POS, LAMBDA_POS, K_NEG, LAMBDA_NEG = 1.5, 2.5, 3.5, 1.25  # of vespo; not TRL's, so that none can take another's place
# What each method reads besides `epsilon`; the others take `epsilon_high` for the band of the diagnostics
OWN_FIELDS = {
    "pspo": dict(smoothing_alpha=ALPHA),
    "sapo": dict(sapo_temperature_pos=TEMPERATURE_POS, sapo_temperature_neg=TEMPERATURE_NEG),
    "cispo": dict(epsilon_high=CAP),
    "spo": dict(epsilon_high=None),
    "dppo": dict(trust_region_delta=DELTA),
    "drpo": dict(trust_region_delta=DELTA),
    "r2vpo": dict(trust_region_penalty=PENALTY),
    "m2po": dict(trust_region_delta=M2_BOUND, gradient_accumulation_steps=1),
    "gmpo": dict(importance_sampling_level="sequence"),
    "vespo": dict(
        vespo_k_pos=K_POS, vespo_lambda_pos=LAMBDA_POS, vespo_k_neg=K_NEG, vespo_lambda_neg=LAMBDA_NEG
    ),
}  # fmt: skip
ONE_LEVEL = {"gmpo": ["sequence"], **dict.fromkeys(("dppo", "drpo", "vespo", "m2po"), ["token"])}
LEVELS = [(method, level) for method in METHODS for level in ONE_LEVEL.get(method, ["token", "sequence"])]
# Those with a boundary, past which active_ratio counts
BOUNDED = ("clip", "cispo", "spo", "dppo", "topr", "drpo", "gmpo", "r2vpo", "m2po")


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    """Trainers make their output folder when they are built."""
    monkeypatch.chdir(tmp_path)


def make_tokenizer():
    """One token per small number."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )  # fmt: skip


def make_model():
    """A random Qwen2 of some thousand parameters, the same at every call."""
    torch.manual_seed(0)
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    tokens = dict(vocab_size=len(WORDS), bos_token_id=None, eos_token_id=1, pad_token_id=0)
    model = Qwen2ForCausalLM(Qwen2Config(**shape, **tokens, num_key_value_heads=1, max_position_embeddings=64))
    model.config._name_or_path = "reference"  # where the trainer looks for the reference model if beta > 0
    return model


def sum_reward(completion_ids, **kwargs):
    """A reward that differs between completions of one prompt."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def make_config(config_class=GRPOConfig, **overrides):
    """Two generations, two passes over the first at a rate that drives ratios out of [1 - epsilon, 1 + epsilon]."""
    defaults = dict(
        output_dir="unused", save_strategy="no", report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
        per_device_train_batch_size=4, gradient_accumulation_steps=1, steps_per_generation=2, num_generations=4,
        num_iterations=2, max_steps=5, logging_steps=1, learning_rate=2e-2, max_completion_length=8,
        gradient_checkpointing=False, epsilon=EPSILON,
    )  # fmt: skip
    return config_class(**{**defaults, **overrides})


def make_trainer(trainer_class=GRPOTrainer, **overrides):
    """A trainer of the tiny model, on prompts of different lengths."""
    prompts = Dataset.from_dict({"prompt": ["1 2 3", "4 5", "7 8 9 1"] * 4})
    config = overrides.pop("config", None) or make_config(**overrides)
    return trainer_class(
        model=make_model(), reward_funcs=sum_reward, args=config, train_dataset=prompts, eval_dataset=prompts,
        processing_class=make_tokenizer(),
    )  # fmt: skip


def train(**overrides):
    """Trains; returns (log rows, {name: weight})."""
    trainer = make_trainer(**overrides)
    trainer.train()
    return trainer.state.log_history, {name: w.detach().clone() for name, w in trainer.model.state_dict().items()}


def values_of(logs, key):
    """The values of one metric in the order in which they were logged."""
    return [row[key] for row in logs if key in row]


def assert_same_training(one, other):
    """Loss, gradient norm and all weights, bit for bit."""
    for key in ("loss", "grad_norm"):
        assert values_of(one[0], key) == values_of(other[0], key)
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


# clip is the release


def clip_cases():
    """Settings of the training runs that are compared with the release: each option alone, then all at once."""
    options = dict(
        delta=dict(delta=1.05),
        sequence=dict(importance_sampling_level="sequence"),
        beta=dict(beta=0.1),
        accumulation=dict(gradient_accumulation_steps=2, steps_per_generation=4),
    )
    cases = {f"dapo {name}": option for name, option in options.items()}
    cases["dapo all"] = {key: value for option in options.values() for key, value in option.items()}
    cases |= {loss_type: dict(loss_type=loss_type) for loss_type in LOSS_TYPES}
    cases["dapo and what else the loss knows"] = dict(
        eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=4, top_entropy_quantile=0.8, entropy_coef=0.01,
        off_policy_mask_threshold=0.01, mask_truncated_completions=True, epsilon_high=0.28, logging_steps=2,
    )  # fmt: skip
    return cases


def all_clip_cases():
    """These and every combination of three of the four options with every loss: none, two or four are on."""
    return clip_cases() | {
        f"{loss_type} {delta} {level} {beta} {accumulation}": dict(
            loss_type=loss_type, delta=delta, importance_sampling_level=level, beta=beta,
            gradient_accumulation_steps=accumulation, steps_per_generation=2 * accumulation,
        )
        for loss_type in LOSS_TYPES for delta in (None, 1.05) for level in ("token", "sequence")
        for beta in (0.0, 0.1) for accumulation in (1, 2)
        if (bool(delta) + (level == "sequence") + bool(beta) + (accumulation == 2)) % 2 == 0
    }  # fmt: skip


def record(cases, path):
    """Trains every case with whatever TRL is on the path, and writes logs (without timings) and weights' sha256."""
    gc.freeze()  # as conftest.py does
    os.chdir(Path(path).parent)
    results = {"is_patched": "trust_region_method" in GRPOConfig.__dataclass_fields__}
    make_model().save_pretrained("reference")
    for name, overrides in globals()[cases]().items():
        logs, weights = train(**overrides)
        rows = [
            {key: row[key] for key in sorted(row) if "trust_region/" not in key and not key.endswith(TIMINGS)}
            for row in logs
        ]
        data = b"".join(weights[key].numpy().tobytes() for key in sorted(weights))
        results[name] = {"logs": [json.dumps(row) for row in rows], "weights": hashlib.sha256(data).hexdigest()}
    Path(path).write_text(json.dumps(results))


@pytest.fixture(scope="session")
def pristine(tmp_path_factory, root):
    """A site-packages folder with the TRL release as it was before the patches."""
    site = tmp_path_factory.mktemp("pristine")
    distribution = importlib.metadata.distribution("trl")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("trl", f"trl-{distribution.version}.dist-info"):
        shutil.copytree(distribution.locate_file(name), site / name, ignore=ignore)
    subprocess.run([sys.executable, root / "apply_patches.py", "--reverse", "--target", site], check=True)
    return site


def compare_with_release(cases, pristine, folder):
    """Runs `cases` with both versions of TRL at once and compares everything but the patch's own metrics."""
    patched = fork(record, cases, str(folder / "patched"))
    tests = Path(__file__).parents[1]
    found = [pristine, tests / "patches", tests, tests.parent]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, found))}
    code = f"import test_trust_region as t; t.record({cases!r}, {str(folder / 'release')!r})"
    command = [sys.executable, "-W", "ignore", "-c", code]
    release = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert release.returncode == 0, release.stderr
    patched.join()
    assert patched.exitcode == 0
    results = {name: json.loads((folder / name).read_text()) for name in ("release", "patched")}
    assert [results[name].pop("is_patched") for name in ("release", "patched")] == [False, True]
    assert results["release"] == results["patched"]
    return results["patched"]


def test_clip_is_bit_identical_to_the_release(pristine, tmp_path):
    cases = "all_clip_cases" if os.environ.get("GRPSPO_SLOW_TESTS") else "clip_cases"
    results = compare_with_release(cases, pristine, tmp_path)
    logs = {name: [json.loads(row) for row in result["logs"]] for name, result in results.items()}
    assert max(values_of(logs["dapo"], "clip_ratio/region_mean")) > 0.1  # else these runs would prove nothing
    alone = [results[name]["weights"] for name in clip_cases()]
    assert len(set(alone)) == len(alone)  # every option had an effect
    assert values_of(logs["dapo and what else the loss knows"], "eval_loss")


# Properties of the methods in real training runs


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_alpha_zero_is_noclip_bit_for_bit(level):
    noclip = train(trust_region_method="noclip", importance_sampling_level=level)
    smoothed = train(trust_region_method="pspo", smoothing_alpha=0.0, importance_sampling_level=level)
    assert_same_training(noclip, smoothed)
    assert values_of(noclip[0], "loss") != values_of(train(importance_sampling_level=level)[0], "loss")


def test_alpha_one_has_no_policy_gradient():
    logs, weights = train(trust_region_method="pspo", smoothing_alpha=1.0, weight_decay=0.0)
    assert values_of(logs, "grad_norm") == [0.0] * 5
    assert any(values_of(logs, "loss"))  # the loss itself is the mean advantage, not nothing
    start = make_model().state_dict()
    assert all(torch.equal(weights[name], start[name]) for name in start)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_sapo_with_grpo_aggregation_is_the_sapo_loss_bit_for_bit(level):
    options = dict(importance_sampling_level=level, gradient_accumulation_steps=2)
    method = train(trust_region_method="sapo", loss_type="grpo", **options)
    assert_same_training(method, train(loss_type="sapo", **options))


def test_delta_one_of_dppo_is_noclip_bit_for_bit():
    dppo = train(trust_region_method="dppo", trust_region_delta=1.0)
    assert_same_training(dppo, train(trust_region_method="noclip"))
    assert values_of(dppo[0], "loss") != values_of(train(trust_region_method="dppo", trust_region_delta=0.0)[0], "loss")


@pytest.mark.parametrize(("method", "own", "narrow"), [
    ("drpo", dict(trust_region_delta=float("inf")), dict(trust_region_delta=0.01)),
    ("r2vpo", dict(trust_region_penalty=0.0), dict(trust_region_penalty=1.0)),
    ("m2po", dict(trust_region_delta=float("inf")), dict(trust_region_delta=0.001)),
])  # fmt: skip
def test_a_method_without_its_constraint_is_noclip_bit_for_bit(method, own, narrow):
    noclip = train(trust_region_method="noclip")
    assert_same_training(train(trust_region_method=method, **own), noclip)
    assert values_of(train(trust_region_method=method, **narrow)[0], "loss") != values_of(noclip[0], "loss")


def test_dppo_with_a_penalty_of_zero_is_dppo_bit_for_bit():
    options = dict(trust_region_method="dppo", trust_region_delta=0.01)
    dppo = train(**options)
    assert_same_training(train(**options, trust_region_penalty=0.0), dppo)
    assert values_of(train(**options, trust_region_penalty=0.1)[0], "loss") != values_of(dppo[0], "loss")


def test_vespo_with_dapo_aggregation_is_the_vespo_loss_bit_for_bit():
    options = dict(gradient_accumulation_steps=2, vespo_k_pos=1.5, vespo_lambda_neg=1.0)
    method = train(trust_region_method="vespo", loss_type="dapo", **options)
    assert_same_training(method, train(loss_type="vespo", **options))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_cispo_with_a_huge_cap_is_noclip_bit_for_bit(level):
    cispo = train(trust_region_method="cispo", epsilon_high=1e30, importance_sampling_level=level)
    assert_same_training(cispo, train(trust_region_method="noclip", importance_sampling_level=level))


@pytest.mark.parametrize(
    "method",
    [m if m in ("clip", "pspo", "m2po") else pytest.param(m, marks=pytest.mark.slow) for m in METHODS],
)
def test_metrics_of_each_method(method):
    own = dict(OWN_FIELDS.get(method, {}))
    if method in ("dppo", "drpo", "m2po"):
        own["trust_region_delta"] = 0.01  # tokens here have about 0.05
    validation = dict(eval_strategy="steps", eval_steps=4, per_device_eval_batch_size=48)  # all of it at once
    logs, _ = train(trust_region_method=method, **validation, **own)
    names = {"ratio_mean", "ratio_min", "ratio_max", "outside_ratio", "active_ratio", "approx_kl"}
    names |= {"effective_sample_size", "log_ratio_second_moment", "tv_mean", "tv_max", "reward_std_within_groups"}
    for prefix, row in (("", logs[0]), ("eval_", next(row for row in logs if "eval_loss" in row))):
        assert {f"{prefix}trust_region/{name}" for name in names} <= row.keys()
        assert any(key.startswith(f"{prefix}clip_ratio/") for key in row) == (method == "clip")
    assert "trust_region/removed_weight" in logs[0]
    assert not any("eval_trust_region/removed_weight" in row for row in logs)  # there is no gradient in evaluation
    assert values_of(logs, "trust_region/ratio_mean")[0] == 1.0
    assert values_of(logs, "trust_region/approx_kl")[0] == 0.0
    assert values_of(logs, "trust_region/outside_ratio")[1] > 0
    assert values_of(logs, "trust_region/active_ratio")[0] == 0.0
    assert any(values_of(logs, "trust_region/active_ratio")) == (method in BOUNDED)
    if method == "clip":
        counted = values_of(logs, "clip_ratio/region_mean")
        assert values_of(logs, "trust_region/active_ratio") == pytest.approx(counted, abs=1e-7)


@pytest.mark.parametrize("loss_type", ["cispo", "sapo", "vespo"])
def test_metrics_of_loss_types_with_a_trust_region_of_their_own(loss_type):
    row = train(loss_type=loss_type, max_steps=1)[0][0]
    assert "trust_region/ratio_mean" in row
    assert not any(key.startswith("clip_ratio/") for key in row)
    assert ("cispo_clip_ratio" in row) == (loss_type == "cispo")
    if loss_type == "cispo":  # with TRL's default cap of 0.2 every ratio of 1 is above it
        assert (row["trust_region/active_ratio"], row["trust_region/outside_ratio"]) == (1.0, 0.0)


# The loss and its gradient against formulas in float64


def make_batch(seed, sequences=6, length=7):
    """
    What the loss needs of one batch, in float64 where it is real.

    Log-probabilities (sequences, length) with ratios between about 0.5 and 2, advantages of both signs and zero,
    completions of different lengths, one with tokens of a tool inside.
    """
    generator = np.random.default_rng(seed)
    new = -generator.uniform(0.1, 2.0, (sequences, length))
    tokens = np.arange(length) < generator.integers(2, length + 1, (sequences, 1))
    tool = np.ones_like(tokens)
    tool[0, 1] = False
    return {
        "new": new, "old": np.minimum(new + generator.uniform(-0.7, 0.7, new.shape), -0.01), "mask": tokens & tool,
        "tokens": tokens, "tool": tool, "advantages": np.concatenate([[0.0], generator.normal(size=sequences - 1)]),
    }  # fmt: skip


def make_grid(log_ratios, advantages, behaviour):
    """
    A batch of single tokens, one for each pair of an advantage and a logarithm of a ratio.

    behaviour: what pi_old gives the token, for each ratio.
    """
    old = np.tile(np.log(behaviour), len(advantages))[:, None]
    everything = np.ones(old.shape, dtype=bool)
    return {
        "new": old + np.tile(log_ratios, len(advantages))[:, None], "old": old, "mask": everything,
        "tokens": everything, "tool": everything, "advantages": np.repeat(advantages, len(log_ratios)).astype(float),
    }  # fmt: skip


def compute_loss(trainer, batch, dtype=torch.float64):
    """The trainer's loss of `batch` and its gradient with respect to the new log-probabilities."""
    new = torch.tensor(batch["new"], dtype=dtype, requires_grad=True)
    ids = torch.ones(new.shape, dtype=torch.long)
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (new, torch.ones_like(new).detach(), None)
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids,
        "completion_mask": torch.tensor(batch["tokens"]).long(), "tool_mask": torch.tensor(batch["tool"]).long(),
        "advantages": torch.tensor(batch["advantages"], dtype=dtype),
        "old_per_token_logps": torch.tensor(batch["old"], dtype=dtype), "num_items_in_batch": torch.tensor(50),
    }  # fmt: skip
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), new.grad.numpy()


def is_active(method, ratio, advantage, behaviour):
    """Whether a ratio is past the method's boundary; behaviour: pi_old of the token."""
    push = np.sign(advantage) * (ratio - 1)
    return {
        "clip": ratio < 1 - EPSILON if advantage < 0 else advantage > 0 and ratio > 1 + EPSILON_HIGH,
        "cispo": ratio > CAP, "spo": push > EPSILON, "dppo": behaviour * push > DELTA,
        "drpo": behaviour * push > DELTA, "r2vpo": 2 * PENALTY * push > abs(advantage),
        "topr": advantage < 0 and ratio > 1,
        "gmpo": np.log(ratio) > EPSILON_HIGH if advantage > 0 else np.log(ratio) < -EPSILON,
    }.get(method, False)  # fmt: skip


def expected_surrogate(method, ratio, advantage, behaviour):
    """The surrogate f of one ratio and its slope df / d log pi, which is w A: the README's table."""
    active, r, a, tau = is_active(method, ratio, advantage, behaviour), ratio, advantage, None
    if method == "clip":
        return (min(max(r, 1 - EPSILON), 1 + EPSILON_HIGH) * a, 0.0) if active else (r * a, r * a)
    if method == "pspo":
        return ((1 - ALPHA) * r + ALPHA) * a, (1 - ALPHA) * r * a
    if method == "sapo":
        tau = TEMPERATURE_POS if a > 0 else TEMPERATURE_NEG
        gate = 1 / (1 + np.exp(-tau * (r - 1)))
        return 4 / tau * gate * a, 4 * gate * (1 - gate) * r * a
    if method == "cispo" and active:
        return a * CAP * (1 + np.log(r / CAP)), CAP * a
    if method == "spo":
        return r * a - abs(a) * (r - 1) ** 2 / (2 * EPSILON), r * (1 - np.sign(a) * (r - 1) / EPSILON) * a
    if method == "drpo":
        moved = behaviour * r - behaviour
        return r * a - abs(a) * moved**2 / (2 * DELTA * behaviour), r * (1 - np.sign(a) * moved / DELTA) * a
    if method == "r2vpo":
        return r * a - PENALTY * (r - 1) ** 2, r * a - 2 * PENALTY * r * (r - 1)
    if method == "dppo" and active:
        return 0.0, 0.0
    if method == "reinforce" or (method == "topr" and a >= 0):
        return a * np.log(r), a
    if method == "topr" and active:
        return a * (1 + np.log(r)), a
    return r * a, r * a  # noclip, and the others within their boundary


def masked_by_m2po(batch):
    """The tokens (sequences, length) that m2po masks: the largest first, until the mean of the rest is small."""
    squares = np.where(batch["mask"], (batch["new"] - batch["old"]) ** 2, 0.0)
    left = batch["mask"].copy()
    while left.any() and squares[left].mean() > M2_BOUND:
        left &= squares < squares[left].max()  # equal ones together
    return batch["mask"] & ~left


def expected_sequence(method, level, advantage, new, old, masked):
    """
    What a method makes of the tokens of one sequence, whose log-probabilities are `new` and `old`, (tokens,).

    Returns the surrogates (tokens,), their slopes (tokens, tokens) in the new log-probabilities, and which tokens are
    past the boundary. masked: those that m2po masks in this batch.
    """
    log_ratio, count = new - old, len(new)
    ratios = np.exp(log_ratio if level == "token" else np.full(count, log_ratio.mean()))
    if method == "gmpo":
        clipped = np.minimum(log_ratio, EPSILON_HIGH) if advantage > 0 else np.maximum(log_ratio, -EPSILON)
        value = advantage * np.exp(clipped.mean())
        active = np.array([is_active("gmpo", np.exp(x), advantage, 1.0) for x in log_ratio], bool)
        return np.full(count, value), np.tile(value / count * ~active, (count, 1)), active
    if method == "vespo":
        k, decay = (K_POS, LAMBDA_POS) if advantage >= 0 else (K_NEG, LAMBDA_NEG)
        product = np.exp(log_ratio.sum())
        weight = np.exp(decay) * product**k * np.exp(-decay * product)
        return advantage * weight * new, np.diag(np.full(count, advantage * weight)), np.zeros(count, bool)
    if method == "m2po":
        values = np.where(masked, 0.0, ratios * advantage)
        return values, np.diag(values), masked
    found = [expected_surrogate(method, r, advantage, p) for r, p in zip(ratios, np.exp(old), strict=True)]
    active = [is_active(method, r, advantage, p) for r, p in zip(ratios, np.exp(old), strict=True)]
    values, slopes = np.array(found).reshape(-1, 2).T
    # d log ratio / d logp: 1 for the token's own, a share for each token of the sequence
    shares = np.eye(count) if level == "token" else np.full((count, count), 1 / max(count, 1))
    return values, slopes[:, None] * shares, np.array(active, bool)


def expected_weights(loss_type, mask, accumulation, steps_per_generation, max_length):
    """The weight (sequences, length) of every token's loss in the total."""
    if loss_type == "dapo":
        return mask / (50 * accumulation / steps_per_generation)
    scale = {
        "grpo": mask.sum(1, keepdims=True) * len(mask), "bnpo": mask.sum(), "dr_grpo": len(mask) * max_length,
        "luspo": len(mask),
    }[loss_type]  # fmt: skip
    return mask / scale / accumulation


def expected_loss(method, level, weights, batch):
    """Loss and gradient, sequence by sequence and token by token."""
    loss, gradient = 0.0, np.zeros_like(batch["new"])
    masked = masked_by_m2po(batch)
    for i, advantage in enumerate(batch["advantages"]):
        used = np.flatnonzero(batch["mask"][i])
        row = (batch["new"][i, used], batch["old"][i, used], masked[i, used])
        values, slopes, _ = expected_sequence(method, level, advantage, *row)
        loss -= (weights[i, used] * values).sum()
        gradient[i, used] = -(weights[i, used] @ slopes)
    return loss, gradient


def accumulation_of(method):
    """The micro-batches of an update in these tests."""
    return 1 if method == "m2po" else 2


def make_method_trainer(method, loss_type="dapo", level="token", **overrides):
    """A trainer with the constants that the formulas use."""
    options = {"epsilon_high": EPSILON_HIGH, "importance_sampling_level": level, "gradient_accumulation_steps": 2}
    options.update(OWN_FIELDS.get(method, {}), **overrides)
    return make_trainer(trust_region_method=method, loss_type=loss_type, steps_per_generation=4, **options)


@pytest.mark.parametrize("loss_type", AGGREGATIONS)
@pytest.mark.parametrize(("method", "level"), LEVELS)
def test_loss_and_gradient_match_the_formulas(method, loss_type, level):
    batch = make_batch(seed=1)
    loss, gradient = compute_loss(make_method_trainer(method, loss_type, level), batch)
    weights = expected_weights(loss_type, batch["mask"], accumulation_of(method), steps_per_generation=4, max_length=8)
    expected, expected_gradient = expected_loss(method, level, weights, batch)
    assert loss == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-15)
    assert np.abs(gradient).max() > 1e-3


# Where each method changes its formula, powers of two, so that the exponential of their logarithm is exact
KINKS = dict(EPSILON=0.5, EPSILON_HIGH=1.0, CAP=4.0, DELTA=0.25, PENALTY=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradient_of_single_tokens_on_a_grid_and_at_every_kink(method, monkeypatch):
    for name, value in KINKS.items():
        monkeypatch.setitem(globals(), name, value)
    own = {
        "cispo": dict(epsilon_high=4.0), "spo": dict(epsilon_high=None), "r2vpo": dict(trust_region_penalty=0.5),
        "dppo": dict(trust_region_delta=0.25), "drpo": dict(trust_region_delta=0.25),
    }.get(method, {})  # fmt: skip
    level = ONE_LEVEL.get(method, ["token"])[0]
    trainer = make_method_trainer(method, "grpo", level, **{"epsilon": 0.5, "epsilon_high": 1.0, **own})
    kinks = np.array([0.5, 1.0, 2.0, 4.0])  # 0.5 and 2.0: of dppo too, where pi_old is 0.5 and 0.25
    assert torch.equal(torch.exp(torch.tensor(np.log(kinks))), torch.tensor(kinks))
    log_ratios = np.concatenate([np.linspace(np.log(1e-3), np.log(1e3), 121), np.log(kinks), [-0.5]])
    behaviour = np.ones(len(log_ratios))  # whose logarithm is 0, so that those of the kinks stay exact
    if method in ("dppo", "drpo"):
        behaviour = np.concatenate([0.5 / np.maximum(1.0, np.exp(log_ratios[:-5])), [0.5, 0.25, 0.25, 0.25, 0.25]])
    batch = make_grid(log_ratios, [1.0, -1.0, 0.25, -3.0, 0.0], behaviour)
    loss, gradient = compute_loss(trainer, batch)
    weights = np.full(batch["mask"].shape, 1 / len(batch["mask"]) / accumulation_of(method))
    expected, expected_gradient = expected_loss(method, level, weights, batch)
    assert loss == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-300)


# Identities


@pytest.mark.parametrize(("method", "level"), LEVELS)
def test_all_methods_have_the_same_gradient_where_the_ratio_is_one(method, level):
    batch = make_batch(seed=10)
    batch["old"] = batch["new"]
    accumulation = dict(gradient_accumulation_steps=accumulation_of(method))
    _, noclip = compute_loss(make_method_trainer("noclip", level=level, **accumulation), batch)
    _, gradient = compute_loss(make_method_trainer(method, level=level), batch)
    np.testing.assert_allclose(gradient, noclip * (1 - ALPHA if method == "pspo" else 1), rtol=1e-14)


def test_spo_with_a_huge_epsilon_is_noclip():
    batch = make_batch(seed=11)
    noclip = compute_loss(make_method_trainer("noclip"), batch)
    spo = compute_loss(make_method_trainer("spo", epsilon=1e15), batch)
    assert spo[0] == pytest.approx(noclip[0], rel=1e-13)
    np.testing.assert_allclose(spo[1], noclip[1], rtol=1e-13)


def test_gmpo_of_single_tokens_is_a_clip_in_log_space():
    batch = make_grid(np.linspace(-1.5, 1.5, 101), [1.0, -1.0, 0.25, -3.0], np.full(101, 0.1))
    gmpo = compute_loss(make_method_trainer("gmpo", "grpo", "sequence", epsilon=0.4, epsilon_high=0.3), batch)
    band = dict(epsilon=1 - np.exp(-0.4), epsilon_high=np.exp(0.3) - 1)
    clip = compute_loss(make_method_trainer("clip", "grpo", "sequence", **band), batch)
    assert gmpo[0] == pytest.approx(clip[0], rel=1e-12)
    np.testing.assert_allclose(gmpo[1], clip[1], rtol=1e-12)
    assert (gmpo[1] == 0).any()


def test_gmpo_is_that_of_trls_own_trainer():
    from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

    batch = make_batch(seed=21)
    theirs = make_config(GMPOConfig, epsilon=0.25, epsilon_high=0.125, gradient_accumulation_steps=2)
    expected = compute_loss(make_trainer(GMPOTrainer, config=theirs), batch)
    ours = compute_loss(make_method_trainer("gmpo", "grpo", "sequence", epsilon=0.25, epsilon_high=0.125), batch)
    assert ours[0] == pytest.approx(expected[0], rel=1e-13)
    np.testing.assert_allclose(ours[1], expected[1], rtol=1e-13)


def test_r2vpo_is_spo_where_the_advantages_are_one_and_minus_one():
    batch = make_batch(seed=22)
    batch["advantages"] = np.sign(np.arange(6) - 2.5)
    spo = compute_loss(make_method_trainer("spo", epsilon=0.125), batch)
    r2vpo = compute_loss(make_method_trainer("r2vpo", trust_region_penalty=4.0), batch)
    assert r2vpo[0] == pytest.approx(spo[0], rel=1e-13)
    np.testing.assert_allclose(r2vpo[1], spo[1], rtol=1e-13)


@pytest.mark.parametrize("loss_type", AGGREGATIONS)
def test_the_penalty_of_dppo_is_of_every_token(loss_type):
    batch, penalty = make_batch(seed=23), 0.375
    plain = compute_loss(make_method_trainer("dppo", loss_type), batch)
    loss, gradient = compute_loss(make_method_trainer("dppo", loss_type, trust_region_penalty=penalty), batch)
    weights = expected_weights(loss_type, batch["mask"], accumulation=2, steps_per_generation=4, max_length=8)
    log_ratio = batch["new"] - batch["old"]
    assert loss == pytest.approx(plain[0] + (weights * penalty * log_ratio**2).sum(), rel=1e-12)
    np.testing.assert_allclose(gradient, plain[1] + weights * 2 * penalty * log_ratio, rtol=1e-12, atol=1e-15)


def test_m2po_looks_at_the_tokens_of_all_processes(monkeypatch):
    """Another process has twice the tokens, all of ratio 1 but for one row: alone, this one would mask more."""
    batch = make_batch(seed=24)
    trainer = make_method_trainer("m2po", "bnpo")
    alone = compute_loss(trainer, batch)[1]
    quiet = torch.zeros((2, batch["new"].shape[1]), dtype=torch.float64)
    monkeypatch.setattr(trainer.accelerator, "gather", lambda x: torch.cat([x, quiet]) if x.shape[1] == 7 else x)
    together = compute_loss(trainer, batch)[1]
    everyone = {**batch, "new": np.concatenate([batch["new"], quiet]), "old": np.concatenate([batch["old"], quiet])}
    everyone["mask"] = np.concatenate([batch["mask"], np.ones(quiet.shape, bool)])
    masked = masked_by_m2po(everyone)[:6]
    has_gradient = batch["mask"] & (batch["advantages"][:, None] != 0)
    assert ((together == 0) == (masked | ~has_gradient)).all()
    assert (alone == 0).sum() > (together == 0).sum() > (~has_gradient).sum()


@pytest.mark.parametrize("loss_type", AGGREGATIONS)
def test_reinforce_is_the_same_for_tokens_and_sequences(loss_type):
    batch = make_batch(seed=12)
    tokens = compute_loss(make_method_trainer("reinforce", loss_type, "token"), batch)
    sequences = compute_loss(make_method_trainer("reinforce", loss_type, "sequence"), batch)
    assert tokens[0] == pytest.approx(sequences[0], rel=1e-12)
    np.testing.assert_allclose(tokens[1], sequences[1], rtol=1e-12)


# Extreme values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("method", "level"), LEVELS)
def test_extreme_ratios_give_finite_losses_and_gradients(method, level, dtype):
    for advantage in (1.0, -1.0):
        for log_ratio in (80.0, -80.0):
            batch = make_grid(np.zeros(3), [advantage, 0.0], np.full(3, 0.5))
            batch["old"] = batch["new"] - log_ratio
            loss, gradient = compute_loss(make_method_trainer(method, level=level), batch, dtype)
            if method in ("spo", "r2vpo") and log_ratio > 0 and dtype == torch.float32:  # which has no exp(80)**2
                assert loss == np.inf and not np.isnan(gradient).any()
            else:
                assert np.isfinite(loss) and np.isfinite(gradient).all()
            if method != "r2vpo":  # whose penalty is of tokens without an advantage too
                assert (gradient[3:] == 0).all()


@pytest.mark.parametrize(("method", "level"), LEVELS)
def test_a_row_without_tokens_adds_nothing_and_one_token_is_enough(method, level):
    batch = make_batch(seed=13, sequences=3)
    batch["tokens"][:] = False
    batch["tokens"][2, 0] = True
    batch["mask"] = batch["tokens"]
    loss, gradient = compute_loss(make_method_trainer(method, level=level), batch)
    weights = expected_weights("dapo", batch["mask"], accumulation_of(method), steps_per_generation=4, max_length=8)
    expected, expected_gradient = expected_loss(method, level, weights, batch)
    assert loss == pytest.approx(expected, rel=1e-12) and (loss != 0 or method == "m2po")
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5, 0.9])
def test_pspo_gradient_is_noclips_times_one_minus_alpha(alpha):
    batch = make_batch(seed=2)
    _, noclip = compute_loss(make_trainer(trust_region_method="noclip"), batch)
    _, pspo = compute_loss(make_trainer(trust_region_method="pspo", smoothing_alpha=alpha), batch)
    np.testing.assert_allclose(pspo, (1 - alpha) * noclip, rtol=1e-14)


@pytest.mark.slow
def test_the_figure_is_drawn_from_the_trainers_loss(root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    trust_regions = importlib.import_module("trust_regions")
    monkeypatch.setattr(trust_regions, "RATIOS", [0.5, 1.0, 2.5])
    spo = trust_regions.curves("spo")  # epsilon 0.5: f = r A - (r - 1)**2, w = r (1 - A (r - 1) / 0.5)
    assert spo[1.0]["f"] == pytest.approx((0.25, 1.0, 0.25)) and spo[1.0]["w"] == pytest.approx((1.0, 1.0, -5.0))
    assert spo[-1.0]["f"] == pytest.approx((-0.75, -1.0, -4.75)) and spo[-1.0]["w"] == pytest.approx((0.0, 1.0, 10.0))
    trust_regions.draw(tmp_path / "figure.svg")
    assert xml.etree.ElementTree.parse(tmp_path / "figure.svg").getroot().tag.endswith("svg")


# The diagnostics


def expected_diagnostics(batches, level, method):
    """Statistics over all tokens of several batches."""
    ratios, log_ratios, moved, active, advantages, kept = [], [], [], [], [], []
    for batch in batches:
        masked = masked_by_m2po(batch)
        for i, advantage in enumerate(batch["advantages"]):
            used = batch["mask"][i]
            new, old = batch["new"][i, used], batch["old"][i, used]
            _, slopes, is_past = expected_sequence(method, level, advantage, new, old, masked[i, used])
            ratios += list(np.exp(new - old if level == "token" else np.full(len(new), (new - old).mean())))
            log_ratios += list(new - old)
            moved += list(np.abs(np.exp(new) - np.exp(old)))
            active += list(is_past)
            advantages += [advantage] * len(new)
            kept += list(np.sign(advantage) * slopes.sum(axis=0))
    ratios, log_ratios, advantages = np.array(ratios), np.array(log_ratios), np.array(advantages)
    high = EPSILON if method in ("cispo", "spo") else EPSILON_HIGH
    outside = (ratios < 1 - EPSILON) | (ratios > 1 + high)
    return {
        "trust_region/ratio_mean": ratios.mean(), "trust_region/ratio_min": ratios.min(),
        "trust_region/ratio_max": ratios.max(), "trust_region/outside_ratio": outside.mean(),
        "trust_region/active_ratio": np.mean(active),
        "trust_region/approx_kl": np.mean(np.exp(log_ratios) - 1 - log_ratios),
        "trust_region/log_ratio_second_moment": np.mean(log_ratios**2),
        "trust_region/tv_mean": np.mean(moved), "trust_region/tv_max": np.max(moved),
        "trust_region/effective_sample_size": ratios.sum() ** 2 / (ratios**2).sum() / len(ratios),
        "trust_region/removed_weight": 1 - np.sum(kept) / np.sum(np.abs(advantages) * ratios),
    }  # fmt: skip


def logged_diagnostics(trainer):
    """What would be logged now."""
    return {
        name: sum(values) / len(values)
        for name, values in trainer._metrics["train"].items()
        if name.startswith("trust_region/")
    }


@pytest.mark.parametrize(("method", "level"), LEVELS)
def test_diagnostics_are_over_the_tokens_since_the_last_log(method, level):
    trainer = make_method_trainer(method, level=level)
    batches = [make_batch(seed=3), make_batch(seed=4, sequences=2, length=3), make_batch(seed=5)]
    for batch in batches:
        compute_loss(trainer, batch)
    expected = expected_diagnostics(batches, level, method)
    assert logged_diagnostics(trainer) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    active = expected["trust_region/active_ratio"]
    assert 0 < active < 1 if method in BOUNDED else active == 0
    assert (abs(expected["trust_region/removed_weight"]) > 1e-4) == (method != "noclip")
    trainer.log({})
    compute_loss(trainer, batches[1])
    expected = expected_diagnostics(batches[1:2], level, method)
    assert logged_diagnostics(trainer) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_delta_of_clip_is_active_too_and_does_not_touch_the_ratios():
    batch = make_batch(seed=3)
    trainer = make_method_trainer("clip", delta=1.25)
    compute_loss(trainer, batch)
    expected = expected_diagnostics([batch], "token", "clip")
    ratios = np.exp(batch["new"] - batch["old"])
    beyond = (ratios > 1.25) & (batch["advantages"][:, None] <= 0)  # those with A > 0 are above 1 + epsilon_high
    expected["trust_region/active_ratio"] += beyond[batch["mask"]].mean()
    weights = np.abs(batch["advantages"][:, None]) * ratios * batch["mask"]
    expected["trust_region/removed_weight"] += weights[beyond].sum() / weights.sum()
    assert beyond.any()
    assert logged_diagnostics(trainer) == pytest.approx(expected, rel=1e-5)


def test_diagnostics_are_of_all_processes_in_one_collective(monkeypatch):
    here, there = make_batch(seed=6), make_batch(seed=7, sequences=3, length=5)
    trainer = make_method_trainer("pspo")
    sent = []

    def gather(tensor):
        """Another process's tensor, where there is one, and this one's."""
        sent.append(tensor)
        return torch.cat(sent)

    monkeypatch.setattr(trainer.accelerator, "gather", gather)
    compute_loss(trainer, there)
    trainer._metrics["train"].clear()
    compute_loss(trainer, here)
    assert len(sent) == 2
    assert logged_diagnostics(trainer) == pytest.approx(expected_diagnostics([here, there], "token", "pspo"), rel=1e-5)


def test_diagnostics_of_a_batch_without_tokens():
    batch = make_batch(seed=8)
    batch["tokens"][:] = False
    trainer = make_method_trainer("pspo", loss_type="grpo")
    compute_loss(trainer, batch)
    assert logged_diagnostics(trainer) == {}
    batch = make_batch(seed=8)
    compute_loss(trainer, batch)
    assert logged_diagnostics(trainer) == pytest.approx(expected_diagnostics([batch], "token", "pspo"), rel=1e-5)


def test_diagnostics_take_no_notice_of_padding():
    batch = make_batch(seed=9)
    expected = expected_diagnostics([batch], "token", "noclip")
    batch["old"][~batch["mask"]] = -np.inf  # a ratio of infinity
    trainer = make_method_trainer("noclip")
    compute_loss(trainer, batch)  # itself not finite: the release multiplies padding by zero
    assert logged_diagnostics(trainer) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_removed_weight_of_pspo_is_alpha_and_there_is_none_where_no_token_has_an_advantage():
    batch, trainer = make_batch(seed=25), make_method_trainer("pspo")
    compute_loss(trainer, batch)
    assert logged_diagnostics(trainer)["trust_region/removed_weight"] == pytest.approx(ALPHA, rel=1e-6)
    trainer.log({})
    batch["advantages"][:] = 0.0
    compute_loss(trainer, batch)
    logged = logged_diagnostics(trainer)
    assert "trust_region/removed_weight" not in logged and "trust_region/tv_max" in logged


def test_the_spread_of_rewards_is_taken_within_groups(monkeypatch):
    """With rewards that differ between groups alone, TRL's reward_std is large and the spread within groups is 0."""
    monkeypatch.setitem(
        globals(), "sum_reward", lambda completion_ids, prompts, **kwargs: [float(len(p)) for p in prompts]
    )
    logs, _ = train(trust_region_method="pspo", per_device_train_batch_size=12, max_steps=1)
    assert values_of(logs, "reward_std")[0] > 0.5
    assert values_of(logs, "trust_region/reward_std_within_groups") == [0.0]
    seen = []
    monkeypatch.setitem(globals(), "sum_reward", lambda completion_ids, **kwargs: seen.append(
        [float(sum(ids) % 7) for ids in completion_ids]) or seen[-1])  # fmt: skip
    logs, _ = train(trust_region_method="pspo", per_device_train_batch_size=12, max_steps=1)
    expected = np.array(seen[0]).reshape(-1, 4).std(axis=1, ddof=1).mean()
    assert values_of(logs, "trust_region/reward_std_within_groups") == [pytest.approx(expected, rel=1e-6)]


# What is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(trust_region_method="ppo"), "Unknown trust_region_method: 'ppo'. Possible values are 'clip', 'noclip'"),
        (dict(trust_region_method="sft"), "Unknown trust_region_method: 'sft'"),
        (dict(smoothing_alpha=-0.1), r"smoothing_alpha must be in \[0, 1\], but got -0.1"),
        (dict(smoothing_alpha=1.5), r"smoothing_alpha must be in \[0, 1\], but got 1.5"),
        (dict(smoothing_alpha=float("nan")), r"smoothing_alpha must be in \[0, 1\], but got nan"),
        (dict(trust_region_delta=-0.1), "trust_region_delta must be at least 0, but got -0.1"),
        (dict(trust_region_method="m2po", trust_region_delta=float("nan")), "must be at least 0, .*nan"),
        (dict(trust_region_method="dppo", trust_region_delta=1.5), r"'dppo' must be in \[0, 1\], but got 1.5"),
        (dict(trust_region_method="drpo", trust_region_delta=0.0), "'drpo' must be more than 0"),
        *((dict(trust_region_method="r2vpo", trust_region_penalty=x), f"trust_region_penalty must be at least 0, .*{x}")
          for x in (-1.0, float("inf"), float("nan"))),
        # what a method needs
        *((dict(trust_region_method="cispo", epsilon_high=c), f"'cispo' requires epsilon_high .* at least 1.0 .* {c}")
          for c in (None, 0.28, float("inf"), float("nan"))),
        (dict(trust_region_method="spo", epsilon=0.0), "'spo' has one width for both directions, epsilon > 0"),
        (dict(trust_region_method="spo", epsilon_high=0.28), "epsilon_high=0.28. Set epsilon, and leave epsilon_high"),
        *((dict(trust_region_method=m, importance_sampling_level="sequence"), "Set importance_sampling_level='token'")
          for m in ("dppo", "drpo", "vespo", "m2po")),
        (dict(trust_region_method="gmpo"), "Set importance_sampling_level='sequence', or use another"),
        (dict(trust_region_method="r2vpo"), "requires trust_region_penalty, the coefficient of"),
        (dict(trust_region_method="m2po", gradient_accumulation_steps=8),
         "Set gradient_accumulation_steps=1 and per_device_train_batch_size=32, which is the same update"),
        # what it does not read
        *((dict(trust_region_method=m, smoothing_alpha=0.3), f"smoothing_alpha=0.3 has no effect .*'{m}'.*'pspo'")
          for m in METHODS if m != "pspo"),
        *((dict(trust_region_method=m, trust_region_delta=0.3), f"trust_region_delta=0.3 has no effect .*'{m}'.*'dppo'")
          for m in METHODS if m not in ("dppo", "drpo", "m2po")),
        *((dict(trust_region_method=m, trust_region_penalty=0.3), f"trust_region_penalty=0.3 has no .*'{m}'.*'dppo'")
          for m in METHODS if m not in ("dppo", "r2vpo")),
        *((dict(trust_region_method=m, vespo_k_neg=2.0), f"vespo_k_neg=2.0 has no effect .*'{m}'.*=3.0, .*'vespo'")
          for m in METHODS if m not in ("vespo", "clip")),
        *((dict(trust_region_method=m, delta=2.0), f"delta=2.0 has no effect .*'{m}'.* delta=None, or use .*'clip'")
          for m in METHODS if m != "clip"),
        *((dict(trust_region_method=m, sapo_temperature_pos=2.0), f"_pos=2.0 has no effect .*'{m}'.*=1.0, .*'sapo'")
          for m in METHODS if m not in ("clip", "sapo")),
        *((dict(trust_region_method=m, loss_type=t, **OWN_FIELDS.get(m, {})),
           f"loss_type='{t}' is not .* Set loss_type to 'grpo', 'bnpo'")
          for m in METHODS[1:] for t in ("cispo", "sapo", "vespo", "typo")),
    ],
)  # fmt: skip
def test_config_refuses(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_config(**overrides)


@pytest.mark.parametrize("method", METHODS)
def test_epsilon_sets_the_band_of_every_method(method):
    """Scripts pass the same epsilon to all methods, so that `outside_ratio` means the same in all of them."""
    make_config(trust_region_method=method, epsilon=0.3, **OWN_FIELDS.get(method, {}))


def test_trainers_that_compute_their_own_loss_refuse_all_but_clip():
    from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

    class OwnComputeLoss(GRPOTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(inputs["prompt_ids"]).logits.mean()

    class WrappedGMPO(GMPOTrainer):  # calls a loss that is not GRPOTrainer's
        def _compute_loss(self, model, inputs):
            return super()._compute_loss(model, inputs)

    for method in METHODS[1:]:
        with pytest.raises(ValueError, match="that of `OwnComputeLoss` does not call. Use `GRPOTrainer`, or trust_reg"):
            make_trainer(OwnComputeLoss, trust_region_method=method, **OWN_FIELDS.get(method, {}))
        for trainer_class in (GMPOTrainer, WrappedGMPO):
            config = make_config(GMPOConfig, trust_region_method=method, **OWN_FIELDS.get(method, {}))
            with pytest.raises(ValueError, match=f"that of `{trainer_class.__name__}` does not call"):
                make_trainer(trainer_class, config=config)
    make_trainer(OwnComputeLoss)
    make_trainer(GMPOTrainer, config=make_config(GMPOConfig))


def test_trainers_that_call_the_loss_train_with_the_method():
    """A logger around the loss, around its caller, in a class between, and a class that leaves the loss alone."""
    seen = []

    class LogsTheLoss(GRPOTrainer):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            seen.append(loss.item())
            return loss

    class LogsTheCall(LogsTheLoss):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    class CallsTheInner(GRPOTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return self._compute_loss(model, inputs)

    class OwnMetrics(GRPOTrainer):
        def log(self, logs, start_time=None):
            super().log(logs, start_time)

    expected = train(trust_region_method="pspo")
    for trainer_class in (LogsTheLoss, LogsTheCall, CallsTheInner, OwnMetrics):
        assert_same_training(train(trainer_class=trainer_class, trust_region_method="pspo"), expected)
    assert seen


def test_liger_kernels_are_of_the_layers_alone():
    """In this release use_liger_kernel does not touch the loss, so that every method takes it."""
    for method in METHODS:
        make_config(trust_region_method=method, use_liger_kernel=True, **OWN_FIELDS.get(method, {}))


def test_configs_of_other_trainers_do_not_take_the_method():
    from trl import RLOOConfig

    with pytest.raises(TypeError, match="trust_region_method"):
        RLOOConfig("unused", use_cpu=True, trust_region_method="pspo")


def test_command_line_help_shows_the_options(capsys):
    from trl import TrlParser

    with pytest.raises(SystemExit):
        TrlParser(GRPOConfig).parse_args_and_config(["--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "--smoothing_alpha" in text and "--trust_region_delta" in text and "--trust_region_penalty" in text
    assert "`(1 - smoothing_alpha) * r + smoothing_alpha`" in text
