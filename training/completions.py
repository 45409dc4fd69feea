"""A few completions now and then while a model trains, for people to read; see common/completions.py.

A callback of maths_finetuning.py's trainer (Probability Smoothing Policy Optimisation, arXiv 2509.21282).
"""

from transformers import TrainerCallback

from common.completions import CompletionRow, append_rows, rewind_completions

ROWS = 4  # at a time, spread evenly over the generation: of different prompts


def text_of(said):
    """The text of TRL's forms of a prompt or a completion: a string, or messages, whose last one is meant."""
    return said if isinstance(said, str) else said[-1]["content"]


def pick_rows(logs, step):
    """ROWS CompletionRows of a GRPOTrainer's newest generation. logs: its _logs, columns of equal length."""
    count = len(logs["prompt"])
    extra = {name: list(values) for name, values in logs["extra"].items()}
    unread = [None] * count
    return [
        CompletionRow(
            step=step,
            prompt=text_of(logs["prompt"][i]),
            completion=text_of(logs["completion"][i]),
            answer=extra.get("answer", unread)[i],
            rule=extra.get("rule", unread)[i],
            rewards={name: values[i] for name, values in logs["rewards"].items()},
            advantage=logs["advantages"][i],
        )
        for i in range(0, count, max(1, -(-count // ROWS)))
    ]


class CompletionsLog(TrainerCallback):
    """Writes a few completions every `every` steps; a continued run first drops those that it writes again."""

    def __init__(self, trainer, run_dir, every):
        self.trainer = trainer
        self.run_dir = run_dir
        self.every = every

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            rewind_completions(self.run_dir, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero and state.global_step % self.every == 0:
            append_rows(self.run_dir, pick_rows(self.trainer._logs, state.global_step))
