"""What every script shares: errors in one line, the command line, files that appear whole, locks, the offline cache.

For the experiments of Probability Smoothing Policy Optimisation (arXiv 2509.21282). Needs filelock and PyYAML alone.

    from common.files import BadInput, hold_lock, make_parser, run_script, write_json
"""

import argparse
import codecs
import difflib
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

ROOT = Path(__file__).resolve().parent.parent
DEMO_DIR = ROOT / "demo"
DEFAULT_CACHE_DIR = "cached_files"
MANIFEST = "manifest.json"
LOCK = ".lock"
MOST_SHOWN = 80  # characters of a value that an error message shows


class BadInput(ValueError):
    """Something the user gave cannot be used; the message is one line that names it and the way out."""


# ---- the command line


def run_script(main):
    """Call main() and return its exit code; a BadInput becomes one line on stderr and exit code 2.

    A letter that the terminal's encoding lacks is written as its number.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main()
        sys.stdout.flush()  # here, where a reader that went away is known, and not at exit
        return code
    except BadInput as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader went away, as `| head` does; nothing may be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def make_parser(doc, **kwargs):
    """An ArgumentParser with the script's docstring as its help, whose errors are BadInput (one line, no usage)."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(message):
        raise BadInput(f"{message} (--help lists the options)")

    parser.error = error
    return parser


def suggest(name, known):
    """'; did you mean NAME?' with the closest known name, to end a message; '' if none is close."""
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def go_offline():
    """Set the Hugging Face libraries' offline switches; they are read at import, so call this before importing any."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ[name] = "1"


# ---- files


def write_text(path, text):
    """Write a file through a temporary one and a rename: it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path, value):
    """Write a JSON file whole or not at all; what JSON does not know is written as its text."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def read_json(path, repair):
    """The JSON object in a file, None where there is no file; raises BadInput with `repair`, the way out."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadInput(f"{path} is damaged: {repair}")
    return value


def read_json_lines(path):
    """Rows (dicts) of a file with one JSON object a line; raises BadInput as number_json_lines does."""
    return [row for _, row in number_json_lines(path)]


def number_json_lines(path):
    """[(its line in the file, row)] of a file with one JSON object a line, as editors and pandas write it.

    It may begin with a byte order mark, be UTF-16, and have blank lines. Raises BadInput naming the file and the line.
    """
    rows = []
    number = 0
    line = ""
    try:
        with open(path, encoding=find_encoding(path)) as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise TypeError
                rows.append((number, row))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except UnicodeError:
        raise BadInput(f"{path} is not UTF-8 text") from None
    except (ValueError, TypeError, RecursionError):  # a number of 5000 digits is a plain ValueError
        raise BadInput(f"{path}, line {number}: not a JSON object: {line.strip()[:MOST_SHOWN]}") from None
    return rows


def find_encoding(path):
    """The encoding that a file's first bytes state; UTF-8 where they state none."""
    with open(path, "rb") as file:
        start = file.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.2, in which only true and false are booleans and 1e-6 is a number, with every key as it is spelt.

    PyYAML reads YAML 1.1, in which `eval_strategy: no` is false, 1e-6 a text, 012 ten and 1:30 ninety.
    """

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        names = [key.value if isinstance(key, yaml.ScalarNode) else None for key, _ in node.value]
        if None in names:
            raise BadInput(f"{self.name}, line {node.start_mark.line + 1}: a name must be one word")
        if twice := [name for name in names if names.count(name) > 1]:  # PyYAML would keep the last
            raise BadInput(f"{self.name}, line {node.start_mark.line + 1}: {twice[0]} is given twice in one mapping")
        node.value = [(self.as_spelt(key), value) for key, value in node.value]
        return node

    def as_spelt(self, key):
        """The node of a key as text; `<<`, which merges another mapping into this one, stays what it is."""
        if key.tag == "tag:yaml.org,2002:merge":
            return key
        return yaml.ScalarNode("tag:yaml.org,2002:str", key.value, key.start_mark, key.end_mark)


class _YamlDumper(yaml.SafeDumper):
    """Writes what _YamlLoader reads: text that it would take for a number or a boolean is put in quotes."""


# {first characters: [(tag, pattern)]} of a plain word, from YAML 1.2.2, 10.3.2 (core schema); all else is text.
YAML_WORDS = {
    "~nN": ("null", r"~|null|Null|NULL"),
    "tTfF": ("bool", r"true|True|TRUE|false|False|FALSE"),
    "-+0123456789": ("int", r"[-+]?[0-9]+"),
    "-+.0123456789": ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
    "-+.": ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
    "<": ("merge", r"<<"),
}
for _class in (_YamlLoader, _YamlDumper):
    _class.yaml_implicit_resolvers = {"": [("tag:yaml.org,2002:null", re.compile(r"\Z"))]}
    for _first, (_tag, _pattern) in YAML_WORDS.items():
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
_YamlLoader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))  # 012 is twelve


def read_yaml(path, what):
    """What a YAML 1.2 file says; raises BadInput for one that cannot be read, or has a key twice. what: its kind."""
    try:
        loader = _YamlLoader(Path(path).read_text(encoding=find_encoding(path)))
        loader.name = path  # for messages
        loader.deep_construct = True  # what contains itself is then an error of YAML's
        return loader.get_single_data()
    except BadInput:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark else ""
        raise BadInput(f"cannot read the {what} {path}: {place}{error.problem or error.context}") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:  # ValueError: not UTF-8, or 5000 digits
        raise BadInput(f"cannot read the {what} {path}: {error}") from None


def to_yaml(value):
    """A value as YAML that read_yaml reads back as the same value, mappings in their order."""
    return yaml.dump(value, Dumper=_YamlDumper, sort_keys=False)


def hold_lock(path, busy):
    """Make a directory and lock it; returns a context manager that keeps the lock until it ends or the process does.

    Raises BadInput `busy` where another process holds it, or if the directory cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        return FileLock(path / LOCK, timeout=0).acquire()  # the lock itself, entered once more, would stay held
    except Timeout:
        raise BadInput(busy) from None
    except OSError as error:
        raise BadInput(f"cannot write to {path}: {error.strerror}; choose another place") from None


def existing_parent(path):
    """The nearest directory that a path is, or will be, in."""
    return next(parent for parent in [path, *path.absolute().parents] if parent.is_dir())


def free_bytes(path):
    """Bytes free where a path is or will be."""
    return shutil.disk_usage(existing_parent(path)).free


def size_text(size):
    """Bytes for people: 1.50 GB, 12.0 MB, 0.1 MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def hash_file(path):
    """SHA-256 of a file's content, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_value(value):
    """SHA-256 of a value that JSON knows, hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def make_seed(*what):
    """A 63-bit seed that follows from its arguments, values that JSON knows, alone."""
    return int(hash_value(what)[:16], 16) >> 1


# ---- the cache that save_model_locally.py makes


def get_cache_dir(arg=None):
    """The cache: the argument, else $GRPSPO_CACHE, else ./cached_files."""
    return Path(arg or os.environ.get("GRPSPO_CACHE") or DEFAULT_CACHE_DIR).expanduser()


def fetch_command(flag, name, cache_dir):
    """The command that puts one item into a cache, to paste into a shell."""
    return f"python save_model_locally.py {flag} {shlex.quote(name)} --cache_dir {shlex.quote(str(cache_dir))}"


def read_manifest(cache_dir):
    """The items a cache says it holds: {name: {"kind", "hub_id", "revision", "files": {path: {"size", "sha256"}}}}.

    Raises BadInput if manifest.json is there but cannot be read.
    """
    path = Path(cache_dir) / MANIFEST
    repair = "delete it and run save_model_locally.py again"
    try:
        items = (read_json(path, repair) or {"items": {}})["items"]
        return {name: item for name, item in items.items() if item["files"]}
    except (KeyError, TypeError, AttributeError):
        raise BadInput(f"{path} is damaged: {repair}") from None


def find_faults(cache_dir, name, hashed):
    """["PATH is missing"] and the like of a cached item's files by the manifest: sizes, and if `hashed` every byte."""
    faults = []
    for file, stated in read_manifest(cache_dir).get(name, {"files": {}})["files"].items():
        path = Path(cache_dir) / name / file
        if not path.is_file():
            faults.append(f"{path} is missing")
        elif path.stat().st_size != stated["size"]:
            faults.append(f"{path} has {path.stat().st_size} bytes, not {stated['size']}")
        elif hashed and hash_file(path) != stated["sha256"]:
            faults.append(f"{path} has changed since it was fetched")
    return faults


def check_sizes(cache_dir, name, repair):
    """Raise BadInput unless each file of a cached item has the size its manifest states; `repair` is the way out.

    A missing or cut file is found here at the cost of a few stat calls; save_model_locally.py --verify also hashes.
    """
    if faults := find_faults(cache_dir, name, hashed=False):
        raise BadInput(f"{faults[0]}; repair it with: {repair}")
