"""What happens while a model trains: progress, the log, sealed checkpoints, signals, room, and the finished model.

Callbacks of maths_finetuning.py's trainer (Probability Smoothing Policy Optimisation, arXiv 2509.21282).
"""

import json
import math
import os
import shutil
import signal
import time
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from common.files import BadInput, free_bytes, size_text, write_text
from common.models import fp32_bytes
from common.record import write_record
from common.runs import LOG_FILE, list_checkpoints, list_files, seal_checkpoint
from training.collapse import collapse_of

TWICE_SECONDS = 2.0  # signals closer than that are one: to the job's shell and to the process
STALLED_STEPS = 100  # steps in a row in which no prompt had two different rewards: nothing was learnt in any of them


def check_row(rows, path):
    """Stop a run that cannot get better: a value that is not finite, or no reward to learn from for STALLED_STEPS."""
    row = rows[-1]
    for name in ("loss", "grad_norm", "reward"):
        if not math.isfinite(row.get(name) or 0.0):
            raise SystemExit(
                f"{name} is {row[name]} at step {row['step']}: stopped. The last good checkpoint in {path} is intact; "
                "a smaller --learning_rate or --max_grad_norm may help"
            )
    recent = [r["frac_reward_zero_std"] for r in rows[-STALLED_STEPS:] if "frac_reward_zero_std" in r]
    if len(recent) == STALLED_STEPS and min(recent) == 1.0:
        raise SystemExit(
            f"all completions of every prompt had the same reward for {STALLED_STEPS} steps (up to {row['step']}), so "
            f"nothing is learnt: stopped. Look at samples of the model; the last checkpoint in {path} is intact"
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


class Progress(ProgressCallback):
    """transformers' progress bar with reward and KL beside the time left, and no line for every log step."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            label = "/".join(Path(args.output_dir).parts[-3:])
            self.training_bar = tqdm(total=state.max_steps, initial=state.global_step, desc=label, dynamic_ncols=True)
        self.current_step = state.global_step

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)
        if self.prediction_bar is not None:
            self.prediction_bar.set_description("validation", refresh=False)

    def on_log(self, args, state, control, logs=None, **kwargs):
        names = {"reward": "reward", "eval_reward": "validation", "trust_region/approx_kl": "kl", "loss": "loss"}
        if self.training_bar is not None and logs:
            self.shown = getattr(self, "shown", {}) | {names[k]: f"{v:.3g}" for k, v in logs.items() if k in names}
            self.training_bar.set_postfix(self.shown, refresh=False)


class Run(TrainerCallback):
    """Keeps the run directory: the log, sealed checkpoints at cycle boundaries only, signals, and what stops a run."""

    def __init__(self, trainer, path, record, stop_on_collapse=False):
        self.trainer = trainer
        self.stop_on_collapse = stop_on_collapse
        self.path = path
        self.record = record
        self.signal = None
        self.begun = time.monotonic() - record.outcome.wall_seconds
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self.on_signal)

    def on_signal(self, number, frame):
        """The first signal asks for a checkpoint, a later one ends the process; a batch system may send one twice."""
        if self.signal is None:
            self.signal, self.signalled = number, time.monotonic()
            os.write(2, f"\n{signal.Signals(number).name}: saving at the end of this generation cycle\n".encode())
        elif time.monotonic() - self.signalled > TWICE_SECONDS:
            os._exit(128 + number)

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Continue the order of the data where a later epoch left it: the sampler draws one permutation an epoch."""
        from trl.trainer.utils import RepeatSampler

        sampler = train_dataloader
        while sampler is not None and not isinstance(sampler, RepeatSampler):
            sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
        if sampler is not None and sampler.shuffle:
            for _ in range(int(state.epoch or 0)):
                torch.randperm(sampler.num_samples, generator=sampler.generator)

    def on_step_end(self, args, state, control, **kwargs):
        """Stop for a signal, at a boundary where a continued run is the same run; check the disk before a save."""
        cycle = getattr(args, "steps_per_generation", 1) * getattr(args, "num_iterations", 1)  # micro-batches
        whole_cycle = getattr(self.trainer, "_step", 0) % cycle == 0
        logged = state.global_step % args.logging_steps == 0
        if state.global_step < state.max_steps and whole_cycle and logged and self.signalled_anywhere():
            control.should_save = control.should_training_stop = True
            args.load_best_model_at_end = False  # the run is not at its end
        if control.should_save and state.is_world_process_zero:
            sizes = [sum(list_files(path).values()) for path in list_checkpoints(self.path)]
            check_space(self.path, max(sizes, default=0))

    def signalled_anywhere(self):
        """Whether any process has had a signal: all must agree to stop at the same step."""
        accelerator = self.trainer.accelerator
        flag = torch.tensor(float(self.signal is not None), device=accelerator.device)
        if accelerator.reduce(flag).item() and self.signal is None:
            self.signal, self.signalled = signal.SIGTERM, time.monotonic()
        return self.signal is not None

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            with open(self.path / LOG_FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
            try:
                check_row(state.log_history, self.path)
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
            seal_checkpoint(self.path / f"checkpoint-{state.global_step}")
            self.write_record("running")

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
    if merge_adapter:
        shutil.rmtree(path / "adapter", ignore_errors=True)
        temporary.rename(path / "adapter")
        trainer.accelerator.unwrap_model(trainer.model).merge_and_unload().save_pretrained(temporary)
        trainer.processing_class.save_pretrained(temporary)
    (temporary / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same in text
    for file in sorted(temporary.iterdir(), key=lambda p: p.suffix == ".safetensors"):
        os.replace(file, path / file.name)
    temporary.rmdir()


def write_model_card(path, record):
    """README.md of the finished model, in place of the one that TRL writes for the Hub; no licence is claimed."""
    values = record.config | record.computed
    chosen = "\n".join(f"| {name} | {values[name]} |" for name in sorted(record.said) if name in values)
    versions = ", ".join(f"{name} {number}" for name, number in record.basis.versions.items())
    text = (
        f"---\nlibrary_name: transformers\ntags: [grpo, pspo, trl]\n---\n\n# {record.model}, {record.method}, "
        f"seed {record.seed}\n\n{record.model} fine-tuned with the trust region method `{record.method}` "
        f"(Probability Smoothing Policy Optimisation, arXiv 2509.21282).\nTrained with {versions}; what was chosen:\n\n"
        f"| option | value |\n|---|---|\n{chosen}\n"
    )
    write_text(path / "README.md", text)
