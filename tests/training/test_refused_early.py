"""What TRL would refuse with a traceback, once the model is loaded or later, is one line before anything is written."""

import pytest

import maths_finetuning
from common.files import BadInput
from training.checks import check_adapter, check_device, describe_unread
from training.options import READ_WITH, UNREAD_BY_GRPO, read_field_kinds
from training.trainer import construct

DEMO = ["--model", "demo", "--device", "cpu"]
PSPO = [*DEMO, "--trust_region_method", "pspo"]
SFT = [*DEMO, "--trust_region_method", "sft"]

# Each ended in a traceback, the first four after the run directory was made.
REFUSED = [
    ([*PSPO, "--attn_implementation", "abc"], "attn_implementation must be one of"),
    ([*PSPO, "--attn_implementation", "kernels-community/flash-attn"], "attn_implementation must be one of"),
    ([*PSPO, "--attn_implementation", "flash_attention_2"], "flash_attn is not installed"),
    ([*PSPO, "--router_aux_loss_coef", "0.1"], "no experts"),
    ([*PSPO, "--sync_ref_model"], "no reference model"),
    ([*PSPO, "--dataloader_drop_last"], "never be validated on"),
    ([*PSPO, "--eval_strategy", "no"], "eval_strategy no, save_strategy steps.*--load_best_model_at_end false"),
    ([*PSPO, "--remove_unused_columns"], "remove_unused_columns: the reward reads columns"),
    ([*PSPO, "--reward_weights", "1"], "reward_weights: 1 are given, one for each of"),
    ([*PSPO, "--entropy_coef_min", "0.2", "--entropy_coef_max", "0.1"], "entropy_coef_min is more than"),
    ([*PSPO, "--dataloader_persistent_workers"], "needs workers: give --dataloader_num_workers"),
    ([*SFT, "--padding_free"], "padding_free does not look at max_length"),
    ([*SFT, "--packing", "--max_length", "null"], "packing needs a --max_length"),
    ([*PSPO, "--torch_compile_mode", "abc"], "torch_compile_mode: must be one of"),
    ([*SFT, "--torch_compile_backend", "abc"], "torch_compile_backend: must be one of"),
    ([*PSPO, "--use_transformers_continuous_batching"], "logs validation as training"),
    ([*SFT, "--eos_token", "<|nothing|>"], "no token of this model's tokenizer"),
    ([*SFT, "--pad_token", "<|nothing|>"], "no token of this model's tokenizer"),
    ([*SFT, "--assistant_only_loss"], "assistant_only_loss"),
    ([*SFT, "--chat_template_path", "abc"], "chat_template.jinja"),
    ([*SFT, "--activation_offloading"], "there is no GPU here"),
    ([*SFT, "--torch_compile", "--torch_compile_backend", "fx2trt"], "fx2trt is not installed here"),
    ([*SFT, "--torch_compile", "--torch_compile_backend", "tvm"], "tvm is not installed here"),
    ([*SFT, "--gradient_checkpointing", "--gradient_checkpointing_kwargs", '{"a": 1}'], "unknown 'a'"),
    ([*SFT, "--dataset_kwargs", '{"skip_prepare_dataset": true}'], "the rows are prepared here"),
    ([*SFT, "--metric_for_best_model", "reward"], "has no such figure"),
    ([*PSPO, "--metric_for_best_model", "mean_token_accuracy"], "has no such figure"),
    ([*PSPO, "--metric_for_best_model", "kl"], "has no such figure"),  # beta is 0
    ([*PSPO, "--metric_for_best_model", "eval_rewards/accuracy/mean"], "has no such figure"),
    ([*SFT, "--optim_args", "momentum=0.9"], "adamw_torch_fused reads none of them"),
    ([*SFT, "--include_num_input_tokens_seen", "nonpadding"], "must be one of all, non_padding"),
    ([*SFT, "--save_steps", "0.5"], "save_steps must be at least 1"),  # was held against the cycle as a number of steps
    ([*SFT, "--hub_token", "hf_x"], "a secret"),
    ([*SFT, "--use_peft", "--lora_target_modules", "q_prj"], "no module 'q_prj'; it has"),
    ([*PSPO, "--use_peft", "--lora_target_modules", "q_proj", "v_prj"], "no module 'v_prj'; it has"),
    ([*SFT, "--use_peft", "--lora_target_modules", "mlp"], "lora_target_modules.*not supported"),
    ([*SFT, "--use_peft", "--lora_modules_to_save", "head"], "no module 'head'; it has"),
    ([*SFT, "--use_peft", "--lora_target_parameters", "q"], "no parameter 'q'; it has"),
    ([*PSPO, "--fp16", "--bf16", "false"], "a CPU trains in fp32 or bf16"),  # it trained in fp32, without a word
]


@pytest.mark.parametrize(("argv", "words"), REFUSED, ids=lambda part: part[6] if isinstance(part, list) else None)
def test_what_cannot_train_is_refused_before_anything_is_written(argv, words, tmp_path):
    with pytest.raises(BadInput, match=words):
        maths_finetuning.main([*argv, "--output_root", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_a_misspelt_flag_is_named_before_the_one_that_is_missing():
    with pytest.raises(BadInput, match="unknown option --modle; did you mean model"):
        maths_finetuning.parse(["--modle", "demo", "--trust_region_method", "pspo"])
    with pytest.raises(BadInput, match="required: --model"):
        maths_finetuning.parse(["--trust_region_method", "pspo", "--data_seed", "1"])  # TRL's, and nearly --dataset


def test_what_only_a_card_can_do_is_not_refused_where_a_grid_is_looked_over():
    plan = maths_finetuning.resolve(maths_finetuning.parse([*PSPO, "--fp16", "--bf16", "false"]))
    with pytest.raises(BadInput, match="fp16"):
        check_device(plan.config)


def test_what_trls_constructor_refuses_is_one_line_that_names_the_option():
    from trl import SFTTrainer

    plan = maths_finetuning.resolve(maths_finetuning.parse([*SFT, "--router_aux_loss_coef", "0.1"]))
    path = maths_finetuning.check_model(plan.command.args)
    tokenizer = maths_finetuning.load_tokenizer([path])
    arguments = {"model": maths_finetuning.load_policy(path, plan.model_config, tokenizer), "args": plan.config}
    data = maths_finetuning.load_data(plan, path, tokenizer)
    arguments |= {"processing_class": tokenizer, "train_dataset": data["train"].select(range(4))}
    arguments["eval_dataset"] = arguments["train_dataset"]
    with pytest.raises(BadInput, match="router_aux_loss_coef") as refusal:
        construct(SFTTrainer, arguments)
    assert "\n" not in str(refusal.value)


def test_a_run_with_vllm_says_that_it_does_not_continue_bit_for_bit():
    plan = maths_finetuning.resolve(maths_finetuning.parse([*PSPO, "--min_p", "0.1"]))
    assert "random state" not in maths_finetuning.choose_sampler(plan).why
    plan.config.use_vllm = True
    assert "random state is in no checkpoint" in maths_finetuning.choose_sampler(plan).why


UNREAD = [
    ([*PSPO, "--lora_r", "8"], ["note: lora_r has no effect without use_peft"]),
    ([*PSPO, "--lora_r", "8", "--use_peft"], []),
    ([*SFT, "--use_dora"], ["note: use_dora has no effect without use_peft"]),
    ([*PSPO, "--entropy_target", "0.5"], ["note: entropy_target has no effect without use_adaptive_entropy"]),
    ([*PSPO, "--label_smoothing_factor", "0.1"], ["note: label_smoothing_factor has no effect in GRPO"]),
    ([*SFT, "--label_smoothing_factor", "0.1"], []),
    ([*SFT, "--dataset_text_field", "body"], ["note: dataset_text_field has no effect in SFT here"]),
    ([*SFT, "--do_eval", "false"], ["note: do_eval has no effect: eval_strategy says whether to validate"]),
    ([*PSPO, "--hub_model_id", "x"], ["note: hub_model_id has no effect: nothing is uploaded from here"]),
    (
        [*SFT, "--max_steps", "2", "--num_train_epochs", "3"],
        ["note: num_train_epochs has no effect beside max_steps"],
    ),
    (PSPO, []),  # what the table of published values says is nobody's mistake
]


@pytest.mark.parametrize(("argv", "lines"), UNREAD, ids=lambda part: part[-2] if len(part) > 1 else None)
def test_what_somebody_gave_and_nothing_reads_is_noted(argv, lines):
    assert describe_unread(maths_finetuning.resolve(maths_finetuning.parse(argv))) == lines


def test_a_run_with_vllm_says_what_it_cannot_continue():
    """Also where TRL's path was asked for."""
    plan = maths_finetuning.resolve(maths_finetuning.parse(PSPO))
    plan.config.use_vllm = True
    for sampler in ("auto", "trl"):
        plan.command.args.sampler = sampler
        assert "draws other samples" in maths_finetuning.choose_sampler(plan).why


def test_what_is_noted_are_options():
    named = {*READ_WITH, *UNREAD_BY_GRPO, *(name for row in READ_WITH.values() for name in row.split())}
    assert named <= read_field_kinds("pspo").keys()


@pytest.mark.parametrize("argv", [PSPO, SFT], ids=["pspo", "sft"])
def test_figures_that_a_validation_has_may_choose_the_best_model(argv):
    names = "eval_loss entropy num_tokens".split()
    names += ["mean_token_accuracy"] if argv is SFT else ["reward", "eval_rewards/accuracy_reward/mean"]
    for name in names:
        maths_finetuning.resolve(maths_finetuning.parse([*argv, "--metric_for_best_model", name]))


def test_epochs_that_somebody_asks_for_go_before_the_steps_of_the_table():
    def steps(*flags):
        config = maths_finetuning.resolve(maths_finetuning.parse([*PSPO, *flags])).config
        return config.max_steps, config.num_train_epochs

    assert steps()[0] == 160
    assert steps("--num_train_epochs", "2") == (-1, 2)
    assert steps("--num_train_epochs", "2", "--max_steps", "4") == (4, 2)


def test_one_module_of_an_adapter_is_a_name_and_not_a_pattern():
    """TRL turns a list of one into text, of which PEFT made a pattern that no module's full name fits."""
    path = maths_finetuning.find_model("demo", "x")
    for said, held in (("q_proj", ["q_proj"]), ("all-linear", "all-linear"), (".*_proj", ".*_proj")):
        plan = maths_finetuning.resolve(maths_finetuning.parse([*PSPO, "--use_peft", "--lora_target_modules", said]))
        assert plan.model_config.lora_target_modules == held
        check_adapter(plan.model_config, maths_finetuning.load_config(path)[0])
