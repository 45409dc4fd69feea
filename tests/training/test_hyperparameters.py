"""training/options.py against TRL's own dataclasses: every option has a kind, a range, a sampler."""

import dataclasses
import math
import typing

import pytest

from common.files import BadInput
from common.values import check_ranges, read_values
from training import hyperparameters as h
from training import options as m


def classes_of(method):
    from trl import GRPOConfig, ModelConfig, SFTConfig

    return [SFTConfig if method == "sft" else GRPOConfig, ModelConfig]


def fields_of(method):
    """{option: (its type, its dataclass's field)}."""
    found = {}
    for one in classes_of(method):
        hints = typing.get_type_hints(one)
        found |= {field.name: (hints[field.name], field) for field in dataclasses.fields(one) if field.init}
    return found


@pytest.mark.parametrize("method", ["pspo", "sft"])
def test_every_option_has_the_kind_of_its_type(method):
    kinds, fields = m.read_field_kinds(method), fields_of(method)
    assert kinds.keys() == fields.keys()
    for name, (hint, _) in fields.items():
        parts = typing.get_args(hint) if typing.get_origin(hint) not in (list, dict, None) else (hint,)
        for base in (bool, int, float, str, list, dict):
            stated = any((typing.get_origin(part) or part) is base for part in parts)
            if base is str and "dict" in kinds[name].types and name not in m.MAY_BE_FILES:
                stated = False  # the text that TRL takes is JSON, which is read here
            if name != "trackio_static_space_id":  # Literal[False]
                assert (base.__name__ in kinds[name].types) is stated, (name, hint)
        nullable = type(None) in parts and name not in m.NEVER_NULL
        assert kinds[name].optional is nullable, (name, hint)


@pytest.mark.parametrize("method", ["pspo", "sft"])
def test_every_number_has_a_range_which_holds_its_default(method):
    for name, kind in m.read_field_kinds(method).items():
        items = kind.items.types if kind.items else kind.types
        if {"int", "float"} & items:
            assert name in m.RANGES, f"{name}: say in RANGES what it can be"
            check_ranges({name: fields_of(method)[name][1].default}, m.RANGES)


def test_no_range_takes_nan_and_what_the_table_sets_is_in_range():
    for name in m.RANGES:
        with pytest.raises(BadInput, match=name):
            check_ranges({name: math.nan}, m.RANGES)
    for rows in h.PRESETS.values():
        for row in [*rows.values(), h.GRPO, h.SFT, h.DEMO, h.DEMO_SFT]:
            check_ranges(row, m.RANGES)


def test_a_method_without_rows_trains_at_pspos_rate_and_iterations():
    assert h.find_preset("Qwen2.5-0.5B", "newest") == {"learning_rate": 5e-7, "num_iterations": 2}
    assert h.find_preset("Qwen2.5-0.5B", "noclip") == {"learning_rate": 1e-6, "num_iterations": 1}
    assert h.find_preset("Qwen2.5-0.5B", "sft") == {} == h.find_preset("another", "pspo")


def test_every_name_in_a_table_is_an_option():
    known = {**m.read_field_kinds("sft"), **m.read_field_kinds("pspo")}
    tables = [m.RANGES, m.CHOICES, m.NEVER_NULL, m.BOOLEAN_TEXT, m.OWN_SAMPLES, m.TRL_SAMPLES, h.REFUSED]
    tables += [h.GRPO, h.SFT, h.DEMO, h.DEMO_SFT, *(row for rows in h.PRESETS.values() for row in rows.values())]
    for table in tables:
        assert {*table} <= known.keys(), {*table} - known.keys()


# What of GRPOConfig has no part in what is sampled: the loss, the reward's use, the reference, what is printed.
SHAPES_NO_COMPLETION = """
    model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout remove_unused_columns
    ds3_gather_for_generation shuffle_dataset pad_to_multiple_of beta num_iterations trust_region_method smoothing_alpha
    trust_region_delta trust_region_penalty epsilon delta epsilon_high
    sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos
    vespo_k_neg vespo_lambda_neg importance_sampling_level reward_weights multi_objective_aggregation scale_rewards
    loss_type mask_truncated_completions sync_ref_model ref_model_mixup_alpha ref_model_sync_steps top_entropy_quantile
    entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target
    max_tool_calling_iterations vllm_importance_sampling_correction vllm_importance_sampling_mode
    vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min vllm_importance_sampling_cap
    off_policy_mask_threshold use_bias_correction_kl log_completions log_multimodal num_completions_to_print
    log_unique_prompts log_completions_hub_repo learning_rate
""".split()


def test_every_option_of_grpo_is_known_to_shape_a_completion_or_not():
    from trl import GRPOConfig

    with_them = [name for names in m.TRL_SAMPLES.values() for name in names.split()]
    known = [*m.OWN_SAMPLES, *m.TRL_SAMPLES, *with_them, *SHAPES_NO_COMPLETION]
    assert len(known) == len({*known})
    declared = {name for name in vars(GRPOConfig)["__annotations__"] if not name.startswith("_")}
    assert declared == {*known}, f"say of {declared ^ {*known}} in options.py who can sample with it"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"learning_rate": -1e-6}, "learning_rate must be at least 0, got -1e-6"),
        ({"learning_rate": ".nan"}, "learning_rate must be a number"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"num_iterations": 0}, "num_iterations must be at least 1, got 0"),
        ({"num_iterations": 1.5}, "num_iterations must be a whole number, got 1.5"),
        ({"num_iterations": None}, "num_iterations must be a whole number, got null"),
        ({"epsilon": -0.2}, "epsilon must be at least 0"),
        ({"max_steps": 0}, "max_steps must be at least 1, or -1"),
        ({"reward_weights": [1, float("inf")]}, "reward_weights must be a finite number"),
        ({"loss_type": "pspo"}, "loss_type must be one of grpo, "),
        ({"importance_sampling_level": "tokens"}, "importance_sampling_level must be one of token, sequence"),
        ({"num_generations": None}, "num_generations must be a whole number, got null"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_refused_with_its_file(values, words):
    with pytest.raises(BadInput) as error:
        read_values(values, m.read_field_kinds("pspo"), m.RANGES, "recipe r.yaml")
    assert str(error.value).startswith(f"recipe r.yaml: {words}"), error.value


@pytest.mark.parametrize(
    ("values", "meant"),
    [
        ({"bf16": False, "disable_tqdm": True}, {"bf16": False, "disable_tqdm": True}),
        ({"bf16": "no", "eval_strategy": "no"}, {"bf16": False, "eval_strategy": "no"}),
        ({"eval_strategy": False, "scale_rewards": False}, {"eval_strategy": "no", "scale_rewards": "none"}),
        ({"scale_rewards": True}, {"scale_rewards": "group"}),
        ({"save_total_limit": None, "report_to": None}, {"save_total_limit": None, "report_to": None}),
        ({"learning_rate": 1, "max_steps": 5.0}, {"learning_rate": 1.0, "max_steps": 5}),
    ],
)
def test_a_value_means_what_the_options_type_says(values, meant):
    assert read_values(values, m.read_field_kinds("pspo"), m.RANGES, "r") == meant
