"""README.md of a finished run's model: what was done, what to compare it with, how good it is, the commands.

Written when the training ends and again when the run is evaluated, in place of the card that TRL writes for the Hub;
ready to be pushed by the user's own hand. No licence is claimed. For the experiments of Probability Smoothing Policy
Optimisation (arXiv 2509.21282).

    from common.model_card import write_model_card
    write_model_card(run_dir, record)       # datasets, settings: of the evaluation, where there is one
"""

import argparse
import shlex

from common.files import write_text
from common.record import read_record

PAPER = "[Probability Smoothing Policy Optimisation](https://arxiv.org/abs/2509.21282)"

CARD_FILE = "README.md"
MARK = "<!-- written by maths_finetuning.py; an evaluation of the run writes it again, unless this line is gone -->"


def renew_model_card(run_dir, datasets, settings):
    """Put an evaluation's figures into a finished run's card; one that somebody made their own is left alone."""
    record = read_record(run_dir)
    if record is None or record.outcome.status != "finished":
        return
    card = run_dir / CARD_FILE
    if not card.exists() or MARK in card.read_text(encoding="utf-8"):
        write_model_card(run_dir, record, datasets, settings)


def write_model_card(run_dir, record, datasets=None, settings=None):
    """Write a run's README.md. datasets: its evaluation's {name: {temperature: figures}}; settings: its Settings."""
    parts = [
        "---\nlibrary_name: transformers\ntags: [grpo, pspo, trl]\n---",
        f"# {record.model}, {record.method}, seed {record.seed}",
        describe_run(record),
        describe_control(record),
        "## Figures",
        describe_figures(datasets, settings) if datasets else "Not evaluated yet.",
        "## How it was made",
        list_commands(run_dir, record),
        list_options(record),
        MARK,
    ]
    write_text(run_dir / CARD_FILE, "\n\n".join(parts) + "\n")


def describe_run(record):
    """What was trained, on what, how far, and what became of it."""
    outcome = record.outcome
    data = "; ".join(f"{part}: {rows}" for part, rows in record.basis.data.items())
    said = (
        f"{record.model} fine-tuned on {record.dataset} ({data}, with the beginning of their SHA-256) with the trust "
        f"region method `{record.method}`, for the experiments of {PAPER}: one run, one seed, {outcome.finished_steps} "
        "steps."
    )
    if outcome.validation is not None:
        score = f"{outcome.validation.metric} {outcome.validation.value:.4g}"
        said += f" Validation of the weights that were kept: {score}."
    if outcome.collapsed_at is not None:
        said += f" **Its reward collapsed at step {outcome.collapsed_at}.**"
    return said


def describe_control(record):
    """What a comparison needs: the paper's own caveat about noclip."""
    iterations = record.config.get("num_iterations")
    if record.method == "sft":
        return "A supervised baseline: no reward, no ratio, no trust region."
    if record.method == "noclip":
        return f"This is the control, without a trust region, for methods with `num_iterations` {iterations}."
    said = f"The control is `noclip` with everything else the same, `num_iterations` {iterations} above all."
    if record.method == "pspo":
        alpha = record.config.get("smoothing_alpha")
        said += f" The gradient of `pspo` is 1 - {alpha} times that of `noclip` on the same batch, a scale that AdamW"
        said += " divides out but for its epsilon, weight decay and the clipping of the norm."
    return said


def describe_figures(datasets, settings):
    """The table of an evaluation, with intervals, and how it was asked."""
    lines = ["| data set | temperature | problems | accuracy, % (95 %) | best of N, % |", "|---|---|---|---|---|"]
    for name, temperatures in datasets.items():
        for temperature, found in temperatures.items():
            k = max(int(key.removeprefix("pass@")) for key in found if key.startswith("pass@"))
            accuracy = show_share(found["accuracy"])
            best = f"{100 * found[f'pass@{k}']['value']:.1f} (N = {k})"
            lines.append(f"| {name} | {temperature} | {found['prompts']} | {accuracy} | {best} |")
    prompts = "chat template" if settings.apply_chat_template else "prompts of plain text"
    lines.append(
        f"\nIntervals are over problems, for this run only. Up to {settings.max_new_tokens} new tokens, top_p "
        f"{settings.top_p:g}, {prompts}, {settings.num_fewshot} examples; grader {settings.basis.grader}, "
        f"{settings.backend}."
    )
    return "\n".join(lines)


def show_share(figure):
    """'18.8 (15.6 to 22.5)' of a share with its interval, where there is one."""
    if figure["low"] is None:
        return f"{100 * figure['value']:.1f}"
    return f"{100 * figure['value']:.1f} ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"


def list_commands(run_dir, record):
    """The commands of the training and of an evaluation, and the code they belong to."""
    versions = ", ".join(f"{name} {number}" for name, number in record.basis.versions.items())
    commit = f"Commit {record.origin.git_commit}; " if record.origin.git_commit else ""
    evaluate = ["maths_evaluations.py", "--model_path", str(run_dir)]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--cache_dir")
    cache_dir = parser.parse_known_args(record.origin.command)[0].cache_dir
    if cache_dir is not None:
        evaluate += ["--cache_dir", cache_dir]
    return (
        f"```bash\npython {shlex.join(record.origin.command)}\npython {shlex.join(evaluate)}\n```\n\n"
        f"{commit}{versions}; {record.basis.device.kind}, {record.basis.device.number_type}."
    )


def list_options(record):
    """A table of what somebody chose: flags, recipes and the table of published values, not TRL's defaults."""
    values = record.config | record.computed
    rows = [f"| {name} | {values[name]} |" for name in sorted(record.said) if name in values]
    return "\n".join(["| option | value |", "|---|---|", *rows])
