"""What a right answer is: gold answers, the answer in a completion, numbers, LaTeX, and math-verify in worker processes.

from grading import grade_batch
grade_batch(["9 * 2 makes 18.\\n#### 18"], ["18"])  # [Grade(correct=True, answer='18', rule='####')]
"""

from .gold import KINDS, Gold, parse_gold
from .verdict import GRADER_VERSION, Grade, grade, grade_batch, vote
from .worker import check_grader, grader_stats

__all__ = [
    "GRADER_VERSION", "KINDS", "Gold", "Grade", "check_grader", "grade", "grade_batch", "grader_stats", "parse_gold",
    "vote",
]  # fmt: skip
