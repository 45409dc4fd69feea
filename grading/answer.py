r"""Find where the final answer of a completion stands: after `####`, in `\boxed{}`, after "answer is", or at the end.

Each rule looks at a bounded part of the text, from its end.
"""

import re

from .number import (
    CLAUSE,
    DIGIT_RE,
    LAST_DIGIT_RE,
    LEAD_RE,
    NUMBER_RE,
    NUMBER_WORD_RE,
    REMARK_RE,
    SIMPLE_RE,
    plain_text,
)
from .text import ANSWER_CHARS, boxed, cut

# ---- marks of an answer, with an example of each

END_RE = re.compile(r"<\|(?:im_end|im_start|endoftext|eot_id|end_of_text|end)\|>|</s>|\[INST\]")
STEP = r"(?:step|part|case|problem|question|example|method)\b[\s*_]*(?:\d|[a-z]\b|[ivx]+\b)"  # Step 2: add
NOTE = r"(?:explanation|reasoning|calculation|verification|check|note)s?\b"
HEADING_RE = re.compile(rf"[\s*_]*(?:{STEP}|{NOTE})|\W*(?:\d{{1,2}}|[A-Za-z])[.)]\s+\W*[A-Za-z]", re.I)  # 2. Income
BULLET_RE = re.compile(r"\A(?:[->*•]\s+)+")
LABEL_RE = re.compile(  # nothing, or: Final Answer:
    r"[\s#:>*_=.-]*(?:(?:the\s+)?(?:final\s+)?(?:answer|solution|result|conclusion)(?:\s*is)?[\s:*_]*)?$", re.I
)
TO_THE = r"(?:\s{1,5}(?:to|for|in)\s[\w ]{1,40}?)?"  # answer to the question is
WOULD_BE = r"is|was|equals|(?:would|will|should|could|must)\s{1,5}be"
NO_ANSWER = r"(?!(?:in)?correct\b|right\b|wrong\b|valid\b|verified\b|reasonable\b)"  # the answer is correct
ANSWER_IS_RE = re.compile(
    rf"answer{TO_THE}[\s*_]{{0,20}}+(?:(?<=\s)(?:{WOULD_BE})\b|[:=])[\s:*_]{{0,20}}+{NO_ANSWER}", re.I
)
TITLE_RE = re.compile(r"\n[#*_ ]{1,9}(?:(?:the|final) ){0,2}answer[*_ ]{0,9}\n\s*", re.I)  # ## Final Answer
SEEK_RE = re.compile(  # let us check our answer: this is no answer
    r"\b(?:find|get|check|verify|confirm|reach|step)\W+(?:(?:the|our|my|this|your|final|correct) )*$", re.I
)
VALUE_RE = re.compile(r"[\s*_~$\\]*-?\$?\.?\d[\d,.]*+(?!\)?\s*[-+*/×÷=x]\s*[$(\d])")  # 18 eggs; not 9 * 2
TITLES = r"(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bMrs)"
SENTENCE_END_RE = re.compile(rf"{TITLES}(?:[.?]|!(?<!\d!))(?=\s|$)(?!(?<=\b[ap]\.m\.)\s+[^A-Z\s])|\n")
BREAK_RE = re.compile(r"(?<=[.!?])(?<!\d!)(?<!\bM[rs]\.)(?<!\bDr\.)(?<!\bMrs\.)\s+(?=[^a-z\s])")  # between sentences
CHECK_RE = re.compile(r"\n[^\w\n]{0,9}(?:check|verification|note)\W{0,3}[:\n]\s*(?![^\n]*\n\s*\n)", re.I)
RESULT_RE = re.compile(r"=\s*([-$]*\s*\.?\d[\d,.]*+(?!\s*[-+*/x^(])[^=,;.:~<>]*\.?)$")  # = 13 eggs out of the 16 eggs.
BUT_RE = re.compile(r"\b(?:so|thus|therefore|hence|total|then|but|leaves?|and|or|not|which|rounds?|rounded)\b", re.I)
JOINT_RE = re.compile(r"\s*(?:/|\s|or|to|-|and|\*|\^|\()\s*|\)/\(")  # between the numbers of a fraction or a range
SPACING = r"(?:\s|\$|\\q?quad|\\[()\[\],;: ])"
AND = r"(?:,|and|or|\\text\{\s*(?:and|or)\s*\})"
BOX_JOINT_RE = re.compile(rf"\}}{SPACING}*{AND}{SPACING}*(?:(?:and|or){SPACING}*)?(?:[A-Za-z](?:_\w)?\s*=\s*)?\\f?")
NUMBERS_JOINT_RE = re.compile(r"\}[^.!?\d]{0,80}")  # where several numbers are asked for
DOLLARS = r"\$\$((?:[^$\\]|\\.)+)\$\$|(?<!\\)\$((?:[^$\\\n]|\n(?!\s*\n)|\\.)+)\$"
BRACKETED = r"\\\(((?:[^\\]|\\[^()])+)\\\)|\\\[((?:[^\\]|\\[^\[\]])+)\\\]"
FORMULA_RE = re.compile(rf"{DOLLARS}|{BRACKETED}", re.S)
FORMULA_JOINT_RE = re.compile(r"\s*(?:,|(?:,\s*)?(?:and|or))\s*(?:[A-Za-z]\s*=\s*)?")  # $1$ and x = $2$
CONTEXT_RE = re.compile(rf"{CLAUSE}|\s(?:such that|so that|when|in the interval)\b.*", re.I | re.S)  # 5 values in ...

# ---- the answer after ####, in a box, after "answer is"


def _after_marker(text, kind):
    """What stands after the last `####` line that is neither empty nor a heading; None when there is none."""
    at = len(text)
    for _ in range(8):  # more empty markers than this are noise
        at = text.rfind("####", 0, at)
        if at < 0:
            return None
        end = text.find("\n", at)
        line = cut(text[at + 4 : len(text) if end < 0 else min(end, at + 2 * ANSWER_CHARS)].lstrip("# \t:"))
        if SIMPLE_RE.fullmatch(line):  # nearly all real answers
            return line
        following = text[end : end + 2 * ANSWER_CHARS].strip() if end >= 0 else ""
        if LABEL_RE.match(line):  # `####` alone or `#### Answer:`: the answer is below
            line = BULLET_RE.sub("", following.split("\n", 1)[0], count=1)
            if line and line[0] != "#" and (kind == "text" or not _leads_on(following)):
                return cut(line)
            continue
        titled = following and kind not in ("text", "ratio", "latex") and not _says_number(line)  # #### Income
        if re.search(r"\w", line) and not HEADING_RE.match(line) and not titled:
            return line
    return None


def _says_number(text):
    return DIGIT_RE.search(text) or NUMBER_WORD_RE.search(text)


def _leads_on(text):
    """Whether what stands below "Answer:" is no answer but begins a whole solution, whose end is the answer."""
    end = SENTENCE_END_RE.search(text)
    sentence, rest = (text[: end.start()], text[end.end() :]) if end else (text, "")
    return bool(DIGIT_RE.search(rest)) and ("=" in sentence or not VALUE_RE.match(sentence) or sentence == "1")


def _answer_is(text, kind):
    """The sentence after the last "answer is", "Answer:", heading "Answer" or line that begins with "A:"; or None."""
    line = text.rfind("\nA:")
    if line >= 0 and SIMPLE_RE.fullmatch(text, line + 3):  # nearly all of GSM8K's own form
        return text[line + 3 :].strip()
    start, colon = _answer_start("\n" + text)
    tail = cut(text[max(0, start - 1) : start + 2 * ANSWER_CHARS].lstrip())
    if start < 0 or colon and kind != "text" and _leads_on(tail):
        return None
    tail = BULLET_RE.sub("", tail, count=1) if colon else tail
    end = SENTENCE_END_RE.search(tail)
    return tail[: end.start()] if end else tail or None


def _answer_start(text):
    """(where the answer begins or -1, whether it stands after a colon or under a heading)."""
    at, start, colon = len(text), -1, False
    for _ in range(8):
        at = max(text.rfind("nswer", 0, at), text.rfind("NSWER", 0, at)) - 1
        if at < 0:
            break
        found = ANSWER_IS_RE.match(text, at)
        if found and not SEEK_RE.search(text, max(0, at - 40), at):
            start, colon = found.end(), not re.search(r"[a-z]\W*$", found.group()[6:])
            break
        title = TITLE_RE.match(text, text.rfind("\n", 0, at))
        if title:
            start, colon = title.end(), True
            break
    line = text.rfind("\nA:")
    return (line + 3, True) if line + 3 > start and line >= 0 and text.find("\nB:", line) < 0 else (start, colon)


# ---- the answer at the end


def _last_number(text):
    """The last number of a text, with what makes it a fraction, a sum's result or a range; None without one."""
    line = _last_line(text)
    last = LAST_DIGIT_RE.match(line)
    if not last:
        return None
    closing = BREAK_RE.search(line, last.end())  # I hope this helps!
    line = line[: closing.start()] if closing else line
    sentence = max((found.end() for found in BREAK_RE.finditer(line, 0, last.end())), default=0)
    remark = REMARK_RE.search(line, sentence)
    if remark and DIGIT_RE.search(line, 0, remark.start()):
        line = line[: remark.start()]
    result = RESULT_RE.search(line, sentence)
    if result and not BUT_RE.search(result.group(1)):
        return result.group(1)
    numbers = list(NUMBER_RE.finditer(line))
    if not numbers or DIGIT_RE.search(line, numbers[-1].end()):
        return None
    first = len(numbers) - 1
    while first and JOINT_RE.fullmatch(line, numbers[first - 1].end(), numbers[first].start()):
        first -= 1
    at = numbers[first].start()
    sign = re.search(r"(?:^|[\s(:=~])- ?\(?$|\($", line[:at])
    return line[sign.end() - len(sign.group().lstrip(" :=~")) if sign else at :]


def _last_line(text):
    """The last line with a digit, as plain text; a check of the answer is no part of it."""
    text = _unchecked(text)
    last = LAST_DIGIT_RE.match(text)
    if not last:
        return ""
    begin = text.rfind("\n", 0, last.end()) + 1
    begin += 2 if text.startswith("- ", begin) else 0  # a list, no minus
    if last.end() - begin > ANSWER_CHARS // 2:
        begin = text.find(" ", last.end() - ANSWER_CHARS // 2, last.end()) + 1 or last.end()
    end = text.find("\n", last.end())
    end = min(len(text) if end < 0 else end, last.end() + 40)
    return plain_text(text[begin:end])


def _unchecked(text):
    """A text without the check or note that ends it."""
    check = CHECK_RE.search(text, max(0, len(text) - 2 * ANSWER_CHARS))
    return text[: check.start()] if check and DIGIT_RE.search(text, 0, check.start()) else text


def _last_sentence(text, kind="text"):
    """The last sentence; where several numbers are asked for and it has only one, the lines of the last paragraph."""
    paragraph = text.strip()[-ANSWER_CHARS:].split("\n\n")[-1]
    sentence = BREAK_RE.split(paragraph.rsplit("\n", 1)[-1])[-1]
    several = kind == "numbers" and len(NUMBER_RE.findall(sentence)) < 2
    return paragraph.replace("\n", "; ") if several else sentence


def _last_formula(text):
    """(answer, rule) for LaTeX without a box: the last formulas of what follows "answer is", else of the text."""
    answer = _answer_is(text, "latex")
    rule = "last formula" if answer is None else "answer is"
    said = _unchecked(text)[-2 * ANSWER_CHARS :].strip() if answer is None else answer
    remark = CONTEXT_RE.search(said, max((found.end() for found in BREAK_RE.finditer(said)), default=0))
    if remark and DIGIT_RE.search(said, 0, remark.start()):
        said = said[: remark.start()]
    formulas = list(FORMULA_RE.finditer(said))
    if not formulas or DIGIT_RE.search(said, formulas[-1].end()):
        spoken = [sentence for sentence in BREAK_RE.split(said) if DIGIT_RE.search(sentence)]
        return _said(spoken[-1] if spoken else _last_sentence(said)), "answer is" if answer else "last sentence"
    joined = formulas[-1:]
    for formula in formulas[-2::-1]:
        if not FORMULA_JOINT_RE.fullmatch(said, formula.end(), joined[0].start()):
            break
        joined.insert(0, formula)
    return ", ".join(next(g for g in f.groups() if g) for f in joined), rule


def _said(sentence):
    """What a sentence without a formula says: 2k + 17 of "so the simplified form is 2k + 17."."""
    leads = [lead.end() for lead in LEAD_RE.finditer(sentence)]
    return sentence[max(leads, default=0) :].strip().rstrip(".") or None


# ---- all rules


def _reply(text):
    """A completion without its thoughts and without what follows its end token."""
    if "<" not in text and "[INST]" not in text:
        return text
    thought, _, said = text.rpartition("</think>")
    text = said if said.strip() else thought
    for end in END_RE.finditer(text) if "<|" in text or "</s>" in text or "[INST]" in text else ():
        if end.start() and not text[: end.start()].isspace():
            return text[: end.start()]
    return text


def extract_answer(completion, kind="integer"):
    r"""Where the final answer of a completion stands.

    Args: completion: any text. kind: one of KINDS; it decides which rule goes first and what the last resort is.
    Returns (answer, rule): the raw answer text or None, and the rule: "####", "boxed", "answer is", "last number",
    "last formula", "last sentence", "first word", or "none"."""
    completion = _reply(completion)
    marked = _after_marker(completion, kind)
    if marked is not None and kind != "latex":
        return marked, "####"
    box, has_box = boxed(completion, NUMBERS_JOINT_RE if kind == "numbers" else BOX_JOINT_RE)
    if has_box:
        return box, "boxed" if box is not None else "none"
    if marked is not None:
        return marked, "####"
    answer, rule = _last_formula(completion) if kind == "latex" else _unmarked(completion, kind)
    return (answer, rule) if answer else (None, "none")


def _unmarked(text, kind):
    """(answer, rule) for a text without `####` or a box, and a gold answer that is no LaTeX."""
    answer = _answer_is(text, kind)
    several = kind != "numbers" or len(NUMBER_RE.findall(answer or "")) > 1
    if answer is not None and several and (kind in ("text", "ratio") or _says_number(answer)):
        return answer, "answer is"
    if kind not in ("text", "ratio", "numbers"):
        return _last_number(text), "last number"
    sentence = _last_sentence(text, kind)
    opening = re.match(r"\W{0,9}(yes|no)\b", text, re.I) if kind == "text" else None
    if opening and not re.search(r"\b(?:yes|no)\b", sentence, re.I):
        return opening.group(1), "first word"
    return sentence, "last sentence"
