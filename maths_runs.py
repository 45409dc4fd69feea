"""The run directory of a training run: made, locked, logged, checkpointed, continued and finished.

Used by maths_finetuning.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282). A run directory holds

    run.json           the resolved configuration, versions, hashes, host, device, wall time and status
    metrics.jsonl      one object a log step, validation included
    checkpoint-N/      complete, with a seal, or not continued from; always at the end of a generation cycle
    model.safetensors  (or an adapter), tokenizer and configs: the finished model, best by validation
    reward_curve.png   the training curve

    python maths_runs.py runs/demo/pspo/seed0     # what state is it in?
"""

import contextlib
import fcntl
import json
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback

from maths_common import BadInput, make_parser, run_script

EXIT_SAVED = 75  # EX_TEMPFAIL of sysexits.h: saved, not finished; a batch system may start the same command again
SEAL = "sealed.json"
STALLED_STEPS = 100  # steps in a row in which no prompt had two different rewards: nothing was learnt in any of them


def prepare_run_dir(output_dir, chosen, overwrite):
    """Make or reopen a run directory; returns the open lock file. `chosen`: the configuration that identifies the run.

    Raises BadInput if it cannot be written, is in use by another process, or holds a run of another configuration.
    """
    path = Path(output_dir)
    if overwrite and path.exists() and any(path.iterdir()):
        aside = next(p for n in range(1, 10**6) if not (p := path.with_name(f"{path.name}.old-{n}")).exists())
        path.rename(aside)
        print(f"moved {path} to {aside}")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "w")  # noqa: SIM115 - held open for the life of the process
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadInput(f"another process is training in {path}") from None
    except OSError as error:
        raise BadInput(f"cannot write to {path}: {error.strerror}; choose another --output_dir") from None
    record = read_record(path)
    if not record and any(p.name != ".lock" for p in path.iterdir()):
        raise BadInput(f"{path} is not empty and holds no run.json: choose another --output_dir, or --overwrite")
    if record and record["config"] != chosen:
        changed = sorted(k for k in {*chosen, *record["config"]} if chosen.get(k) != record["config"].get(k))
        there, here = record["config"].get(changed[0]), chosen.get(changed[0])
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        raise BadInput(
            f"{path} holds a run with {changed[0]}={there!r}, not {here!r}{more}; --output_dir or --overwrite"
        )
    return lock


def read_record(path):
    """run.json, or None where there is none; raises BadInput if it is damaged."""
    try:
        return json.loads((path / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise BadInput(f"{path / 'run.json'} is damaged: --overwrite starts the run afresh") from None


def write_json(path, value):
    """Write through a temporary file and a rename."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def list_files(path):
    """{name: size in bytes} of all files below a checkpoint but its seal."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != SEAL)
    return {str(p.relative_to(path)): p.stat().st_size for p in files}


def seal_checkpoint(path):
    """Flush a checkpoint to disk and record its files' sizes; only a sealed one is ever continued from."""
    for name in list_files(path):
        with open(path / name, "rb") as file:
            os.fsync(file.fileno())
    write_json(path / SEAL, list_files(path))


def is_intact(path):
    """Whether a checkpoint has its seal and every file the sealed size."""
    try:
        return list_files(path) == json.loads((path / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def is_last(path):
    """Whether a checkpoint was saved at the end of its run, which was then cut off before it was finished."""
    state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    return state["global_step"] >= state["max_steps"]


def find_checkpoint(output_dir):
    """The newest checkpoint to continue from, or None. Newer ones are deleted.

    Those are checkpoints that are not intact, and one of the run's last step, from which transformers 5.23 would train
    one step too many; the way there from the one before is the same, bit for bit.
    """
    found = sorted(Path(output_dir).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True)
    for path in found:
        if is_intact(path) and not is_last(path):
            return path
        print(f"{path.name} is {'the last' if is_intact(path) else 'incomplete or damaged'} and is deleted")
        shutil.rmtree(path)
    return None


def cut_log(path, step):
    """Keep the rows of metrics.jsonl up to `step`; a torn last line goes. Returns them."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    rows = [row for row in rows if row["step"] <= step]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(temporary, path)
    return rows


def append_row(path, row):
    """Add one JSON object to metrics.jsonl and hand it to the operating system at once."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


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
    free = shutil.disk_usage(path).free
    if free < 1.1 * checkpoint_bytes:
        raise SystemExit(
            f"{path}: {free / 1e9:.2f} GB free, a checkpoint needs {checkpoint_bytes / 1e9:.2f} GB: stopped before "
            "saving. Make room and start the same command again; the last checkpoint is intact"
        )


class Progress(ProgressCallback):
    """transformers' progress bar with reward and KL beside the time left, and no line for every log step."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            name = Path(args.output_dir)
            label = "/".join(name.parts[-3:])
            self.training_bar = tqdm(total=state.max_steps, initial=state.global_step, desc=label, dynamic_ncols=True)
        self.current_step = state.global_step

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)
        if self.prediction_bar is not None:
            self.prediction_bar.set_description("validation", refresh=False)

    def on_log(self, args, state, control, logs=None, **kwargs):
        names = {"reward": "reward", "eval_reward": "validation", "trust_region/approx_kl": "kl", "loss": "loss"}
        if self.training_bar is not None and logs:
            shown = getattr(self, "shown", {}) | {names[k]: f"{v:.3g}" for k, v in logs.items() if k in names}
            self.shown = shown
            self.training_bar.set_postfix(shown, refresh=False)


class Run(TrainerCallback):
    """Keeps the run directory: the log, sealed checkpoints at cycle boundaries only, signals, and what stops a run."""

    def __init__(self, trainer, path, record, rows):
        self.trainer, self.path, self.record, self.rows = trainer, path, record, rows
        self.signal, self.begun, self.before = None, time.monotonic(), record["wall_seconds"]
        config = trainer.args
        self.cycle = config.steps_per_generation * config.num_iterations if hasattr(config, "num_iterations") else 1
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self.on_signal)

    def on_signal(self, number, frame):
        """The first signal asks for a checkpoint, the second ends the process at once."""
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
        os.write(2, f"\n{signal.Signals(number).name}: saving at the end of this generation cycle\n".encode())

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
        at_boundary = (
            getattr(self.trainer, "_step", 0) % self.cycle == 0 and state.global_step % args.logging_steps == 0
        )
        if at_boundary and self.signalled_anywhere():
            control.should_save = control.should_training_stop = True
            control.should_evaluate = control.should_evaluate and state.global_step % state.eval_steps == 0
            args.load_best_model_at_end = False  # the run is not at its end
        if control.should_save and state.is_world_process_zero:
            check_space(self.path, max(self.checkpoint_sizes(), default=0))
        return control

    def signalled_anywhere(self):
        """Whether any process has had a signal: all must agree to stop at the same step."""
        accelerator = self.trainer.accelerator
        flag = torch.tensor(float(self.signal is not None), device=accelerator.device)
        self.signal = self.signal or (signal.SIGTERM if accelerator.reduce(flag).item() else None)
        return self.signal is not None

    def checkpoint_sizes(self):
        """Bytes of each checkpoint on disk."""
        return [sum(list_files(path).values()) for path in self.path.glob("checkpoint-*")]

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            self.rows.append({"step": state.global_step, **logs})
            append_row(self.path / "metrics.jsonl", self.rows[-1])
            check_row(self.rows, self.path)

    def on_save(self, args, state, control, **kwargs):
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            seal_checkpoint(self.path / f"checkpoint-{state.global_step}")
            self.write_record("running")

    def write_record(self, status):
        """Update run.json."""
        seconds = self.before + time.monotonic() - self.begun
        self.record.update(status=status, wall_seconds=round(seconds, 1), finished_steps=self.trainer.state.global_step)
        write_json(self.path / "run.json", self.record)


def save_final(trainer, path, merge_adapter):
    """Put the finished model (or adapter) at the top of the run directory; called by every process.

    Files appear by renames, weights last. With merge_adapter the folded model goes there and the adapter to `adapter/`.
    """
    temporary = path / "final.tmp"
    trainer.accelerator.wait_for_everyone()
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
    chosen = "\n".join(f"| {key} | {value} |" for key, value in sorted(record["config"].items()))
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    text = (
        f"---\nlibrary_name: transformers\ntags: [grpo, pspo, trl]\n---\n\n# {record['model']}, {record['method']}, "
        f"seed {record['seed']}\n\n{record['model']} fine-tuned with the trust region method `{record['method']}` "
        f"(Probability Smoothing Policy Optimisation, arXiv 2509.21282).\nTrained with {versions}; what was chosen:\n\n"
        f"| option | value |\n|---|---|\n{chosen}\n"
    )
    temporary = path / "README.md.tmp"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path / "README.md")


def main():
    parser = make_parser(__doc__)
    parser.add_argument("run_dir", type=Path, nargs="+", help="run directories")
    for path in parser.parse_args().run_dir:
        record = read_record(path)
        if record is None:
            raise BadInput(f"{path} holds no run.json")
        rows = cut_log(path / "metrics.jsonl", math.inf)
        print(f"{path}: {record['status']}, step {rows[-1]['step'] if rows else 0}, {record['wall_seconds']:.0f} s")


if __name__ == "__main__":
    sys.exit(run_script(main))
