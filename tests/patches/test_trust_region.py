"""The patched GRPOTrainer: clip against the pristine release, and every method against formulas written out here."""

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
CAP, DELTA = 1.25, 0.05
# What each method reads besides `epsilon`; the others take `epsilon_high` for the band of the diagnostics
OWN_FIELDS = {
    "pspo": dict(smoothing_alpha=ALPHA),
    "sapo": dict(sapo_temperature_pos=TEMPERATURE_POS, sapo_temperature_neg=TEMPERATURE_NEG),
    "cispo": dict(epsilon_high=CAP),
    "spo": dict(epsilon_high=None),
    "dppo": dict(trust_region_delta=DELTA),
}
LEVELS = [
    (method, level) for method in METHODS for level in ("token", "sequence") if (method, level) != ("dppo", "sequence")
]


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
    together = {key: value for option in options.values() for key, value in option.items()}
    cases = {f"dapo {name}": option for name, option in options.items()}
    for loss_type in LOSS_TYPES:
        cases[loss_type] = dict(loss_type=loss_type)
        cases[f"{loss_type} all"] = dict(together, loss_type=loss_type)
    cases["dapo and what else the loss knows"] = dict(
        eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=4, top_entropy_quantile=0.8, entropy_coef=0.01,
        off_policy_mask_threshold=0.01, mask_truncated_completions=True, epsilon_high=0.28, logging_steps=2,
    )  # fmt: skip
    return cases


def all_clip_cases():
    """Every combination of the options, for the long test."""
    return {
        f"{loss_type} {delta} {level} {beta} {accumulation}": dict(
            loss_type=loss_type, delta=delta, importance_sampling_level=level, beta=beta,
            gradient_accumulation_steps=accumulation, steps_per_generation=2 * accumulation,
        )
        for loss_type in LOSS_TYPES for delta in (None, 1.05) for level in ("token", "sequence")
        for beta in (0.0, 0.1) for accumulation in (1, 2)
    }  # fmt: skip


def record(cases, path):
    """Trains every case with whatever TRL is on the path, and writes logs (without timings) and weights' sha256."""
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
    results, processes = {}, {}
    for name, path in (("release", [str(pristine)]), ("patched", [])):
        found = [*path, str(Path(__file__).parent), str(Path(__file__).parents[2])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(found)}
        code = f"import test_trust_region as t; t.record({cases!r}, {str(folder / name)!r})"
        command = [sys.executable, "-W", "ignore", "-c", code]
        processes[name] = subprocess.Popen(command, env=environment, cwd=folder, stdout=-3, stderr=subprocess.PIPE)
    for name, process in processes.items():
        errors = process.communicate()[1].decode()
        assert process.returncode == 0, errors
        results[name] = json.loads((folder / name).read_text())
    assert [results[name].pop("is_patched") for name in ("release", "patched")] == [False, True]
    assert results["release"] == results["patched"]
    return results["patched"]


def test_clip_is_bit_identical_to_the_release(pristine, tmp_path):
    results = compare_with_release("clip_cases", pristine, tmp_path)
    logs = {name: [json.loads(row) for row in result["logs"]] for name, result in results.items()}
    assert max(values_of(logs["dapo"], "clip_ratio/region_mean")) > 0.1  # else these runs would prove nothing
    assert len({result["weights"] for result in results.values()}) == len(results)  # every option had an effect
    assert values_of(logs["dapo and what else the loss knows"], "eval_loss")


@pytest.mark.slow
def test_clip_is_bit_identical_to_the_release_in_every_combination(pristine, tmp_path):
    compare_with_release("all_clip_cases", pristine, tmp_path)


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


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_cispo_with_a_huge_cap_is_noclip_bit_for_bit(level):
    cispo = train(trust_region_method="cispo", epsilon_high=1e30, importance_sampling_level=level)
    assert_same_training(cispo, train(trust_region_method="noclip", importance_sampling_level=level))


@pytest.mark.parametrize("method", METHODS)
def test_metrics_of_each_method(method):
    own = (
        dict(trust_region_delta=0.01) if method == "dppo" else OWN_FIELDS.get(method, {})
    )  # tokens here have about 0.05
    logs, _ = train(
        trust_region_method=method, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=4, **own
    )  # fmt: skip
    names = {"ratio_mean", "ratio_min", "ratio_max", "outside_ratio", "active_ratio", "approx_kl"}
    for prefix, row in (("", logs[0]), ("eval_", next(row for row in logs if "eval_loss" in row))):
        assert {f"{prefix}trust_region/{name}" for name in names} <= row.keys()
        assert any(key.startswith(f"{prefix}clip_ratio/") for key in row) == (method == "clip")
    assert values_of(logs, "trust_region/ratio_mean")[0] == 1.0
    assert values_of(logs, "trust_region/approx_kl")[0] == 0.0
    assert values_of(logs, "trust_region/outside_ratio")[1] > 0
    assert values_of(logs, "trust_region/active_ratio")[0] == 0.0
    assert any(values_of(logs, "trust_region/active_ratio")) == (method in ("clip", "cispo", "spo", "dppo", "topr"))
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


def make_grid(ratios, advantages, behaviour):
    """A batch of one row per advantage and one column per ratio; behaviour: what pi_old gives each column's token."""
    old = np.tile(np.log(behaviour), (len(advantages), 1))
    everything = np.ones(old.shape, dtype=bool)
    return {
        "new": old + np.log(ratios), "old": old, "mask": everything, "tokens": everything, "tool": everything,
        "advantages": np.array(advantages, dtype=float),
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
        "topr": advantage < 0 and ratio > 1,
    }.get(method, False)  # fmt: skip


def expected_surrogate(method, ratio, advantage, behaviour):
    """The surrogate f of one ratio and the weight (df / d log pi) / A of its gradient: the README's table."""
    active, r, tau = is_active(method, ratio, advantage, behaviour), ratio, None
    if method == "clip":
        return (min(max(r, 1 - EPSILON), 1 + EPSILON_HIGH) * advantage, 0.0) if active else (r * advantage, r)
    if method == "pspo":
        return ((1 - ALPHA) * r + ALPHA) * advantage, (1 - ALPHA) * r
    if method == "sapo":
        tau = TEMPERATURE_POS if advantage > 0 else TEMPERATURE_NEG
        gate = 1 / (1 + np.exp(-tau * (r - 1)))
        return 4 / tau * gate * advantage, 4 * gate * (1 - gate) * r
    if method == "cispo" and active:
        return advantage * CAP * (1 + np.log(r / CAP)), CAP
    if method == "spo":
        penalty = abs(advantage) * (r - 1) ** 2 / (2 * EPSILON)
        return r * advantage - penalty, r * (1 - np.sign(advantage) * (r - 1) / EPSILON)
    if method == "dppo" and active:
        return 0.0, 0.0
    if method == "reinforce" or (method == "topr" and advantage >= 0):
        return advantage * np.log(r), 1.0
    if method == "topr" and active:
        return advantage * (1 + np.log(r)), 1.0
    return r * advantage, r  # noclip, and the others within their boundary


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
    for i, advantage in enumerate(batch["advantages"]):
        used = np.flatnonzero(batch["mask"][i])
        log_ratio = batch["new"][i] - batch["old"][i]
        for t in used:
            ratio = np.exp(log_ratio[t] if level == "token" else log_ratio[used].mean())
            value, weight = expected_surrogate(method, ratio, advantage, np.exp(batch["old"][i, t]))
            loss -= weights[i, t] * value
            # d log ratio / d logp: 1 for the token's own, a share for each token of the sequence
            moved, share = ([t], 1.0) if level == "token" else (used, 1 / len(used))
            gradient[i, moved] -= weights[i, t] * weight * advantage * share
    return loss, gradient


def make_method_trainer(method, loss_type="dapo", level="token", **overrides):
    """A trainer with the constants that the formulas use."""
    options = {"epsilon_high": EPSILON_HIGH, **OWN_FIELDS.get(method, {}), **overrides}
    return make_trainer(
        trust_region_method=method, loss_type=loss_type, importance_sampling_level=level,
        gradient_accumulation_steps=2, steps_per_generation=4, **options,
    )  # fmt: skip


@pytest.mark.parametrize("loss_type", AGGREGATIONS)
@pytest.mark.parametrize(("method", "level"), LEVELS)
def test_loss_and_gradient_match_the_formulas(method, loss_type, level):
    batch = make_batch(seed=1)
    loss, gradient = compute_loss(make_method_trainer(method, loss_type, level), batch)
    weights = expected_weights(loss_type, batch["mask"], accumulation=2, steps_per_generation=4, max_length=8)
    expected, expected_gradient = expected_loss(method, level, weights, batch)
    assert loss == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-15)
    assert np.abs(gradient).max() > 1e-3


# Where each method changes its formula, powers of two, so that the exponential of their logarithm is exact
KINKS = dict(EPSILON=0.5, EPSILON_HIGH=1.0, CAP=4.0, DELTA=0.25)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_weight_on_a_grid_and_at_every_kink(method, monkeypatch):
    for name, value in KINKS.items():
        monkeypatch.setitem(globals(), name, value)
    own = {"cispo": dict(epsilon_high=4.0), "dppo": dict(trust_region_delta=0.25)}.get(method, {})
    trainer = make_method_trainer(method, "grpo", epsilon=0.5, **own)
    kinks = np.array([0.5, 1.0, 2.0, 4.0])  # 0.5 and 2.0: of dppo too, where pi_old is 0.5 and 0.25
    assert torch.equal(torch.exp(torch.tensor(np.log(kinks))), torch.tensor(kinks))
    ratios = np.concatenate([np.geomspace(1e-3, 1e3, 121), kinks])
    behaviour = np.ones(len(ratios))  # whose logarithm is 0, so that those of the kinks stay exact
    if method == "dppo":
        behaviour = np.concatenate([0.5 / np.maximum(1.0, ratios[:-4]), [0.5, 0.25, 0.25, 0.25]])
    advantages = [1.0, -1.0, 0.25, -3.0, 0.0]
    batch = make_grid(ratios, advantages, behaviour)
    _, gradient = compute_loss(trainer, batch)
    expected = [
        [a * expected_surrogate(method, r, a, np.exp(old))[1] for r, old in zip(ratios, batch["old"][0], strict=True)]
        for a in advantages
    ]
    np.testing.assert_allclose(-gradient * gradient.size * 2, expected, rtol=1e-9, atol=1e-300)


# Identities


@pytest.mark.parametrize(("method", "level"), LEVELS)
def test_all_methods_have_the_same_gradient_where_the_ratio_is_one(method, level):
    batch = make_batch(seed=10)
    batch["old"] = batch["new"]
    _, noclip = compute_loss(make_method_trainer("noclip", level=level), batch)
    _, gradient = compute_loss(make_method_trainer(method, level=level), batch)
    np.testing.assert_allclose(gradient, noclip * (1 - ALPHA if method == "pspo" else 1), rtol=1e-14)


def test_spo_with_a_huge_epsilon_is_noclip():
    batch = make_batch(seed=11)
    noclip = compute_loss(make_method_trainer("noclip"), batch)
    spo = compute_loss(make_method_trainer("spo", epsilon=1e15), batch)
    assert spo[0] == pytest.approx(noclip[0], rel=1e-13)
    np.testing.assert_allclose(spo[1], noclip[1], rtol=1e-13)


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
    for advantages in ([1.0, 0.0], [-1.0, 0.0]):
        for log_ratio in (80.0, -80.0):
            batch = make_grid(np.ones(3), advantages, np.full(3, 0.5))
            batch["old"] = batch["new"] - log_ratio
            loss, gradient = compute_loss(make_method_trainer(method, level=level), batch, dtype)
            if method == "spo" and log_ratio > 0 and dtype == torch.float32:  # exp(80)**2 is more than float32 holds
                assert loss == np.inf and not np.isnan(gradient).any()
            else:
                assert np.isfinite(loss) and np.isfinite(gradient).all()
            assert (gradient[1] == 0).all()


@pytest.mark.parametrize(("method", "level"), LEVELS)
def test_a_row_without_tokens_adds_nothing_and_one_token_is_enough(method, level):
    batch = make_batch(seed=13, sequences=3)
    batch["tokens"][:] = False
    batch["tokens"][2, 0] = True
    batch["mask"] = batch["tokens"]
    loss, gradient = compute_loss(make_method_trainer(method, level=level), batch)
    weights = expected_weights("dapo", batch["mask"], accumulation=2, steps_per_generation=4, max_length=8)
    expected, expected_gradient = expected_loss(method, level, weights, batch)
    assert loss == pytest.approx(expected, rel=1e-12) and loss != 0
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5, 0.9])
def test_pspo_gradient_is_noclips_times_one_minus_alpha(alpha):
    batch = make_batch(seed=2)
    _, noclip = compute_loss(make_trainer(trust_region_method="noclip"), batch)
    _, pspo = compute_loss(make_trainer(trust_region_method="pspo", smoothing_alpha=alpha), batch)
    np.testing.assert_allclose(pspo, (1 - alpha) * noclip, rtol=1e-14)


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
    ratios, kls, active = [], [], []
    for batch in batches:
        log_ratio = batch["new"] - batch["old"]
        for row, mask, old, advantage in zip(log_ratio, batch["mask"], batch["old"], batch["advantages"], strict=True):
            of_row = np.exp(row[mask]) if level == "token" else np.full(mask.sum(), np.exp(row[mask].mean()))
            ratios += list(of_row)
            kls += list(np.exp(row[mask]) - 1 - row[mask])
            active += [is_active(method, r, advantage, p) for r, p in zip(of_row, np.exp(old[mask]), strict=True)]
    ratios = np.array(ratios)
    high = EPSILON if method in ("cispo", "spo") else EPSILON_HIGH
    outside = (ratios < 1 - EPSILON) | (ratios > 1 + high)
    return {
        "trust_region/ratio_mean": ratios.mean(), "trust_region/ratio_min": ratios.min(),
        "trust_region/ratio_max": ratios.max(), "trust_region/outside_ratio": outside.mean(),
        "trust_region/active_ratio": np.mean(active), "trust_region/approx_kl": np.mean(kls),
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
    assert logged_diagnostics(trainer) == pytest.approx(expected, rel=1e-6)
    acts = method in ("clip", "cispo", "spo", "dppo", "topr")
    assert 0 < expected["trust_region/active_ratio"] < 1 if acts else expected["trust_region/active_ratio"] == 0
    trainer.log({})
    compute_loss(trainer, batches[1])
    assert logged_diagnostics(trainer) == pytest.approx(expected_diagnostics(batches[1:2], level, method), rel=1e-6)


def test_delta_of_clip_is_active_too_and_does_not_touch_the_ratios():
    batch = make_batch(seed=3)
    trainer = make_method_trainer("clip", delta=1.25)
    compute_loss(trainer, batch)
    expected = expected_diagnostics([batch], "token", "clip")
    ratios = np.exp(batch["new"] - batch["old"])
    beyond = (ratios > 1.25) & (batch["advantages"][:, None] <= 0)  # those with A > 0 are above 1 + epsilon_high
    expected["trust_region/active_ratio"] += beyond[batch["mask"]].mean()
    assert beyond.any()
    assert logged_diagnostics(trainer) == pytest.approx(expected, rel=1e-6)


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
    assert logged_diagnostics(trainer) == pytest.approx(expected_diagnostics([here, there], "token", "pspo"), rel=1e-6)


def test_diagnostics_of_a_batch_without_tokens():
    batch = make_batch(seed=8)
    batch["tokens"][:] = False
    trainer = make_method_trainer("pspo", loss_type="grpo")
    compute_loss(trainer, batch)
    assert logged_diagnostics(trainer) == {}
    batch = make_batch(seed=8)
    compute_loss(trainer, batch)
    assert logged_diagnostics(trainer) == pytest.approx(expected_diagnostics([batch], "token", "pspo"), rel=1e-6)


def test_diagnostics_take_no_notice_of_padding():
    batch = make_batch(seed=9)
    expected = expected_diagnostics([batch], "token", "noclip")
    batch["old"][~batch["mask"]] = -np.inf  # a ratio of infinity
    trainer = make_method_trainer("noclip")
    compute_loss(trainer, batch)  # itself not finite: the release multiplies padding by zero
    assert logged_diagnostics(trainer) == pytest.approx(expected, rel=1e-6)


# What is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(trust_region_method="ppo"), "Unknown trust_region_method: 'ppo'. Possible values are 'clip', 'noclip'"),
        (dict(trust_region_method="sft"), "Unknown trust_region_method: 'sft'"),
        (dict(smoothing_alpha=-0.1), r"smoothing_alpha must be in \[0, 1\], but got -0.1"),
        (dict(smoothing_alpha=1.5), r"smoothing_alpha must be in \[0, 1\], but got 1.5"),
        (dict(smoothing_alpha=float("nan")), r"smoothing_alpha must be in \[0, 1\], but got nan"),
        (dict(trust_region_delta=-0.1), r"trust_region_delta must be in \[0, 1\], but got -0.1"),
        (dict(trust_region_method="sapo", use_liger_kernel=True), "Set use_liger_kernel=False, or use"),
        # what a method needs
        *((dict(trust_region_method="cispo", epsilon_high=c), f"'cispo' requires epsilon_high .* at least 1.0 .* {c}")
          for c in (None, 0.28, float("inf"), float("nan"))),
        (dict(trust_region_method="spo", epsilon=0.0), "'spo' has one width for both directions, epsilon > 0"),
        (dict(trust_region_method="spo", epsilon_high=0.28), "epsilon_high=0.28. Set epsilon, and leave epsilon_high"),
        (dict(trust_region_method="dppo", importance_sampling_level="sequence"), "Set importance_sampling_level='tok"),
        # what it does not read
        *((dict(trust_region_method=m, smoothing_alpha=0.3), f"smoothing_alpha=0.3 has no effect .*'{m}'.*'pspo'")
          for m in METHODS if m != "pspo"),
        *((dict(trust_region_method=m, trust_region_delta=0.3), f"trust_region_delta=0.3 has no effect .*'{m}'.*'dppo'")
          for m in METHODS if m != "dppo"),
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

    class OwnMetrics(GRPOTrainer):
        def log(self, logs, start_time=None):
            super().log(logs, start_time)

    for method in METHODS[1:]:
        with pytest.raises(ValueError, match="`OwnComputeLoss` overrides. Use `GRPOTrainer`, or trust_region_method="):
            make_trainer(OwnComputeLoss, trust_region_method=method, **OWN_FIELDS.get(method, {}))
        gmpo = make_config(GMPOConfig, trust_region_method=method, **OWN_FIELDS.get(method, {}))
        with pytest.raises(ValueError, match="`GMPOTrainer` overrides"):
            make_trainer(GMPOTrainer, config=gmpo)
        make_trainer(OwnMetrics, trust_region_method=method, **OWN_FIELDS.get(method, {}))
    make_trainer(OwnComputeLoss)
    make_trainer(GMPOTrainer, config=make_config(GMPOConfig))


def test_configs_of_other_trainers_do_not_take_the_method():
    from trl import RLOOConfig

    with pytest.raises(TypeError, match="trust_region_method"):
        RLOOConfig("unused", use_cpu=True, trust_region_method="pspo")


def test_command_line_help_shows_the_options(capsys):
    from trl import TrlParser

    with pytest.raises(SystemExit):
        TrlParser(GRPOConfig).parse_args_and_config(["--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "--smoothing_alpha" in text and "--trust_region_delta" in text
    assert "`(1 - smoothing_alpha) * r + smoothing_alpha`" in text
