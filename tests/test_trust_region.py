"""The patched GRPOTrainer: clip against the pristine release, and every method against formulas written out here."""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

METHODS = ("clip", "noclip", "pspo", "sapo")
AGGREGATIONS = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
LOSS_TYPES = (*AGGREGATIONS, "cispo", "sapo", "vespo")
TIMINGS = ("step_time", "runtime", "_per_second")
WORDS = ("<pad>", "<eos>", "<unk>", *map(str, range(20)))
ALPHA, EPSILON, EPSILON_HIGH = 0.3, 0.1, 0.2
# Exact in float32, which is what torch makes of them before it meets the float64 of these tests
TEMPERATURE_POS, TEMPERATURE_NEG = 0.75, 1.25


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
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, str(Path(__file__).parent)])}
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


@pytest.mark.parametrize("method", METHODS)
def test_metrics_of_each_method(method):
    logs, _ = train(trust_region_method=method, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=4)
    names = {"ratio_mean", "ratio_min", "ratio_max", "outside_ratio", "approx_kl"}
    for prefix, row in (("", logs[0]), ("eval_", next(row for row in logs if "eval_loss" in row))):
        assert {f"{prefix}trust_region/{name}" for name in names} <= row.keys()
        assert any(key.startswith(f"{prefix}clip_ratio/") for key in row) == (method == "clip")
    assert values_of(logs, "trust_region/ratio_mean")[0] == 1.0
    assert values_of(logs, "trust_region/approx_kl")[0] == 0.0
    assert values_of(logs, "trust_region/outside_ratio")[1] > 0


@pytest.mark.parametrize("loss_type", ["cispo", "sapo", "vespo"])
def test_metrics_of_loss_types_with_a_trust_region_of_their_own(loss_type):
    row = train(loss_type=loss_type, max_steps=1)[0][0]
    assert "trust_region/ratio_mean" in row
    assert not any(key.startswith("clip_ratio/") for key in row)
    assert ("cispo_clip_ratio" in row) == (loss_type == "cispo")


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
        "new": new, "old": new + generator.uniform(-0.7, 0.7, new.shape), "mask": tokens & tool, "tokens": tokens,
        "tool": tool, "advantages": np.concatenate([[0.0], generator.normal(size=sequences - 1)]),
    }  # fmt: skip


def compute_loss(trainer, batch):
    """The trainer's loss of `batch` and its gradient with respect to the new log-probabilities."""
    new = torch.tensor(batch["new"], requires_grad=True)
    ids = torch.ones(new.shape, dtype=torch.long)
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (new, torch.ones_like(new).detach(), None)
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids,
        "completion_mask": torch.tensor(batch["tokens"]).long(), "tool_mask": torch.tensor(batch["tool"]).long(),
        "advantages": torch.tensor(batch["advantages"]), "old_per_token_logps": torch.tensor(batch["old"]),
        "num_items_in_batch": torch.tensor(50),
    }  # fmt: skip
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), new.grad.numpy()


def expected_surrogate(method, ratio, advantage):
    """The surrogate objective of one ratio and its derivative: the design's table, one number at a time."""
    if method == "noclip":
        return ratio * advantage, advantage
    if method == "pspo":
        return ((1 - ALPHA) * ratio + ALPHA) * advantage, (1 - ALPHA) * advantage
    if method == "sapo":
        tau = TEMPERATURE_POS if advantage > 0 else TEMPERATURE_NEG
        gate = 1 / (1 + np.exp(-tau * (ratio - 1)))
        return 4 / tau * gate * advantage, 4 * gate * (1 - gate) * advantage
    clipped = min(max(ratio, 1 - EPSILON), 1 + EPSILON_HIGH)
    is_clipped = clipped * advantage < ratio * advantage
    return min(ratio * advantage, clipped * advantage), 0.0 if is_clipped else advantage


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
            value, slope = expected_surrogate(method, ratio, advantage)
            loss -= weights[i, t] * value
            # d ratio / d logp: the ratio itself for its own token, a share of it for each token of the sequence
            moved, share = ([t], 1.0) if level == "token" else (used, 1 / len(used))
            gradient[i, moved] -= weights[i, t] * slope * ratio * share
    return loss, gradient


def make_method_trainer(method, loss_type="dapo", level="token", **overrides):
    """A trainer with the constants that the formulas use."""
    return make_trainer(
        trust_region_method=method, smoothing_alpha=ALPHA, loss_type=loss_type, importance_sampling_level=level,
        epsilon_high=EPSILON_HIGH, sapo_temperature_pos=TEMPERATURE_POS, sapo_temperature_neg=TEMPERATURE_NEG,
        gradient_accumulation_steps=2, steps_per_generation=4, **overrides,
    )  # fmt: skip


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", AGGREGATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradient_match_the_formulas(method, loss_type, level):
    batch = make_batch(seed=1)
    loss, gradient = compute_loss(make_method_trainer(method, loss_type, level), batch)
    weights = expected_weights(loss_type, batch["mask"], accumulation=2, steps_per_generation=4, max_length=8)
    expected, expected_gradient = expected_loss(method, level, weights, batch)
    assert loss == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-15)
    assert np.abs(gradient).max() > 1e-3


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5, 0.9])
def test_pspo_gradient_is_noclips_times_one_minus_alpha(alpha):
    batch = make_batch(seed=2)
    _, noclip = compute_loss(make_trainer(trust_region_method="noclip"), batch)
    _, pspo = compute_loss(make_trainer(trust_region_method="pspo", smoothing_alpha=alpha), batch)
    np.testing.assert_allclose(pspo, (1 - alpha) * noclip, rtol=1e-14)


# The diagnostics


def expected_diagnostics(batches, level):
    """Statistics over all tokens of several batches."""
    ratios, kls = [], []
    for batch in batches:
        log_ratio = batch["new"] - batch["old"]
        for row, mask in zip(log_ratio, batch["mask"], strict=True):
            ratios += list(np.exp(row[mask]) if level == "token" else np.full(mask.sum(), np.exp(row[mask].mean())))
            kls += list(np.exp(row[mask]) - 1 - row[mask])
    ratios = np.array(ratios)
    outside = (ratios < 1 - EPSILON) | (ratios > 1 + EPSILON_HIGH)
    return {
        "trust_region/ratio_mean": ratios.mean(), "trust_region/ratio_min": ratios.min(),
        "trust_region/ratio_max": ratios.max(), "trust_region/outside_ratio": outside.mean(),
        "trust_region/approx_kl": np.mean(kls),
    }  # fmt: skip


def logged_diagnostics(trainer):
    """What would be logged now."""
    return {
        name: sum(values) / len(values)
        for name, values in trainer._metrics["train"].items()
        if name.startswith("trust_region/")
    }


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("method", METHODS)
def test_diagnostics_are_over_the_tokens_since_the_last_log(method, level):
    delta = 1.01 if method == "clip" else None  # clamps the ratio in the loss, not in the diagnostics
    trainer = make_method_trainer(method, level=level, delta=delta)
    batches = [make_batch(seed=3), make_batch(seed=4, sequences=2, length=3), make_batch(seed=5)]
    for batch in batches:
        compute_loss(trainer, batch)
    assert logged_diagnostics(trainer) == pytest.approx(expected_diagnostics(batches, level), rel=1e-6)
    trainer.log({})
    compute_loss(trainer, batches[1])
    assert logged_diagnostics(trainer) == pytest.approx(expected_diagnostics(batches[1:2], level), rel=1e-6)


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
    assert logged_diagnostics(trainer) == pytest.approx(expected_diagnostics([here, there], "token"), rel=1e-6)


def test_diagnostics_of_a_batch_without_tokens():
    batch = make_batch(seed=8)
    batch["tokens"][:] = False
    trainer = make_method_trainer("pspo", loss_type="grpo")
    compute_loss(trainer, batch)
    assert logged_diagnostics(trainer) == {}
    batch = make_batch(seed=8)
    compute_loss(trainer, batch)
    assert logged_diagnostics(trainer) == pytest.approx(expected_diagnostics([batch], "token"), rel=1e-6)


def test_diagnostics_take_no_notice_of_padding():
    batch = make_batch(seed=9)
    expected = expected_diagnostics([batch], "token")
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
        (dict(trust_region_method="pspo", delta=2.0), "Set delta=None, or use trust_region_method='clip'"),
        (dict(trust_region_method="sapo", use_liger_kernel=True), "Set use_liger_kernel=False, or use"),
        *((dict(trust_region_method=m, loss_type=t), f"loss_type='{t}' is not .* Set loss_type to 'grpo', 'bnpo'")
          for m in METHODS[1:] for t in ("cispo", "sapo", "vespo", "typo")),
    ],
)  # fmt: skip
def test_config_refuses(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_config(**overrides)


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
            make_trainer(OwnComputeLoss, trust_region_method=method)
        gmpo = make_config(GMPOConfig, trust_region_method=method)
        with pytest.raises(ValueError, match="`GMPOTrainer` overrides"):
            make_trainer(GMPOTrainer, config=gmpo)
        make_trainer(OwnMetrics, trust_region_method=method)
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
    assert "--smoothing_alpha" in text
    assert "`(1 - smoothing_alpha) * r + smoothing_alpha`" in text
