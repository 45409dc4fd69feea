"""What a right answer is: golds, the answer in a completion, numbers, LaTeX, and math-verify in worker processes."""

from .gold import KINDS, parse_gold
from .verdict import GRADER_VERSION, Grade, grade, grade_batch, vote
from .worker import check_grader

__all__ = ["GRADER_VERSION", "KINDS", "Grade", "check_grader", "grade", "grade_batch", "parse_gold", "vote"]
