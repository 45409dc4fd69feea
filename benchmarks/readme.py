"""Put the measured figures into benchmarks/README.md, from benchmarks/results/*.json alone.

For Probability Smoothing Policy Optimisation (arXiv 2509.21282). A test fails where the two differ.

    python benchmarks/readme.py             # after benchmarks/cpu.py or benchmarks/gpu.py
    python benchmarks/readme.py --check     # exit code 1 if it is not what the JSON says
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import RESULTS, ROOT, format_number, format_ratio, format_target
from common.files import BadInput, make_parser, read_json, run_script, write_text

PAGE = ROOT / "benchmarks" / "README.md"
BEGIN = "<!-- benchmarks/readme.py writes what follows -->\n"
END = "<!-- to here -->\n"
SCRIPTS = {"cpu": "make bench", "gpu": "python benchmarks/gpu.py"}


def describe_run(results):
    """One sentence: machine, versions, commits."""
    machine = results["machine"]
    versions = results["versions"]
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "trl") if name in versions)
    card = f"{machine['gpu']}; " if machine["gpu"] else ""
    cpu = f"{card}{machine['cores']} cores, {machine['cpu']}, {machine['threads']} threads"
    parts = {}
    for name, part in results["parts"].items():
        parts.setdefault((part["commit"] or "unknown")[:7], []).append(f"`{name}`")
    commits = [f"commit {commit}" + f" for {', '.join(names)}" * (len(parts) > 1) for commit, names in parts.items()]
    return "; ".join([cpu, libraries, *commits])


def format_table(results):
    """The rows as a Markdown table, in the order of the parts; what was not run is named below it."""
    lines = ["| part | figure | | ratio: median (spread) | target |", "|---|---|---|---|---|"]
    notes = []
    left = []
    for part, content in results["parts"].items():
        for row in content["rows"]:
            if row["status"] != "measured":
                left.append(f"{row['name']} ({row['status'].removeprefix('not run: ')})")
                continue
            figure = f"{format_number(row['figure'])} {row['unit']}".strip()
            ratio = f"{row['against']} {format_ratio(row['ratio'])}" if row["ratio"] else ""
            lines.append(f"| `{part}` | {row['name']} | {figure} | {ratio} | {format_target(row)} |")
            if row["note"]:
                notes.append(f"- {row['name']}: {row['note']}")
    lines += ["", *notes] if notes else []
    return lines + (["", f"Not run: {'; '.join(left)}."] if left else [])


def make_section():
    """The generated text between the markers."""
    lines = []
    for name, command in SCRIPTS.items():
        results = read_json(RESULTS / f"{name}.json", f"run {command} --again")
        lines += [f"**{name.upper()}** (`{command}`)" + (f": {describe_run(results)}." if results else "."), ""]
        missing = f"The figures are outstanding: `{command}` has not been run yet where they could be kept."
        lines += [*(format_table(results) if results else [missing]), ""]
    return "\n".join(lines)


def insert_section(text):
    """The text with the section made anew; raises BadInput if the markers are gone."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise BadInput(f"{PAGE} must hold the two lines {BEGIN.strip()} and {END.strip()} once each")
    head = text.split(BEGIN)[0]
    tail = text.split(END)[1]
    return f"{head}{BEGIN}\n{make_section()}\n{END}{tail}"


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if it is out of date")
    args = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    new = insert_section(text)
    if args.check:
        return int(new != text)
    write_text(PAGE, new)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
