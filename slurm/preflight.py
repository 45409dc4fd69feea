"""What is checked before a grid is started: flags, patched TRL, cache, rows, room on disk, and the cluster's limits.

For the experiments of Probability Smoothing Policy Optimisation (arXiv 2509.21282). Every check raises BadInput, one
line that names the thing and the way out, and changes nothing; nothing is queued or trained before all have passed.

    from slurm.preflight import check_data, check_rows
    check_data(needs)           # of maths_grid.find_needs
    check_rows(needs)
"""

import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from common.datasets import load_maths_dataset
from common.files import ROOT, BadInput, existing_parent, free_bytes, size_text
from common.models import find_model, fp32_bytes
from slurm.queue import ask

CHECK_SECONDS = 180.0  # in which looking at rows may begin: a login node is shared

# ---- the cells


@dataclass
class Needs:
    """What a cell needs of the machine that it runs on."""

    cell: str  # its number and directory, for messages
    run_dir: Path
    model: str
    cache_dir: Path
    data: list  # of (data set, split): what it is trained and evaluated on
    checkpoints: int  # that are kept
    adapter: bool  # LoRA: its files are small
    find_peaks: Callable = lambda: None  # (bytes of a card, bytes with LoRA), see training.memory.least_peaks
    row_checks: dict = field(default_factory=dict)  # {key: what raises BadInput}; equal keys have one answer


def check_data(needs):
    """Raise BadInput unless the caches hold, whole and readable, every model and data set of all Needs."""
    load = cache(load_maths_dataset)
    for cell in needs:
        find_model(cell.model, cell.cache_dir)
        for name, split in cell.data:
            load(name, split, cell.cache_dir)


def check_rows(needs, seconds=CHECK_SECONDS):
    """Raise BadInput for the first cell whose rows its training or its evaluation will refuse, in the words of these.

    Cells that agree in model, data and prompts are asked once. After `seconds` nothing more is begun, and a note says
    how many cells were not looked at: their training asks the same before it loads a model.
    """
    begun = time.monotonic()
    asked = set()
    unasked = set()
    if needs:
        print("looking whether the rows of every cell fit its model", flush=True)
    for cell in needs:
        for key, check in cell.row_checks.items():
            if key in asked:
                continue
            if time.monotonic() - begun >= seconds:
                unasked.add(cell.cell)
                continue
            asked.add(key)
            try:
                check()
            except BadInput as error:
                raise BadInput(f"{cell.cell}: {error}") from None
    if unasked:
        note = f"note: {seconds:.0f} s were over before the rows of {len(unasked)} cells were looked at"
        print(f"{note}: their training does it at its start", file=sys.stderr)


def check_room(needs, places, at_once):
    """(bytes that the cells will take, bytes free where they lie).

    A cell keeps the model and its checkpoints; each of `at_once` that are running makes one more. Raises BadInput if
    one of `places` cannot be written, or if the cells do not fit.
    """
    for place in places:
        try:
            tempfile.TemporaryFile(dir=existing_parent(place)).close()
        except OSError as error:
            raise BadInput(f"cannot write in {existing_parent(place)}: {error.strerror}") from None
    sizes = [0 if cell.adapter else fp32_bytes(find_model(cell.model, cell.cache_dir)) for cell in needs]
    kept = sum(size * (1 + 3 * cell.checkpoints) for size, cell in zip(sizes, needs, strict=True))
    one_more = 3 * sum(sorted(sizes)[-at_once:])
    need = kept + one_more
    run_dir = needs[0].run_dir
    free = free_bytes(run_dir)
    if need > free:
        raise BadInput(
            f"{len(needs)} cells need about {size_text(need)} under {run_dir.parents[2]}, where {size_text(free)} are "
            "free; save_total_limit: 1 in train needs less"
        )
    return need, free


# ---- the card

# The most memory that a card of this name is sold with, in GB, which are 2**30 bytes at most. A gres may say more:
# a100swarm, nvidia_a100_80gb_pcie.
CARDS = {"l4": 24, "v100": 32, "l40s": 48, "l40": 48, "a100": 80, "h100": 94, "h200": 141}


def find_card(gres):
    """The name in CARDS of the card that a gres asks for, None where it names none of them, as "gpu:1"."""
    names = "|".join(sorted(CARDS, key=len, reverse=True))
    found = re.search(rf"(?<![a-z0-9])({names})(?![0-9])", gres.lower())
    return found and found[1]


def check_cards(needs, gres):
    """Raise BadInput for the first cell whose training cannot fit on a card of `gres`, with what would fit.

    SLURM does not say how much memory a card has: that follows from its name, and a name that is not in CARDS is not
    checked. What fits barely is left to the training, which halves its rows where memory runs out.
    """
    card = find_card(gres)
    for cell in needs if card else ():
        peaks = cell.find_peaks()
        if peaks is None or peaks[0] <= CARDS[card] * 2**30:
            continue
        peak, with_adapter = peaks
        larger = [name for name, size in CARDS.items() if peak <= size * 2**30]
        ways = [f"a card of {' or '.join(larger)} (--partition, --gres)"] if larger else []
        if with_adapter <= CARDS[card] * 2**30:
            ways.append(f"use_peft: true under train, which needs {with_adapter / 1e9:.0f}")
        ways = ways or ["a smaller model"]
        raise BadInput(
            f"{cell.model} needs at least {peak / 1e9:.0f} GB of a card in training, and {card} ({gres}) has at most "
            f"{CARDS[card]}: choose {', or '.join(ways)}"
        )


# ---- the cluster


def check_cluster(site, env, lines):
    """Raise BadInput for the first thing of the site that would make cells fail: partition, sbatch lines, modules."""
    check_site(site)
    for line in lines:
        ask("sbatch", "--test-only", *line[2:], env=env)  # the scheduler's own verdict
    ask("bash", "-lc", '. "$0" && enter_job', ROOT / "slurm/env.sh", env=env)


def check_machine(needs, site, env, logs):
    """Raise BadInput for what the cells lack there: models, data, memory, room. Says what they will take."""
    check_data(needs)
    check_cards(needs, site["gres"])
    places = {Path(env["GRID_SCRATCH"]), logs, *(cell.run_dir.parent for cell in needs)}
    need, free = check_room(needs, places, int(site["throttle"]))
    check_rows(needs)  # last: it may take minutes
    print(f"checked: {len(needs)} cells need about {size_text(need)} of {size_text(free)} free")


def check_site(site):
    """Raise BadInput, in one line, for a partition, gres, walltime, account or throttle the cluster does not allow."""
    form = "PartitionName:64,Gres:512,Time:32"  # with widths: the default ones cut names
    rows = [line.split() for line in ask("sinfo", "--noheader", "-O", form).splitlines()]
    here = [row for row in rows if row[0] == site["partition"]]
    if not here:
        names = ", ".join(sorted({row[0] for row in rows}))
        raise BadInput(f"partition {site['partition']} does not exist here; --partition is one of {names}")
    if site["gres"] and not any(count_gres(row[1]) >= count_gres(site["gres"]) for row in here):
        known = ", ".join(sorted({row[1] for row in here}))
        raise BadInput(f"no node of partition {site['partition']} has gres {site['gres']}; they have {known} (--gres)")
    if to_minutes(site["time"]) > to_minutes(here[0][2]):
        raise BadInput(f"--time {site['time']} is more than {here[0][2]}, the limit of partition {site['partition']}")
    policy = dict(re.findall(r"(\w+)=(\S+)", ask("scontrol", "show", "partition", site["partition"])))
    allowed = policy.get("AllowAccounts", "ALL").split(",")
    if site["account"] and "ALL" not in allowed and site["account"] not in allowed:
        raise BadInput(f"partition {site['partition']} is for the accounts {', '.join(allowed)} (--account)")
    check_throttle(site, site["qos"] or policy.get("QoS", "N/A"))


def check_throttle(site, qos):
    """Raise BadInput if so many cells at a time need more GPUs than a quality of service gives one user."""
    try:
        limits = ask("sacctmgr", "--noheader", "--parsable2", "show", "qos", qos, "format=MaxTRESPU")
    except BadInput:
        return  # such limits are kept in the accounting database: where there is none, there are no limits
    gpus = int(site["nodes"]) * count_gres(site["gres"])["gpu"]
    for limit in re.findall(r"gres/gpu(?::[^=,]+)?=(\d+)", limits):
        if gpus * int(site["throttle"]) > int(limit):
            raise BadInput(
                f"--throttle {site['throttle']}: so many cells of {gpus} GPUs are more than the {limit} that QoS {qos} "
                f"gives one user; at most {int(limit) // gpus}"
            )


def count_gres(text):
    """Counter of a node's generic resources: "gpu:a100:2(S:0-1),gpu:l4" -> {"gpu": 3, "gpu:a100": 2, "gpu:l4": 1}."""
    counts = Counter()
    for part in re.sub(r"\([^)]*\)", "", text).split(","):
        name, count = re.fullmatch(r"(?s)(.*?)(?::(\d+))?", part).groups()
        for known in {name, name.partition(":")[0]}:
            counts[known] += int(count or 1)
    return counts


def to_minutes(text):
    """Minutes of a walltime as SLURM writes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S, infinite."""
    if text.lower() in ("infinite", "unlimited"):
        return float("inf")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise BadInput(f"--time {text!r} is not a walltime: write HOURS:MINUTES:SECONDS or DAYS-HOURS")
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    minutes = (60, 1, 1 / 60) if days or len(parts) == 3 else (1, 1 / 60)  # of each part
    return int(days or 0) * 1440 + sum(part * unit for part, unit in zip(parts, minutes, strict=False))
