"""apply_patches.py on copies of TRL: what it writes, what it refuses, and what concurrency and kills leave behind."""

import base64
import ctypes
import difflib
import errno
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import os
import py_compile
import random
import re
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import apply_patches

TRL = Path(importlib.metadata.distribution("trl").locate_file("trl"))
METADATA = next(TRL.parent.glob("trl-*.dist-info"))
FILES = ("trl/trainer/grpo_trainer.py", "trl/trainer/grpo_config.py")
SCRIPT = Path(apply_patches.__file__)
# -S: no site-packages, so that nothing but the standard library can be in use; -B: no bytecode
PYTHON = (sys.executable, "-S", "-B")


def run(*arguments, **keywords):
    """Runs apply_patches.py; returns the finished process with its text."""
    return subprocess.run([*PYTHON, SCRIPT, *map(str, arguments)], capture_output=True, text=True, **keywords)


def contents(site):
    """The bytes of the two files in a site-packages folder."""
    return [(site / name).read_bytes() for name in FILES]


def states(site):
    """What the two files are, trainer first."""
    found = apply_patches.trl_state(site)
    return [found[name] for name in FILES]


def assert_refused(process, *words):
    """One line on stderr with `words` in it, exit code 2, nothing on stdout."""
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.count("\n") == 1
    assert process.stderr.startswith("apply_patches.py: error: ")
    for word in words:
        assert word in process.stderr


def make_site(folder, source=TRL.parent):
    """A site-packages folder with the two files, the package's __init__.py and the metadata of TRL."""
    (folder / "trl" / "trainer").mkdir(parents=True)
    for name in ("trl/__init__.py", *FILES):
        shutil.copy(source / name, folder / name)
    metadata = next(source.glob("trl-*.dist-info"))
    (folder / metadata.name).mkdir()
    for name in ("METADATA", "RECORD"):
        shutil.copy(metadata / name, folder / metadata.name)
    return folder


@pytest.fixture
def site(tmp_path):
    """A copy of the installed TRL with the bytes of the release."""
    folder = make_site(tmp_path / "site-packages")
    process = run("--reverse", "--target", folder)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="session")
def other_release(pytestconfig):
    """Function that gives a site-packages folder with another TRL release, fetched once."""

    def fetch(version):
        wheels = Path(pytestconfig.cache.mkdir("trl_wheels"))
        wheel = wheels / f"trl-{version}-py3-none-any.whl"
        if not wheel.is_file():
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--retries", "1", "--timeout", "15"]
            process = subprocess.run([*command, "-d", wheels, f"trl=={version}"], capture_output=True, text=True)
            if process.returncode:
                pytest.skip(f"the package index does not give trl=={version}")
        folder = wheels / version
        if not folder.is_dir():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(f"{folder}.{os.getpid()}")
            os.replace(f"{folder}.{os.getpid()}", folder)
        return folder

    return fetch


# What the patches say and do


def test_pin_headers_and_installed_release_agree(root):
    pin = re.search(r"^trl==(\S+)", (root / "requirements.txt").read_text(), re.MULTILINE)[1]
    assert pin == importlib.metadata.version("trl")
    assert {patch.release for patch in apply_patches.read_patches()} == {pin}


def test_sha256_before_is_the_one_in_the_wheel():
    record = (METADATA / "RECORD").read_text()
    for patch in apply_patches.read_patches():
        stated = re.search(rf"^{re.escape(patch.path)},sha256=([\w-]+),", record, re.MULTILINE)[1]
        assert base64.urlsafe_b64decode(stated + "=").hex() == patch.sha256_before


def test_headers_have_the_dep3_fields(root):
    for name in apply_patches.PATCH_NAMES:
        header = (root / name).read_text().partition("\n---\n")[0]
        for field in ("Description", "Origin", "Forwarded", "Last-Update"):
            assert re.search(rf"^{field}: \S", header, re.MULTILINE), (name, field)
        assert "Why a patch and not a subclass" in header


def test_apply_again_check_reverse_reapply(site):
    pristine = contents(site)
    assert run("--check", "--target", site).returncode == 1
    outputs = [run(*flags, "--target", site) for flags in ((), (), ("--check",), ("--reverse",), ("--reverse",), ())]
    assert [process.returncode for process in outputs] == [0] * 6
    assert [process.stdout.split(": ")[-1].strip() for process in outputs] == [
        "now patched", "already patched", "patched", "now pristine", "already pristine", "now patched"
    ]  # fmt: skip
    hashes = [patch.sha256_after for patch in apply_patches.read_patches()]
    assert [hashlib.sha256(content).hexdigest() for content in contents(site)] == hashes
    run("--reverse", "--target", site)
    assert contents(site) == pristine
    assert sorted(path.name for path in (site / "trl/trainer").iterdir()) == ["grpo_config.py", "grpo_trainer.py"]


def test_gnu_patch_writes_the_same_bytes(site, tmp_path, root):
    if shutil.which("patch") is None:
        pytest.skip("needs GNU patch")
    by_patch = make_site(tmp_path / "by_patch", site)
    for name in apply_patches.PATCH_NAMES:
        subprocess.run(["patch", "-s", "-p1", "--fuzz=0", "--forward", "-d", by_patch, "-i", root / name], check=True)
    run("--target", site)
    assert contents(by_patch) == contents(site)
    assert run("--check", "--target", by_patch).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.10.0", "1.11.0", "1.12.0", "1.13.0", "1.14.2", "1.15.0"])
def test_another_release_has_a_place_for_every_hunk(other_release, root, version):
    """Without fuzz, at most 93 lines elsewhere, as CONTRIBUTING.md says; `apply_patches` refuses it all the same."""
    if shutil.which("patch") is None:
        pytest.skip("needs GNU patch")
    assert f" {version}" in (root / "CONTRIBUTING.md").read_text()
    dry = ["patch", "-p1", "--fuzz=0", "--forward", "--dry-run", "--verbose", "-d", other_release(version), "-i"]
    for name, patch in zip(apply_patches.PATCH_NAMES, apply_patches.read_patches(), strict=True):
        said = subprocess.run([*dry, root / name], capture_output=True, text=True)
        assert said.returncode == 0, said.stdout
        assert said.stdout.count("succeeded at") == len(patch.hunks)
        assert all(abs(int(lines)) <= 93 for lines in re.findall(r"offset (-?\d+) line", said.stdout))


def test_target_may_be_the_package_under_any_name(site, tmp_path):
    package = tmp_path / "renamed"
    shutil.copytree(site / "trl", package)
    assert run("--target", ".", cwd=package).returncode == 0
    assert states(package) == ["patched", "patched"]


lines = st.lists(
    st.sampled_from([b"a\n", b"b\n", b"\n", b" c\r\n", b"-d\r+\n", b"+e\n", b"@@ -1 +1 @@\n"]), max_size=12
)


@given(old=lines, new=lines, context=st.integers(1, 3))
def test_convert_agrees_with_difflib(old, new, context):
    names = b"a/trl/f.py", b"b/trl/f.py"
    diff = list(difflib.diff_bytes(difflib.unified_diff, old, new, *names, n=context))
    old, new = b"".join(old), b"".join(new)
    hashes = [hashlib.sha256(content).hexdigest() for content in (old, new)]
    if diff:
        text = f"X-TRL-Release: 1\nX-SHA256-Before: {hashes[0]}\nX-SHA256-After: {hashes[1]}\n".encode()
        patch = apply_patches.parse_patch(text + b"".join(diff), "f.patch")
        assert apply_patches.convert(old, patch) == new
        assert apply_patches.convert(new, patch, reverse=True) == old
        with pytest.raises(ValueError, match="f.py"):
            apply_patches.convert(old + b"z\n", patch)


# What it refuses


@given(st.binary() | st.lists(st.sampled_from([b"\n--- a/", b"X-TRL-Release: 1\n", b"\n@@ -1 +1 @@\n", b"-", b"\xff"])))
def test_parse_patch_raises_nothing_but_value_error(content):
    content = content if isinstance(content, bytes) else b"".join(content)
    with pytest.raises(ValueError, match="get it again from the repository"):
        apply_patches.parse_patch(content, "f.patch")


@pytest.mark.parametrize("version", ["1.15.0", "0.25.1"])
def test_refuses_another_release(other_release, version, tmp_path):
    folder = other_release(version)
    before = contents(folder)
    assert_refused(
        run("--target", folder), f"is TRL {version}", f"pip install --upgrade --no-deps --target {folder} trl=="
    )
    assert_refused(run("--reverse", "--target", folder), f"is TRL {version}")
    assert run("--check", "--target", folder).returncode == 1
    shutil.copytree(folder / "trl", tmp_path / "trl")  # without the metadata
    assert_refused(run("--target", tmp_path), "is neither the file of TRL 1.16.0")
    assert contents(folder) == before == contents(tmp_path)


def set_release(site, version):
    """Makes the metadata beside a copy of TRL state another release."""
    metadata = next(site.glob("trl-*.dist-info")) / "METADATA"
    metadata.write_text(re.sub(r"(?m)^Version: .*", f"Version: {version}", metadata.read_text()))


def test_the_command_it_names_is_for_the_environment_that_holds_the_files(site, tmp_path, monkeypatch):
    set_release(site, "1.15.0")
    environment = tmp_path / "environment"
    packages = environment / "lib/python3.11/site-packages"
    shutil.copytree(site, packages)
    assert_refused(run("--target", site), f"{sys.executable} -m pip install --upgrade --no-deps --target {site} trl==")
    (environment / "bin").mkdir()
    (environment / "bin/python").symlink_to(sys.executable)
    assert_refused(run("--target", packages), f"run: {environment}/bin/python -m pip install trl==1.16.0")
    (packages / FILES[0]).write_text("x = 1\n")
    set_release(packages, "1.16.0")
    words = f"with: {environment}/bin/python -m pip install --force-reinstall --no-deps trl==1.16.0"
    assert_refused(run("--target", packages), words)
    assert apply_patches.install_command(TRL) == f"{sys.executable} -m pip install trl==1.16.0"


def test_training_under_another_release_is_told_so_at_once(site, monkeypatch):
    set_release(site, "1.15.0")
    monkeypatch.setattr(apply_patches, "find_trl", lambda target=None: site / "trl")
    with pytest.raises(ValueError, match=r"is TRL 1.15.0, and the patches are for 1.16.0 only; run: .*pip install"):
        apply_patches.require_patched_trl("pspo")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("patched", [False, True])
def test_refuses_a_file_with_one_byte_changed(site, name, patched):
    if patched:
        run("--target", site)
    content = bytearray((site / name).read_bytes())
    content[-2] ^= 1
    (site / name).write_bytes(content)
    before = contents(site)
    for flags in ((), ("--reverse",)):
        assert_refused(run(*flags, "--target", site), name, f"--upgrade --no-deps --target {site} trl==1.16.0")
    assert contents(site) == before
    assert run("--check", "--target", site).stdout.count(": foreign\n") == 1


def test_refuses_an_unreadable_file(site):
    (site / FILES[1]).chmod(0)
    process = run("--check", "--target", site, preexec_fn=forget_that_root_may_do_anything)
    if process.returncode == 1:
        pytest.skip("this user reads whatever the permission bits say")
    assert_refused(process, "Permission denied", FILES[1])


def test_refuses_a_missing_file(site):
    (site / FILES[1]).unlink()
    assert_refused(run("--target", site), FILES[1])
    assert states(site) == ["pristine", "missing"]


def forget_that_root_may_do_anything():
    """For a child process: without these capabilities, permission bits hold for root too."""
    PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2  # linux/prctl.h, linux/capability.h
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability)


def test_refuses_a_read_only_folder_unless_there_is_nothing_to_do(site):
    folder = site / "trl/trainer"
    before = contents(site)
    folder.chmod(0o555)
    try:
        probe = subprocess.run(["touch", folder / "probe"], preexec_fn=forget_that_root_may_do_anything)
        if probe.returncode == 0:
            pytest.skip("this user writes whatever the permission bits say")
        process = run("--target", site, preexec_fn=forget_that_root_may_do_anything)
        assert_refused(process, f"cannot write in {folder}", "as the owner", "python -m venv")
        assert contents(site) == before
        folder.chmod(0o755)
        run("--target", site)
        folder.chmod(0o555)
        assert run("--target", site, preexec_fn=forget_that_root_may_do_anything).returncode == 0
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize("flags", [[], ["--reverse"]])
def test_a_full_disk_leaves_nothing_behind(site, flags):
    if flags:  # the order is the other way round then: the file that fits comes first
        run("--target", site)
    before = contents(site)
    limit = len(before[0]) // 2  # the config fits; for the trainer, write() fails as it does on a full disk
    set_limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    process = run(*flags, "--target", site, preexec_fn=set_limit)
    assert_refused(process, "cannot write in", "File too large")
    assert contents(site) == before
    assert sorted(path.name for path in (site / "trl/trainer").iterdir()) == ["grpo_config.py", "grpo_trainer.py"]


def test_refuses_without_trl(tmp_path):
    assert_refused(run(), "TRL is not installed", "pip install -r requirements.txt")
    assert_refused(run("--check"), "TRL is not installed")
    assert_refused(run("--target", tmp_path), f"{tmp_path} holds no TRL")


def test_refuses_a_wrong_command_line_in_one_line():
    assert_refused(run("--check", "--reverse"), "not allowed with")


@pytest.mark.parametrize("link", ["trl", "trl/trainer"])
def test_refuses_a_folder_that_is_a_link_into_a_store(site, tmp_path, link):
    store = tmp_path / "store"
    shutil.move(site / link, store)
    (site / link).symlink_to(store)
    before = contents(site)
    assert_refused(run("--target", site), f"{site / link} is a symbolic link to {store}", "cp -RL")
    assert contents(site) == before
    remedy = run("--target", site).stderr.split("replace it by a copy: ")[1]
    subprocess.run(remedy, shell=True, check=True)
    assert run("--target", site).returncode == 0
    assert states(site) == ["patched", "patched"]
    assert sorted(path.name for path in (store if link == "trl/trainer" else store / "trainer").iterdir()) == [
        "grpo_config.py", "grpo_trainer.py"
    ]  # fmt: skip
    assert states_of_store(store, link) == ["pristine", "pristine"]


def states_of_store(store, link):
    """What the files behind the link are."""
    trainer = store if link == "trl/trainer" else store / "trainer"
    return [
        {patch.sha256_before: "pristine", patch.sha256_after: "patched"}[
            hashlib.sha256((trainer / Path(patch.path).name).read_bytes()).hexdigest()
        ]
        for patch in apply_patches.read_patches()
    ]


# What it leaves alone


@pytest.mark.parametrize("make_link", [os.link, os.symlink])
def test_linked_original_is_unchanged(site, tmp_path, make_link):
    before = contents(site)
    for name in FILES:
        original = tmp_path / Path(name).name
        shutil.move(site / name, original)
        make_link(original, site / name)
    assert run("--target", site).returncode == 0
    assert states(site) == ["patched", "patched"]
    assert [(tmp_path / Path(name).name).read_bytes() for name in FILES] == before


def test_permissions_are_kept(site):
    modes = (0o640, 0o444)
    for name, mode in zip(FILES, modes, strict=True):
        (site / name).chmod(mode)
    run("--target", site)
    assert tuple((site / name).stat().st_mode & 0o777 for name in FILES) == modes


@pytest.mark.parametrize("mode", list(py_compile.PycInvalidationMode))
def test_stale_bytecode_is_not_loaded(site, mode):
    path = str(site / FILES[1])
    py_compile.compile(path, invalidation_mode=mode)
    run("--target", site)
    code = importlib.machinery.SourceFileLoader("grpo_config", path).get_code("grpo_config")
    source = compile((site / FILES[1]).read_bytes(), path, "exec")
    assert code == source


def test_file_system_without_locks(site, monkeypatch, capsys):
    def no_lock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(apply_patches.fcntl, "flock", no_lock)
    in_use = site / "trl/trainer" / f"{apply_patches.TEMPORARY_PREFIX}another"
    in_use.touch()
    assert apply_patches.change_trl(site / "trl", "patched")
    assert states(site) == ["patched", "patched"]
    assert in_use.exists()
    assert "no file lock" in capsys.readouterr().err


def test_what_a_killed_run_has_left_goes_be_it_a_folder_or_a_file(site):
    left = [site / "trl/trainer" / f"{apply_patches.TEMPORARY_PREFIX}{name}" for name in ("folder", "file")]
    left[0].mkdir()
    left[1].touch()
    assert apply_patches.change_trl(site / "trl", "patched")
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("mode", [0o444, None])
def test_the_file_that_carries_the_lock_may_be_read_only_and_is_named_when_it_is_missing(site, mode):
    carrier = site / "trl/__init__.py"
    carrier.chmod(mode) if mode else carrier.unlink()
    process = run("--target", site, preexec_fn=forget_that_root_may_do_anything)
    if mode:
        assert process.returncode == 0 and process.stderr == "", process.stderr
        assert states(site) == ["patched", "patched"]
    else:
        assert_refused(process, "No such file", str(carrier))


# Concurrency and kills


def test_sixteen_processes_at_once(site):
    command = [*PYTHON, SCRIPT, "--target", site]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(16)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 16
    assert sum(output.endswith(b"now patched\n") for output in outputs) == 1
    assert states(site) == ["patched", "patched"]
    assert sorted(path.name for path in (site / "trl/trainer").iterdir()) == ["grpo_config.py", "grpo_trainer.py"]


def test_apply_and_reverse_at_once_leave_both_files_alike(site):
    for _ in range(2):
        flags = [[], ["--reverse"]] * 8
        processes = [subprocess.Popen([*PYTHON, SCRIPT, "--target", site, *f], stdout=subprocess.PIPE) for f in flags]
        assert {process.communicate()[0].split()[-1] for process in processes} == {b"patched", b"pristine"}
        assert [process.returncode for process in processes] == [0] * 16
        assert len(set(states(site))) == 1


def assert_next_run_repairs(site):
    """One more run, and both files are patched with nothing left over; never is a file anything but one of the two."""
    assert set(states(site)) <= {"pristine", "patched"}
    assert states(site) != ["pristine", "patched"]  # the state in which "pspo" would silently train with "clip"
    apply_patches.change_trl(site / "trl", "patched")
    assert states(site) == ["patched", "patched"]
    assert sorted(path.name for path in (site / "trl/trainer").iterdir()) == ["grpo_config.py", "grpo_trainer.py"]


@pytest.mark.slow
def test_killed_at_random_moments(site):
    before = contents(site)
    start = time.perf_counter()
    run("--target", site)
    duration = time.perf_counter() - start
    generator = random.Random(0)
    for _ in range(50):
        for name, content in zip(FILES, before, strict=True):
            (site / name).write_bytes(content)
        process = subprocess.Popen([*PYTHON, SCRIPT, "--target", site], stdout=subprocess.DEVNULL)
        time.sleep(generator.uniform(0, duration))
        process.kill()
        process.wait()
        assert_next_run_repairs(site)


# Kills itself when the Nth line (first argument) of the functions that write has been reached
KILLED_AT_LINE = """
import os, runpy, signal, sys
countdown = int(sys.argv.pop(1))
def trace(frame, event, argument):
    global countdown
    if frame.f_code.co_name not in ("hold_lock", "write_state", "replace_files", "remove_bytecode", "<module>", "main",
        "change_trl") or not frame.f_code.co_filename.endswith("apply_patches.py"):
        return None
    if frame.f_code.co_name in ("<module>", "main", "change_trl"):
        return trace
    countdown -= event == "line"
    if countdown == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return trace
sys.argv.pop(0)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
sys.settrace(trace)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_killed_at_every_line_that_writes(site):
    before, seen = contents(site), []
    for line in range(1, 200):
        for name, content in zip(FILES, before, strict=True):
            (site / name).write_bytes(content)
        command = [*PYTHON, "-c", KILLED_AT_LINE, str(line), str(SCRIPT), "--target", str(site)]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode == 0:
            break
        assert process.returncode == -9, process.stderr
        left = {path.name for path in (site / "trl/trainer").iterdir()}
        seen.append((*states(site), bool(left - {"grpo_config.py", "grpo_trainer.py"})))
        assert_next_run_repairs(site)
    assert ("patched", "pristine", True) in seen  # between the two renames
    assert {state[:2] for state in seen} == {("pristine", "pristine"), ("patched", "pristine"), ("patched", "patched")}


# What a training script asks


def test_training_is_refused_when_the_files_are_not_patched(site, monkeypatch):
    monkeypatch.setattr(apply_patches, "find_trl", lambda target=None: site / "trl")
    with pytest.raises(ValueError, match=r"^TRL is not patched \(.*grpo_trainer.py.*python apply_patches.py$"):
        apply_patches.require_patched_trl("pspo")
    shutil.copy(TRL.parent / FILES[1], site / FILES[1])  # the dangerous half: only the config knows
    with pytest.raises(ValueError, match=r"^TRL is not patched \(trl/trainer/grpo_trainer.py\)"):
        apply_patches.require_patched_trl("pspo")


def test_training_is_refused_when_the_loaded_trainer_does_not_know_the_method(monkeypatch):
    from trl import GRPOTrainer
    from trl.trainer import grpo_trainer

    for method in apply_patches.trust_region_methods():
        apply_patches.require_patched_trl(method)
    with pytest.raises(ValueError, match="does not know trust_region_method='ppo'; run: python apply_patches.py"):
        apply_patches.require_patched_trl("ppo")
    monkeypatch.setattr(grpo_trainer, "TRUST_REGION_METHODS", ("clip", "noclip"))  # what the loaded code checks against
    with pytest.raises(ValueError, match="does not know trust_region_method='pspo'"):
        apply_patches.require_patched_trl("pspo")
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda self, model, inputs: self.loss_type)
    with pytest.raises(ValueError, match="does not know trust_region_method='clip'"):
        apply_patches.require_patched_trl("clip")


@pytest.mark.parametrize("old", ["grpo_trainer.py", "grpo_config.py"])
@pytest.mark.slow
def test_training_is_refused_when_one_file_is_of_another_patch(tmp_path, root, old):
    """Neither pristine nor patched, so that only the loaded code can tell: the list of methods is cut out of it."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("trl", METADATA.name):
        shutil.copytree(TRL.parent / name, tmp_path / name, ignore=ignore)
    file = tmp_path / "trl/trainer" / old
    listed = r"(?m)^(TRUST_REGION_METHODS = \([^)]*\)|.*TRUST_REGION_METHODS)$"
    file.write_text(re.sub(listed, "", file.read_text(), count=1))
    code = "import apply_patches, sys\ntry: apply_patches.require_patched_trl('pspo')\nexcept ValueError as e: print(e)"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert process.stdout.endswith("run: python apply_patches.py\n"), process.stderr
    assert ("does not know" if old == "grpo_trainer.py" else "cannot import name") in process.stdout


# Writing the patches


def test_the_methods_are_known_without_trl():
    from trl.trainer import grpo_config, grpo_trainer

    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import apply_patches; print(apply_patches.trust_region_methods())"
    )
    process = subprocess.run([*PYTHON, "-c", code, SCRIPT.parent], capture_output=True, text=True)
    assert process.stdout == f"{grpo_config.TRUST_REGION_METHODS}\n", process.stderr
    assert grpo_trainer.TRUST_REGION_METHODS is grpo_config.TRUST_REGION_METHODS


@pytest.fixture
def workshop(site, tmp_path):
    """A patched TRL, a copy of it to edit, and a copy of the script with its patches: (site, copy, script)."""
    folder = tmp_path / "project"
    folder.mkdir()
    for path in (SCRIPT, *(SCRIPT.parent / name for name in apply_patches.PATCH_NAMES)):
        shutil.copy(path, folder)
    run("--target", site)
    shutil.copytree(site / "trl", tmp_path / "copy" / "trl")
    return site, tmp_path / "copy", folder / SCRIPT.name


def refresh(site, copy, script):
    """Runs --refresh of a copied script; returns the finished process with its text."""
    command = [*PYTHON, script, "--refresh", copy, "--target", site]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def patch_bytes(script):
    return [(script.parent / name).read_bytes() for name in apply_patches.PATCH_NAMES]


def add_method(copy):
    """What adding a method takes: one branch, and its name in one place."""
    trainer, config = (copy / name for name in FILES)
    branch = (
        '        elif self.trust_region_method == "squared":\n            per_token_loss = -(coef_1**2) * advantages\n'
    )
    before = '        elif self.trust_region_method != "clip":\n            raise'
    text = trainer.read_text()
    assert text.count(before) == 1
    trainer.write_text(text.replace(before, branch + before))
    config.write_text(config.read_text().replace('    "m2po",\n', '    "m2po",\n    "squared",\n'))


def test_refresh_of_an_unedited_copy_changes_nothing(workshop):
    before = patch_bytes(workshop[2])
    process = refresh(*workshop)
    assert process.returncode == 0, process.stderr
    assert "nothing" in process.stdout
    assert patch_bytes(workshop[2]) == before


def test_refresh_makes_patches_of_an_edited_copy(workshop, tmp_path):
    site, copy, script = workshop
    before = patch_bytes(script)
    add_method(copy)
    process = refresh(*workshop)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "rewritten: grpotrainer.patch and grpoconfig.patch\n"
    assert contents(site) == contents(copy)  # it was patched, and is again
    for old, new in zip(before, patch_bytes(script), strict=True):
        gone, come = set(old.splitlines()) - set(new.splitlines()), set(new.splitlines()) - set(old.splitlines())
        kinds = (b"Last-Update: ", b"X-SHA256-After: ", b"@@ -")
        assert all(line.startswith(kinds) for line in gone), gone
        assert all(line.startswith((*kinds, b"+        ", b'+    "squared",')) for line in come), come
        assert len(come) <= len(gone) + 2  # the branch
    check = [*PYTHON, script, "--check", "--target", site]
    assert subprocess.run(check, capture_output=True).returncode == 0
    assert subprocess.run([*PYTHON, script, "--reverse", "--target", site], capture_output=True).returncode == 0
    hashes = [hashlib.sha256(content).hexdigest() for content in contents(site)]
    assert hashes == [patch.sha256_before for patch in apply_patches.read_patches()]
    if shutil.which("patch"):
        for name in apply_patches.PATCH_NAMES:
            file = script.parent / name
            subprocess.run(["patch", "-s", "-p1", "--fuzz=0", "--forward", "-d", site, "-i", file], check=True)
        assert contents(site) == contents(copy)


def test_refresh_takes_the_release_from_a_pristine_trl_and_leaves_it_so(workshop):
    site, copy, script = workshop
    run("--reverse", "--target", site)
    pristine = contents(site)
    add_method(copy)
    assert refresh(*workshop).returncode == 0
    assert contents(site) == pristine
    assert subprocess.run([*PYTHON, script, "--target", site], capture_output=True).returncode == 0
    assert contents(site) == contents(copy)


@pytest.mark.parametrize(
    "fault", ["the same folder", "no patch in it", "a foreign release", "no last line break", "no Python"]
)
def test_refresh_refuses(workshop, fault):
    site, copy, script = workshop
    before = patch_bytes(script)
    if fault == "the same folder":
        process, word = refresh(site, site, script), "edit a copy of it: cp -r"
    elif fault == "no patch in it":
        run("--reverse", "--target", copy)
        process, word = refresh(*workshop), "edit a copy of a patched TRL"
    elif fault == "a foreign release":
        add_method(site)
        process, word = refresh(*workshop), "is neither the file of TRL 1.16.0 nor the patched one"
    elif fault == "no Python":
        trainer = copy / FILES[0]
        trainer.write_bytes(trainer.read_bytes() + b"def broken(:\n")
        process, word = refresh(*workshop), "grpo_trainer.py is no Python: invalid syntax in line"
    else:
        trainer = copy / FILES[0]
        trainer.write_bytes(trainer.read_bytes()[:-1])
        process, word = refresh(*workshop), "end with a line break"
    assert_refused(process, word)
    assert patch_bytes(script) == before
