"""training/trainer.py against TRL's GRPOTrainer: the same losses, gradients, metrics and training, with less work."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from apply_patches import trust_region_methods
from common.models import load_tokenizer
from training import shared_prompts
from training.trainer import ThriftyGRPOTrainer, gather_prompts

ROOT = Path(__file__).resolve().parents[2]
# The methods that their config allows at one level only.
LEVELS = {"gmpo": ["sequence"], **dict.fromkeys(("dppo", "drpo", "vespo", "m2po"), ["token"])}
METHODS = [(method, level) for method in trust_region_methods() for level in LEVELS.get(method, ["token", "sequence"])]
# One generation of 16 completions of 4 prompts, two micro-batches and one update, used twice.
SMALL = {
    "output_dir": "unused", "save_strategy": "no", "report_to": [], "use_cpu": True, "bf16": False,
    "disable_tqdm": True, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_generations": 4,
    "num_iterations": 2, "max_steps": 4, "logging_steps": 1, "learning_rate": 1e-2, "max_completion_length": 8,
    "gradient_checkpointing": False, "epsilon": 0.1,
}  # fmt: skip
TIMES = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second")


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    """Trainers make their output folder when they are built."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer([ROOT / "demo" / "model"])


@pytest.fixture(scope="module")
def model_path(tokenizer, tmp_path_factory):
    """A random model, where the trainer finds the reference model too."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**shape, **tokens, num_key_value_heads=2, initializer_range=0.3))
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


@pytest.fixture
def make(model_path, tokenizer):
    """make(trainer class, attention=..., peft_config=..., changes to SMALL) -> a trainer."""

    def make_one(trainer_class, attention="sdpa", peft_config=None, **changes):
        prompts = Dataset.from_dict({"prompt": ["1 + 2", "What is 3 - 1?", "4", "2 + 2 + 2"] * 4})
        return trainer_class(
            model=Qwen2ForCausalLM.from_pretrained(model_path, attn_implementation=attention, dtype=torch.float32),
            reward_funcs=lambda completion_ids, **kwargs: [float(sum(ids) % 7) for ids in completion_ids],
            args=GRPOConfig(**{**SMALL, **changes}),
            train_dataset=prompts,
            eval_dataset=prompts.select(range(4)),
            processing_class=tokenizer,
            peft_config=peft_config,
        )

    return make_one


def make_inputs(rows=8):
    """A micro-batch: prompts with 4, 3 and 1 completions of unlike length, one of length 1, not in order."""
    generator = torch.Generator().manual_seed(3)
    prompt = torch.tensor([0, 1, 0, 2, 1, 0, 1, 0][:rows])
    draw = lambda *shape: torch.randint(3, 400, shape, generator=generator)  # noqa: E731
    prompt_mask = (torch.arange(6) >= torch.tensor([0, 2, 5])[:, None]).long()[prompt]
    lengths = torch.tensor([7, 1, 5, 3, 7, 2, 6, 4][:rows])
    completion_mask = (torch.arange(7) < lengths[:, None]).long()
    return {
        "prompt_ids": draw(3, 6)[prompt] * prompt_mask,
        "prompt_mask": prompt_mask,
        "completion_ids": draw(rows, 7) * completion_mask,
        "completion_mask": completion_mask,
        "advantages": torch.randn(rows, generator=generator),
        "old_per_token_logps": -6 * torch.rand(rows, 7, generator=generator),
        "ref_per_token_logps": -6 * torch.rand(rows, 7, generator=generator),
        "num_items_in_batch": completion_mask.sum().float(),
    }


def loss_of(trainer, inputs):
    """(loss, gradient, metrics) of a micro-batch."""
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, dict(inputs))
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    return loss.item(), gradient, {key: values[-1] for key, values in trainer._metrics["train"].items()}


def assert_same_loss(ours, stock, bound):
    assert ours[0] == pytest.approx(stock[0], rel=bound, abs=bound)
    assert (ours[1] - stock[1]).norm() <= bound * stock[1].norm()
    assert ours[2] == pytest.approx(stock[2], rel=bound, abs=bound, nan_ok=True)


def test_loss_gradient_and_metrics_of_every_method(make):
    trainers = [make(trainer_class, beta=0.1) for trainer_class in (ThriftyGRPOTrainer, GRPOTrainer)]
    for method, level in METHODS:
        for trainer in trainers:
            trainer.trust_region_method, trainer.importance_sampling_level = method, level
            trainer.epsilon_high = 5.0 if method == "cispo" else 0.1
            trainer.args.trust_region_delta, trainer.args.trust_region_penalty = 0.15, 0.1
        assert_same_loss(*(loss_of(trainer, make_inputs()) for trainer in trainers), 2e-5)
    assert trainers[0].obstacle is None


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({"peft_config": LoraConfig(r=4, lora_dropout=0, init_lora_weights=False)}, 2e-5),
        ({"gradient_checkpointing": True}, 2e-5),
        ({"bf16": True}, 2e-2),
        ({"temperature": 0.7, "loss_type": "grpo"}, 2e-5),
    ],
    ids=["LoRA", "checkpointing", "bf16", "temperature"],
)
def test_loss_gradient_and_metrics_in_another_setting(make, changes, bound):
    results = []
    for trainer_class in (ThriftyGRPOTrainer, GRPOTrainer):
        torch.manual_seed(0)  # of LoRA's weights
        results.append(loss_of(make(trainer_class, **changes), make_inputs()))
    assert_same_loss(*results, bound)


def test_a_completion_that_is_all_padding_has_no_part(make):
    inputs = make_inputs()
    inputs["completion_mask"][0] = 0
    assert_same_loss(*(loss_of(make(kind), inputs) for kind in (ThriftyGRPOTrainer, GRPOTrainer)), 2e-5)


def train(trainer, monkeypatch):
    """(log rows without times, weights, the rows of each forward without a gradient in training mode)."""
    old_passes = []
    original = type(trainer)._get_per_token_logps_and_entropies

    def watched(self, model, input_ids, *args, **kwargs):
        result = original(self, model, input_ids, *args, **kwargs)
        if result[0] is not None and not torch.is_grad_enabled():
            old_passes.append(len(input_ids))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(type(trainer), "_get_per_token_logps_and_entropies", watched)
        trainer.train()
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in trainer.state.log_history]
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return rows, weights, old_passes


# changes, whether the first pass over a generation is its behaviour policy. G, S and mu as in TRL: micro-batches an
# update, micro-batches a generation, passes over it.
SCHEDULES = {
    "S = G = 2, mu = 2": ({}, True),
    "S = 1, G = 2, mu = 3": ({"steps_per_generation": 1, "num_iterations": 3, "max_steps": 3}, True),
    "S = 4, G = 2": ({"steps_per_generation": 4, "per_device_train_batch_size": 4}, False),
    "S = 3, G = 2": ({"steps_per_generation": 3, "per_device_train_batch_size": 4, "num_generations": 2}, False),
    "off-policy mask": ({"off_policy_mask_threshold": 0.5}, False),
    "truncated completions masked": ({"mask_truncated_completions": True}, True),
    "bnpo": ({"loss_type": "bnpo"}, True),
}


@pytest.mark.parametrize(("changes", "first_pass_knows"), SCHEDULES.values(), ids=SCHEDULES)
def test_training_is_that_of_trl(make, monkeypatch, changes, first_pass_knows):
    """Every logged value and the weights after several updates; only the split into micro-batches shows in metrics."""
    ours, weights, our_passes = train(make(ThriftyGRPOTrainer, **changes), monkeypatch)
    stock, expected, passes = train(make(GRPOTrainer, **changes), monkeypatch)
    assert passes
    assert our_passes == ([] if first_pass_knows else passes)
    assert (weights - expected).norm() <= 1e-4 * expected.norm()
    for row, stock_row in zip(ours, stock, strict=True):
        assert row.keys() == stock_row.keys()
        for key in {"loss", "grad_norm", "reward", "trust_region/ratio_mean", "trust_region/ratio_max"} & row.keys():
            assert row[key] == pytest.approx(stock_row[key], rel=2e-3, abs=1e-5), key


def test_the_ratio_of_the_first_pass_is_exactly_one(make, monkeypatch):
    rows, _, _ = train(make(ThriftyGRPOTrainer), monkeypatch)
    extremes = [(row["trust_region/ratio_min"], row["trust_region/ratio_max"]) for row in rows[:4]]
    assert extremes[0] == extremes[2] == (1, 1)
    assert extremes[1][0] < 1 < extremes[1][1]


def test_validation_computes_no_old_log_probabilities(make, monkeypatch):
    trainer = make(ThriftyGRPOTrainer, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=4)
    rows, _, passes = train(trainer, monkeypatch)
    validations = [row for row in rows if "eval_loss" in row]
    assert validations and all(row["eval_trust_region/ratio_max"] == 1 for row in validations)
    assert passes == [4] * 4 * len(validations)  # its own forward, which has no gradient, and none beside it


# ---- falling back


def test_attention_that_cannot_is_named_and_trl_does_it(make, monkeypatch):
    trainer = make(ThriftyGRPOTrainer, attention="eager")
    assert trainer.describe_prompts() == "each is read again for every completion (attention eager)"
    assert loss_of(trainer, make_inputs())[0] == loss_of(make(GRPOTrainer, attention="eager"), make_inputs())[0]


def test_a_forward_that_rounding_does_not_explain_is_given_up(make, monkeypatch, capsys):
    right = shared_prompts._attend_grid

    def blind(query, key, value, visible, *options):
        return right(query, key, value, None if visible is None else torch.ones_like(visible), *options)

    monkeypatch.setattr(shared_prompts, "_attend_grid", blind)
    trainer = make(ThriftyGRPOTrainer)
    results = [loss_of(trainer, make_inputs()) for _ in range(2)]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "each is read again for every completion" in said[0]
    assert results[0][0] == results[1][0] == loss_of(make(GRPOTrainer), make_inputs())[0]


# ---- the rows of a prompt side by side


def test_rows_of_a_prompt_come_side_by_side_and_none_is_lost():
    inputs = make_inputs()
    halves = [{k: v if v.ndim == 0 else v[part] for k, v in inputs.items()} for part in (slice(4), slice(4, 8))]
    gathered = gather_prompts(halves)
    assert [len(batch["advantages"]) for batch in gathered] == [4, 4]
    merged = {key: torch.cat([batch[key] for batch in gathered]) for key in inputs if inputs[key].ndim}
    order = [inputs["advantages"].tolist().index(value) for value in merged["advantages"].tolist()]
    assert order == [0, 2, 5, 7, 1, 4, 6, 3]
    assert all(torch.equal(merged[key], inputs[key][order]) for key in merged)


@pytest.mark.parametrize(
    ("changes", "gathers"),
    [
        ({}, True),
        ({"steps_per_generation": 4, "per_device_train_batch_size": 4}, True),
        ({"steps_per_generation": 3, "per_device_train_batch_size": 4, "num_generations": 2}, False),
        ({"loss_type": "bnpo"}, False),
        ({"top_entropy_quantile": 0.2}, False),
        ({"entropy_coef": 0.1}, False),
    ],
    ids=["S = G", "S = 2 G", "S = 3, G = 2", "bnpo", "entropy quantile", "entropy bonus"],
)
def test_rows_are_gathered_where_the_gradient_stays(make, changes, gathers):
    assert make(ThriftyGRPOTrainer, **changes)._may_gather() == gathers
