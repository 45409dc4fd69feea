"""What a report is asked, declared before its results are looked at: flags of maths_report.py, or `report` in a grid.

For experiments of Probability Smoothing Policy Optimisation (arXiv 2509.21282).

    from reporting.question import add_question
    add_question(parser)        # --baseline, --primary, --margin and --failed
"""

from common.values import above
from reporting.methods import RULES

QUESTION_RANGES = {"margin": above(0)}


def add_question(parser):
    """Add the flags that say what is asked; returns the parser."""
    parser.add_argument("--baseline", help="method to compare with (default: noclip)")
    parser.add_argument("--primary", metavar="DATASET@T", help="default: the first data set at its lowest temperature")
    parser.add_argument("--margin", type=float, metavar="POINTS", help="a difference that would not matter")
    rules = "; ".join(f"{name}: {text}" for name, text in RULES.items())
    parser.add_argument(
        "--failed", choices=RULES, default="no_verdict", help=f"what scores for a run that failed. {rules}"
    )
    return parser
