r"""Grade an answer to a maths problem: the rewards of training and the verdicts of evaluation.

Probability Smoothing Policy Optimisation (https://arxiv.org/abs/2509.21282) pays 1 for a right final answer and a
small bonus for GSM8K's `#### <number>` ending; here the two are separate reward functions that TRL adds up with
REWARD_WEIGHTS. Evaluation asks `grade` for the verdict, the answer that was read, and the rule that found it.

Policy, where another choice could be defended:

| case | verdict |
|---|---|
| several `####` lines | the last that is not empty; `#### Step 2` is a heading, for numbers any words above a text |
| order of rules | `####`, `\boxed{}`, "answer is", last number; for LaTeX `\boxed{}` first and the last formula last |
| no marker | several numbers: the list, text: the sentence at the end |
| remarks | ignored: `60 minutes (1 hour)` is 60, `9, which is half of 18` is 9; `9 eggs and 18 cups` says two |
| "Answer:" before a whole solution | no marker: the last number counts |
| a box that is never closed | no answer |
| percent | `25%` is 25, never 0.25 |
| units, currency | ignored: `$18`, `18 dollars`, `18 cents` are 18; but `$3 million` is 3000000 |
| thousands | `1,234`, `1 234`, `1, 234` are 1234; `1,23,4` is no number; a decimal comma is not read |
| number words | read where an answer is marked: `#### eighteen` |
| sums | `#### 9*2` is 18, `9*2 = 18` is 18, and so is `9+8 = 18`: only the result counts; `17-18` is a range |
| hedges | `17 or 18`, `17-18`, `>18` are wrong; `about 18`, `~18` and `18 or 18.0` are 18 |
| rounding | integers exactly, all else within 1e-6 (LaTeX: of its size, below 1); 0.333333 is not 0.33 |
| several numbers | all of them, in any order, each as often as in the gold answer |
| ratios | `15:18 = 5:6` and `5/6` are 5:6; `15:18` alone and `6:5` are not |
| times | `3:30` for `3:30 p.m.` is right, `3:30 a.m.` is wrong, `15:30` is right |
| text | equal to the gold answer or begins with it, after "so" or "is" perhaps; case, articles, plurals do not count |
| shortened text | later lower-case words may go: `Lisa` is `Lisa's soccer team`, but `Rug` or `B` is not `Rug B` |
| LaTeX | units, degrees, currency are ignored, a base and `x =` may go; (3,4] is not [3,4]; 4.6667 is not 14/3 |
| equations | `a + b = 5`, `f(3) = 5` and `2 + 3 = 5` are 5; `2x = 5` is not |
| nan, inf, code | wrong; nothing of a text is ever evaluated |

    python maths_rewards.py --gold 18 --completion 'She makes 9 * 2 = $18. #### 18'
    echo '\boxed{\frac{28}{6}}' | python maths_rewards.py --gold '\frac{14}{3}' --kind latex --completion -
"""

import argparse
import atexit
import importlib.util
import json
import math
import os
import queue
import re
import resource
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from maths_answers import boxed, extract_answer
from maths_common import BadInput, make_parser, run_script
from maths_latex import TOLERANCE, close, formula_value, same_latex, tidy, to_ascii
from maths_numbers import (
    ANSWER_CHARS,
    CLAUSE_RE,
    DIGIT_RE,
    NUMBER_RE,
    NUMBER_WORD_RE,
    SIMPLE_RE,
    NotANumber,
    plain_text,
    read_number,
    read_plain_number,
)

KINDS = ("integer", "decimal", "fraction", "numbers", "ratio", "text", "latex")
GRADER_VERSION = "2"
REWARD_WEIGHTS = [1.0, 0.05]  # accuracy_reward, format_reward

GOLD_CHARS = 4000
TIME_LIMIT = 5.0  # seconds for one question to math-verify, of which the first to a worker also loads it
START_LIMIT = 60.0  # seconds for a worker to load math-verify
MEMORY_LIMIT = 2 * 2**30  # bytes of address space of one worker
WORKERS = min(4, os.cpu_count() or 1)


class Gold(NamedTuple):
    """A gold answer: canonical text (parse_gold of it gives the same), kind (one of KINDS), value to compare with."""

    text: str
    kind: str
    value: object


class Grade(NamedTuple):
    """A verdict, the answer that was read (None when there is none), and the rule that found it."""

    correct: bool
    answer: str | None
    rule: str


# ---------------------------------------------------------------- gold answers

PLAIN_NUMBER_RE = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+")
FRACTION_RE = re.compile(r"(-?)\(?(\d+)/(\d+)\)?")
TIME_RE = re.compile(
    r"(?<![\d./:])(?<!\d )(?<!(?<!\d)-)(\d{1,6}(?: ?: ?\d{1,6})+)(?![\d/]|\.\d)(?: ?([ap])\.?\s*m\b\.?)?", re.I
)
RATIO_JOINT_RE = re.compile(  # 7 boys to 6 girls
    r"(?<=\d)(?: [A-Za-z-]{2,15}){0,3}?[ -]?(?:/|\bto\b(?: every)?|\bfor every\b|\bout of\b|\bthere are\b|:)[ -]?(?=\d)"
)
UNIT_RE = re.compile(r"(?<=\d)\s*\([^()]*\)\s*$")


@lru_cache(maxsize=100_000)
def parse_gold(text, kind=None):
    r"""Read a gold answer strictly: a data set's row that this refuses must stop the load.

    Args: text: a gold answer such as "18", "9 (apples)", "5 (cm); 8 (cm)", "3:4", "Rug B", "\frac{14}{3}".
    kind: one of KINDS, or None to infer it.
    Returns a Gold whose text is canonical: parse_gold(gold.text, gold.kind) == gold.
    Raises ValueError, naming the text, when there is no answer in it or it is not of the kind."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"empty gold answer {text!r}")
    if len(text) > GOLD_CHARS:
        raise ValueError(f"gold answer of {len(text)} characters; at most {GOLD_CHARS} are read: {text[:40]!r}...")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind of gold answer {kind!r}: choose one of {', '.join(KINDS)}")
    read = {"latex": _latex_gold, "text": _text_gold, "ratio": _ratio_gold, "numbers": _numbers_gold}
    kind = kind or _infer_kind(text)
    return read[kind](text.strip()) if kind in read else _number_gold(text.strip(), kind)


def _number_gold(text, kind):
    bare = re.sub(r"(?<=\d)(?:st|nd|rd|th)$", "", UNIT_RE.sub("", text))
    value = _strict_number(bare, text)
    if kind == "integer" and value.denominator != 1:
        raise ValueError(f"gold answer {text!r} is no integer")
    return Gold(bare, kind, value)


def _numbers_gold(text):
    parts = [UNIT_RE.sub("", part).strip() for part in text.split(";")]
    return Gold("; ".join(parts), "numbers", sorted(_strict_number(part, text) for part in parts))


def _ratio_gold(text):
    found = TIME_RE.match(text)
    if not found:
        raise ValueError(f"gold answer {text!r} is no ratio or time")
    return Gold(found.group(), "ratio", _ratio(found))


def _text_gold(text):
    if not _words(text):
        raise ValueError(f"gold answer {text!r} has no words")
    return Gold(text, "text", _words(text))


def _latex_gold(text):
    """A LaTeX gold: its value is the letter of a choice, a tuple of words, or None for a formula."""
    latex = (boxed(text)[0] or text).strip()
    tidied = tidy(latex)
    if not tidied:
        raise ValueError(f"empty gold answer {text!r}")
    choice = re.fullmatch(r"\(?([A-Z])\)?", tidied)
    if choice and ("\\text" in latex or "(" in latex):
        return Gold(latex, "latex", choice.group(1))
    in_words = re.fullmatch(r"[A-Za-z][A-Za-z\s,.'()-]*", tidied) and re.search(r"[A-Za-z]{4}|\\text", tidied + latex)
    return Gold(latex, "latex", _words(tidied) if in_words else None)


def _strict_number(text, whole):
    fraction = FRACTION_RE.fullmatch(text)
    if fraction and int(fraction.group(3)):
        value = Fraction(int(fraction.group(2)), int(fraction.group(3)))
        return -value if fraction.group(1) else value
    if not PLAIN_NUMBER_RE.fullmatch(text) or len(text) > ANSWER_CHARS:
        raise ValueError(f"gold answer {whole!r} is no number")
    digits = text.replace(",", "")
    return Fraction(digits if "." in digits else int(digits))  # Fraction of a text is slow


def _infer_kind(text):
    text = text.strip()
    if "\\" in text or "$" in text:
        return "latex"
    if ";" in text:
        return "numbers"
    bare = re.sub(r"(?<=\d)(?:st|nd|rd|th)$", "", UNIT_RE.sub("", text).strip() or text)
    if TIME_RE.match(bare):
        return "ratio"
    if FRACTION_RE.fullmatch(bare):
        return "fraction"
    if PLAIN_NUMBER_RE.fullmatch(bare):
        return "integer" if Fraction(bare.replace(",", "")).denominator == 1 else "decimal"
    return "latex" if re.search(r"[\^_{}=+*<>\[\]]|\d[A-Za-z]\b|,\s*-?\d", bare) else "text"


# ---------------------------------------------------------------- comparing, without LaTeX


def _same_number(value, gold):
    """Integers exactly; anything else within 1e-6."""
    if gold.denominator == 1:
        return value == gold.numerator
    return abs(value - gold) <= TOLERANCE


def _ratio(found):
    """A match of TIME_RE -> (numbers, 'a', 'p' or ''); 6:01:00 is 6:01, and 15:30 p.m. needs no p.m."""
    numbers, half = tuple(int(n) for n in found.group(1).split(":")), (found.group(2) or "").lower()
    numbers = numbers[:2] if numbers[2:] == (0,) else numbers
    return numbers, "" if numbers[0] > 12 else half


def _ratios(text):
    """Every ratio or time that a marked answer says, once its working and remarks are left out."""
    text = re.sub(r"\((\d+)\)/\((\d+)\)", r"\1/\2", plain_text(text))
    text = re.sub(r"(?<=\d) in the morning\b", " a.m.", text)
    text = re.sub(r"(?<=\d) (?:in the (?:afternoon|evening)|at night)\b", " p.m.", text)
    text = re.sub(r"(?<=[\dm.]) \([^()]*\)\W*$", "", text)
    text = next((p for p in reversed(re.split(r"=|\bsimplif\w+|\breduc\w+", text)) if DIGIT_RE.search(p)), text)
    return [_ratio(f) for f in TIME_RE.finditer(text)] or [
        _ratio(f) for f in TIME_RE.finditer(RATIO_JOINT_RE.sub(":", text))
    ]


def _same_ratio(text, gold):
    """Same numbers and no contradiction of a.m. and p.m.; 24-hour and 12-hour clock agree.

    Of several ratios of the same value, `15:18 = 5:6`, the last counts; several times must all agree."""
    found = _ratios(text)
    shares = {tuple(Fraction(n, sum(numbers) or 1) for n in numbers) for numbers, _ in found}
    if len(shares) == 1:
        found = found[-1:]
    return bool(found) and all(_same_time(f, gold) for f in found)


def _same_time(answer, gold):
    (numbers, half), (gold_numbers, gold_half) = answer, gold
    if half and gold_half:
        return answer == gold
    return numbers == gold_numbers or bool(half or gold_half) and _clock(*answer) == _clock(*gold)


def _clock(numbers, half):
    hour = numbers[0] % 12 + (12 if half == "p" else 0) if half else numbers[0]
    return (hour, *numbers[1:])


def _numbers(text, thousands):
    """All numbers of a marked answer, sorted; None when a part of it is not clear. `thousands`: 1,234 is one number."""
    comma = r",(?!\d{3}(?!\d))" if thousands else ","
    separators = rf";|{comma}|\band\b|&|\. " + ("" if "=" in text else BY)
    parts = re.split(separators, text.strip(" ()[]{}."))
    if len(parts) > 30:
        return None
    try:
        return sorted(read_plain_number(part) for part in parts if DIGIT_RE.search(part) or NUMBER_WORD_RE.search(part))
    except NotANumber:
        return None


BY = r"|\bby\b|(?<=\w) [x×] (?=\d)|(?<=\d)[x×](?=\d)"
ARTICLES = {"the", "a", "an"}
LEADING = {"so", "therefore", "thus", "hence", "conclusion", "in", "on", "at", "it", "due", "facing"}
SAID = {"is", "was", "are", "answer"}
SINCE_RE = re.compile(
    r"\W{0,9}(?:(?:so|therefore|thus|hence)\b,?\s*)?\b(?:since|because|as|comparing)\b[^,]*,\s*", re.I
)
ALTERNATIVES = {"or", "and", "not", "nor", "vs", "/", "&", "yes", "no"}


def _words(text):
    """'The 60th callers.' -> ('60', 'caller'): lower case, no articles, punctuation, ordinal or plural endings."""
    text = text if text.isascii() else to_ascii(text)
    text = re.sub(r"\\(?:text[a-z]*|math[a-z]+|mbox|boxed)\b|[`*_\\]|(?<=\b\w)\.(?=\w\b)", "", text.lower())
    text = re.sub(r"\b(\d+)(?:st|nd|rd|th)\b|'s?(?=\s|$)", r"\1", text)
    words = (w for w in re.findall(r"[^\W_]+(?:'[^\W_]+)?|[/&]", text) if w not in ARTICLES)
    return tuple(w[:-1] if len(w) > 3 and w[-1] == "s" and w[-2] not in "us" else w for w in words)


def _same_words(text, gold_text, gold):
    """Equal, or the answer begins with the gold answer, after "so" or "is" perhaps, and offers no alternative.

    Or it leaves out words in lower case: "Lisa" for "Lisa's soccer team", but not "Rug" or "B" for "Rug B"."""
    needed = {word for capital in re.findall(r"\b[A-Z0-9]\S*", gold_text) for word in _words(capital)}
    words = _words(SINCE_RE.sub("", text[:ANSWER_CHARS]))
    first = next((i for i, w in enumerate(words) if w not in LEADING), 0)
    said = (i + 1 for i, w in enumerate(words) if w in SAID and words[max(0, i - 1)] not in ("who", "which", "that"))
    for start in [0, first, *said]:
        if words[start : start + len(gold)] == gold:
            following = words[start + len(gold) :]
            return not following or following[0] not in ALTERNATIVES
    rest = iter(gold)
    return words[:1] == gold[:1] and all(word in rest for word in words) and needed <= set(words)


# ---------------------------------------------------------------- grading

CHOICE_RE = re.compile(r"\W*(?:(?:the )?(?:correct )?(?:option|choice|answer)\b(?: is)?)?\W*([A-Za-z])\b", re.I)
BOUND_WORDS_RE = re.compile(
    r"\b(?:(?:less|more|fewer|greater|larger|smaller) than|at (?:least|most)|or more|up to|not|except)\b"
)


def _latex_verdict(answer, gold):
    """True, False, or None when only math-verify can say. `gold.value` is a choice, words, or None for a formula."""
    a, g = tidy(answer), tidy(gold.text)
    if isinstance(gold.value, str):
        choice = CHOICE_RE.match(plain_text(answer))
        other = re.search(r"\b(?:or|and)\b\W*[A-Za-z]\b(?!\w)", plain_text(answer))
        return bool(choice) and not other and choice.group(1).upper() == gold.value
    if gold.value is not None:
        return _same_words(answer, gold.text, gold.value)
    if BOUND_WORDS_RE.search(answer) and not re.search(r"[<>(\[]|\\(?:[lg]e|[lg]t|in|cup)", gold.text):
        return False
    verdict = same_latex(a, g)
    if verdict is not None or "\\text" in gold.text and _words(a) == _words(g):
        return verdict is not False
    if re.search(r"(?<![A-Za-z\\])(?!(?<=\d)[mgsLh]\b)[A-Za-z](?![A-Za-z])", a):  # a variable: no number in words
        return None
    value = read_number(answer)  # "the perimeter is 18 metres"
    if value is None:
        return False if re.fullmatch(r"[A-Za-z\s,.'-]+", a) else None
    try:
        exact = formula_value(g, 0)
        return close(value, exact, "." in a) if isinstance(exact, Fraction) else None
    except (ValueError, ArithmeticError):
        return None


def _numeric_verdict(answer, gold):
    if gold.kind == "numbers":
        text = re.sub(r"\([^()=]*=[^()]*\)", "", plain_text(answer))
        remark = CLAUSE_RE.search(text)
        text = text[: remark.start()] if remark and len(NUMBER_RE.findall(text, 0, remark.start())) > 1 else text
        return _numbers(text, True) == gold.value or "," in text and _numbers(text, False) == gold.value
    if gold.kind == "ratio":
        return _same_ratio(answer, gold.value)
    if gold.kind == "text":
        return _same_words(answer, gold.text, gold.value)
    value = read_number(answer)
    return value is not None and _same_number(value, gold.value)


def _settle(completion, gold):
    """Grade without a worker process. Returns a Grade, or the answer text that only math-verify can judge."""
    answer, rule = extract_answer(completion, gold.kind)
    if gold.kind == "latex" and gold.value is not None and rule in ("last formula", "last number"):
        answer, rule = extract_answer(completion, "text")  # a choice or a name
    if answer is None or len(answer) > ANSWER_CHARS:
        return Grade(False, None, rule)
    answer = answer.strip()
    if gold.kind == "latex":
        verdict = _latex_verdict(answer, gold)
        return (answer, rule) if verdict is None else Grade(verdict, answer, rule)
    simple = SIMPLE_RE.fullmatch(answer)
    if simple and gold.kind in ("integer", "decimal", "fraction"):  # nearly all real answers; same as the long way
        return Grade(_same_number(int(simple.group(1)), gold.value), answer, rule)
    return Grade(_numeric_verdict(answer, gold), answer, rule)


def grade(completion, gold, kind=None):
    r"""Grade one completion.

    Args: completion: any text. gold: the gold answer, canonical or raw. kind: one of KINDS; None infers it.
    Returns a Grade. Raises ValueError for a gold answer that cannot be read, never for a completion."""
    return grade_batch([completion], [gold], [kind])[0]


def grade_batch(completions, golds, kinds=None):
    """Grade many completions; what needs math-verify is asked in parallel. Returns a Grade for each, in order."""
    kinds = kinds or [None] * len(golds)
    results = [_settle(c, parse_gold(g, k)) for c, g, k in zip(completions, golds, kinds, strict=True)]
    open_ones = [i for i, result in enumerate(results) if not isinstance(result, Grade)]
    if not open_ones:
        return results
    with ThreadPoolExecutor(min(WORKERS, len(open_ones))) as threads:
        verdicts = threads.map(lambda i: ask_math_verify(results[i][0], golds[i]), open_ones)
        for i, verdict in zip(open_ones, verdicts, strict=True):
            results[i] = Grade(verdict, *results[i])
    return results


# ---------------------------------------------------------------- math-verify in worker processes

_states = {}  # process id -> state: a forked child must not talk to its parent's workers, nor wait for its locks


def _state():
    """This process's idle workers, counts of what happened to them, and the lock for the counts."""
    state = {"idle": queue.LifoQueue(), "counts": dict(asked=0, timeouts=0, deaths=0), "lock": threading.Lock()}
    if _states.setdefault(os.getpid(), state) is state:
        atexit.register(_stop_idle_workers, state["idle"])
    return _states[os.getpid()]


def grader_stats():
    """How often this process asked math-verify, and how many workers hung or died over it: a dict of counts."""
    return dict(_state()["counts"])


def _count(event):
    state = _state()
    with state["lock"]:
        state["counts"][event] += 1


def check_grader(kinds):
    """Raise BadInput if a gold answer of these kinds may need math-verify and it is not installed."""
    if "latex" in kinds and importlib.util.find_spec("math_verify") is None:
        raise BadInput("math-verify is missing, and LaTeX answers need it: pip install -r requirements.txt")


def _start_worker():
    """A child process that judges one line at a time; it shares nothing with this process but two pipes."""
    worker = subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), "--worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _read_line(worker, START_LIMIT)
    except BaseException as error:
        _stop_worker(worker)
        if isinstance(error, EOFError):
            check_grader(["latex"])
        raise
    return worker


def _take_worker(idle):
    """An idle worker that is still alive, else a new one."""
    while not idle.empty():
        try:
            worker = idle.get_nowait()
        except queue.Empty:  # another thread took it
            break
        if worker.poll() is None:
            return worker
        _stop_worker(worker)
    return _start_worker()


def _stop_worker(worker):
    worker.kill()
    worker.wait()
    worker.stdin.close()
    worker.stdout.close()


def _stop_idle_workers(idle):
    while not idle.empty():
        _stop_worker(idle.get_nowait())


def _read_line(worker, seconds):
    """One line from a worker; raises TimeoutError after `seconds` and EOFError when it died."""
    ready = select.poll()
    ready.register(worker.stdout, select.POLLIN | select.POLLHUP)
    if not ready.poll(seconds * 1000):
        raise TimeoutError
    line = worker.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return line


def ask_math_verify(answer, gold):
    """Whether math-verify holds two LaTeX answers to be equal; False when it hangs, dies or cannot say."""
    idle = _state()["idle"]
    _count("asked")
    worker, finished = None, False
    try:
        worker = _take_worker(idle)
        worker.stdin.write(json.dumps([answer, gold]).encode() + b"\n")
        worker.stdin.flush()
        verdict = json.loads(_read_line(worker, TIME_LIMIT))
        finished = True
        return verdict
    except TimeoutError:
        _count("timeouts")
    except (EOFError, BrokenPipeError):
        _count("deaths")
    finally:  # also when an outer signal handler raises: a worker in the middle of a question is of no more use
        if finished:
            idle.put(worker)
        elif worker is not None:
            _stop_worker(worker)
    return False


def _worker_main():
    """Answer JSON lines [answer, gold] with true, false or null until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # nothing that a library prints may look like an answer
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text):
        return parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)

    answers.write(b"ready\n")
    for line in sys.stdin.buffer:
        signal.alarm(math.ceil(TIME_LIMIT) + 5)  # should the parent be gone: die, do not spin
        answer, gold = json.loads(line)
        verdict = verify(read(gold), read(answer), timeout_seconds=None, raise_on_error=False)
        signal.alarm(0)
        answers.write(json.dumps(bool(verdict)).encode() + b"\n")
    return 0


# ---------------------------------------------------------------- rewards in TRL's form


def _text(completion):
    """The text of a completion in TRL's two forms: a string, or a list of messages, of which the assistant's count."""
    if isinstance(completion, str):
        return completion
    return "\n".join(_content(m.get("content")) for m in completion if m.get("role", "assistant") == "assistant")


def _content(content):
    """The text of a message: a string, a list of parts, or None where a tool is called."""
    return "".join(part.get("text") or "" for part in content) if isinstance(content, list) else content or ""


def accuracy_reward(completions, gold, kind=None, **kwargs):
    """1.0 for each completion whose final answer is right, else 0.0.

    Args: completions: strings or lists of messages. gold, kind: the data set's columns of the same length."""
    return [float(g.correct) for g in grade_batch([_text(c) for c in completions], gold, kind)]


FORMAT_RE = re.compile(r"#### -?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?\s*")


def format_reward(completions, **kwargs):
    """1.0 for each completion that ends with its only `####` line, well formed: `#### -1,234.5`; else 0."""
    return [float(_well_formed(_text(c))) for c in completions]


def _well_formed(text):
    at = text.find("####")
    return at >= 0 and text[:at][-1:] in ("", "\n") and FORMAT_RE.fullmatch(text, at) is not None


# ---------------------------------------------------------------- command line


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--gold", help="gold answer, as the data set has it")
    parser.add_argument("--completion", default="-", help="text to grade; - reads standard input")
    parser.add_argument("--kind", choices=KINDS, help="kind of gold answer (inferred when left out; MATH-500: latex)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return _worker_main()
    if args.gold is None:
        raise BadInput("--gold is missing: give the right answer, as in --gold 18")
    try:
        parse_gold(args.gold, args.kind)
    except ValueError as error:
        raise BadInput(f"--gold: {error}") from None
    completion = sys.stdin.read() if args.completion == "-" else args.completion
    verdict = grade(completion, args.gold, args.kind)
    print(f"verdict: {'correct' if verdict.correct else 'wrong'}\nanswer: {verdict.answer}\nrule: {verdict.rule}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
