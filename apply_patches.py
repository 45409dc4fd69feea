"""Applies the two patches of this folder to an installed TRL, both or neither.

The patches add `trust_region_method` (Probability Smoothing Policy Optimisation, https://arxiv.org/abs/2509.21282, and
what it is compared with) to GRPOTrainer and GRPOConfig of one TRL release. Standard library only, and no
`patch` binary: the files must be exactly those of the release (sha256 in the headers of the patches), and what is
written is compared with a sha256 too.

python apply_patches.py                 # patch the TRL that this interpreter imports
python apply_patches.py --check         # say what each file is; exit code 0 only if both are patched
python apply_patches.py --reverse       # bring back the bytes of the release
python apply_patches.py --target DIR    # another copy: a site-packages folder, or the trl folder itself
python apply_patches.py --refresh DIR   # write both patches anew from the edited copy of a patched TRL in DIR

Exit codes: 0 done, 1 `--check` found a file that is not patched, 2 refused, with nothing changed.
"""

import argparse
import ast
import contextlib
import datetime
import difflib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

# In this order: a patched trainer beside a pristine config stops at the import, whereas a patched config beside
# a pristine trainer would accept "pspo" and train with "clip".
PATCH_NAMES = ("grpotrainer.patch", "grpoconfig.patch")
HERE = Path(__file__).resolve().parent
TEMPORARY_PREFIX = ".apply_patches."


class Patch(NamedTuple):
    """What one patch file says."""

    path: str  # of the file it changes, relative to site-packages
    release: str
    sha256_before: str
    sha256_after: str
    hunks: list


def sha256(content):
    """Hexadecimal sha256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def split_lines(content):
    """The lines of bytes with their line ends; unlike bytes.splitlines, a carriage return does not end one."""
    return re.findall(rb"[^\n]*\n|[^\n]+", content)


def parse_patch(content, name):
    """Reads the bytes of a patch of one file, called `name` in messages; raises ValueError if it is not one of ours.

    Returns a `Patch` whose hunks are `((first line, old lines), (first line, new lines))`, lines as bytes with their
    line ends, counted from 0.
    """
    header = content.partition(b"\n@@ ")[0].decode("ascii", "replace")
    fields = dict(re.findall(r"^(X-[\w-]+: |--- a/)(\S+)$", header, re.MULTILINE))
    pieces = re.split(rb"^@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@.*\n", content, flags=re.MULTILINE)
    hunks = []
    for old_start, new_start, body in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        old, new = ([line[1:] for line in split_lines(body) if line[:1] in signs] for signs in (b" -", b" +"))
        hunks.append(((int(old_start) - 1, old), (int(new_start) - 1, new)))
    try:
        stated = [fields[key] for key in ("--- a/", "X-TRL-Release: ", "X-SHA256-Before: ", "X-SHA256-After: ")]
    except KeyError as error:
        raise ValueError(f"{name} has no line {error} in its header; get it again from the repository") from None
    return Patch(*stated, hunks)


def read_patches():
    """Both patches beside this script, in the order in which they are applied; raises ValueError if one is missing."""
    try:
        return [parse_patch((HERE / name).read_bytes(), name) for name in PATCH_NAMES]
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing; get it again from the repository") from None


def convert(content, patch, reverse=False):
    """The bytes that `patch` makes of the bytes `content`, or with `reverse` those it was made of.

    Exact: every hunk must be where its numbers say, and the result must have the sha256 of the header. Raises
    ValueError otherwise.
    """
    source = split_lines(content)
    result = []
    done = 0
    for hunk in patch.hunks:
        (start, old), (_, new) = reversed(hunk) if reverse else hunk
        if source[start : start + len(old)] != old:
            raise ValueError(f"the patch of {patch.path} does not fit at line {start + 1}")
        result += source[done:start] + new
        done = start + len(old)
    result = b"".join(result + source[done:])
    if sha256(result) != (patch.sha256_before if reverse else patch.sha256_after):
        raise ValueError(f"the patch of {patch.path} does not give the sha256 in its header; get both files again")
    return result


def find_trl(target=None):
    """The `trl` folder that this interpreter would import, or the one in or at `target`; ValueError without one."""
    if target is None:
        spec = importlib.util.find_spec("trl")
        if spec is None or spec.origin is None:
            raise ValueError(f"TRL is not installed for {sys.executable}; run: pip install -r requirements.txt")
        return Path(spec.origin).parent
    target = Path(target).absolute()
    for package in (target / "trl", target):
        if (package / "trainer").is_dir():
            return package
    raise ValueError(f"{target} holds no TRL; give a site-packages folder or a trl folder")


def installed_release(package):
    """The release that the metadata beside the `trl` folder states, or None where there is no metadata."""
    found = importlib.metadata.distributions(name="trl", path=[str(package.parent)])
    return next((distribution.version for distribution in found), None)


def file_path(package, path):
    """Where a file, such as "trl/trainer/grpo_config.py", is in the `trl` folder `package`, whatever that is called."""
    return package / path.removeprefix("trl/")


def trl_state(target=None):
    """What the files of TRL are by their sha256, without importing it; raises ValueError if there is no TRL.

    Returns `{path relative to site-packages: "pristine" | "patched" | "foreign" (neither) | "missing"}`.
    """
    package = find_trl(target)
    states = {}
    for patch in read_patches():
        path = file_path(package, patch.path)
        digest = sha256(path.read_bytes()) if path.exists() else None
        known = {None: "missing", patch.sha256_before: "pristine", patch.sha256_after: "patched"}
        states[patch.path] = known.get(digest, "foreign")
    return states


def trust_region_methods():
    """The values of `trust_region_method`, as the config's patch lists them: at once, without an import of TRL."""
    added = b"".join(line for _, (_, new) in read_patches()[1].hunks for line in new).decode()
    return ast.literal_eval(re.search(r"^TRUST_REGION_METHODS = (\([^)]*\))", added, re.MULTILINE)[1])


def require_patched_trl(method):
    """Makes sure, before anything is trained, that the trainer which will run knows `trust_region_method=method`.

    The files are looked at first, since that takes no import. Then the loaded loss is asked for the methods that it
    knows, the tuple in its own module: what runs may come from stale bytecode, from another TRL on the path or from a
    library that replaces the loss, and a config with the field beside a trainer without it would train with "clip" and
    not say so. Raises ValueError with the command to run.
    """
    refuse_other_release(find_trl())
    remedy = "run: python apply_patches.py"
    unpatched = [path for path, state in trl_state().items() if state in ("pristine", "missing")]
    if unpatched:
        raise ValueError(f"TRL is not patched ({', '.join(unpatched)}); {remedy}")
    try:
        from trl import GRPOTrainer
    except (ImportError, RuntimeError) as error:  # such as a patched trainer beside the config of an earlier patch
        raise ValueError(f"TRL cannot be imported ({str(error).splitlines()[-1]}); {remedy}") from None
    known = inspect.unwrap(GRPOTrainer._compute_loss).__globals__.get("TRUST_REGION_METHODS", ())
    if method not in known:
        raise ValueError(f"the loaded GRPOTrainer does not know trust_region_method={method!r}; {remedy}")


def install_command(package, options=""):
    """The command that puts the release of the patches, alone, in the place of a `trl` folder.

    It is for this interpreter where that imports the folder, else for the environment that the folder lies in, else
    for the folder itself.
    """
    requirement = f"trl=={read_patches()[0].release}"
    spec = importlib.util.find_spec("trl")
    if spec and spec.origin and Path(spec.origin).parent == package:
        return f"{sys.executable} -m pip install {options}{requirement}"
    python = package.parents[3] / "bin/python" if len(package.parents) > 3 else None  # of bin/, lib/python3.11/
    if python and python.exists():
        return f"{python} -m pip install {options}{requirement}"
    return f"{sys.executable} -m pip install --upgrade --no-deps --target {package.parent} {requirement}"


def refuse_other_release(package):
    """Raises ValueError, with the way out, if the metadata beside a `trl` folder states another release."""
    release = read_patches()[0].release
    installed = installed_release(package)
    if installed not in (None, release):
        command = install_command(package)
        raise ValueError(f"{package} is TRL {installed}, and the patches are for {release} only; run: {command}")


def known_states(package):
    """The `trl_state` of a folder; raises ValueError, with the way out, for a file that is neither known one."""
    refuse_other_release(package)
    states = trl_state(package)
    for path, state in states.items():
        if state not in ("pristine", "patched"):
            raise ValueError(
                f"{file_path(package, path)} is neither the file of TRL {read_patches()[0].release} nor the patched "
                "one: it was changed by something else or by an earlier version of the patch; bring the release back "
                f"with: {install_command(package, '--force-reinstall --no-deps ')}"
            )
    return states


def refuse_links(package):
    """Raises ValueError, with the way out, if a folder is a symbolic link.

    A rename in a linked folder would change the package store behind the link, and with it every environment that
    shares the store. A linked or hard-linked *file* is no problem: the rename replaces the link.
    """
    for folder in (package, package / "trainer"):
        if folder.is_symlink():
            raise ValueError(
                f"{folder} is a symbolic link to {folder.resolve()}, which other environments may share; replace it by "
                f"a copy: cp -RL {folder} {folder}.copy && rm {folder} && mv {folder}.copy {folder}"
            )


@contextlib.contextmanager
def hold_lock(package):
    """Lets one process at a time change the files of the `trl` folder `package`; yields if there is a lock.

    The kernel drops the lock of a process that is killed. It is on a file of TRL's that is never replaced.
    """
    path = package / "__init__.py"
    locked = True
    with open(path, "r+b" if os.access(path, os.W_OK) else "rb") as file:  # NFS locks only what is open for writing
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            # Some cluster file systems have no locks. Every apply writes the same bytes by a rename, so only an
            # apply and a --reverse at the same moment could then leave one file each way, until the next run.
            locked = False
            print(f"apply_patches.py: note: no file lock in {package} ({error.strerror})", file=sys.stderr)
        yield locked


def replace_files(contents):
    """Replaces files of one folder, `{path: new bytes}`, in this order; their permissions stay.

    Everything that can fail comes before the first rename. A rename replaces a name in this folder, so the other
    names of a hard-linked file and the target of a symbolic link keep their content.
    """
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=next(iter(contents)).parent) as temporary:
        for path, content in contents.items():
            with open(Path(temporary, path.name), "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), path.stat().st_mode & 0o7777)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(Path(temporary, path.name), path)


def remove_bytecode(path):
    """Removes the compiled files of the source `path`, which must happen before its content changes.

    Python compares size and time by itself, but not for bytecode compiled with "unchecked-hash" (PEP 552). What an
    import writes after this carries the size of the source it read, and the two contents differ in size.
    """
    cache = path.parent / "__pycache__"
    if not cache.is_symlink():  # else it is somebody else's; require_patched_trl looks at what was loaded
        for compiled in cache.glob(f"{path.stem}.*.pyc"):
            compiled.unlink(missing_ok=True)


def write_state(package, wanted):
    """Brings both files to the state `wanted`, "patched" or "pristine", under the lock; returns whether one changed."""
    patches = read_patches()
    states = trl_state(package)
    changes = {}
    for patch in patches if wanted == "patched" else reversed(patches):
        if states[patch.path] != wanted:
            path = file_path(package, patch.path)
            changes[path] = convert(path.read_bytes(), patch, reverse=wanted == "pristine")
    for path in changes:
        remove_bytecode(path)
    if changes:
        replace_files(changes)
    if set(trl_state(package).values()) != {wanted}:
        raise ValueError(f"something else is changing {package} at this moment; run this again")
    return bool(changes)


def change_trl(package, wanted):
    """Patches the TRL in `package` (`wanted` "patched") or restores it ("pristine"); returns whether anything changed.

    Raises ValueError in one line if that is not possible, with no file changed.
    """
    folder = package / "trainer"
    left = list(folder.glob(f"{TEMPORARY_PREFIX}*"))  # by a killed run, or in use until there is the lock
    if set(known_states(package).values()) == {wanted} and not left:
        return False
    refuse_links(package)
    with hold_lock(package) as locked:
        for path in left if locked else ():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        try:
            return write_state(package, wanted)
        except OSError as error:
            raise ValueError(
                f"cannot write in {folder} ({error.strerror}); make room, run this as the owner of that environment, "
                "or make one of your own: python -m venv .venv && .venv/bin/pip install -r requirements.txt"
            ) from None


def refreshed(old, patch, release, edited):
    """The content `old` of a patch file, made anew to turn the bytes `release` into `edited`; its description is kept.

    Raises ValueError if nothing is patched in `edited`, if it is no Python, or if what is made would not apply.
    """
    if edited == release:
        raise ValueError(f"{patch.path} is the file of TRL {patch.release}; edit a copy of a patched TRL")
    if not edited.endswith(b"\n"):
        raise ValueError(f"the edited {patch.path} must end with a line break")
    try:
        ast.parse(edited)
    except SyntaxError as error:
        raise ValueError(f"the edited {patch.path} is no Python: {error.msg} in line {error.lineno}") from None
    header = old.partition(b"\n--- a/")[0].decode()
    for field, value in (("X-SHA256-After", sha256(edited)), ("Last-Update", datetime.date.today().isoformat())):
        header = re.sub(f"^{field}: .*$", f"{field}: {value}", header, flags=re.MULTILINE)
    names = f"a/{patch.path}".encode(), f"b/{patch.path}".encode()
    diff = difflib.diff_bytes(difflib.unified_diff, split_lines(release), split_lines(edited), *names, n=1)
    content = b"\n".join([header.encode(), b"".join(diff)])
    convert(release, parse_patch(content, patch.path))
    return content


def refresh_patches(package, source):
    """Writes both patch files anew from the edited copy of TRL in `source`; returns the names of those that changed.

    The release is read from the TRL in `package`, which must be pristine or patched; where it was patched, it is
    patched with the new files at the end. Raises ValueError with the way out, and then no file has changed.
    """
    if source.resolve() == package.resolve():
        raise ValueError(f"{source} is the TRL that holds the release; edit a copy of it: cp -r {package} COPY")
    states = known_states(package)
    changed = {}
    for name, patch in zip(PATCH_NAMES, read_patches(), strict=True):
        release, edited = (file_path(folder, patch.path).read_bytes() for folder in (package, source))
        if states[patch.path] == "patched":
            release = convert(release, patch, reverse=True)
        if sha256(edited) != patch.sha256_after:
            changed[name] = refreshed((HERE / name).read_bytes(), patch, release, edited)
    if not changed:
        return []
    was_patched = "patched" in states.values()
    if was_patched:  # with the patches that made it what it is
        change_trl(package, "pristine")
    replace_files({HERE / name: content for name, content in changed.items()})
    if was_patched:
        change_trl(package, "patched")
    return list(changed)


def main():
    """Does what the command line says; returns the exit code. Errors in it take one line, like all others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"apply_patches.py: error: {message}\n")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="only say what each file is (exit code 0: patched)")
    action.add_argument("--reverse", action="store_true", help="restore the bytes of the release")
    action.add_argument("--refresh", metavar="DIR", help="rewrite both patches from the edited copy of TRL in DIR")
    parser.add_argument("--target", metavar="DIR", help="a site-packages or trl folder (default: this Python's)")
    args = parser.parse_args()
    package = find_trl(args.target)
    if args.check:
        states = trl_state(package)
        print(f"TRL {installed_release(package) or '(release unknown)'} in {package}")
        for path, state in states.items():
            print(f"{path}: {state}")
        return 0 if set(states.values()) == {"patched"} else 1
    if args.refresh:
        names = refresh_patches(package, find_trl(args.refresh))
        print(f"rewritten: {' and '.join(names) or 'nothing, the patches already give this copy'}")
        return 0
    wanted = "pristine" if args.reverse else "patched"
    changed = change_trl(package, wanted)
    print(f"TRL in {package}: {'now' if changed else 'already'} {wanted}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"apply_patches.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
