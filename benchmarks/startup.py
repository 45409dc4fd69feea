"""How long until a script does something: --help, a wrong flag, the first step of the demo's training.

A part of cpu.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282).
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import ROOT, make_row
from common.runs import LOG_FILE

TRAIN = ["maths_finetuning.py", "--model", "demo", "--trust_region_method", "pspo"]


def run_script(command, expected):
    """Seconds of a script from its start to its end; raises SystemExit if it ends otherwise than expected."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != expected:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return time.perf_counter() - begun


def first_step(flags):
    """Seconds from the start of the demo's training to the first row of its log."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *TRAIN, "--output_dir", f"{folder}/run", *flags]
        begun = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        log = Path(folder) / "run" / LOG_FILE
        while process.poll() is None and not (log.exists() and log.stat().st_size):
            time.sleep(0.02)
        seconds = time.perf_counter() - begun
        process.kill()
        process.wait()
        if not (log.exists() and log.stat().st_size):
            raise SystemExit(f"{' '.join(command)}: no step was trained")
        return seconds


def measure(options):
    """Rows: the slowest --help, a wrong flag, the first training step."""
    scripts = [path.name for path in sorted(ROOT.glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]
    scripts, rounds = (TRAIN[:1], 1) if options.quick else (scripts, 3)
    run_script([scripts[0], "--help"], 0)  # reads the libraries from disk
    slowest = {name: sorted(run_script([name, "--help"], 0) for _ in range(rounds))[rounds // 2] for name in scripts}
    name = max(slowest, key=slowest.get)
    yield make_row(f"slowest --help, {name}", slowest[name], "s", target=("at most", 1))
    wrong = sorted(run_script([*TRAIN, "--learning_rat", "1"], 2) for _ in range(rounds))
    yield make_row("a wrong flag of maths_finetuning.py is named", wrong[rounds // 2], "s", target=("at most", 2))
    small = ["--per_device_train_batch_size", "8", "--max_completion_length", "8"] if options.quick else []
    steps = sorted(first_step(small) for _ in range(rounds))
    yield make_row("first training step of the demo", steps[rounds // 2], "s", target=("at most", 15))
