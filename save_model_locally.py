"""Fetch once, where there is internet, all that the experiment needs; compute nodes then work from the cache alone.

Models and data sets of Probability Smoothing Policy Optimisation (arXiv 2509.21282): the three Qwen2.5 base models
(safetensors and tokenizer files only), GSM8K, MATH-500, ASDiv and SVAMP at pinned revisions, and MATH if it is named.
Each file is checked against the Hub's own hash, an interrupted run continues inside the file where it stopped, and an
item gets its place in the cache only when it is whole. With neither --models nor --datasets the whole default set is
fetched, else only what is named.

    python save_model_locally.py                                     # the whole default set
    python save_model_locally.py --models Qwen/Qwen2-Math-1.5B --datasets gsm8k MATH
    python save_model_locally.py --models Qwen2.5-0.5B --revision Qwen2.5-0.5B=COMMIT   # COMMIT: see --list
    python save_model_locally.py --from_files downloads              # data sets from files that are already here
    python save_model_locally.py --list
    python save_model_locally.py --verify                            # exit code 1 if any byte is not as it was fetched

The cache: CACHE_DIR/ITEM/ and manifest.json (Hub id, revision, files, sizes, sha256), half-fetched items in .partial/.
--from_files takes Parquet or JSON lines with the Hub's columns, the split in each file's name, a data set in a folder.
"""

import argparse
import json
import os
import re
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from common.datasets import DATASETS, DEFAULT_DATASETS, map_row
from common.files import (
    DEFAULT_CACHE_DIR,
    MANIFEST,
    BadInput,
    find_faults,
    free_bytes,
    get_cache_dir,
    hash_file,
    hold_lock,
    make_parser,
    read_json,
    read_json_lines,
    read_manifest,
    run_script,
    size_text,
    write_json,
)
from common.hub import check_reachable, fetch_files, is_whole, list_repository
from common.models import MODELS

ON_THE_HUB = [name for name, data in DATASETS.items() if data.hub_id]
# Safetensors, configuration, tokenizer; no pickle, no code, nothing in folders (onnx/, original/).
MODEL_FILES = (
    "*.safetensors *.safetensors.index.json config.json generation_config.json tokenizer.json tokenizer.model "
    "tokenizer_config.json vocab.json vocab.txt merges.txt added_tokens.json special_tokens_map.json "
    "chat_template.jinja chat_template.json LICENSE*"
).split()
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
PARTIAL = ".partial"
HEADROOM = 100 * 2**20  # bytes that stay free: the data sets grow to about 50 MB when they are built
FIRST_LINE_BYTES = 2**20  # of a JSON-lines file, to see its columns


# ---- the cache


def find_files(path):
    """Files below a directory, as sorted POSIX paths relative to it."""
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def bytes_in(path):
    """Bytes of all files below a directory."""
    return sum((path / file).stat().st_size for file in find_files(path))


def verify_cache(cache_dir, names):
    """Hash items against the manifest, print what is wrong; returns the exit code, 1 if anything is.

    names: items to check, [] for all; one that the manifest does not hold is a fault, as is a file that it does not.
    """
    items = read_manifest(cache_dir)
    if not items and not names:
        raise BadInput(f"{cache_dir} holds nothing to verify; fill it with: python save_model_locally.py")
    faults = [f"{name}: not in the cache" for name in names if name not in items]
    for name in [name for name in names or items if name in items]:
        print(f"checking {name} ({size_text(bytes_in(cache_dir / name))})", flush=True)
        faults += find_faults(cache_dir, name, hashed=True)
        strangers = [file for file in find_files(cache_dir / name) if file not in items[name]["files"]]
        faults += [f"{name}/{file}: not in {MANIFEST}" for file in strangers]
    print("\n".join(faults) if faults else f"all {len(names or items)} items are as they were fetched")
    return 1 if faults else 0


def list_cache(cache_dir):
    """Print what the cache holds, a line for each item and each half-fetched one; returns the exit code 0."""
    print(f"{'item':<16} {'kind':<8} {'size':>9}  {'revision':<40}  from")
    for name, item in read_manifest(cache_dir).items():
        missing = [file for file in item["files"] if not (cache_dir / name / file).is_file()]
        note = f"  INCOMPLETE: {len(missing)} files missing" if missing else ""
        size = size_text(bytes_in(cache_dir / name))
        revision = item["revision"] or "-"
        print(f"{name:<16} {item['kind']:<8} {size:>9}  {revision:<40}  {item['source']}{note}")
    for path in sorted((cache_dir / PARTIAL).glob("*")):
        print(f"{path.name}: incomplete, {size_text(bytes_in(path))} so far; the same command continues it")
    return 0


def check_place(cache_dir, name, hub_id):
    """The manifest's entry of an item, None without one; raises BadInput if its place is taken by something else."""
    item = read_manifest(cache_dir).get(name)
    if item is None and os.path.lexists(cache_dir / name):
        raise BadInput(f"{cache_dir / name} is not in {MANIFEST}, so it was not made by this script; move it away")
    if item is not None and item["hub_id"] != hub_id:
        raise BadInput(f"{cache_dir / name} is {item['hub_id']}; use another --cache_dir for {hub_id}")
    return item


def publish(cache_dir, name, item, built):
    """Move a finished directory to its place in the cache and enter it in the manifest.

    The manifest goes first: a kill in between leaves an item that --verify and every reader report as missing, never
    one that is there and unknown.
    """
    old = cache_dir / PARTIAL / f"{name}-replaced"
    shutil.rmtree(old, ignore_errors=True)
    files = {f: {"size": (built / f).stat().st_size, "sha256": hash_file(built / f)} for f in find_files(built)}
    write_json(cache_dir / MANIFEST, {"items": {**read_manifest(cache_dir), name: {**item, "files": files}}})
    if (cache_dir / name).exists():
        os.rename(cache_dir / name, old)
    os.rename(built, cache_dir / name)
    shutil.rmtree(old, ignore_errors=True)


# ---- models


def choose_model_files(hub_id, siblings):
    """The siblings to fetch of a model repository; raises BadInput if it has no safetensors."""
    top = [s for s in siblings if "/" not in s.rfilename]
    chosen = [s for s in top if any(fnmatch(s.rfilename, pattern) for pattern in MODEL_FILES)]
    if not any(s.rfilename.endswith(".safetensors") for s in chosen):
        pickles = ", ".join(s.rfilename for s in siblings if s.rfilename.endswith(PICKLES))
        has = f"only {pickles}, which can run code when loaded" if pickles else "no weights at all"
        raise BadInput(f"{hub_id} has no safetensors weights: {has}; choose a revision or a model that has them")
    return chosen


def check_model(job):
    """Raise BadInput unless config.json is a causal language model's and the Hub has all that a weight index names."""
    hub_id = job.item["hub_id"]
    names = {path.name for path in job.files}
    repair = f"{hub_id} does not hold there what transformers writes; choose another revision or model"
    architectures = (read_json(job.work / "config.json", repair) or {}).get("architectures")
    if "ForCausalLM" not in str(architectures):
        raise BadInput(f"{hub_id} is no causal language model: in its config.json, architectures is {architectures}")
    indices = [read_json(path, repair) for path in job.work.glob("*.safetensors.index.json")]
    if missing := sorted(set(re.findall(r'"([^"]+\.safetensors)"', json.dumps(indices))) - names):
        raise BadInput(f"{hub_id}: its weight index names files that the Hub does not have: {', '.join(missing)}")


def fetch_model(cache_dir, job):
    """Fetch a planned model and put it into the cache."""
    fetch_files(job.item, {path: s for path, s in job.files.items() if path.suffix != ".safetensors"})
    check_model(job)  # before gigabytes are fetched
    fetch_files(job.item, job.files)
    publish(cache_dir, job.name, job.item, job.work)


# ---- data sets


def split_of(file):
    """The split that a file's name speaks of ("train", "test", "validation"), else None."""
    found = re.findall(r"(?:^|[^a-z])(train|test|validation)(?![a-z])", Path(file).name.lower())
    return found[-1] if found else None


def group_by_split(files, splits, default=None):
    """{split: [file]} for each of `splits`; a file whose name speaks of no split is one of `default`."""
    return {split: [file for file in files if (split_of(file) or default) == split] for split in splits}


def choose_dataset_files(name, siblings):
    """The siblings that hold the wanted splits: Parquet, else JSON lines; raises BadInput if there are none."""
    data = DATASETS[name]
    in_folder = [s for s in siblings if data.folder and s.rfilename.startswith(f"{data.folder}/")] or siblings
    for ending in (".parquet", ".jsonl"):
        chosen = [s for s in in_folder if s.rfilename.endswith(ending) and split_of(s.rfilename) in data.splits]
        if {split_of(s.rfilename) for s in chosen} == set(data.splits):
            return sorted(chosen, key=lambda s: s.rfilename)
    scripts = ", ".join(s.rfilename for s in siblings if s.rfilename.endswith(".py"))
    has = f"only a script ({scripts}), which is not run," if scripts else "no Parquet or JSON-lines file"
    raise BadInput(f"{data.hub_id} has {has} for {' and '.join(data.splits)}; if you have the files, use --from_files")


def read_rows(path):
    """Rows (dicts, the Hub's schema) of a Parquet or JSON-lines file; raises BadInput if it is neither."""
    if path.suffix != ".parquet":
        return read_json_lines(path)
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise BadInput(f"cannot read {path}: {error}") from None


def check_rows(name, splits):
    """Raise BadInput unless {split: rows} has the published columns and counts and each gold answer can be parsed."""
    columns = DATASETS[name].columns.split()
    for split, count in DATASETS[name].splits.items():
        rows = splits[split]
        source = DATASETS[name].hub_id
        if len(rows) != count:
            raise BadInput(f"{name} {split} has {len(rows)} rows, not the {count} of {source}: cut or another data set")
        for index, row in enumerate(rows):
            if set(row) != set(columns):
                has = f"{', '.join(sorted(row))}, not {', '.join(sorted(columns))}"
                raise BadInput(f"{name} {split}, row {index}: its schema has changed, the columns are {has}")
            map_row(name, split, index, row)


def build_dataset(cache_dir, name, files, item):
    """Write {split: [files]} as a DatasetDict and put it into the cache; BadInput for other than the published rows."""
    splits = {split: [row for path in paths for row in read_rows(path)] for split, paths in files.items()}
    check_rows(name, splits)
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    built = cache_dir / PARTIAL / f"{name}-built"
    shutil.rmtree(built, ignore_errors=True)
    DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()}).save_to_disk(str(built))
    publish(cache_dir, name, item, built)


def fetch_dataset(cache_dir, job):
    """Fetch a planned data set, build it and put it into the cache."""
    fetch_files(job.item, job.files)
    build_dataset(cache_dir, job.name, group_by_split(job.files, DATASETS[job.name].splits), job.item)
    shutil.rmtree(job.work)


# ---- from files at hand


def columns_of(path):
    """Columns of a Parquet file, or of the first row of a JSON-lines file; empty if it is something else."""
    from pyarrow import ArrowException, parquet

    try:
        if path.suffix == ".parquet":
            return frozenset(parquet.read_schema(path).names)
        with open(path, encoding="utf-8") as file:
            return frozenset(json.loads(file.readline(FIRST_LINE_BYTES)).keys())
    except (ArrowException, OSError, ValueError, AttributeError, RecursionError):
        return frozenset()


def find_dataset_files(directory, names):
    """{data set: {split: [files]}} below a directory; the files of a data set are in one folder and have its columns.

    Of several data sets with the same columns a folder holds the one with the most splits (MATH-500 has no train), and
    of those with the same splits, too, the one that `names` asks for.
    """
    if not directory.is_dir():
        raise BadInput(f"--from_files: {directory} is not a directory")
    groups = {}
    found = {}
    for path in sorted(p for p in directory.rglob("*") if p.suffix in (".jsonl", ".parquet")):
        if "socratic" not in str(path.relative_to(directory)).lower():  # GSM8K's, with other answers
            groups.setdefault((path.parent, columns_of(path)), []).append(path)
    by_rank = sorted(ON_THE_HUB, key=lambda name: (len(DATASETS[name].splits), name in names), reverse=True)
    for (_, columns), paths in groups.items():
        for name in by_rank:
            splits = DATASETS[name].splits
            files = group_by_split(paths, splits, default=next(iter(splits)))
            if columns == set(DATASETS[name].columns.split()) and all(files.values()):
                found.setdefault(name, files)
                break
    return found


def build_from_files(cache_dir, directory, names):
    """Build data sets from files at hand; names: which, [] for all that are found. BadInput if one is not found."""
    found = find_dataset_files(directory, names)
    if missing := [name for name in names if name not in found]:
        data = DATASETS[missing[0]]
        splits = ", ".join(data.splits)
        columns = ", ".join(data.columns.split())
        wanted = f"{splits} as .jsonl or .parquet, with the columns {columns}"
        raise BadInput(f"{directory} has no folder with each split of {missing[0]}: {wanted}")
    if not found:
        raise BadInput(f"{directory} has no file of {', '.join(ON_THE_HUB)}")
    for name in names or found:
        print(f"{name}: from {', '.join(str(path) for paths in found[name].values() for path in paths)}", flush=True)
        hub_id = DATASETS[name].hub_id
        source = f"files in {directory.resolve()}"
        check_place(cache_dir, name, hub_id)
        item = {"kind": "dataset", "hub_id": hub_id, "revision": None, "source": source}
        build_dataset(cache_dir, name, found[name], item)


# ---- what to do


class Job(NamedTuple):
    """What fetching one item takes."""

    name: str
    item: dict  # for the manifest
    work: Path  # where its files are gathered: flat, so that no name from the Hub leaves the directory
    files: dict  # {path in work: the Hub's sibling}


def choose_items(models, datasets, revisions):
    """{name: (kind, hub_id, revision or None)} for the command's arguments; raises BadInput for an unknown name."""
    if strangers := sorted(revisions.keys() - models):
        raise BadInput(f"--revision {strangers[0]}: not among the models to fetch ({', '.join(models)})")
    items = {}
    for model in models:
        name = model.rpartition("/")[2]
        hub_id = MODELS.get(model, model)
        if "/" not in hub_id or name in DATASETS:
            raise BadInput(f"unknown model {model}: choose from {', '.join(MODELS)}, or ORGANISATION/NAME on the Hub")
        item = ("model", hub_id, revisions.get(model))
        if items.setdefault(name, item) != item:
            raise BadInput(f"--models names two {name}, a cache holds one; use another --cache_dir for {model}")
    return items | {name: ("dataset", DATASETS[name].hub_id, DATASETS[name].revision) for name in datasets}


def plan_items(cache_dir, items):
    """[Job] for what the cache lacks of `items` (see choose_items), or holds damaged; no item is touched yet."""
    jobs = []
    for name, (kind, hub_id, revision) in items.items():
        known = check_place(cache_dir, name, hub_id)
        held, faults = (known["revision"], find_faults(cache_dir, name, hashed=True)) if known else (None, [])
        for fault in faults:
            print(fault, file=sys.stderr)
        if known and not faults and (kind == "dataset" or revision in (None, held)):
            for left in ("replaced", str(held)[:12]):  # by a run that was killed right after it published
                shutil.rmtree(cache_dir / PARTIAL / f"{name}-{left}", ignore_errors=True)
            continue
        if not jobs:
            check_reachable()
        commit, siblings = list_repository(hub_id, revision or held, kind)  # a repair brings back what was there
        if faults or commit != held:  # a branch may be at the commit that is here
            chosen = choose_model_files(hub_id, siblings) if kind == "model" else choose_dataset_files(name, siblings)
            item = {"kind": kind, "hub_id": hub_id, "revision": commit, "source": f"{hub_id} on the Hub"}
            work = cache_dir / PARTIAL / f"{name}-{commit[:12]}"
            jobs.append(Job(name, item, work, {work / s.rfilename.replace("/", "_"): s for s in chosen}))
    return jobs


def reuse_files(job, cached):
    """Link into a job's directory what is whole in the item that the cache holds damaged, or in another revision."""
    job.work.mkdir(parents=True, exist_ok=True)
    for stranger in set(job.work.iterdir()) - set(job.files):  # it would become a part of the item
        stranger.unlink()
    for path, sibling in job.files.items():
        if is_whole(cached / sibling.rfilename, sibling):
            path.unlink(missing_ok=True)
            try:
                os.link(cached / sibling.rfilename, path)
            except OSError:  # a file system without hard links
                shutil.copyfile(cached / sibling.rfilename, path)


def fetch_items(cache_dir, items):
    """Fetch what the cache lacks of `items` (see choose_items); nothing is begun before it is known that all fits."""
    if not (jobs := plan_items(cache_dir, items)):
        return
    needed = 0
    for job in jobs:
        reuse_files(job, cache_dir / job.name)
        missing = sum(sibling.size for sibling in job.files.values()) - bytes_in(job.work)
        needed += missing
        print(f"{job.name:<16} {size_text(missing):>9} to fetch, revision {job.item['revision']}")
    free = free_bytes(cache_dir)
    print(f"to fetch: {size_text(needed)}; free in {cache_dir}: {size_text(free)}", flush=True)
    if needed + HEADROOM > free:
        short = f"{cache_dir} is {size_text(needed + HEADROOM - free)} too small"
        raise BadInput(f"{short}; free some, use --cache_dir elsewhere, or name fewer --models")
    for job in jobs:
        (fetch_model if job.item["kind"] == "model" else fetch_dataset)(cache_dir, job)
        print(f"{job.name} is complete", flush=True)


def parse_revision(text):
    """MODEL=REV -> (model, revision)."""
    model, equals, revision = text.partition("=")
    if not (model and equals and revision):
        raise argparse.ArgumentTypeError(f"{text!r} is not MODEL=REVISION")
    return model, revision


def main():
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--models", nargs="+", default=[], metavar="NAME", help=f"{', '.join(MODELS)} or ORGANISATION/NAME")
    add("--datasets", nargs="+", default=[], metavar="NAME", choices=ON_THE_HUB, help=", ".join(ON_THE_HUB))
    add("--cache_dir", help=f"default: $GRPSPO_CACHE, else ./{DEFAULT_CACHE_DIR}")
    add("--revision", nargs="+", action="extend", default=[], type=parse_revision, metavar="MODEL=REV")
    add("--from_files", type=Path, metavar="DIR", help="build the data sets from files below DIR")
    add("--list", action="store_true", help="show what the cache holds")
    add("--verify", action="store_true", help="hash everything; exit code 1 if anything has changed")
    args = parser.parse_args()
    if not (args.models or args.datasets or args.from_files or args.verify):
        args.models = list(MODELS)
        args.datasets = DEFAULT_DATASETS
    cache_dir = get_cache_dir(args.cache_dir)
    if args.list:
        return list_cache(cache_dir)
    if args.verify:
        return verify_cache(cache_dir, [model.rpartition("/")[2] for model in args.models] + args.datasets)
    items = choose_items(args.models, [] if args.from_files else args.datasets, dict(args.revision))
    try:
        with hold_lock(cache_dir, f"another run of this script is writing to {cache_dir}; wait until it has ended"):
            if args.from_files:
                build_from_files(cache_dir, args.from_files, args.datasets)
            fetch_items(cache_dir, items)
    except OSError as error:
        raise BadInput(f"cannot write to {cache_dir}: {error.strerror or error} {error.filename or ''}") from None
    return list_cache(cache_dir)


if __name__ == "__main__":
    sys.exit(run_script(main))
