"""What happens while a model trains: progress, the log, sealed checkpoints, signals, room, and the finished model.

Callbacks of maths_finetuning.py's trainer (Probability Smoothing Policy Optimisation, arXiv 2509.21282).
"""

import json
import math
import os
import shutil
import signal
import time
from itertools import takewhile

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from common.files import BadInput, free_bytes, size_text
from common.models import fp32_bytes
from common.progress import label_run, open_bar
from common.record import write_record
from common.runs import LOG_FILE, list_checkpoints, list_files, seal_checkpoint
from training.collapse import collapse_of
from training.continuing import is_grpo, restore, restore_data_order, save_reference

TWICE_SECONDS = 2.0  # signals closer than that are one: to the job's shell and to the process
STALLED_STEPS = 100  # so many steps in which no prompt had two different rewards: nothing was learnt in any of them


def check_log(rows, path):
    """Stop a run that cannot get better: a value that is not finite, or no reward to learn from for STALLED_STEPS.

    rows: those of the log, the newest last. A step whose completions were generated for an earlier one has no rewards
    of its own, and a row of a validation has none of the training's.
    """
    newest = rows[-1]
    for name in ("loss", "grad_norm", "reward"):
        if not math.isfinite(newest.get(name) or 0.0):
            raise SystemExit(
                f"{name} is {newest[name]} at step {newest['step']}: stopped. The last good checkpoint in {path} is "
                "intact; a smaller --learning_rate or --max_grad_norm may help"
            )
    first = newest["step"] - STALLED_STEPS + 1
    latest = takewhile(lambda row: row["step"] >= first, reversed(rows))
    same_rewards = [row["frac_reward_zero_std"] for row in latest if row.get("frac_reward_zero_std") is not None]
    if first >= 1 and same_rewards and min(same_rewards) == 1.0:
        raise SystemExit(
            f"all completions of every prompt had the same reward for {STALLED_STEPS} steps (up to {newest['step']}), "
            f"so nothing is learnt: stopped. Look at samples of the model; the last checkpoint in {path} is intact"
        )


def check_space(path, checkpoint_bytes):
    """Stop before a save that would not fit. checkpoint_bytes: the size of the last checkpoint, or an estimate."""
    if free_bytes(path) < 1.1 * checkpoint_bytes:
        raise SystemExit(
            f"{path}: {size_text(free_bytes(path))} free, a checkpoint needs {size_text(checkpoint_bytes)}: stopped "
            "before saving. Make room and start the same command again; the last checkpoint is intact"
        )


def check_room(path, model_path, checkpoints):
    """Raises BadInput if the disk cannot hold so many checkpoints of fp32 weights and AdamW's two moments."""
    need = checkpoints * 3 * fp32_bytes(model_path)
    if free_bytes(path) < need:
        free = size_text(free_bytes(path))
        raise BadInput(f"{path}: {free} free, {checkpoints} checkpoints need about {size_text(need)}")


class Progress(TrainerCallback):
    """The step, the time left, reward, KL and validation: a bar on a terminal, a plain line now and then in a file."""

    SHOWN = {"reward": "reward", "trust_region/approx_kl": "kl", "eval_reward": "validation", "loss": "loss"}

    def __init__(self):
        self.bar = None
        self.figures = {}  # what is shown of the last log rows, name to text
        self.validated = 0  # batches of the validation that is going on

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = open_bar(state.max_steps, "step", label_run(args.output_dir), state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(1)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        self.validated += 1
        if self.bar is not None and len(eval_dataloader) > 1:
            self.show(f"validating {self.validated}/{len(eval_dataloader)}", refresh=True)

    def on_evaluate(self, args, state, control, **kwargs):
        self.validated = 0
        self.show()

    def on_log(self, args, state, control, logs=None, **kwargs):
        for key, value in (logs or {}).items():
            if key in self.SHOWN and value is not None:
                self.figures[self.SHOWN[key]] = f"{value:.3g}"
        self.show()

    def show(self, more="", refresh=False):
        """Put the figures beside the step."""
        if self.bar is not None:
            texts = [f"{name} {self.figures[name]}" for name in self.SHOWN.values() if name in self.figures]
            self.bar.set_postfix_str(", ".join([*texts, more] if more else texts), refresh=refresh)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()


class Run(TrainerCallback):
    """Keeps the run directory: the log, sealed checkpoints at cycle boundaries only, signals, and what stops a run."""

    def __init__(self, trainer, path, record, stop_on_collapse=False):
        self.trainer = trainer
        self.stop_on_collapse = stop_on_collapse
        self.path = path
        self.record = record
        self.begun = time.monotonic() - record.outcome.wall_seconds
        self.signal = None
        self.stopping = False  # for a signal; the run is not at its end
        self.save_is_due = False  # put off to where a run can go on
        self.validation_is_due = False
        self.checkpoints_kept = trainer.args.save_total_limit
        trainer.args.save_total_limit = None  # transformers would delete the old checkpoint before the new is sealed
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self.on_signal)

    def on_signal(self, number, frame):
        """The first signal asks for a checkpoint, a later one ends the process; a batch system may send one twice."""
        if self.signal is None:
            self.signal = number
            self.signalled = time.monotonic()
            os.write(2, f"\n{signal.Signals(number).name}: saving at the end of this generation cycle\n".encode())
        elif time.monotonic() - self.signalled > TWICE_SECONDS:
            os._exit(128 + number)

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Continue what a checkpoint does not hold; transformers has read the rest of it."""
        if state.global_step > 0:
            checkpoint = self.path / f"checkpoint-{state.global_step}"
            restore(self.trainer, checkpoint, len(train_dataloader))
            restore_data_order(train_dataloader, int(state.epoch))

    def on_step_end(self, args, state, control, **kwargs):
        """Save and validate only where a run can go on: at the end of a generation cycle.

        The last step of an epoch leaves both to on_epoch_end, which may ask for more at the same step. An epoch that
        ends within an accumulation moves the cycles: what is due waits for the next end of one.
        """
        ends_epoch = state.epoch == int(state.epoch)
        finished = state.global_step >= state.max_steps
        if not ends_epoch and (finished or self.cycle_is_whole(args)):
            self.do_what_is_due(args, state, control)
            return
        self.save_is_due |= control.should_save
        self.validation_is_due |= control.should_evaluate
        control.should_save = False
        control.should_evaluate = False

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopping:  # within the epoch, whose end this is not
            control.should_log = False
            control.should_save = False
            control.should_evaluate = False
        else:
            self.do_what_is_due(args, state, control)

    def cycle_is_whole(self, args):
        """Whether the next micro-batch begins a generation; SFT has none, there every step is whole."""
        if not is_grpo(args):
            return True
        return self.trainer._step % (args.steps_per_generation * args.num_iterations) == 0

    def do_what_is_due(self, args, state, control):
        """At a boundary: save and validate what was put off, stop for a signal, check the disk before a save."""
        control.should_save |= self.save_is_due
        control.should_evaluate |= self.validation_is_due
        self.save_is_due = False
        self.validation_is_due = False
        if control.should_save or (control.should_evaluate and args.save_strategy == "best"):
            control.should_log = True  # the means of a row cannot be continued in its middle
        logged = control.should_log or (state.log_history and state.log_history[-1]["step"] == state.global_step)
        if logged and state.global_step < state.max_steps and self.signalled_anywhere():
            control.should_save = True
            control.should_training_stop = True
            self.stopping = True
            args.load_best_model_at_end = False  # the run is not at its end
        if control.should_save and state.is_world_process_zero:
            sizes = [sum(list_files(path).values()) for path in list_checkpoints(self.path)]
            check_space(self.path, max(sizes, default=0))

    def signalled_anywhere(self):
        """Whether any process has had a signal: all must agree to stop at the same step."""
        accelerator = self.trainer.accelerator
        flag = torch.tensor(float(self.signal is not None), device=accelerator.device)
        if accelerator.reduce(flag).item() and self.signal is None:
            self.signal = signal.SIGTERM
            self.signalled = time.monotonic()
        return self.signal is not None

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs and "train_loss" not in logs:  # that is the summary at the end
            with open(self.path / LOG_FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
            try:
                check_log(state.log_history, self.path)
            except SystemExit as error:
                self.record.outcome.failure = str(error).partition(": stopped")[0]
                self.write_record("running")
                raise
        self.record.outcome.collapsed_at = collapse_of(state.log_history)  # the same history in every process
        if self.stop_on_collapse and self.record.outcome.collapsed_at is not None:
            control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            checkpoint = self.path / f"checkpoint-{state.global_step}"
            save_reference(self.trainer, checkpoint)
            seal_checkpoint(checkpoint)
            rotate_checkpoints(str(self.path), self.checkpoints_kept, state.best_model_checkpoint)
            self.write_record("running")
        if state.global_step >= state.max_steps:
            args.save_total_limit = self.checkpoints_kept  # of 1, transformers leaves the best alone at the end

    def write_record(self, status):
        """Update run.json."""
        outcome = self.record.outcome
        outcome.status = status
        outcome.wall_seconds = round(time.monotonic() - self.begun, 1)
        outcome.finished_steps = self.trainer.state.global_step
        write_record(self.path, self.record)


def watch(trainer, run, stop_on_collapse):
    """Put our own callbacks in place of transformers' printers -> the Run that watches over an OpenRun's directory."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    watcher = Run(trainer, run.path, run.record, stop_on_collapse)
    trainer.add_callback(watcher)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(Progress)
    return watcher


def save_final(trainer, path, merge_adapter):
    """Put the finished model (or adapter) at the top of the run directory; called by every process.

    Files appear by renames, weights last. With merge_adapter the folded model goes there and the adapter to `adapter/`.
    """
    temporary = path / "final.tmp"
    if trainer.accelerator.is_main_process and temporary.exists():
        shutil.rmtree(temporary)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(temporary))
    if not trainer.accelerator.is_main_process:
        return
    (temporary / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same in text
    if merge_adapter:
        shutil.rmtree(path / "adapter", ignore_errors=True)
        temporary.rename(path / "adapter")
        trainer.accelerator.unwrap_model(trainer.model).merge_and_unload().save_pretrained(temporary)
        trainer.processing_class.save_pretrained(temporary)
    for file in sorted(temporary.iterdir(), key=lambda p: p.suffix == ".safetensors"):
        os.replace(file, path / file.name)
    temporary.rmdir()
