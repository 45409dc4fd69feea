"""What holds for all scripts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [path for path in sorted(ROOT.glob("*.py")) if "__main__" in path.read_text()]


def python(*args, **kwargs):
    return subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, cwd=ROOT, **kwargs)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help(script):
    done = python(script, "--help")
    assert done.returncode == 0 and "usage:" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("script", sorted(ROOT.glob("*.py")), ids=lambda path: path.name)
def test_importing_does_nothing(script, tmp_path):
    done = python(
        "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {script.stem}", env={"HOME": str(tmp_path)}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_requirements_are_exact_and_name_the_patched_release():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.M))
    lines = [x for x in (ROOT / "requirements.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert len(pins) == len(lines)
    for patch in ("grpotrainer.patch", "grpoconfig.patch"):
        assert f"X-TRL-Release: {pins['trl']}\n" in (ROOT / patch).read_text()


def test_a_reader_that_goes_away_ends_a_script_quietly():
    code = "import sys; from common.files import run_script;"
    code += "sys.exit(run_script(lambda: [print('x' * 1000, flush=True) for _ in range(1000)] and 0))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(60) == 1 and process.stderr.read() == b""
