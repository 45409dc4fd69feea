"""
Draws what each trust region does to one token: its surrogate f and the weight w of its gradient, against the ratio r.

f is the negated loss of a token with ratio r = pi / pi_old and advantage A, w = (df / d log pi) / A, for A = 1 and
A = -1. Both are read off the loss of the patched GRPOTrainer and its gradient, one token at a time; no formula stands
here. The dotted line in each panel is noclip, the loss without a trust region.

python benchmarks/trust_regions.py
python benchmarks/trust_regions.py --output trust_regions.png
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from apply_patches import require_patched_trl, trust_region_methods  # noqa: E402
from benchmarks.patch_cost import make_trainer  # noqa: E402

BEHAVIOUR = 0.3  # pi_old of the token, which only dppo and drpo look at; the largest ratio is then 1 / 0.3
RATIOS = [i / 100 for i in range(1, 301)]
# The fields that a method reads, and what its panel is called. A cap of 2 instead of ScaleRL's 5 fits in the picture.
FIELDS = {
    "clip": ({"epsilon": 0.2}, "ε = 0.2"),
    "pspo": ({"smoothing_alpha": 0.3}, "α = 0.3"),
    "sapo": ({}, "τ = 1, 1.05"),
    "cispo": ({"epsilon_high": 2.0}, "cap 2"),
    "spo": ({"epsilon": 0.5}, "ε = 0.5"),
    "dppo": ({"trust_region_delta": 0.15}, "δ = 0.15, $π_{old}$ = 0.3"),
    "drpo": ({"trust_region_delta": 0.15}, "δ = 0.15, $π_{old}$ = 0.3"),
    "gmpo": ({"importance_sampling_level": "sequence", "epsilon": 0.4}, "ε = 0.4, a sequence of one"),
    "vespo": ({}, "k = 2, 3, λ = 3, 2"),
    "r2vpo": ({"trust_region_penalty": 1.0}, "λ = 1"),
    "m2po": ({"trust_region_delta": 0.25}, "δ = 0.25, an update of one"),
}
COLOURS = {1.0: "#0072B2", -1.0: "#D55E00"}  # blue and vermilion of Okabe and Ito
LIMITS = {"f": (-3.6, 3.6), "w": (-1.5, 3)}


def measure(trainer, ratio, advantage):
    """(f, w) of one token, from the trainer's own loss and its gradient."""
    import torch

    old = torch.tensor([[BEHAVIOUR]], dtype=torch.float64).log()
    new = (old + torch.tensor(ratio, dtype=torch.float64).log()).requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (new, torch.zeros_like(old), None)
    ids = torch.ones((1, 1), dtype=torch.long)
    batch = {name: ids for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
    batch |= {"advantages": torch.tensor([advantage], dtype=torch.float64), "old_per_token_logps": old}
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    return -loss.item(), -new.grad.item() / advantage


def curves(method):
    """{advantage: {"f": values, "w": values}} over RATIOS."""
    from trl import GRPOTrainer

    fields = FIELDS.get(method, ({}, ""))[0]
    trainer = make_trainer(GRPOTrainer, method, "cpu", (16, 1), 4, loss_type="grpo", **fields)
    found = {}
    for advantage in COLOURS:
        f, w = zip(*(measure(trainer, ratio, advantage) for ratio in RATIOS), strict=True)
        found[advantage] = {"f": f, "w": w}
    return found


def draw_method(figure, method, found, reference):
    """Two panels beside each other: f and w of one method, over those of the reference."""
    axes = dict(zip("fw", figure.subplots(1, 2), strict=True))
    setting = FIELDS.get(method, ({}, ""))[1]
    figure.suptitle(method + (f"   ({setting})" if setting else ""), fontsize=10, fontweight="bold")
    for name, panel in axes.items():
        panel.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        panel.axvline(1, color="0.85", linewidth=0.8, zorder=0)
        for line in reference.values():
            panel.plot(RATIOS, line[name], color="0.45", linewidth=0.9, linestyle=":")
        for advantage, style in ((1.0, "-"), (-1.0, "--")):
            panel.plot(RATIOS, found[advantage][name], color=COLOURS[advantage], linewidth=1.8, linestyle=style)
        panel.set(xlim=(0, 3), ylim=LIMITS[name], xticks=[0, 1, 2, 3])
        panel.set_xlabel("r", fontsize=8)
        panel.set_title({"f": "f", "w": "w = (df / d log π) / A"}[name], fontsize=8)
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)


def draw(path):
    """Writes the figure of all methods to `path`, by a rename."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    methods = trust_region_methods()
    found = {method: curves(method) for method in methods}
    with matplotlib.rc_context({"svg.hashsalt": "trust_regions", "path.simplify_threshold": 0.2}):
        rows = -(-len(methods) // 3)
        figure = Figure(figsize=(12, 2.5 * rows), layout="constrained")
        for part, method in zip(figure.subfigures(rows, 3, wspace=0.04, hspace=0.05).flat, methods, strict=False):
            draw_method(part, method, found[method], found["noclip"])
        lines = [Line2D([], [], color=COLOURS[1.0], lw=1.8), Line2D([], [], color=COLOURS[-1.0], lw=1.8, ls="--")]
        lines.append(Line2D([], [], color="0.45", lw=0.9, ls=":"))
        labels = ["A = 1", "A = −1", "noclip, for comparison"]
        figure.legend(lines, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        temporary = path.with_name(f".{path.name}.tmp")
        kind = path.suffix.lstrip(".")
        figure.savefig(temporary, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    os.replace(temporary, path)


def main(args):
    """Draws the figure; returns 0."""
    require_patched_trl("pspo")
    draw(args.output)
    print(args.output)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    picture = Path(__file__).with_suffix(".svg")
    parser.add_argument("--output", type=Path, default=picture, help="an .svg or .png file (default: beside this one)")
    sys.exit(main(parser.parse_args()))
