"""Fetch once, where there is internet, all that the experiment needs; compute nodes then work from the cache alone.

Models and data sets of Probability Smoothing Policy Optimisation (arXiv 2509.21282): the three Qwen2.5 base models
(safetensors and tokenizer files only), GSM8K, MATH-500, ASDiv and SVAMP at pinned revisions. Each file is checked
against the Hub's own hash, an interrupted run continues inside the file where it stopped, and an item gets its place in
the cache only when it is whole. With neither --models nor --datasets everything is fetched, else only what is named.

    python save_model_locally.py                                     # the whole default set
    python save_model_locally.py --models Qwen/Qwen2-Math-1.5B --datasets gsm8k MATH-500
    python save_model_locally.py --models Qwen2.5-0.5B --revision Qwen2.5-0.5B=COMMIT   # COMMIT: see --list
    python save_model_locally.py --from_files downloads              # data sets from files that are already here
    python save_model_locally.py --list
    python save_model_locally.py --verify                            # exit code 1 if any byte is not as it was fetched

The cache: CACHE_DIR/ITEM/ and manifest.json (Hub id, revision, files, sizes, sha256), half-fetched items in .partial/.
"""

import argparse
import contextlib
import fcntl
import fnmatch
import hashlib
import json
import os
import queue
import random
import re
import shutil
import sys
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

from maths_common import (
    DEFAULT_CACHE_DIR,
    MANIFEST,
    BadInput,
    get_cache_dir,
    make_parser,
    read_json_lines,
    read_manifest,
    run_script,
)
from maths_datasets import map_row
from maths_models import MODELS

# Hub id, revision, configuration (a folder of the repository) and the rows of each split at that revision.
DATASETS = {
    "gsm8k": ("openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866", "main", {"train": 7473, "test": 1319}),
    "MATH-500": ("HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "", {"test": 500}),
    "asdiv": ("EleutherAI/asdiv", "8f95807222d87b4c688c3c22a6ba2801e1fa03e2", "asdiv", {"validation": 2305}),
    "SVAMP": ("ChilleD/SVAMP", "5e0bf1e5e7c0e9c4bc39180d224f41f3f801b7ef", "", {"train": 700, "test": 300}),
}
HUB_COLUMNS = {
    "gsm8k": {"question", "answer"},
    "MATH-500": {"problem", "solution", "answer", "subject", "level", "unique_id"},
    "asdiv": {"body", "question", "solution_type", "answer", "formula"},
    "SVAMP": {"ID", "Body", "Question", "Equation", "Answer", "Type", "question_concat"},
}
ASDIV_TAGS = {
    "body": "Body",
    "question": "Question",
    "solution_type": "Solution-Type",
    "answer": "Answer",
    "formula": "Formula",
}
MODEL_FILES = (  # safetensors, configuration, tokenizer; no pickle, no code, nothing in folders (onnx/, original/)
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE*",
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
PARTIAL = ".partial"
LOCK = ".lock"
HEADROOM = 100 * 2**20  # bytes that stay free: the data sets grow to about 30 MB when they are built
REACH_SECONDS = 10  # no answer by then means no network; the promise is 15 s including start-up
REQUEST_SECONDS = 10
RETRY_STATUS = (408, 429, 500, 502, 503, 504)
RETRY_WAITS = (1, 2, 4, 8)  # seconds, unless the Hub's Retry-After says more
BLOCK = 2**20  # bytes hashed at a time


# ---- the manifest and what it promises


def write_manifest(cache_dir, items):
    """Replace manifest.json by `items` (see read_manifest) in one step."""
    temporary = cache_dir / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps({"items": items}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, cache_dir / MANIFEST)


def hash_file(path):
    """(sha256, git blob id) of a file, both hex: the Hub states the first for LFS files, the second for the others.

    Git's blob id: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects, "Object Storage".
    """
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            sha256.update(block)
            blob.update(block)
    return sha256.hexdigest(), blob.hexdigest()


def find_files(path):
    """Files below a directory, as sorted POSIX paths relative to it."""
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def describe_files(path):
    """The manifest's {file: {"size", "sha256"}} of a finished directory."""
    return {
        file: {"size": (path / file).stat().st_size, "sha256": hash_file(path / file)[0]} for file in find_files(path)
    }


def find_faults(cache_dir, name, item):
    """Lines that name each missing or changed file of a cached item; [] if every byte is as it was fetched."""
    faults = []
    for file, stated in item["files"].items():
        path = cache_dir / name / file
        if not path.is_file():
            faults.append(f"{name}/{file}: missing")
        elif path.stat().st_size != stated["size"] or hash_file(path)[0] != stated["sha256"]:
            faults.append(f"{name}/{file}: changed since it was fetched")
    return faults


def find_strangers(cache_dir, name, item):
    """Lines naming the files of an item's directory that its manifest does not know."""
    path = cache_dir / name
    return [f"{name}/{file}: not in {MANIFEST}" for file in find_files(path) if file not in item["files"]]


def verify_cache(cache_dir, names):
    """Hash items against the manifest, print what is wrong; returns the exit code, 1 if anything is.

    names: items to check, [] for all; one that the manifest does not hold is a fault.
    """
    items = read_manifest(cache_dir)
    if not items and not names:
        raise BadInput(f"{cache_dir} holds nothing to verify; fill it with: python save_model_locally.py")
    faults = []
    for name in names or items:
        if name in items:
            print(f"checking {name} ({size_text(total_size(items[name]))})", flush=True)
            faults += find_faults(cache_dir, name, items[name]) + find_strangers(cache_dir, name, items[name])
        else:
            faults.append(f"{name}: not in the cache")
    print("\n".join(faults) if faults else f"all {len(names or items)} items are as they were fetched")
    return 1 if faults else 0


def list_cache(cache_dir):
    """Print what the cache holds, a line for each item and each half-fetched one; returns the exit code 0."""
    items = read_manifest(cache_dir)
    print(f"{'item':<16} {'kind':<8} {'size':>9}  {'revision':<40}  from")
    for name, item in items.items():
        missing = [file for file in item["files"] if not (cache_dir / name / file).is_file()]
        note = f"  INCOMPLETE: {len(missing)} files missing" if missing else ""
        size, revision = size_text(total_size(item)), item["revision"] or "-"
        print(f"{name:<16} {item['kind']:<8} {size:>9}  {revision:<40}  {item['source']}{note}")
    for path in sorted((cache_dir / PARTIAL).glob("*")):
        size = sum((path / file).stat().st_size for file in find_files(path))
        print(f"{path.name}: incomplete, {size_text(size)} so far; the same command continues it")
    return 0


def total_size(item):
    """Bytes of an item by its manifest."""
    return sum(file["size"] for file in item["files"].values())


def size_text(size):
    """Bytes for people: 1.5 GB, 12.0 MB, 0.1 MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@contextlib.contextmanager
def lock_cache(cache_dir):
    """Hold the cache for writing; raises BadInput if another run holds it or if it cannot be written to."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with open(cache_dir / LOCK, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"another run of this script is writing to {cache_dir}; wait until it has ended") from None
        yield


def publish(cache_dir, name, item, built):
    """Move a finished directory to its place in the cache and enter it in the manifest.

    The manifest goes first: a kill in between leaves an item that --verify and every reader report as missing, never
    one that is there and unknown.
    """
    old = cache_dir / PARTIAL / f"{name}-replaced"
    shutil.rmtree(old, ignore_errors=True)
    write_manifest(cache_dir, {**read_manifest(cache_dir), name: {**item, "files": describe_files(built)}})
    if (cache_dir / name).exists():
        os.rename(cache_dir / name, old)
    os.rename(built, cache_dir / name)
    shutil.rmtree(old, ignore_errors=True)


# ---- the Hub


def check_reachable():
    """Raise BadInput within REACH_SECONDS unless the Hub answers at all."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise BadInput("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; unset it where there is internet")
    answers = queue.SimpleQueue()
    # A thread of its own, because name lookup and hosts with several addresses outlast a socket timeout.
    threading.Thread(target=lambda: answers.put(ask_hub(constants.ENDPOINT)), daemon=True).start()
    try:
        trouble = answers.get(timeout=REACH_SECONDS)
    except queue.Empty:
        trouble = f"no answer in {REACH_SECONDS} s"
    if trouble:
        way_out = "run this on a machine with internet (a login node), check proxy settings, or use --from_files"
        raise BadInput(f"no network: {constants.ENDPOINT} cannot be reached ({trouble}); {way_out}")


def ask_hub(endpoint):
    """What keeps an address from answering, "" if it answers (with whatever status)."""
    import httpx2  # the HTTP client of huggingface_hub
    from huggingface_hub.utils import get_session

    try:
        get_session().head(endpoint, timeout=REQUEST_SECONDS)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return str(error) or type(error).__name__
    return ""


@contextlib.contextmanager
def plain_errors(subject):
    """Turn what the Hub's client and the disk raise into a BadInput about `subject` (an item's Hub id)."""
    import httpx2
    from huggingface_hub import errors

    again = "run the same command again: it continues where this one stopped"
    try:
        yield
    except errors.GatedRepoError:
        way_in = "accept its terms on the Hub and log in with `hf auth login`"
        raise BadInput(f"{subject} is gated: {way_in}; {again}") from None
    except errors.RevisionNotFoundError:
        raise BadInput(f"{subject} has no such revision on the Hub; --revision takes a commit, branch or tag") from None
    except errors.RepositoryNotFoundError:
        raise BadInput(f"{subject} is not on the Hub, or it is private and needs `hf auth login`") from None
    except errors.HfHubHTTPError as error:
        raise BadInput(f"{subject}: {explain_status(error.response.status_code)}; {again}") from None
    except errors.HFValidationError:
        raise BadInput(f"{subject} is not a valid Hub id (ORGANISATION/NAME)") from None
    except httpx2.HTTPError as error:
        raise BadInput(f"{subject}: connection lost ({str(error) or type(error).__name__}); {again}") from None


def explain_status(status):
    """What an HTTP status of the Hub means to somebody who fetches files."""
    if status in (401, 403):
        return f"access refused (HTTP {status}): accept its terms on the Hub and log in with `hf auth login`"
    if status == 404:
        return "a file is not there (HTTP 404)"
    if status == 429:
        return "too many requests (HTTP 429): wait some minutes"
    return f"the Hub failed (HTTP {status})"


def retry(function, *args, **kwargs):
    """Call a function of the Hub's client, again after a cut connection or a status that may pass; waits grow."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    for wait in RETRY_WAITS:
        try:
            return function(*args, **kwargs)
        except httpx2.ReadError as error:
            print(f"connection cut ({error}); trying again in {wait} s", file=sys.stderr)
        except HfHubHTTPError as error:
            if error.response.status_code not in RETRY_STATUS:
                raise
            asked = error.response.headers.get("Retry-After", "")
            wait = max(wait, int(asked) if asked.isdecimal() else 0)
            print(f"HTTP {error.response.status_code}; trying again in {wait} s", file=sys.stderr)
        time.sleep(wait)
    return function(*args, **kwargs)


def list_repository(hub_id, revision, repo_type):
    """(commit, [sibling]) of a repository at a revision; a sibling has rfilename, size, blob_id and lfs (or None)."""
    from huggingface_hub import HfApi

    info = retry(
        HfApi().repo_info,
        hub_id,
        revision=revision,
        repo_type=repo_type,
        files_metadata=True,
        timeout=REQUEST_SECONDS,
    )
    return info.sha, info.siblings or []


def is_whole(path, sibling):
    """True if a file is there and has the size and the hash that the Hub states."""
    if not path.is_file() or path.stat().st_size != sibling.size:
        return False
    sha256, blob_id = hash_file(path)
    return sha256 == sibling.lfs.sha256 if sibling.lfs else blob_id == sibling.blob_id


def part_of(path, sibling):
    """Where a file grows while it is fetched; named after its content, so that two revisions never mix."""
    return path.with_name(f"{path.name}.{sibling.blob_id[:12]}.part")


def fetch_file(url, path, sibling):
    """Fetch one file to `path`, continuing a part that is there, and check it against the Hub's hash.

    Raises BadInput if the content is not what the Hub states; then nothing of it is kept.
    """
    part = part_of(path, sibling)
    retry(fetch_part, url, part, sibling.size, path.name)
    if not is_whole(part, sibling):
        part.unlink()
        raise BadInput(f"{url} has not the hash that the Hub states; it was thrown away: run the command again")
    os.replace(part, path)


def fetch_part(url, part, size, label):
    """Append to `part` what it lacks of the `size` bytes at url; raises BadInput if the Hub sends fewer or more.

    Why not snapshot_download: huggingface_hub 2.4 deletes a half-fetched file when the process ends, so a dropped
    session would start a 4 GB file again. http_get is what it uses underneath.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    done = part.stat().st_size if part.is_file() else 0
    if done > size:
        part.unlink()
        done = 0
    try:
        with open(part, "ab") as file:
            http_get(
                url, file, resume_size=done, headers=build_hf_headers(), expected_size=size, displayed_filename=label
            )
    except OSError as error:
        if error.errno is not None or hasattr(error, "response"):
            raise
        raise BadInput(f"{url}: {part.stat().st_size} bytes came, not {size}; run the command again") from None


# ---- models


def choose_model_files(hub_id, siblings):
    """The siblings to fetch of a model repository, weights last; raises BadInput if it has no safetensors."""
    chosen = [s for s in siblings if any(fnmatch.fnmatchcase(s.rfilename, p) for p in MODEL_FILES)]
    chosen = [s for s in chosen if "/" not in s.rfilename]
    names = [s.rfilename for s in siblings]
    if not any(map(is_weights, chosen)):
        pickles = [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in PICKLES)]
        has = f"only {', '.join(pickles)}, which can run code when loaded" if pickles else "no weights at all"
        raise BadInput(f"{hub_id} has no safetensors weights: {has}; choose a revision or a model that has them")
    if "config.json" not in names:
        raise BadInput(f"{hub_id} has no config.json: not a model that transformers can load")
    return sorted(chosen, key=lambda s: (is_weights(s), s.rfilename))


def is_weights(sibling):
    """True for a file of weights."""
    return sibling.rfilename.endswith(".safetensors")


def check_model(hub_id, path, names):
    """Raise BadInput unless config.json is a causal language model's and `names` has all that a weight index names."""
    try:
        architectures = json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") or []
        indices = [json.loads(file.read_text(encoding="utf-8")) for file in path.glob("*.safetensors.index.json")]
        shards = {shard for index in indices for shard in index["weight_map"].values()}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise BadInput(f"{hub_id}: its config.json or weight index is not what transformers writes") from None
    if not any(str(architecture).endswith("ForCausalLM") for architecture in architectures):
        raise BadInput(f"{hub_id} is no causal language model: its architecture is {architectures or 'not stated'}")
    if missing := sorted(shards - set(names)):
        raise BadInput(f"{hub_id}: its weight index names files that the Hub does not have: {', '.join(missing)}")


def fetch_model(cache_dir, job):
    """Fetch a planned model (see plan_item) and put it into the cache."""
    hub_id, work = job["item"]["hub_id"], job["work"]
    names = [sibling.rfilename for sibling in job["files"]]
    for weights in (False, True):  # the configuration is looked at before gigabytes are fetched
        fetch_files(job, [sibling for sibling in job["files"] if is_weights(sibling) == weights])
        check_model(hub_id, work, names)
    for part in work.glob("*.part"):
        part.unlink()
    publish(cache_dir, job["name"], job["item"], work)


# ---- data sets


def split_of(file):
    """The split that a file's name speaks of ("train", "test", "validation"), else None."""
    found = re.findall(r"(?:^|[^a-z])(train|test|validation)(?![a-z])", Path(file).name.lower())
    return found[-1] if found else None


def choose_dataset_files(name, siblings):
    """The siblings that hold the wanted splits: Parquet, else JSON lines; raises BadInput if there are none."""
    hub_id, _, config, rows = DATASETS[name]
    in_config = [s for s in siblings if s.rfilename.startswith(f"{config}/")] if config else []
    for ending in (".parquet", ".jsonl"):
        chosen = [s for s in in_config or siblings if s.rfilename.endswith(ending) and split_of(s.rfilename) in rows]
        if {split_of(s.rfilename) for s in chosen} == set(rows):
            return sorted(chosen, key=lambda s: s.rfilename)
    scripts = [s.rfilename for s in siblings if s.rfilename.endswith(".py")]
    has = f"only a script ({', '.join(scripts)}), which is not run," if scripts else "no Parquet or JSON-lines file"
    raise BadInput(f"{hub_id} has {has} for {' and '.join(rows)}; if you have the files, use --from_files")


def read_rows(path):
    """Rows (dicts, the Hub's schema) of a Parquet or JSON-lines file, ASDiv.xml or SVAMP.json; else BadInput."""
    if path.suffix == ".parquet":
        return read_parquet(path)
    if path.suffix == ".xml":
        return read_asdiv_xml(path)
    if path.suffix == ".json":
        return read_svamp_json(path)
    return read_json_lines(path)


def read_parquet(path):
    """Rows of a Parquet file; raises BadInput if it is none."""
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"cannot read {path}: {error}") from None


def read_asdiv_xml(path):
    """Rows of ASDiv.xml (github.com/chaochun/nlu-asdiv-dataset) in the Hub's schema: the raw text of the elements."""
    try:
        problems = ElementTree.parse(path).getroot().iter("Problem")
        return [{column: problem.findtext(tag) for column, tag in ASDIV_TAGS.items()} for problem in problems]
    except ElementTree.ParseError as error:
        raise BadInput(f"{path} is not XML: {error}") from None


def read_svamp_json(path):
    """Rows of the authors' SVAMP.json (github.com/arkilpatel/SVAMP) in the Hub's schema and order.

    The Hub's split is random.seed(42), random.shuffle, first 700 to train on; its answers are text, "145" for 145.0.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        for row in rows:
            answer = row["Answer"]
            row["Answer"] = str(int(answer)) if answer == int(answer) else str(answer)
            row["question_concat"] = f"{row['Body']} {row['Question']}"
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise BadInput(f"{path} is not SVAMP.json as its authors publish it") from None
    random.Random(42).shuffle(rows)
    return rows


def check_rows(name, splits):
    """Raise BadInput unless {split: rows} has the published columns and counts and each gold answer can be parsed."""
    hub_id, _, _, expected = DATASETS[name]
    for split, count in expected.items():
        rows = splits[split]
        if len(rows) != count:
            raise BadInput(f"{name} {split} has {len(rows)} rows, not the {count} of {hub_id}: cut or another data set")
        for index, row in enumerate(rows):
            if set(row) != HUB_COLUMNS[name]:
                columns = f"{', '.join(sorted(row))}, not {', '.join(sorted(HUB_COLUMNS[name]))}"
                raise BadInput(f"{name} {split}, row {index}: its schema has changed, the columns are {columns}")
            map_row(name, split, index, row)


def build_dataset(cache_dir, name, splits, item):
    """Write {split: rows} as a DatasetDict and put it into the cache; BadInput for other than the published rows."""
    check_rows(name, splits)
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    built = cache_dir / PARTIAL / f"{name}-built"
    shutil.rmtree(built, ignore_errors=True)
    DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()}).save_to_disk(str(built))
    publish(cache_dir, name, item, built)


def fetch_dataset(cache_dir, job):
    """Fetch a planned data set (see plan_item), build it and put it into the cache."""
    fetch_files(job, job["files"])
    splits = {split: [] for split in DATASETS[job["name"]][3]}
    for sibling in job["files"]:
        splits[split_of(sibling.rfilename)] += read_rows(local_path(job, sibling))
    build_dataset(cache_dir, job["name"], splits, job["item"])
    shutil.rmtree(job["work"])


# ---- from files at hand


def recognise(path):
    """The data set that a file holds, by its columns (or its authors' format), else None."""
    if path.suffix == ".xml":
        return "asdiv" if path.stem.lower() == "asdiv" else None
    if path.suffix == ".json":
        return "SVAMP" if path.stem.lower() == "svamp" else None
    if path.suffix == ".parquet":
        from pyarrow import ArrowException, parquet

        try:
            columns = set(parquet.read_schema(path).names)
        except (ArrowException, OSError):
            return None
    else:
        columns = first_columns(path)
    return next((name for name, wanted in HUB_COLUMNS.items() if columns == wanted), None)


def first_columns(path):
    """Columns of the first row of a JSON-lines file; an empty set if it is something else."""
    try:
        with open(path, encoding="utf-8") as file:
            row = json.loads(file.readline(BLOCK))
    except (OSError, ValueError, RecursionError):
        return set()
    return set(row) if isinstance(row, dict) else set()


def find_dataset_files(directory):
    """{data set: {split: [files]}} below a directory; the Hub's files win over ASDiv.xml and SVAMP.json."""
    if not directory.is_dir():
        raise BadInput(f"--from_files: {directory} is not a directory")
    found, authors = {}, {}
    for path in sorted(p for p in directory.rglob("*") if p.suffix in (".jsonl", ".parquet", ".xml", ".json")):
        if "socratic" in str(path.relative_to(directory)).lower() or not (name := recognise(path)):
            continue  # GSM8K's socratic variant has the same columns and other answers
        splits = DATASETS[name][3]
        if path.suffix in (".xml", ".json"):
            authors[name] = {split: [path] for split in splits}
        elif (split := split_of(path) or next(iter(splits))) in splits:
            found.setdefault(name, {}).setdefault(split, []).append(path)
    return {**authors, **{name: files for name, files in found.items() if set(files) == set(DATASETS[name][3])}}


def read_dataset_files(name, files):
    """{split: rows} of a data set from {split: [files]}; SVAMP.json holds both splits, the training rows first."""
    splits = {}
    for split, paths in files.items():
        rows = [row for path in paths for row in read_rows(path)]
        if paths[0].suffix == ".json":
            train_rows = DATASETS[name][3]["train"]
            rows = rows[:train_rows] if split == "train" else rows[train_rows:]
        splits[split] = rows
    return splits


def build_from_files(cache_dir, directory, names):
    """Build data sets from files at hand; names: which, [] for all that are found. BadInput if one is not found."""
    found = find_dataset_files(directory)
    if missing := [name for name in names or [] if name not in found]:
        raise BadInput(f"{directory} lacks files of {', '.join(missing)} (each split: .jsonl, .parquet, its authors')")
    if not found:
        raise BadInput(f"{directory} has no file of {', '.join(DATASETS)}")
    for name in names or found:
        print(f"{name}: from {', '.join(str(path) for paths in found[name].values() for path in paths)}", flush=True)
        source = f"files in {directory.resolve()}"
        check_place(cache_dir, name, DATASETS[name][0])
        item = {"kind": "dataset", "hub_id": DATASETS[name][0], "revision": None, "source": source}
        build_dataset(cache_dir, name, read_dataset_files(name, found[name]), item)


# ---- what to do


def choose_items(models, datasets, revisions):
    """[(name, kind, hub_id, revision or None)] for the command's arguments; raises BadInput for an unknown name."""
    chosen = []
    for model in models:
        name, hub_id = model.rpartition("/")[2], MODELS.get(model, model)
        if "/" not in hub_id or name in [*DATASETS, "demo"]:
            raise BadInput(f"unknown model {model}: choose from {', '.join(MODELS)}, or ORGANISATION/NAME on the Hub")
        chosen.append((name, "model", hub_id, revisions.pop(model, None)))
    if revisions:
        raise BadInput(f"--revision {next(iter(revisions))}: not among the models to fetch ({', '.join(models)})")
    return chosen + [(name, "dataset", *DATASETS[name][:2]) for name in datasets]


def check_place(cache_dir, name, hub_id):
    """Raise BadInput if an item's place in the cache is taken by something else, which must not be overwritten."""
    item = read_manifest(cache_dir).get(name)
    if item is None and os.path.lexists(cache_dir / name):
        raise BadInput(f"{cache_dir / name} is not in {MANIFEST}, so it was not made by this script; move it away")
    if item is not None and item["hub_id"] != hub_id:
        raise BadInput(f"{cache_dir / name} is {item['hub_id']}; use another --cache_dir for {hub_id}")


def needs_fetching(cache_dir, name, hub_id, revision):
    """False if an item is cached, at the wanted revision (any, for None), and every byte of it is as it was fetched."""
    check_place(cache_dir, name, hub_id)
    item = read_manifest(cache_dir).get(name)
    if item is None or (item["kind"] == "model" and revision not in (None, item["revision"])):
        return True
    faults = find_faults(cache_dir, name, item)
    for fault in faults:
        print(f"{fault}; will be fetched again", file=sys.stderr)
    return bool(faults)


def plan_item(cache_dir, name, kind, hub_id, revision):
    """What fetching an item takes: {"name", "item", "files": [sibling], "work": directory, "missing": bytes}.

    A model that is in the cache but faulty becomes the start of its own repair.
    """
    commit, siblings = list_repository(hub_id, revision, kind)
    files = choose_model_files(hub_id, siblings) if kind == "model" else choose_dataset_files(name, siblings)
    work = cache_dir / PARTIAL / f"{name}-{commit[:12]}"
    known = read_manifest(cache_dir).get(name, {})
    if kind == "model" and known.get("revision") == commit and (cache_dir / name).is_dir() and not work.exists():
        work.parent.mkdir(exist_ok=True)
        os.rename(cache_dir / name, work)
    item = {"kind": kind, "hub_id": hub_id, "revision": commit, "source": f"{hub_id} on the Hub"}
    job = {"name": name, "item": item, "files": files, "work": work}
    return {**job, "missing": sum(sibling.size - bytes_there(job, sibling) for sibling in files)}


def local_path(job, sibling):
    """Where a job keeps a file while it works: flat, so that no name from the Hub leaves the directory."""
    return job["work"] / sibling.rfilename.replace("/", "_")


def bytes_there(job, sibling):
    """Bytes of a file that an earlier run has left."""
    path = local_path(job, sibling)
    there = [p.stat().st_size for p in (path, part_of(path, sibling)) if p.is_file()]
    return min(max(there, default=0), sibling.size)


def fetch_files(job, files):
    """Fetch a job's files one after the other; those that are whole stay as they are."""
    from huggingface_hub import hf_hub_url

    item = job["item"]
    job["work"].mkdir(parents=True, exist_ok=True)
    for sibling in files:
        path = local_path(job, sibling)
        if not is_whole(path, sibling):
            url = hf_hub_url(item["hub_id"], sibling.rfilename, repo_type=item["kind"], revision=item["revision"])
            fetch_file(url, path, sibling)


def check_space(cache_dir, needed):
    """Say how much will be fetched and how much fits; raises BadInput if it does not fit."""
    free = shutil.disk_usage(cache_dir).free
    print(f"to fetch: {size_text(needed)}; free in {cache_dir}: {size_text(free)}", flush=True)
    if needed + HEADROOM > free:
        short = size_text(needed + HEADROOM - free)
        raise BadInput(
            f"{cache_dir} is {short} too small; free some, use --cache_dir elsewhere, or name fewer --models"
        )


def fetch_items(cache_dir, items):
    """Fetch what the cache lacks of `items` (see choose_items); nothing is fetched before it is known that all fits."""
    missing = [item for item in items if needs_fetching(cache_dir, item[0], item[2], item[3])]
    if not missing:
        return
    check_reachable()
    jobs = []
    for item in missing:
        with plain_errors(item[2]):
            jobs.append(plan_item(cache_dir, *item))
        print(f"{item[0]:<16} {size_text(jobs[-1]['missing']):>9} to fetch, revision {jobs[-1]['item']['revision']}")
    check_space(cache_dir, sum(job["missing"] for job in jobs))
    for job in jobs:
        with plain_errors(job["item"]["hub_id"]):
            (fetch_model if job["item"]["kind"] == "model" else fetch_dataset)(cache_dir, job)
        print(f"{job['name']} is complete", flush=True)


def parse_revision(text):
    """MODEL=REV -> (model, revision)."""
    model, equals, revision = text.partition("=")
    if not (model and equals and revision):
        raise argparse.ArgumentTypeError(f"{text!r} is not MODEL=REVISION")
    return model, revision


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="NAME", help=f"{', '.join(MODELS)} or ORGANISATION/NAME"
    )
    parser.add_argument(
        "--datasets", nargs="+", default=[], metavar="NAME", choices=list(DATASETS), help=", ".join(DATASETS)
    )
    parser.add_argument("--cache_dir", help=f"default: $GRPSPO_CACHE, else ./{DEFAULT_CACHE_DIR}")
    parser.add_argument("--revision", nargs="+", action="extend", default=[], type=parse_revision, metavar="MODEL=REV")
    parser.add_argument("--from_files", type=Path, metavar="DIR", help="build the data sets from files below DIR")
    parser.add_argument("--list", action="store_true", help="show what the cache holds")
    parser.add_argument("--verify", action="store_true", help="hash everything; exit code 1 if anything has changed")
    args = parser.parse_args()
    if not (args.models or args.datasets or args.from_files or args.verify):
        args.models, args.datasets = list(MODELS), list(DATASETS)
    return args


def main():
    args = parse_args()
    cache_dir = get_cache_dir(args.cache_dir)
    if args.list:
        return list_cache(cache_dir)
    if args.verify:
        return verify_cache(cache_dir, [model.rpartition("/")[2] for model in args.models] + args.datasets)
    items = choose_items(args.models, [] if args.from_files else args.datasets, dict(args.revision))
    try:
        with lock_cache(cache_dir):
            if args.from_files:
                build_from_files(cache_dir, args.from_files, args.datasets)
            fetch_items(cache_dir, items)
    except OSError as error:
        raise BadInput(f"cannot write to {cache_dir}: {error.strerror or error} {error.filename or ''}") from None
    return list_cache(cache_dir)


if __name__ == "__main__":
    sys.exit(run_script(main))
