"""What a run is: the record that training writes and everybody else only reads.

Training writes a RunRecord to run.json; evaluation, grid and report read it (experiments of Probability Smoothing
Policy Optimisation, arXiv 2509.21282). Two questions are answered here and nowhere else: are two runs the same method
(`differing_fields`), and may a run be continued (`compare_to_continue`). What a field of the configuration is for, and
with it both answers, stands in one table: ROLES.

    from common.record import read_record
    record = read_record(Path("runs/demo/pspo/seed0"))
    print(record.method, record.config["learning_rate"], record.outcome.status)
"""

import dataclasses
import fnmatch
import json
import math
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path

from apply_patches import HERE, PATCH_NAMES, sha256
from common.basis import (
    FORMAT,
    Basis,
    Continuation,
    basis_changes,
    find_changes,
    first_format_basis,
    make_basis,
    read_basis,
)
from common.files import BadInput, read_json, write_json
from common.models import choose_precision

RECORD_FILE = "run.json"
SAMPLER_VERSION = 3  # raised when the same seed draws other tokens
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "numpy", "tokenizers", "math-verify")


# ---- what a field of the configuration is for


class Role(Enum):
    """What a field of TRL's configuration, or a flag of ours, does to a run."""

    AXIS = "axis"  # has a place of its own: runs of one method may differ in it
    METHOD = "method"  # defines the method: it is what methods are expected to differ in
    RECIPE = "recipe"  # anything else that decides a number
    COMPUTED = "computed"  # how the same numbers are computed: they agree but for rounding
    HOUSEKEEPING = "housekeeping"  # what is saved and shown, and where
    LEFT_OUT = "left out"  # secrets, other ways of saying a recorded thing, what is refused


# A name belongs to the first role that has it; `*` stands for anything. What no role has is part of the RECIPE.
ROLES = {
    Role.RECIPE: "logging_nan_inf_filter",
    Role.AXIS: "seed learning_rate num_iterations generation_batch_size trust_region_method",
    Role.METHOD: (
        "epsilon epsilon_high smoothing_alpha delta trust_region_* loss_type sapo_* vespo_* importance_sampling_level"
    ),
    Role.COMPUTED: (
        "processes sampler per_device_* gradient_accumulation_steps steps_per_generation auto_find_batch_size "
        "*_checkpointing *_checkpointing_kwargs bf16 fp16 use_cpu tf32 mixed_precision *_full_eval dataloader_* ddp_* "
        "ddp3_* fsdp* deepspeed parallelism_config torch_compile* torch_empty_cache_steps eval_accumulation_steps "
        "eval_do_concat_batches eval_use_gather_object batch_eval_metrics accelerator_config attn_implementation "
        "use_cache ds3_* vllm_gpu_memory_utilization vllm_tensor_parallel_size vllm_enable_sleep_mode vllm_mode "
        "vllm_model_impl vllm_max_model_length"
    ),
    Role.HOUSEKEEPING: (
        "output_dir run_name project report_to trackio_* disable_tqdm log_* logging_* num_completions_to_print save_* "
        "merge_adapter stop_on_collapse skip_memory_metrics debug include_num_input_tokens_seen include_for_metrics "
        "enable_jit_checkpoint restore_callback_states_from_checkpoint vllm_server_* vllm_group_port"
    ),
    Role.LEFT_OUT: (
        "hub_* push_to_hub trust_remote_code local_rank distributed_state deepspeed_plugin fsdp_plugin_args do_* "
        "model_name_or_path model_revision resume_from_checkpoint"
    ),
}


@cache
def role_of(name):
    """The Role of a field of TRL's configurations or of a flag of ours."""
    for role in (Role.RECIPE, Role.LEFT_OUT, Role.AXIS, Role.METHOD, Role.COMPUTED, Role.HOUSEKEEPING):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in ROLES[role].split()):
            return role
    return Role.RECIPE


# ---- a training run


@dataclass
class Validation:
    """The validation score of the weights that a run kept."""

    metric: str  # eval_reward, eval_loss
    value: float
    greater_is_better: bool

    @property
    def score(self):
        """The value, with a sign that makes more better."""
        return self.value if self.greater_is_better else -self.value


@dataclass
class Outcome:
    """How far a run came, and what became of it."""

    status: str = "running"  # or "finished"; a run that is running and whose directory nobody holds was stopped
    finished_steps: int = 0
    wall_seconds: float = 0.0
    sampler: str | None = None  # the one that was really used, "own" or "trl"; None before it is known, and for sft
    validation: Validation | None = None  # known at the end
    failure: str | None = None  # why it stopped itself, a loss that is not finite for one; None if it did not
    collapsed_at: int | None = None  # the step at which the reward broke down for good


@dataclass
class Origin:
    """Where a run came from: nothing here decides a number."""

    started: str
    host: str
    python: str
    command: list
    git_commit: str | None


@dataclass
class RunRecord:
    """Everything that is known of a training run; see the module's docstring."""

    model: str
    method: str
    seed: int
    dataset: str
    config: dict  # {field: value}: the full resolved configuration, defaults included, that decides numbers
    computed: dict  # {field: value}: how it is computed
    housekeeping: dict  # {field: value}: what is saved and shown
    said: dict  # {field: layer}: what somebody said, and where; what is missing here is a default
    basis: Basis
    origin: Origin
    outcome: Outcome = field(default_factory=Outcome)
    changes: list = field(default_factory=list)  # what a user accepted when the run was continued, see as_stored
    complete: bool = True  # False: of a version that recorded only what was said

    @property
    def updates_per_generation(self):
        """Optimiser updates for which one generation of completions is used; None for sft."""
        iterations = self.config.get("num_iterations")
        if iterations is None:
            return None
        generation = self.config.get("generation_batch_size")
        step = self.config.get("sequences_per_step")
        return iterations * generation / step if generation and step else iterations

    def adopt(self, fresh):
        """Go on as a run that begins now with `fresh` would: all but its outcome, its origin and what was accepted."""
        for name in ("config", "computed", "housekeeping", "said", "basis"):
            setattr(self, name, getattr(fresh, name))
        self.complete = True
        self.outcome.failure = None


def make_record(command, values, processes, model_path, data, rewards):
    """The RunRecord of a run that begins: what is run, on what, with which code.

    command: maths_finetuning.parse's answer. values: {field: (value, layer)} of its Plan. processes: how many.
    model_path: the model's directory. data: {part: what identifies its rows}. rewards: the reward functions, whose
    weights are among the values.
    """
    args = command.args
    ours = {
        "dataset": command.dataset,
        "merge_adapter": args.merge_adapter,
        "sampler": args.sampler,
        "stop_on_collapse": args.stop_on_collapse,
    }
    if args.trust_region_method != "sft":
        ours["rewards"] = [reward.__name__ for reward in rewards]
    everything = {name: value for name, (value, _) in values.items()} | ours | {"processes": processes}
    everything["sequences_per_step"] = (
        everything["per_device_train_batch_size"] * everything["gradient_accumulation_steps"] * processes
    )
    plain = json.loads(json.dumps(everything, default=str))  # as it is when it is read again
    roles = {name: role_of(name) for name in plain}
    basis = make_basis([model_path], data, PACKAGES, choose_precision(args.device))
    if args.trust_region_method != "sft":
        basis.patches = {name: sha256((HERE / name).read_bytes()) for name in PATCH_NAMES}
        basis.sampler = SAMPLER_VERSION
    decides = (Role.AXIS, Role.METHOD, Role.RECIPE)
    return RunRecord(
        model=str(args.model),
        method=args.trust_region_method,
        seed=args.seed,
        dataset=command.dataset,
        config={name: value for name, value in plain.items() if roles[name] in decides},
        computed={name: value for name, value in plain.items() if roles[name] is Role.COMPUTED},
        housekeeping={name: value for name, value in plain.items() if roles[name] is Role.HOUSEKEEPING},
        said={name: layer for name, (_, layer) in values.items() if layer != "default"},
        basis=basis,
        origin=make_origin(),
    )


def make_origin():
    """The Origin of what this process begins."""
    return Origin(
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        host=platform.node(),
        python=platform.python_version(),
        command=sys.argv,
        git_commit=git_commit(),
    )


def git_commit():
    """The commit of this checkout, None where there is no git or no checkout."""
    if shutil.which("git") is None:
        return None
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    return git.stdout.strip() or None


# ---- the three questions


def differing_fields(records):
    """Names of the configuration in which RunRecords differ, those with the role AXIS excepted, sorted.

    Runs that differ in none of them, and in no axis but the seed, are one method. A record of the format that held
    only what was said has the default where it holds nothing: it agrees there with one that knows the default.
    """
    names = {name for record in records for name in record.config if role_of(name) is not Role.AXIS}
    return sorted(name for name in names if len(_values_of(records, name)) > 1)


def _values_of(records, name):
    """The different values, as JSON, that records have for a field."""
    known = {json.dumps(r.config[name], sort_keys=True) for r in records if name in r.config}
    silent = [r for r in records if name not in r.config]
    if any(r.complete for r in silent):  # another trainer's record: it has no such field
        return known
    is_default = any(name in r.config and name not in r.said for r in records)
    return known | ({"default"} if silent and not is_default else set())


def unexpected_differences(a, b):
    """Fields in which two methods' RunRecords differ although neither method is defined by them, sorted."""
    return [name for name in differing_fields([a, b]) if role_of(name) is Role.RECIPE]


def compare_to_continue(there, fresh):
    """The Continuation of the RunRecord `there` by a command whose run would begin with `fresh`.

    Housekeeping may change without a word.
    """
    names = ("model", "method", "seed", "dataset")
    refused = find_changes({n: getattr(there, n) for n in names}, {n: getattr(fresh, n) for n in names})
    refused += find_changes(_with_defaults(there.config, fresh.config, fresh), fresh.config)
    computed = find_changes(_with_defaults(there.computed, fresh.computed, fresh), fresh.computed)
    return Continuation(refused, [*computed, *basis_changes(there.basis, fresh.basis)])


def _with_defaults(values, fresh_values, fresh):
    """Values of an earlier record; a field that it does not know had the default then."""
    defaults = {name: value for name, value in fresh_values.items() if name not in fresh.said}
    return {**defaults, **values}


# ---- run.json


def read_record(path):
    """The RunRecord in a run directory, None where there is none; raises BadInput if it is damaged."""
    file = Path(path) / RECORD_FILE
    repair = "maths_finetuning.py --overwrite starts the run afresh"
    stored = read_json(file, repair)
    if stored is None:
        return None
    try:
        return from_json(stored) if "format" in stored else from_first_format(stored)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise BadInput(f"{file} is damaged: {repair}") from None


def write_record(path, record):
    """Write run.json of a run directory, whole or not at all."""
    write_json(Path(path) / RECORD_FILE, {"format": FORMAT, **dataclasses.asdict(record)})


def from_json(stored):
    """A RunRecord from the JSON object that write_record wrote."""
    stored = {name: value for name, value in stored.items() if name != "format"}
    outcome = Outcome(**stored["outcome"])
    if outcome.validation is not None:
        outcome.validation = Validation(**outcome.validation)
    parts = {"basis": read_basis(stored["basis"]), "origin": Origin(**stored["origin"]), "outcome": outcome}
    return RunRecord(**{**stored, **parts})


def from_first_format(stored):
    """A RunRecord from run.json as it was before it had a format: only what was said was recorded."""
    config = stored["config"]
    decides = stored.get("decides", {})
    names = {name: value for name, value in config.items() if name not in ("model", "method")}
    roles = {name: role_of(name) for name in names}
    kept = {name: v for name, v in names.items() if roles[name] in (Role.AXIS, Role.METHOD, Role.RECIPE)}
    batch = [names.get(name) for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "processes")]
    if None not in batch:
        kept["sequences_per_step"] = batch[0] * batch[1] * batch[2]
        kept["generation_batch_size"] = batch[0] * names.get("steps_per_generation", batch[1]) * batch[2]
    return RunRecord(
        model=str(stored["model"]),
        method=str(stored["method"]),
        seed=stored["seed"],
        dataset=str(config["dataset"]),
        config=kept,
        computed={name: value for name, value in names.items() if roles[name] is Role.COMPUTED},
        housekeeping={name: value for name, value in names.items() if roles[name] is Role.HOUSEKEEPING},
        said=stored.get("origins", {}),
        basis=first_format_basis(decides),
        origin=Origin(stored["started"], stored["host"], stored["python"], stored["command"], stored.get("git_commit")),
        outcome=Outcome(
            stored["status"], stored.get("finished_steps", 0), stored["wall_seconds"], stored.get("sampler")
        ),
        changes=stored.get("changes", []),
        complete=False,
    )


# ---- the validation score


def validation_at(rows, metric, step, greater_is_better):
    """The Validation of the weights of one step, from the rows of metrics.jsonl; None where they were not validated."""
    values = [row[metric] for row in rows if row["step"] == step and metric in row]
    return Validation(metric, values[-1], greater_is_better) if values else None


def kept_validation(record, rows):
    """The Validation of the weights that a finished run kept, also where its record is of the first format.

    None for a run that is not finished: it has not kept any yet. rows: of metrics.jsonl.
    """
    if record.outcome.validation is not None or record.complete:
        return record.outcome.validation
    if record.outcome.status != "finished":
        return None
    metric = "eval_loss" if record.method == "sft" else "eval_reward"
    greater = metric != "eval_loss"
    validated = [row for row in rows if isinstance(row.get(metric), int | float) and math.isfinite(row[metric])]
    if not validated:
        return None
    step = record.outcome.finished_steps
    if record.config.get("load_best_model_at_end"):
        best = max if greater else min
        step = best(validated, key=lambda row: row[metric])["step"]
    return validation_at(rows, metric, step, greater)
