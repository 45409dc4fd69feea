"""save_model_locally.py against a stand-in for the Hub: what it fetches, says when that fails, and leaves behind."""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from hub_stub import Hub, Repository, Zeros, times

import save_model_locally as cache
from common import hub as hub_module
from common.files import BadInput, hash_file, hold_lock

SCRIPT = Path(cache.__file__)
CONFIG = json.dumps({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}).encode()
MEGABYTE = 2**20
HUB_IDS = {"gsm8k": "openai/gsm8k", "MATH-500": "HuggingFaceH4/MATH-500", "asdiv": "EleutherAI/asdiv"}
HUB_IDS["SVAMP"] = "ChilleD/SVAMP"


def made_up_rows():
    """{data set: {split: rows}} with the published columns and numbers of rows and nothing else of the real sets."""
    question = [f"Ann has {n} pens and gets 2 more. How many has she?" for n in range(7473)]
    gsm8k = [
        {"question": q, "answer": f"{n} + 2 = <<{n}+2={n + 2}>>{n + 2}\n#### {n + 2}"} for n, q in enumerate(question)
    ]
    asdiv = [{"body": q, "question": "?", "answer": f"{n} (pens)"} for n, q in enumerate(question[:2305])]
    svamp = [{"ID": f"chal-{n}", "Body": q, "Question": "So?", "Answer": str(n)} for n, q in enumerate(question[:1000])]
    maths = {
        "problem": "What is $1/2$?",
        "solution": r"\boxed{\frac12}",
        "answer": r"\frac{1}{2}",
        "subject": "Algebra",
    }
    svamp = [{**r, "Equation": "", "Type": "Addition", "question_concat": f"{r['Body']} So?"} for r in svamp]
    return {
        "gsm8k": {"train": gsm8k, "test": gsm8k[:1319]},
        "MATH-500": {"test": [{**maths, "level": 1 + n % 5, "unique_id": f"test/{n}.json"} for n in range(500)]},
        "asdiv": {"validation": [{**row, "solution_type": "Addition", "formula": "x"} for row in asdiv]},
        "SVAMP": {"train": svamp[:700], "test": svamp[700:]},
    }


@pytest.fixture(scope="session")
def rows(request):
    """The real data sets where they are at hand, else made-up ones of the same shape."""
    try:
        data = request.getfixturevalue("shared") / "data"
    except pytest.skip.Exception:
        return made_up_rows()
    files = {name: {split: name for split in splits} for name, splits in made_up_rows().items()}
    files["MATH-500"] = {"test": "math500"}
    return {
        name: {
            split: [json.loads(line) for line in open(data / f"{stem.lower()}.{split}.jsonl", encoding="utf-8")]
            for split, stem in splits.items()
        }
        for name, splits in files.items()
    }


def to_parquet(rows, path):
    """Bytes of a Parquet file with these rows."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path.read_bytes()


def to_json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="session")
def dataset_repositories(rows, tmp_path_factory):
    """The four data sets as the Hub has them, Parquet or JSON lines, among files that must be left alone."""
    scratch = tmp_path_factory.mktemp("parquet") / "rows"
    parquet = {name: {split: to_parquet(r, scratch) for split, r in splits.items()} for name, splits in rows.items()}
    part = "00000-of-00001.parquet"
    socratic = to_parquet([{"question": "Why?", "answer": "#### 1"}], scratch)
    files = {
        "gsm8k": {f"main/{split}-{part}": data for split, data in parquet["gsm8k"].items()}
        | {f"socratic/{split}-{part}": socratic for split in parquet["gsm8k"]},
        "MATH-500": {"test.jsonl": to_json_lines(rows["MATH-500"]["test"])},
        "asdiv": {
            f"asdiv/validation-{part}": parquet["asdiv"]["validation"],
        },
        "SVAMP": {f"data/{split}-{part}": data for split, data in parquet["SVAMP"].items()},
    }
    files["gsm8k"]["README.md"] = card("main", "socratic")
    files["asdiv"]["README.md"] = card("asdiv")
    return {
        f"datasets/{HUB_IDS[name]}": Repository(files[name], commit=cache.DATASETS[name].revision) for name in files
    }


def card(*configs):
    """A README.md whose header gives a folder of Parquet files for each configuration, as the Hub's data sets do."""
    lines = [f"- config_name: {config}\n  data_dir: {config}\n" for config in configs]
    return f"---\nconfigs:\n{''.join(lines)}---\n# data\n".encode()


def model_repository(weights=b"weights", **more):
    """A model as the Hub has it, with files that must not be fetched."""
    names = {"config.json": CONFIG, "tokenizer.json": b"{}", "model.safetensors": weights}
    unwanted = {"README.md": b"#", "pytorch_model.bin": b"pickle", "modeling.py": b"", "onnx/model.safetensors": b"x"}
    return Repository(names | unwanted | more)


@pytest.fixture
def hub(dataset_repositories):
    """A Hub with the four data sets and two small models."""
    models = {"models/Qwen/Qwen2.5-0.5B": model_repository(), "models/maker/tiny": model_repository(b"tiny")}
    with Hub({**dataset_repositories, **models}) as server:
        yield server


@pytest.fixture
def save(hub, tmp_path):
    """Run save_model_locally.py against the Hub: save("--models", ...) -> CompletedProcess."""

    def run(*args, **kwargs):
        return subprocess.run([*command(tmp_path), *args], **options(hub, tmp_path), timeout=100, **kwargs)

    return run


@pytest.fixture(scope="session")
def filled_once(dataset_repositories, tmp_path_factory):
    """A directory whose cache holds a model and the four data sets."""
    path = tmp_path_factory.mktemp("filled")
    with Hub({**dataset_repositories, "models/maker/tiny": model_repository(b"tiny")}) as hub:
        items = ["--models", "maker/tiny", "--datasets", *cache.DEFAULT_DATASETS]
        subprocess.run([*command(path), *items], check=True, **options(hub, path))
    return path


@pytest.fixture
def filled(filled_once, tmp_path):
    """The same cache, copied to where this test's runs look."""
    return shutil.copytree(filled_once / "cache", tmp_path / "cache")


def command(tmp_path):
    return [sys.executable, str(SCRIPT), "--cache_dir", str(tmp_path / "cache")]


def options(hub, tmp_path):
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")  # another test may have set them
    unset = (*offline, "HF_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
    env = {key: value for key, value in os.environ.items() if key not in unset}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf_home"), "NO_PROXY": "127.0.0.1"}
    return {"env": env, "capture_output": True, "text": True}


def last_line(result):
    return result.stderr.strip().splitlines()[-1]


def assert_refused(result, *words):
    """Exit code 2 and, as the last line and with no traceback, a message that holds each of the words."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert last_line(result).startswith("save_model_locally.py: error: ")
    for word in words:
        assert word in last_line(result)


def state(tmp_path):
    """{item: [files that are missing or changed]}, found without the script: hashes all that manifest.json names."""
    root = tmp_path / "cache"
    items = json.loads((root / "manifest.json").read_text())["items"] if (root / "manifest.json").exists() else {}
    seen = {}
    for name, item in items.items():
        files = {file: root / name / file for file in item["files"]}
        seen[name] = [
            file
            for file, path in files.items()
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != item["files"][file]["sha256"]
        ]
    for path in root.glob("*/"):
        assert path.name in seen or path.name == ".partial", f"{path.name} is there but not in the manifest"
    return seen


# ---- the whole default set


@pytest.fixture(scope="module")
def random_qwen2(tmp_path_factory):
    """Files of a small random Qwen2 with a tokenizer, in two shards, as transformers saves them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    path = tmp_path_factory.mktemp("qwen2")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 40}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=2))
    model.save_pretrained(path, max_shard_size="8KB")
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "pens": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(path)
    return {file.name: file for file in path.iterdir()}


LOAD_OFFLINE = """
import sys
sys.addaudithook(lambda event, args: event in ("socket.connect", "socket.getaddrinfo") and sys.exit(f"network: {args}"))
import json
from common.files import go_offline
from common.datasets import DATASETS, DEFAULT_DATASETS, load_maths_dataset
from common.models import MODELS, find_model
go_offline()
cache = sys.argv[1]
out = {name: len(load_maths_dataset(name, DATASETS[name].eval_split, cache)) for name in DEFAULT_DATASETS}
from transformers import AutoModelForCausalLM, AutoTokenizer
for name in MODELS:
    path = find_model(name, cache)
    model = AutoModelForCausalLM.from_pretrained(path)
    tokens = AutoTokenizer.from_pretrained(path)("pens pens").input_ids
    out[name] = [tokens, sum(p.double().sum().item() for p in model.parameters())]
print(json.dumps(out))
"""


@pytest.mark.slow
def test_default_set_downloads_verifies_and_loads_offline(hub, save, rows, random_qwen2, tmp_path):
    from datasets import load_from_disk
    from safetensors.numpy import load_file
    from transformers import AutoTokenizer

    for name in ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-3B"):
        hub.repositories[f"models/Qwen/{name}"] = Repository(random_qwen2)
    result = save()
    assert result.returncode == 0, result.stderr
    assert save("--verify").returncode == 0
    for name, splits in rows.items():
        saved = load_from_disk(str(tmp_path / "cache" / name))
        assert {split: saved[split].to_list() for split in saved} == splits
    env = {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "HF_HOME": str(tmp_path / "other_home")}
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD_OFFLINE, tmp_path / "cache"], env=env, capture_output=True, text=True
    )
    assert loaded.returncode == 0, loaded.stderr
    found = json.loads(loaded.stdout)
    assert found["asdiv"] == 2305 and found["gsm8k"] == 1319 and found["MATH-500"] == 500 and found["SVAMP"] == 300
    weights = [load_file(file) for name, file in random_qwen2.items() if name.endswith(".safetensors")]
    assert len(weights) > 1
    expected = sum(array.astype("float64").sum() for shard in weights for array in shard.values())
    tokens = AutoTokenizer.from_pretrained(random_qwen2["config.json"].parent)("pens pens").input_ids
    assert found["Qwen2.5-3B"] == [tokens, pytest.approx(expected)]
    assert hub.requests.count(("HEAD", "/", None)) == 1


def test_an_item_named_twice_is_fetched_once(hub, save, tmp_path):
    models = ["Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B", "Qwen2.5-0.5B"]
    result = save("--models", *models, "--datasets", "SVAMP", "SVAMP")
    assert result.returncode == 0, result.stderr
    assert state(tmp_path) == {"Qwen2.5-0.5B": [], "SVAMP": []} and result.stdout.count("is complete") == 2


def test_a_damaged_file_that_an_interrupted_run_has_left_is_fetched_again(hub, save, tmp_path):
    commit = hub.repositories["models/maker/tiny"].commit
    left = tmp_path / "cache" / ".partial" / f"tiny-{commit[:12]}"
    left.mkdir(parents=True)
    for file, content in ("model.safetensors", b"tinY"), ("tokenizer.json", b"{"), ("stranger.part", b"x"):
        (left / file).write_bytes(content)
    result = save("--models", "maker/tiny")
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "cache/tiny/stranger.part").exists()
    assert state(tmp_path) == {"tiny": []} and hub.sent["tokenizer.json"] == 1


def test_second_run_fetches_nothing_and_asks_nobody(hub, save, filled, tmp_path):
    assert save("--models", "maker/tiny", "--datasets", *cache.DEFAULT_DATASETS).returncode == 0
    assert hub.requests == []
    assert set(state(tmp_path)) == {"tiny", *cache.DEFAULT_DATASETS}


def test_what_a_kill_right_after_publishing_has_left_is_cleared_away(save, filled, tmp_path):
    commits = {
        name: item["revision"] for name, item in json.loads((filled / "manifest.json").read_text())["items"].items()
    }
    left = [f"tiny-{commits['tiny'][:12]}", "tiny-replaced", f"SVAMP-{commits['SVAMP'][:12]}", "SVAMP-replaced"]
    others = [f"tiny-{'0' * 12}", f"gsm8k-{commits['gsm8k'][:12]}"]
    for name in [*left, *others]:
        (filled / ".partial" / name).mkdir(parents=True)
        (filled / ".partial" / name / "file").touch()
    assert save("--models", "maker/tiny", "--datasets", "SVAMP").returncode == 0
    assert sorted(path.name for path in (filled / ".partial").iterdir()) == sorted(others)
    assert not any(state(tmp_path).values())


def test_only_safetensors_and_tokenizer_files_are_fetched(hub, save, tmp_path):
    hub.repositories["models/maker/tiny"] = model_repository(
        **{"merges.txt": b"a b", "tokenizer.pkl": b"", "x.py": b""}
    )
    assert save("--models", "maker/tiny").returncode == 0
    names = {path.name for path in (tmp_path / "cache" / "tiny").iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors", "merges.txt"}


def test_stub_serves_the_hubs_own_snapshot_download(hub, tmp_path):
    code = "import huggingface_hub, sys; huggingface_hub.snapshot_download('maker/tiny', local_dir=sys.argv[1])"
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "snapshot"], **options(hub, tmp_path))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "snapshot" / "model.safetensors").read_bytes() == b"tiny"


@pytest.mark.slow
def test_stub_serves_the_datasets_library_and_the_cache_has_the_same_rows(hub, filled, tmp_path):
    """The datasets library itself, pointed at the stub, sees what the cache holds, for each of the four."""
    code = (
        "import datasets, json, sys; ids = json.loads(sys.argv[2])\n"
        "for name, (hub_id, revision, config, splits) in ids.items():\n"
        "    direct = datasets.load_dataset(hub_id, config or None, revision=revision)\n"
        "    cached = datasets.load_from_disk(f'{sys.argv[1]}/{name}')\n"
        "    assert {s: cached[s].to_list() for s in splits} == {s: direct[s].to_list() for s in splits}, name\n"
    )
    table = {name: cache.DATASETS[name] for name in cache.DEFAULT_DATASETS}
    ids = {name: (data.hub_id, data.revision, data.folder, [*data.splits]) for name, data in table.items()}
    arguments = [sys.executable, "-c", code, filled, json.dumps(ids)]
    result = subprocess.run(arguments, **options(hub, tmp_path))
    assert result.returncode == 0, result.stderr
    assert any("/main/train-00000" in path for _, path, _ in hub.requests)


def test_revision_is_resolved_recorded_and_can_be_asked_for(hub, save, tmp_path):
    assert save("--models", "maker/tiny").returncode == 0
    repository = hub.repositories["models/maker/tiny"]
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert manifest["items"]["tiny"]["revision"] == repository.commit
    assert repository.commit in save("--list").stdout
    newer = Repository({**repository.files, "model.safetensors": b"newer"}, commit="f" * 40)
    hub.repositories["models/maker/tiny"] = newer
    assert save("--models", "maker/tiny").returncode == 0
    assert (tmp_path / "cache" / "tiny" / "model.safetensors").read_bytes() == b"tiny"
    assert save("--models", "maker/tiny", "--revision", f"maker/tiny={'f' * 40}").returncode == 0
    assert (tmp_path / "cache" / "tiny" / "model.safetensors").read_bytes() == b"newer"
    assert state(tmp_path) == {"tiny": []}
    assert_refused(save("--models", "maker/tiny", "--revision", "maker/tiny=gone"), "maker/tiny", "revision")
    assert_refused(save("--models", "maker/tiny", "--revision", "other=1"), "other", "maker/tiny")
    assert state(tmp_path) == {"tiny": []}


# ---- faults


@pytest.mark.parametrize("reset", [False, True])
def test_cut_connection_resumes_where_it_stopped(hub, save, tmp_path, reset):
    weights = random.Random(1).randbytes(24 * MEGABYTE)
    hub.repositories["models/maker/tiny"] = model_repository(weights)
    hub.faults = [times(2, {"cut": 15 * MEGABYTE, "reset": reset}, "model.safetensors")]
    result = save("--models", "maker/tiny")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "cache" / "tiny" / "model.safetensors").read_bytes() == weights
    ranges = [found for _, path, found in hub.requests if path.endswith("model.safetensors")]
    assert ranges[0] is None and all(found.startswith("bytes=") for found in ranges[1:])
    # The client writes in chunks of 10 MB; what came of the chunk that was cut is fetched again.
    assert hub.sent["model.safetensors"] <= len(weights) + 2 * 10 * MEGABYTE


def test_killed_run_continues_inside_the_file(hub, tmp_path, save):
    weights = random.Random(2).randbytes(24 * MEGABYTE)
    hub.repositories["models/maker/tiny"] = model_repository(weights)
    gone = threading.Event()
    hub.faults = [times(1, {"hold_after": 15 * MEGABYTE, "until": gone}, "model.safetensors")]
    child = subprocess.Popen([*command(tmp_path), "--models", "maker/tiny"], **popen(hub, tmp_path))
    wait_for(lambda: part_size(tmp_path) >= 10 * MEGABYTE)
    child.kill()
    child.wait()
    gone.set()
    kept = part_size(tmp_path)
    assert state(tmp_path) == {}
    assert "incomplete" in save("--list").stdout
    assert save("--models", "maker/tiny").returncode == 0
    assert (tmp_path / "cache" / "tiny" / "model.safetensors").read_bytes() == weights
    assert hub.requests[-1][2] == f"bytes={kept}-"


def popen(hub, tmp_path):
    return {"env": options(hub, tmp_path)["env"], "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def wait_for(condition, seconds=300):
    """Wait until something is so, which nothing but the test itself can keep from staying so; fails if it never is."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def part_size(tmp_path):
    return sum(path.stat().st_size for path in (tmp_path / "cache").glob(".partial/*/model.safetensors"))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 401, "headers": {"X-Error-Code": "GatedRepo"}}, ["maker/tiny", "gated", "hf auth login"]),
        ({"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}, ["maker/tiny", "gated", "hf auth login"]),
        ({"status": 403}, ["maker/tiny", "403", "hf auth login"]),
        ({"status": 401}, ["maker/tiny", "401", "hf auth login"]),
        ({"status": 404, "headers": {"X-Error-Code": "EntryNotFound"}}, ["maker/tiny", "404"]),
        ({"flip": True}, ["model.safetensors", "hash"]),
        ({"short": 3}, ["model.safetensors", "3 bytes", "not 4"]),
    ],
)
def test_refused_or_wrong_file_is_said_and_leaves_the_rest_usable(hub, save, tmp_path, fault, words):
    hub.faults = [
        times(1, fault, "tiny/resolve/" + hub.repositories["models/maker/tiny"].commit + "/model.safetensors")
    ]
    assert_refused(save("--models", "Qwen2.5-0.5B", "maker/tiny"), *words)
    assert state(tmp_path) == {"Qwen2.5-0.5B": []}
    assert save("--models", "maker/tiny").returncode == 0
    assert state(tmp_path) == {"Qwen2.5-0.5B": [], "tiny": []}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "count", "fault"),
    [
        ("model.safetensors", 1, {"status": 429, "headers": {"Retry-After": "1"}}),
        ("model.safetensors", 3, {"status": 500}),
        ("maker/tiny", 1, {"status": 429, "headers": {"Retry-After": "1"}}),
        ("maker/tiny", 2, {"status": 503}),
    ],
)
def test_passing_trouble_is_waited_out(hub, save, tmp_path, ending, count, fault):
    hub.faults = [times(count, fault, ending)]
    result = save("--models", "maker/tiny")
    assert result.returncode == 0, result.stderr
    assert state(tmp_path) == {"tiny": []}


def test_redirect_to_another_host_is_followed_without_the_token(hub, tmp_path):
    """The Hub redirects large files to a content network, which must not see the user's token."""
    elsewhere = hub.url.replace("127.0.0.1", "localhost")
    path = f"/maker/tiny/resolve/{hub.repositories['models/maker/tiny'].commit}/model.safetensors"
    hub.faults = [times(1, {"status": 302, "headers": {"Location": elsewhere + path}}, path)]
    settings = options(hub, tmp_path)
    settings["env"] |= {"HF_TOKEN": "hf_secret", "NO_PROXY": "127.0.0.1,localhost"}
    result = subprocess.run([*command(tmp_path), "--models", "maker/tiny"], **settings)
    assert result.returncode == 0, result.stderr
    assert state(tmp_path) == {"tiny": []}
    seen = {host: {token for other, token in hub.tokens if other == host} for host, _ in hub.tokens}
    assert seen[elsewhere.removeprefix("http://")] == {None}
    assert "Bearer hf_secret" in seen[hub.url.removeprefix("http://")]


def test_retry_after_is_obeyed(monkeypatch):
    import httpx2
    import huggingface_hub.errors

    naps, answers = [], [httpx2.Response(429, headers={"Retry-After": "7"}), httpx2.Response(503), None]

    def ask():
        if response := answers.pop(0):
            response.request = httpx2.Request("GET", "http://hub")
            raise huggingface_hub.errors.HfHubHTTPError("no", response=response)
        return "done"

    monkeypatch.setattr(hub_module.time, "sleep", naps.append)
    assert hub_module.retry(ask) == "done"
    assert naps[0] == 7 and len(naps) == 2


def test_wrong_content_never_stays(hub, save, tmp_path):
    hub.faults = [times(1, {"flip": True}, "model.safetensors")]
    assert save("--models", "maker/tiny").returncode == 2
    assert not list((tmp_path / "cache").rglob("*.safetensors*"))


def test_unknown_repository_and_names(hub, save):
    assert_refused(save("--models", "maker/none"), "maker/none", "not on the Hub")
    assert_refused(save("--models", "Qwen9"), "Qwen9", "Qwen2.5-0.5B", "Qwen2.5-3B")
    assert_refused(save("--models", "a/b/c"), "a/b/c")
    assert_refused(save("--models", "some/gsm8k"), "some/gsm8k")
    assert_refused(save("--models", "maker/tiny", "else/tiny"), "two tiny", "--cache_dir for else/tiny")
    assert_refused(save("--datasets", "gsm9k"), "gsm9k", "MATH-500", "SVAMP")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": CONFIG, "pytorch_model.bin": b"x"}, ["safetensors", "pytorch_model.bin"]),
        ({"config.json": CONFIG, "onnx/model.safetensors": b"x"}, ["safetensors"]),
        ({"config.json": b'{"architectures": ["BertModel"]}', "model.safetensors": b"x"}, ["BertModel"]),
        ({"config.json": b"[" * 100_000, "model.safetensors": b"x"}, ["config.json"]),
        ({"model.safetensors": b"x"}, ["config.json"]),
        (
            {
                "config.json": CONFIG,
                "model-1.safetensors": b"x",
                "model.safetensors.index.json": b'{"weight_map": {"w": "model-2.safetensors"}}',
            },
            ["model-2.safetensors"],
        ),
    ],
)
def test_unusable_model_is_refused_before_its_weights_are_fetched(hub, save, tmp_path, files, words):
    hub.repositories["models/maker/tiny"] = Repository(files)
    assert_refused(save("--models", "maker/tiny"), "maker/tiny", *words)
    assert not any(name.endswith(".safetensors") for name in hub.sent)
    assert state(tmp_path) == {}


def test_changed_columns_script_only_and_cut_data_sets_are_refused(hub, save, rows, tmp_path):
    key, commit = "datasets/ChilleD/SVAMP", cache.DATASETS["SVAMP"].revision
    renamed = [{"text" if k == "Body" else k: v for k, v in row.items()} for row in rows["SVAMP"]["train"]]
    for train, word in ((renamed, "schema"), (rows["SVAMP"]["train"][1:], "699")):
        files = {"train.jsonl": to_json_lines(train), "test.jsonl": to_json_lines(rows["SVAMP"]["test"])}
        hub.repositories[key] = Repository(files, commit=commit)
        assert_refused(save("--datasets", "SVAMP"), "SVAMP", "train", word)
        shutil.rmtree(tmp_path / "cache" / ".partial")
    hub.repositories[key] = Repository({"SVAMP.py": b"exit(1)", "README.md": b""}, commit=commit)
    assert_refused(save("--datasets", "SVAMP"), "ChilleD/SVAMP", "SVAMP.py", "not run", "--from_files")
    assert state(tmp_path) == {}


def test_unreadable_gold_answer_is_refused_with_its_row(hub, save, rows, tmp_path):
    train = [dict(row) for row in rows["gsm8k"]["train"]]
    train[17]["answer"] = "no marker here"
    files = {"main/train.jsonl": to_json_lines(train), "main/test.jsonl": to_json_lines(rows["gsm8k"]["test"])}
    hub.repositories["datasets/openai/gsm8k"] = Repository(files, commit=cache.DATASETS["gsm8k"].revision)
    assert_refused(save("--datasets", "gsm8k"), "gsm8k train, row 17")
    assert state(tmp_path) == {}


def test_no_space_in_the_middle_of_a_file(hub, save, tmp_path):
    hub.repositories["models/maker/tiny"] = model_repository(random.Random(3).randbytes(24 * MEGABYTE))
    limit = (12 * MEGABYTE, 12 * MEGABYTE)
    refused = save("--models", "maker/tiny", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert_refused(refused, "cannot write", "File too large")
    assert state(tmp_path) == {}
    assert save("--models", "maker/tiny").returncode == 0
    assert state(tmp_path) == {"tiny": []}


def mounted(tmp_path, mount):
    """Arguments that run a command with something mounted on the cache, in a namespace of its own."""
    (tmp_path / "cache").mkdir(exist_ok=True)
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs a mount namespace (unshare -rm)")
    return ["unshare", "-rm", "sh", "-ec", f'{mount} "$0"; shift 0; exec "$@"', str(tmp_path / "cache")]


def test_what_does_not_fit_is_not_begun(hub, tmp_path):
    wrapper = mounted(tmp_path, "mount -t tmpfs -o size=101m none")
    hub.repositories["models/maker/tiny"] = model_repository(bytes(2 * MEGABYTE))
    result = subprocess.run([*wrapper, *command(tmp_path), "--models", "maker/tiny"], **options(hub, tmp_path))
    assert_refused(result, "too small", "--cache_dir")
    assert hub.sent == {}


def test_read_only_cache(hub, save, tmp_path):
    assert save("--models", "Qwen2.5-0.5B").returncode == 0
    target = f'"{tmp_path / "cache"}"'
    wrapper = mounted(tmp_path, f"mount --bind {target} {target}; mount -o remount,bind,ro")
    for arguments, code in (["--models", "maker/tiny"], 2), (["--verify"], 0), (["--list"], 0):
        result = subprocess.run([*wrapper, *command(tmp_path), *arguments], **options(hub, tmp_path))
        assert result.returncode == code, result.stderr
    refused = subprocess.run([*wrapper, *command(tmp_path), "--models", "maker/tiny"], **options(hub, tmp_path))
    assert_refused(refused, "cannot write", "Read-only")
    assert state(tmp_path) == {"Qwen2.5-0.5B": []}


def test_two_runs_at_once(hub, save, tmp_path):
    go_on = threading.Event()
    hub.faults = [times(1, {"hold": go_on}, "model.safetensors")]
    first = subprocess.Popen([*command(tmp_path), "--models", "maker/tiny"], **popen(hub, tmp_path))
    wait_for(lambda: any("model.safetensors" in path for _, path, _ in list(hub.requests)))
    assert_refused(save("--datasets", "SVAMP"), "another run")
    go_on.set()
    assert first.wait(timeout=30) == 0
    assert state(tmp_path) == {"tiny": []}


ITEMS = ["--models", "Qwen2.5-0.5B", "maker/tiny", "--datasets", "SVAMP"]
DIE_AT = """
import os, runpy, signal, sys
left, root = int(sys.argv[1]), sys.argv[2]
def watch(event, args):
    global left
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and str(args[0]).startswith(root):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def assert_honest(tmp_path):
    """Each item is whole or absent, or all of it is missing (killed between the manifest and the last rename)."""
    for name, faults in state(tmp_path).items():
        item = json.loads((tmp_path / "cache" / "manifest.json").read_text())["items"][name]
        assert faults in ([], list(item["files"])), name


def assert_completes(save, tmp_path):
    result = save(*ITEMS)
    assert result.returncode == 0, result.stderr
    assert state(tmp_path) == {"Qwen2.5-0.5B": [], "tiny": [], "SVAMP": []}
    assert not list((tmp_path / "cache" / ".partial").glob("*/*"))


@pytest.mark.slow
def test_killed_at_any_step_on_the_disk(hub, save, tmp_path):
    """SIGKILL at the n-th touch of a file in the cache, for n spread over a whole run."""

    def run_until(touch):
        script = [str(SCRIPT), "--cache_dir", str(tmp_path / "cache"), *ITEMS]
        arguments = [sys.executable, "-c", DIE_AT, str(touch), str(tmp_path / "cache"), *script]
        settings = options(hub, tmp_path)
        settings["env"]["PYTHONPATH"] = str(SCRIPT.parent)
        return subprocess.run(arguments, **settings)

    reached = set()
    for touch in range(13, 200, 13):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        code = run_until(touch).returncode
        if code == 0:  # the whole run has fewer touches
            break
        assert code == -signal.SIGKILL
        assert_honest(tmp_path)
        reached.add(len(state(tmp_path)))
        assert_completes(save, tmp_path)
    assert code == 0 and len(reached) > 1, "the kills did not reach every state"


def kill_at_request(number, running):
    """A fault of the stub: the processes in `running` are killed while it answers a request."""
    seen = []

    def fault(path, method):
        seen.append(path)
        if len(seen) == number:
            for process in running:
                process.kill()
        return {}

    return fault


@pytest.mark.slow
def test_killed_at_a_dozen_requests(hub, save, tmp_path):
    """SIGKILL while the n-th request of a run is answered, for n drawn from all requests of a whole run."""
    assert_completes(save, tmp_path)
    requests, draw, reached = len(hub.requests), random.Random(0), set()
    for _ in range(12):
        if draw.random() < 0.5:  # else the run continues what the last one left
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        running = []
        hub.faults = [kill_at_request(draw.randint(1, requests), running)]
        running.append(subprocess.Popen([*command(tmp_path), *ITEMS], **popen(hub, tmp_path)))
        running[0].wait()
        assert_honest(tmp_path)
        reached.add(len(state(tmp_path)))
    hub.faults = []
    assert len(reached) > 1, "every kill fell on the same state"
    assert_completes(save, tmp_path)


def interrupt(*_):
    raise KeyboardInterrupt


def test_kill_between_manifest_and_rename_is_reported_and_repaired(hub, save, tmp_path, monkeypatch):
    root = tmp_path / "cache"
    built = root / ".partial" / "tiny-built"
    built.mkdir(parents=True)
    (built / "config.json").write_bytes(CONFIG)
    monkeypatch.setattr(cache.os, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        commit = hub.repositories["models/maker/tiny"].commit
        item = {"kind": "model", "hub_id": "maker/tiny", "revision": commit, "source": "Hub"}
        cache.publish(root, "tiny", item, built)
    monkeypatch.undo()
    result = save("--verify")
    assert result.returncode == 1 and "tiny/config.json is missing" in result.stdout
    assert save("--models", "maker/tiny").returncode == 0
    assert state(tmp_path) == {"tiny": []}


def test_what_the_script_did_not_make_is_not_overwritten(hub, save, tmp_path):
    mine = tmp_path / "cache" / "tiny" / "model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my own")
    assert_refused(save("--models", "maker/tiny"), "tiny", "move it away")
    assert mine.read_bytes() == b"my own"
    hub.repositories["models/else/tiny"] = model_repository()
    mine.unlink()
    mine.parent.rmdir()
    assert save("--models", "maker/tiny").returncode == 0
    assert_refused(save("--models", "else/tiny"), "maker/tiny", "--cache_dir")


# ---- --verify


def damage_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_verify_finds_a_flipped_byte_a_missing_file_and_an_extra_one_in_any_item(filled, tmp_path):
    items = json.loads((tmp_path / "cache" / "manifest.json").read_text())["items"]
    assert set(items) == {"tiny", *cache.DEFAULT_DATASETS}
    for name, item in items.items():
        for file in item["files"]:
            path = tmp_path / "cache" / name / file
            good = path.read_bytes()
            for damage in (damage_byte, Path.unlink):
                damage(path)
                with pytest.MonkeyPatch.context() as patch:
                    lines = []
                    patch.setattr("builtins.print", lambda text, lines=lines, **_: lines.append(text))
                    assert cache.verify_cache(tmp_path / "cache", []) == 1
                assert f"{name}/{file}" in lines[-1]
                path.write_bytes(good)
        stranger = tmp_path / "cache" / name / "stranger.safetensors"
        stranger.touch()
        assert cache.verify_cache(tmp_path / "cache", []) == 1
        stranger.unlink()
    assert cache.verify_cache(tmp_path / "cache", []) == 0
    assert cache.verify_cache(tmp_path / "cache", ["absent"]) == 1


def test_verify_finds_an_extra_row(save, filled, tmp_path):
    from datasets import Dataset, DatasetDict, load_from_disk

    for name in cache.DEFAULT_DATASETS:
        path = tmp_path / "cache" / name
        saved = {split: data.to_list() for split, data in load_from_disk(str(path)).items()}
        shutil.rmtree(path)
        DatasetDict({s: Dataset.from_list([*r, r[0]]) for s, r in saved.items()}).save_to_disk(str(path))
        result = save("--verify", "--datasets", name)
        assert result.returncode == 1
        assert re.search(rf"{name}/.*\.arrow has \d+ bytes, not \d+", result.stdout)


@pytest.mark.slow
def test_damage_is_repaired_with_what_is_still_good(hub, save, tmp_path):
    hub.repositories["models/maker/tiny"] = model_repository(b"12345678", **{"model-2.safetensors": b"more weights"})
    assert save("--models", "maker/tiny", "--datasets", "SVAMP").returncode == 0
    damage_byte(tmp_path / "cache" / "tiny" / "model.safetensors")
    (tmp_path / "cache" / "SVAMP" / "train" / "state.json").unlink()
    assert save("--models", "maker/tiny", "--datasets", "SVAMP").returncode == 0
    assert state(tmp_path) == {"tiny": [], "SVAMP": []}
    assert hub.sent["model.safetensors"] == 16 and hub.sent["model-2.safetensors"] == 12


def snapshot(path):
    """{file or directory: (inode, time of change, content)} below a path, {} if it is not there."""
    found = {p: p.stat() for p in path.rglob("*")}
    return {p: (s.st_ino, s.st_mtime_ns, p.read_bytes() if p.is_file() else None) for p, s in found.items()}


def test_looking_changes_nothing(hub, save, filled, tmp_path):
    damage_byte(tmp_path / "cache" / "tiny" / "model.safetensors")
    (tmp_path / "cache" / ".lock").unlink()
    before = snapshot(tmp_path)
    for arguments, code in (["--list"], 0), (["--verify"], 1), (["--verify", "--models", "maker/tiny"], 1):
        assert save(*arguments).returncode == code
        assert snapshot(tmp_path) == before
    shutil.rmtree(tmp_path / "cache")
    assert save("--list").returncode == 0
    assert_refused(save("--verify"), "nothing to verify")
    assert not (tmp_path / "cache").exists() and hub.requests == []


@pytest.mark.slow
def test_a_repair_that_cannot_be_made_moves_nothing(hub, save, tmp_path):
    hub.repositories["models/maker/tiny"] = model_repository(bytes(2 * MEGABYTE))
    assert save("--models", "maker/tiny").returncode == 0
    damage_byte(tmp_path / "cache" / "tiny" / "model.safetensors")
    before = snapshot(tmp_path / "cache" / "tiny")
    settings = options(hub, tmp_path)
    settings["env"]["HF_ENDPOINT"] = "http://127.0.0.1:9"
    refused = subprocess.run([*command(tmp_path), "--models", "maker/tiny"], **settings)
    assert_refused(refused, "no network")
    assert "tiny/model.safetensors has changed" in refused.stderr
    assert snapshot(tmp_path / "cache" / "tiny") == before
    full = "import shutil, sys; shutil.disk_usage = lambda _: shutil._ntuple_diskusage(1, 1, 0)\n" + RUN
    refused = run_changed(full, hub, tmp_path, "--models", "maker/tiny")
    assert_refused(refused, "too small")
    assert "tiny                2.1 MB to fetch" in refused.stdout  # the damaged file counts whole
    assert snapshot(tmp_path / "cache" / "tiny") == before
    hub.faults = [times(1, {"flip": True}, "model.safetensors")]
    assert_refused(save("--models", "maker/tiny"), "hash")
    assert snapshot(tmp_path / "cache" / "tiny") == before
    assert save("--models", "maker/tiny").returncode == 0
    assert state(tmp_path) == {"tiny": []} and not list((tmp_path / "cache" / ".partial").iterdir())


RUN = "import save_model_locally as s; sys.argv[0] = 'save_model_locally.py'; sys.exit(s.run_script(s.main))"


def run_changed(code, hub, tmp_path, *arguments):
    """Run the script in a process that runs some code first, which must end in RUN."""
    settings = options(hub, tmp_path)
    settings["env"]["PYTHONPATH"] = str(SCRIPT.parent)
    return subprocess.run([sys.executable, "-c", code, *command(tmp_path)[2:], *arguments], **settings)


def test_a_repair_brings_back_the_revision_that_was_there(hub, save, tmp_path):
    assert save("--models", "maker/tiny").returncode == 0
    old = hub.repositories["models/maker/tiny"]
    damage_byte(tmp_path / "cache" / "tiny" / "config.json")
    newer = Repository({**old.files, "model.safetensors": b"newer"}, commit="f" * 40)
    hub.repositories["models/maker/tiny"] = newer
    assert_refused(save("--models", "maker/tiny"), "maker/tiny", "revision")  # this Hub has only the newer one
    hub.repositories["models/maker/tiny"] = old
    assert save("--models", "maker/tiny").returncode == 0
    assert (tmp_path / "cache" / "tiny" / "model.safetensors").read_bytes() == b"tiny"
    assert state(tmp_path) == {"tiny": []}


def test_a_branch_at_the_commit_that_is_cached_fetches_nothing(hub, save, tmp_path):
    assert save("--models", "maker/tiny").returncode == 0
    before, sent = snapshot(tmp_path / "cache" / "tiny"), dict(hub.sent)
    result = save("--models", "maker/tiny", "--revision", "maker/tiny=main")
    assert result.returncode == 0 and "to fetch" not in result.stdout
    assert snapshot(tmp_path / "cache" / "tiny") == before and hub.sent == sent


def test_a_newer_revision_takes_what_it_shares_with_the_cached_one(hub, save, tmp_path):
    assert save("--models", "maker/tiny").returncode == 0
    repository = hub.repositories["models/maker/tiny"]
    files = {**repository.files, "config.json": CONFIG.replace(b"qwen2", b"qwen3")}
    hub.repositories["models/maker/tiny"] = Repository(files, commit="e" * 40)
    assert save("--models", "maker/tiny", "--revision", f"maker/tiny={'e' * 40}").returncode == 0
    assert b"qwen3" in (tmp_path / "cache" / "tiny" / "config.json").read_bytes()
    assert state(tmp_path) == {"tiny": []} and hub.sent["model.safetensors"] == len(b"tiny")


def test_empty_or_damaged_cache(hub, save, tmp_path):
    assert_refused(save("--verify"), "nothing to verify")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "manifest.json").write_text('{"items": []}')
    assert_refused(save("--list"), "manifest.json", "damaged")
    assert_refused(save("--models", "maker/tiny"), "manifest.json", "damaged")


# ---- no network


@pytest.mark.slow
def test_no_network_is_said_after_one_wait_of_ten_seconds(hub, tmp_path):
    assert hub_module.ANSWER_SECONDS == 10
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # accepts in the kernel and never answers, like a firewall that drops packets
        settings = options(hub, tmp_path)
        for port in (silent.getsockname()[1], 9):
            settings["env"]["HF_ENDPOINT"] = f"http://127.0.0.1:{port}"
            result = subprocess.run([*command(tmp_path), "--models", "maker/tiny"], **settings)
            assert_refused(result, "no network", f"127.0.0.1:{port}", "login node")
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_offline_switches_are_named(hub, tmp_path):
    settings = options(hub, tmp_path)
    settings["env"]["HF_HUB_OFFLINE"] = "1"
    result = subprocess.run([*command(tmp_path), "--models", "maker/tiny"], **settings)
    assert_refused(result, "HF_HUB_OFFLINE")
    assert hub.requests == []


# ---- MATH, in the schema of nlile/hendrycks-MATH-benchmark, with fewer rows

FEWER = {"train": 30, "test": 10}
FEWER_ROWS = f"""
import sys
from common import datasets
datasets.DATASETS["MATH"] = datasets.DATASETS["MATH"]._replace(splits={FEWER})
"""


def maths_rows(rows):
    """{split: rows} of MATH's schema: the level an integer, the ids those of its own rows."""
    tests = rows["MATH-500"]["test"]
    train = [{**row, "unique_id": row["unique_id"].replace("test/", "train/")} for row in tests[-FEWER["train"] :]]
    return {"train": train, "test": tests[: FEWER["test"]]}


@pytest.mark.slow
def test_maths_is_fetched_at_the_newest_revision_and_trained_on(hub, save, rows, tmp_path):
    from common.datasets import load_training_split

    maths = maths_rows(rows)
    scratch = tmp_path / "scratch"
    files = {f"data/{split}-00000-of-00001.parquet": to_parquet(data, scratch) for split, data in maths.items()}
    hub.repositories["datasets/nlile/hendrycks-MATH-benchmark"] = Repository(files, commit="a" * 40)
    assert "MATH" not in cache.DEFAULT_DATASETS and cache.DATASETS["MATH"].splits == {"train": 12000, "test": 500}
    assert_refused(
        save("--datasets", "MATH"), "MATH train has 30 rows, not the 12000 of nlile/hendrycks-MATH-benchmark"
    )
    assert state(tmp_path) == {}
    result = run_changed(FEWER_ROWS + RUN, hub, tmp_path, "--datasets", "MATH")
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert manifest["items"]["MATH"]["revision"] == "a" * 40 and state(tmp_path) == {"MATH": []}
    train, validation = load_training_split("MATH", 0, tmp_path / "cache", need_solution=True)
    assert (len(train), len(validation)) == (27, 3)
    expected = {row["unique_id"]: (row["problem"], row["solution"], str(row["level"])) for row in maths["train"]}
    assert {r["id"]: (r["question"], r["solution"], r["difficulty"]) for r in [*train, *validation]} == expected


@pytest.mark.parametrize("column", ["level", "unique_id"])
def test_maths_with_another_schema_is_refused(hub, rows, tmp_path, column):
    maths = maths_rows(rows)
    for row in maths["train"]:
        row["new_" + column] = row.pop(column)
    files = {f"{split}.jsonl": to_json_lines(data) for split, data in maths.items()}
    hub.repositories["datasets/nlile/hendrycks-MATH-benchmark"] = Repository(files)
    assert_refused(run_changed(FEWER_ROWS + RUN, hub, tmp_path, "--datasets", "MATH"), "schema", "new_" + column)


def test_maths_and_its_500_are_told_apart_by_their_folders(hub, rows, tmp_path):
    from datasets import load_from_disk

    sources = {"MATH": maths_rows(rows), "MATH-500": rows["MATH-500"]}
    for name, splits in sources.items():
        (tmp_path / "source" / f"of {name}").mkdir(parents=True)
        for split, data in splits.items():
            (tmp_path / "source" / f"of {name}" / f"{split}.jsonl").write_bytes(to_json_lines(data))
    result = run_changed(FEWER_ROWS + RUN, hub, tmp_path, "--from_files", str(tmp_path / "source"))
    assert result.returncode == 0, result.stderr
    for name, splits in sources.items():
        saved = load_from_disk(str(tmp_path / "cache" / name))
        assert {split: saved[split].to_list() for split in saved} == splits


# ---- files at hand


def test_from_files_in_the_hubs_schema(save, rows, tmp_path):
    from datasets import load_from_disk

    source = tmp_path / "source"
    (source / "main").mkdir(parents=True)
    for split, data in rows["gsm8k"].items():
        to_parquet(data, source / "main" / f"{split}-00000-of-00001.parquet")
    (source / "train_socratic.jsonl").write_bytes(to_json_lines(rows["gsm8k"]["train"]))
    (source / "test.jsonl").write_bytes(to_json_lines(rows["MATH-500"]["test"]))
    (source / "notes.json").write_text("[1]")
    assert save("--from_files", source).returncode == 0
    assert state(tmp_path) == {"gsm8k": [], "MATH-500": []}
    for name in ("gsm8k", "MATH-500"):
        saved = load_from_disk(str(tmp_path / "cache" / name))
        assert {split: saved[split].to_list() for split in saved} == rows[name]
    columns = "body, question, solution_type, answer, formula"
    assert_refused(save("--from_files", source, "--datasets", "asdiv"), "asdiv: validation as .jsonl", columns)
    assert_refused(save("--from_files", source / "none"), "not a directory")


def test_the_hubs_rows_are_the_authors_own(shared, rows):
    """ASDiv.xml's raw element text; SVAMP.json shuffled as the Hub's was, "145" for 145.0, first 700 to train on."""
    tags = {column: column.title().replace("_", "-") for column in cache.DATASETS["asdiv"].columns.split()}
    problems = ElementTree.parse(shared / "data" / "ASDiv.xml").getroot().iter("Problem")
    asdiv = [{column: problem.findtext(tag) for column, tag in tags.items()} for problem in problems]
    assert rows["asdiv"]["validation"] == asdiv
    svamp = json.loads((shared / "data" / "SVAMP.json").read_text("utf-8"))
    for row in svamp:
        row |= {"Answer": f"{row['Answer']:.12g}", "question_concat": f"{row['Body']} {row['Question']}"}
    random.Random(42).shuffle(svamp)
    assert rows["SVAMP"]["train"] + rows["SVAMP"]["test"] == svamp


def test_of_two_data_sets_with_the_same_columns_and_splits_the_one_asked_for_is_found(monkeypatch, tmp_path):
    twin = cache.DATASETS["gsm8k"]._replace(hub_id="somebody/twin")
    monkeypatch.setitem(cache.DATASETS, "twin", twin)
    monkeypatch.setattr(cache, "ON_THE_HUB", [*cache.ON_THE_HUB, "twin"])
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_bytes(b'{"question": "", "answer": "#### 1"}\n')
    assert [*cache.find_dataset_files(tmp_path, [])] == ["gsm8k"]
    assert [*cache.find_dataset_files(tmp_path, ["twin"])] == ["twin"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("validation.jsonl", b"[" * 100_000),
        ("train.jsonl", b'{"question": "", "answer": ""}\nnot json\n'),
        ("train.parquet", b"PAR1 but no more"),
    ],
)
def test_broken_files_at_hand_are_named(tmp_path, file, content):
    (tmp_path / file).write_bytes(content)
    (tmp_path / "test.jsonl").write_bytes(b'{"question": "", "answer": "#### 1"}\n')
    with pytest.raises(BadInput):
        cache.build_from_files(tmp_path / "cache", tmp_path, [])
    assert not (tmp_path / "cache").exists()


# ---- parts


def test_hashes_are_git_and_sha256_s(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(random.Random(4).randbytes(3 * MEGABYTE + 1))
    git = subprocess.run(["git", "hash-object", path], capture_output=True, text=True).stdout.strip()
    sha256 = subprocess.run(["sha256sum", path], capture_output=True, text=True).stdout.split()[0]
    assert hash_file(path) == sha256
    for blob_id, lfs in (git, None), ("", SimpleNamespace(sha256=sha256)):
        sibling = SimpleNamespace(size=3 * MEGABYTE + 1, blob_id=blob_id, lfs=lfs)
        assert hub_module.is_whole(path, sibling)
    assert not hub_module.is_whole(path, SimpleNamespace(size=3 * MEGABYTE + 1, blob_id=sha256, lfs=None))


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("main/train-00000-of-00001.parquet", "train"),
        ("data/test-00000-of-00001-e5a.parquet", "test"),
        ("gsm8k.test.jsonl", "test"),
        ("svamp_train.jsonl", "train"),
        ("test/validation.jsonl", "validation"),
        ("trainer.jsonl", None),
        ("contest.jsonl", None),
    ],
)
def test_split_of_a_file_name(file, split):
    assert cache.split_of(file) == split


def test_lock_is_free_after_a_run(tmp_path):
    held = hold_lock(tmp_path, "busy")
    with held, pytest.raises(BadInput, match="busy"):
        hold_lock(tmp_path, "busy")
    with hold_lock(tmp_path, "busy"):  # though `held` is still there
        pass


MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
def test_peak_memory_of_a_model_of_1_gb_stays_under_500_mb(hub, tmp_path):
    hub.repositories["models/maker/big"] = model_repository(Zeros(10**9))
    arguments = [sys.executable, "-c", MEASURE, *command(tmp_path), "--models", "maker/big"]
    result = subprocess.run(arguments, **options(hub, tmp_path))
    code, kilobytes = map(int, result.stdout.split())
    assert code == 0
    assert (tmp_path / "cache" / "big" / "model.safetensors").stat().st_size == 10**9
    print(f"peak memory {kilobytes / 1024:.0f} MB")
    assert kilobytes * 1024 < 500e6
