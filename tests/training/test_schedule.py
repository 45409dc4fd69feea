"""How long a run is and how many checkpoints it keeps, held against what transformers itself does."""

import warnings

import pytest

import maths_finetuning
from training import schedule


def config_of(*flags, method="pspo"):
    words = ["--model", "demo", "--trust_region_method", method, "--eval_strategy", "no"]
    words += ["--load_best_model_at_end", "False", *flags]
    return maths_finetuning.resolve(maths_finetuning.parse(list(map(str, words)))).config


@pytest.mark.parametrize(
    "flags",
    [
        ["--save_total_limit", 0, "--save_steps", 4],
        ["--save_total_limit", -1, "--save_steps", 6],
        ["--save_total_limit", 1, "--save_steps", 4],
        ["--save_total_limit", 3, "--save_steps", 4],
        ["--save_total_limit", 0, "--save_strategy", "epoch", "--max_steps", -1, "--num_train_epochs", 2],
        ["--save_total_limit", 0, "--save_strategy", "best", "--eval_strategy", "steps", "--eval_steps", 4],
    ],
)
def test_the_checkpoints_that_are_counted_are_those_that_transformers_keeps(flags, tmp_path):
    """Its own callback says when it saves, its own function what it deletes."""
    from transformers import TrainerControl, TrainerState
    from transformers.trainer_callback import DefaultFlowCallback
    from transformers.trainer_utils import rotate_checkpoints

    config = config_of("--max_steps", 14, *flags)
    rows = 80
    epoch = schedule.steps_an_epoch(config, rows, 1)
    steps = schedule.planned_steps(config, rows, 1)
    state = TrainerState(max_steps=steps)
    state.compute_steps(config, steps)
    for step in range(1, steps + 1):
        control = TrainerControl()
        state.global_step = step
        DefaultFlowCallback().on_step_end(config, state, control)
        if step % epoch == 0:
            DefaultFlowCallback().on_epoch_end(config, state, control)
        if control.should_save or (config.save_strategy == "best" and control.should_evaluate):
            (tmp_path / f"checkpoint-{step}").mkdir()
            rotate_checkpoints(str(tmp_path), config.save_total_limit)
    assert schedule.checkpoints_kept(config, rows) == len(list(tmp_path.iterdir()))


def test_an_option_of_transformers_that_is_old_is_no_warning_to_the_user():
    """The table sets gradient_checkpointing, which transformers 5.23 calls by another name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config_of("--use_transformers_paged", "false")
    assert [str(warning.message) for warning in caught if warning.category is FutureWarning] == []
