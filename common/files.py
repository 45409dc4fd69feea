"""What every script shares: errors in one line, the command line, files that appear whole, locks, the offline cache.

For the experiments of Probability Smoothing Policy Optimisation (arXiv 2509.21282). Needs filelock and PyYAML alone.

    from common.files import BadInput, hold_lock, make_parser, run_script, write_json
"""

import argparse
import difflib
import hashlib
import io
import json
import os
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
        return main()
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
    """Rows (dicts) of a file with one JSON object a line; raises BadInput naming the file and the line."""
    rows = []
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise TypeError
                rows.append(row)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not UTF-8 text") from None
    except (ValueError, TypeError, RecursionError):  # a number of 5000 digits is a plain ValueError
        raise BadInput(f"{path}, line {len(rows) + 1}: not a JSON object") from None
    return rows


def read_yaml(path, what):
    """What a YAML file says; raises BadInput for one that cannot be read, or has a key twice. what: the file's kind."""

    def compose(anchor):
        node = yaml.SafeLoader.compose_mapping_node(loader, anchor)
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:  # PyYAML would keep the last
            raise BadInput(f"{path}, line {node.start_mark.line + 1}: {twice[0]} is given twice in one mapping")
        return node

    try:
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
        loader.compose_mapping_node = compose
        loader.deep_construct = True  # what contains itself is then an error of YAML's
        return loader.get_single_data()
    except BadInput:
        raise
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:  # ValueError: not UTF-8, or 2026-13-01
        raise BadInput(f"cannot read the {what} {path}: {error}") from None


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
    path, repair = Path(cache_dir) / MANIFEST, "delete it and run save_model_locally.py again"
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
