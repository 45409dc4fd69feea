r"""Find where the final answer of a completion stands: after `####`, in `\boxed{}`, after "answer is", or at the end.

What maths_rewards.py (Probability Smoothing Policy Optimisation, https://arxiv.org/abs/2509.21282) does first with a
completion. Each rule looks at a bounded part of the text, from its end.
"""

import re

from maths_numbers import (
    ANSWER_CHARS,
    CLAUSE,
    DIGIT_RE,
    LAST_DIGIT_RE,
    LEAD_RE,
    NUMBER_RE,
    NUMBER_WORD_RE,
    SIMPLE_RE,
    cut,
    plain_text,
)

# ---------------------------------------------------------------- marks of an answer, with an example of each

HEADING_RE = re.compile(  # Step 2: add; Explanation
    r"[\s*_]*(?:(?:step|part|case|problem|question|example|method)\b[\s*_]*(?:\d|[a-z]\b|[ivx]+\b)"
    r"|(?:explanation|reasoning|calculation|verification|check|note)s?\b)",
    re.I,
)
ITEM_RE = re.compile(r"\W*(?:\d{1,2}|[A-Za-z])[.)]\s+\W*[A-Za-z]")  # 2. Daily income
BULLET_RE = re.compile(r"\A(?:[->*•]\s+)+")
LABEL_RE = re.compile(  # nothing, or: Final Answer:
    r"[\s#:>*_=.-]*(?:(?:the\s+)?(?:final\s+)?(?:answer|solution|result|conclusion)(?:\s*is)?[\s:*_]*)?$", re.I
)
ANSWER_IS_RE = re.compile(  # answer to the question is; answer should be; Answer:
    r"answer(?:\s{1,5}(?:to|for|in)\s[\w ]{1,40}?)?[\s*_]{0,20}+"
    r"(?:(?<=\s)(?:is|was|equals|(?:would|will|should|could|must)\s{1,5}be)\b|[:=])[\s:*_]{0,20}+"
    r"(?!(?:in)?correct\b|right\b|wrong\b|valid\b|verified\b|reasonable\b)",
    re.I,
)
TITLE_RE = re.compile(r"\n[#*_ ]{1,9}(?:(?:the|final) ){0,2}answer[*_ ]{0,9}\n\s*", re.I)  # ## Final Answer
SEEK_RE = re.compile(  # let us check our answer: this is no answer
    r"\b(?:find|get|check|verify|confirm|reach|step)\W+(?:(?:the|our|my|this|your|final|correct) )*$", re.I
)
VALUE_RE = re.compile(r"[\s*_~$]*-?\$?\.?\d[\d,.]*+(?!\)?\s*[-+*/×÷=x]\s*[$(\d])")  # 18 eggs; not 9 * 2
EXPLANATION_RE = re.compile(  # what follows an answer rather than leads to it
    r"(?:\A|\n|(?<=[.!?])\s)[^\w\n]{0,9}(?:(?:explanation|check|verification|reasoning|details?|note|breakdown)s?\b(?=\W*[:\n])"
    r"|this is because\b|this (?:result|answer|matches|agrees|checks)\b|here's (?:how|why)\b"
    r"|(?:to|let's|let us|we can) (?:double-)?(?:check|verify|confirm)\b)",
    re.I,
)
ENDING_RE = re.compile(  # 4 pans (48 cupcakes), not 48
    r"(?<=[\w%.])(?:\s+\((?!\s*(?:=|so|or|i\.e|rounded)|[^()]*\)\s*/)[^()]*\))+\W*$|,\s*(?:and |but )?not\s+\$?-?\d.*",
    re.I | re.S,
)
RESULT_RE = re.compile(r"=\s*([-$]*\s*\$?\.?\d[\d,.]*+(?!\s*[-+*/×x^(])[^=]*)$")  # = 13 eggs out of the 16 eggs
BUT_RE = re.compile(  # after which the result is not yet the answer: = 13, so
    r"\b(?:so|thus|therefore|hence|total|then|but|leaves?|and|or|not|which|rounds?|rounded)\b|[,;.:~<>]\s", re.I
)
WORKING_RE = re.compile(r"=|\b(?:so|therefore|thus|hence|total)\b[^\n]{0,200}\d", re.I)  # a solution goes on
SENTENCE_END_RE = re.compile(  # not after Mrs., 3! or 3:30 p.m. on
    r"(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bMrs)(?:[.?]|!(?<!\d!))(?=\s|$)(?!(?<=\b[ap]\.m\.)\s+[^A-Z\s])|\n"
)
BREAK_RE = re.compile(r"(?<=[.!?])(?<!\d!)(?<!\bM[rs]\.)(?<!\bDr\.)(?<!\bMrs\.)\s+(?=[^a-z\s])")  # between sentences
END_RE = re.compile(r"<\|(?:im_end|im_start|endoftext|eot_id|end_of_text|end)\|>|</s>|\[INST\]")
FORMULA_RE = re.compile(  # $$x$$, $x$, \(x\), \[x\], align
    r"\$\$((?:[^$\\]|\\.)+)\$\$|(?<!\\)\$((?:[^$\\\n]|\n(?!\s*\n)|\\.)+)\$|\\\(((?:[^\\]|\\[^()])+)\\\)|\\\[((?:[^\\]|\\[^\[\]])+)\\\]"
    r"|\\begin\{(?:align|gather|equation)\*?\}((?:(?!\\begin|\\end\{(?:align|gather|eq)).)+)\\end",
    re.S,
)
CHECK_RE = re.compile(r"\n[^\w\n]{0,9}((?:check|verification|note)\W{0,3}[:\n]\s*)", re.I)
LATER_RE = re.compile(r"\n\s*\n|\b(?:so|therefore|thus|hence|step|try)\b", re.I)
NAME_ONLY_RE = re.compile(r"\W*[A-Za-z]{1,3}\W*")  # $x$
CONTEXT_RE = re.compile(  # 5 solutions in the interval [0, 1]
    rf"{CLAUSE}|\s(?:such that|so that|when|in the interval|to the equation|in quadrant|or about)\b.*"
    r"|\s\((?:we|each|as)\b.*",
    re.I | re.S,
)
CONCLUSION_RE = re.compile(  # because n = 2x, the value is 10; , which gives 10
    r",\s+(?:so|then|the|we|it|there|this)\b[^$]*\$|,\s+which (?:gives|means|implies|yields|equals)\b"
)
FORMULA_JOINT_RE = re.compile(  # $1$ and x = $2$
    r"\s*(?:,|(?:,\s*)?(?:and|or))\s*(?:[A-Za-z]\s*=\s*)?"
)
BRACE_RE = re.compile(r"\\.|[{}]", re.S)
SPACING = r"(?:\s|\$|\\q?quad|\\[()\[\],;: ])"
JOINT_RE = re.compile(r"\s*(?:/|\s|or|to|-|and|×|\^|\()\s*|\)/\(")  # between the numbers of a fraction or a range
BOX_JOINT_RE = re.compile(
    rf"\}}{SPACING}*(?:,|and|or|\\text\{{\s*(?:and|or)\s*\}}){SPACING}*(?:(?:and|or){SPACING}*)?(?:[A-Za-z](?:_\w)?\s*=\s*)?\\f?"
)
NUMBERS_JOINT_RE = re.compile(r"\}[^.!?\d]{0,80}")  # where several numbers are asked for
LIST_LINE_RE = re.compile(  # - Ana: 17; Ana = 17
    r"\s*(?:[-*•]|\d{1,2}[.)])\s+(.*)|(\W*[A-Za-z][^.!?:=+*/\d]{0,40}\d?\W*[:=].*)"
)


# ---------------------------------------------------------------- the answer after ####, in a box, after "answer is"


def _after_marker(text, kind):
    """What stands after the last `####` line that is not empty and no heading; None when there is none."""
    at = len(text)
    for _ in range(8):  # more empty markers than this are noise
        at = text.rfind("####", 0, at)
        if at < 0:
            return None
        end = text.find("\n", at)
        line = cut(text[at + 4 : len(text) if end < 0 else min(end, at + 2 * ANSWER_CHARS)].lstrip("# \t:"))
        if SIMPLE_RE.fullmatch(line):  # nearly all real answers
            return line
        if LABEL_RE.match(line):  # `####` alone or `#### Answer:`: the answer is on the next line
            following = _following_lines(text, end)
            if following and following[0][0] != "#" and not _is_solution(*following):
                return cut(BULLET_RE.sub("", following[0], count=1))
        elif re.search(r"\w", line) and not HEADING_RE.match(line):
            title = kind not in ("text", "ratio", "latex") and _is_title(line)
            if not title or not _following_lines(text, end):
                return line
    return None


def _following_lines(text, at):
    """The next lines that say something, two at most."""
    lines = text[at : at + 2 * ANSWER_CHARS].split("\n", 20) if at >= 0 else []
    return [line.strip() for line in lines if re.search(r"\w", line)][:2]


def _is_solution(line, following=""):
    """Whether the line below `#### Answer:` is no answer but begins a whole solution, or announces what follows it."""
    if not following or "=" not in line and VALUE_RE.match(line):
        return False
    return line[-1] == ":" or bool(WORKING_RE.search(following)) and not EXPLANATION_RE.match(following)


def _is_title(line):
    """Whether a `####` line, with text below it, is markdown's fourth heading: `#### Income`, `#### 2. Income`."""
    return bool(ITEM_RE.match(line)) and line[-1] != "." or not (DIGIT_RE.search(line) or NUMBER_WORD_RE.search(line))


def _box(text, at):
    r"""(start, end) of the content of the box whose name begins at `at`; None when it is never closed."""
    start = text.index("{", at) + 1
    end = text.find("}", start, start + 2 * ANSWER_CHARS)
    if end >= 0 and text[start:end].isalnum():  # nearly all real answers
        return start, end
    depth = 1
    for brace in BRACE_RE.finditer(text, start, start + 2 * ANSWER_CHARS):
        if len(brace.group()) == 1:
            depth += 1 if brace.group() == "{" else -1
            if not depth:
                return start, brace.start()
    return None


def boxed(text, joint=BOX_JOINT_RE):
    r"""(content of the last `\boxed{}` or None, True when there is a box at all); a box never closed has no content.

    Boxes joined by a comma, "and" or "or" are one answer with several parts, unless they all say the same."""
    at = text.rfind("boxed{")
    if at < 0:
        return None, False
    place = _box(text, at)
    if place is None:
        return None, True
    contents = [text[place[0] : place[1]]]
    while (before := text.rfind("boxed{", 0, at)) >= 0 and len(contents) < 10:
        place = _box(text, before)
        if place is None or at - place[1] > 200 or not joint.fullmatch(text, place[1], at):
            break
        at, contents = before, [text[place[0] : place[1]], *contents]
    return ", ".join(contents if len(set(contents)) > 1 else contents[:1]), True


def _answer_is(text, kind):
    """The sentence after the last "answer is", "Answer:", heading "Answer" or line that begins with "A:"; or None.

    "Answer:" before a whole solution, whose first sentence is not the answer, does not count."""
    line = text.rfind("\nA:")
    if line >= 0 and SIMPLE_RE.fullmatch(text, line + 3):  # nearly all of GSM8K's own form
        return text[line + 3 :].strip()
    start, colon = _answer_start("\n" + text)
    if start < 0:
        return None
    tail = cut(text[start - 1 : start + 2 * ANSWER_CHARS].lstrip())
    if colon and "\n" in text[max(0, start - 4) : start]:
        tail = BULLET_RE.sub("", tail, count=1)
    end = SENTENCE_END_RE.search(tail)
    if not end:
        return tail or None
    sentence, rest = tail[: end.start()], tail[end.end() :]
    listed = sentence == "1" and "\n2" in rest
    if colon and rest and (listed or "=" in sentence or not VALUE_RE.match(sentence)):
        working = WORKING_RE if kind in ("numbers", "ratio", "text") else DIGIT_RE
        if working.search(EXPLANATION_RE.split(rest, maxsplit=1)[0]):
            return None
    return sentence or None


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


# ---------------------------------------------------------------- the answer at the end


def _last_number(text):
    """The last number of a text, with what makes it a fraction, a sum's result or a range; None without one."""
    line = _last_line(text)
    last = LAST_DIGIT_RE.match(line)
    if not last:
        return None
    closing = BREAK_RE.search(line, last.end())  # I hope this helps!
    line = line[: closing.start()] if closing else line
    sentence = max((found.end() for found in BREAK_RE.finditer(line, 0, last.end())), default=0)
    remark = ENDING_RE.search(line, sentence)
    if remark and DIGIT_RE.search(line, 0, remark.start()):
        line = line[: remark.start()]
    result = RESULT_RE.search(line, sentence)
    if result and not BUT_RE.search(result.group(1).rstrip(". ")):
        return result.group(1)
    numbers = list(NUMBER_RE.finditer(line))
    if not numbers or DIGIT_RE.search(line, numbers[-1].end()):
        return None
    first = len(numbers) - 1
    while first and JOINT_RE.fullmatch(line, numbers[first - 1].end(), numbers[first].start()):
        first -= 1
    at = numbers[first].start()
    sign = re.search(r"(?:^|[\s(:=~])-\(?$|(?:^|[:=])\s*-\s*\(?$|\($", line[:at])
    return line[sign.end() - len(sign.group().lstrip(" :=~")) if sign else at :]


def _last_line(text):
    """The last line with a digit, as plain text; a check of the answer is no part of it."""
    text = _unchecked(text)
    last = LAST_DIGIT_RE.match(text)
    if not last:
        return ""
    begin = text.rfind("\n", 0, last.end()) + 1
    before = text[text.rfind("\n", 0, max(0, begin - 1)) + 1 : begin]
    begin += 2 if text.startswith("- ", begin) and before.startswith("- ") else 0  # a list, no minus
    if last.end() - begin > ANSWER_CHARS // 2:
        begin = text.find(" ", last.end() - ANSWER_CHARS // 2, last.end()) + 1 or last.end()
    end = text.find("\n", last.end())
    end = min(len(text) if end < 0 else end, last.end() + 40)
    return plain_text(text[begin:end])


def _unchecked(text):
    """A text without the check or note that ends it."""
    check = CHECK_RE.search(text, max(0, len(text) - 2 * ANSWER_CHARS))
    ends = check and not LATER_RE.search(text, check.end(1))
    return text[: check.start()] if ends and DIGIT_RE.search(text, 0, check.start()) else text


def _listed_lines(text):
    """The lines of a list that ends a text, `- Length: 16 m`, as one line; None where none or only one ends it."""
    listed = []
    for line in reversed(("\n" + text)[-ANSWER_CHARS:].rstrip().split("\n")[1:]):
        found = LIST_LINE_RE.fullmatch(line)
        if not found or not DIGIT_RE.search(line):
            break
        listed.insert(0, found.group(1) or found.group(2))
    return "; ".join(listed) if len(listed) > 1 else None


def _last_sentence(text, kind="text"):
    """The last sentence; where several numbers are asked for and it has only one of them, the last line."""
    line = text[-2 * ANSWER_CHARS :].strip().rsplit("\n", 1)[-1][-ANSWER_CHARS:].strip()
    sentence = BREAK_RE.split(line)[-1]
    if kind == "numbers" and len(NUMBER_RE.findall(sentence)) < 2:
        sentence = line
    return (sentence, "last sentence") if sentence else (None, "none")


def _last_formula(text):
    """For LaTeX golds without a marker: the formula after "answer is", else the last one of the last line."""
    answer = _answer_is(text, "latex")
    tail = answer if answer is not None else _unchecked(text[-2 * ANSWER_CHARS :]).strip()
    begin = max([0, tail.rfind("\n"), *(found.end() for found in BREAK_RE.finditer(tail))])
    remark = CONTEXT_RE.search(tail, begin)
    if remark and "$" in tail[begin : remark.start()] and not CONCLUSION_RE.search(tail, remark.start()):
        tail = tail[: remark.start()]
    formulas = list(FORMULA_RE.finditer(tail))
    while (
        formulas and NAME_ONLY_RE.fullmatch(formulas[-1].group()) and DIGIT_RE.search(tail, begin, formulas[-1].start())
    ):
        formulas.pop()  # 11 values of $x$
    after = DIGIT_RE.search(tail, formulas[-1].end()) if formulas else None
    if formulas and (not after or answer and DIGIT_RE.search(tail, *formulas[0].span())):
        formula = _joined_formulas(tail, formulas if answer is not None else formulas[::-1])
        return formula, "answer is" if answer is not None else "last formula"
    if answer is not None and not formulas:
        return answer, "answer is"
    spoken = [sentence for sentence in BREAK_RE.split(tail) if DIGIT_RE.search(sentence)]
    sentence, rule = _last_sentence(spoken[-1] if spoken else tail)
    said = _said(sentence or "")
    if said or not sentence or not re.search(r"[A-Za-z]{4}", sentence):
        return said or sentence, rule
    number = _last_number(sentence) if len(sentence) > 40 and not re.search(r"[\\^*√]|sqrt|pi", sentence) else None
    return (number, "last number") if number else (sentence, rule)


def _said(sentence):
    """What a sentence without a formula says: 2k + 17 of "so the simplified form is 2k + 17."; None for mere words."""
    leads = [lead.end() for lead in LEAD_RE.finditer(sentence)]
    said = sentence[max(leads, default=0) :].strip().rstrip(".")
    said = said.rpartition("=")[2].strip() if said.count("=") == 1 else said
    counted = re.match(r"-?[\d,./]*\d(?= [a-z]{3,})(?! and\b)", said)  # 7 values of n
    if counted:
        return counted.group()
    formula = re.match(r"[-\d.(\[{\\√|]|[a-z] ?[-+*/^=<>(]", said) and DIGIT_RE.search(said)
    return said if leads and formula else None


def _joined_formulas(text, formulas):
    """The first of the formulas with those that a comma, "and" or "or" joins to it, in the order of the text."""
    joined = formulas[:1]
    for formula in formulas[1:10]:
        left, right = sorted((joined[-1], formula), key=lambda f: f.start())
        if right.start() - left.end() > 20 or not FORMULA_JOINT_RE.fullmatch(text, left.end(), right.start()):
            break
        joined.append(formula)
    return ", ".join(_last_row(next(g for g in f.groups() if g)) for f in sorted(joined, key=lambda f: f.start()))


def _last_row(formula):
    """The last row of an aligned formula; any other formula as it is."""
    if "matrix" in formula or "array" in formula or "&" not in formula:
        return formula
    rows = re.split(r"\\\\", re.sub(r"\\(?:begin|end)\{\w+\*?\}", "", formula))
    return next((row for row in reversed(rows) if row.strip()), formula).replace("&", "")


# ---------------------------------------------------------------- all rules


def _reply(text):
    """A completion without its thoughts and without what follows its end token."""
    if "<" not in text and "[INST]" not in text:
        return text
    if "</think>" in text:
        thought, _, said = text.rpartition("</think>")
        text = said if said.strip() else thought
    for end in END_RE.finditer(text) if "<|" in text or "</s>" in text or "[INST]" in text else ():
        if not text[: end.start()].isspace() and end.start():
            return text[: end.start()]
    return text


def extract_answer(completion, kind="integer"):
    r"""Where the final answer of a completion stands.

    Args: completion: any text. kind: one of KINDS; it decides which rule goes first and what the last resort is.
    Returns (answer, rule): the raw answer text or None, and the rule: "####", "boxed", "answer is", "last number",
    "last formula", "last lines", "last sentence", "first word", or "none"."""
    completion = _reply(completion)
    marked = _after_marker(completion, kind)
    if marked is not None and kind != "latex":
        return marked, "####"
    box, has_box = boxed(completion, NUMBERS_JOINT_RE if kind == "numbers" else BOX_JOINT_RE)
    if has_box:
        return box, "boxed" if box is not None else "none"
    if marked is not None:
        return marked, "####"
    return _last_formula(completion) if kind == "latex" else _unmarked(completion, kind)


def _unmarked(text, kind):
    """(answer, rule) for a text without `####` or a box, and a gold answer that is no LaTeX."""
    answer = _answer_is(text, kind)
    if kind == "numbers" and len(NUMBER_RE.findall(answer or "")) < 2 and (listed := _listed_lines(text)):
        return listed, "last lines"
    if answer is not None and (kind in ("text", "ratio") or DIGIT_RE.search(answer) or NUMBER_WORD_RE.match(answer)):
        return answer, "answer is"
    if kind in ("text", "ratio", "numbers"):
        sentence, rule = _last_sentence(text, kind)
        opening = re.match(r"\W{0,9}(yes|no)\b", text, re.I) if kind == "text" else None
        if opening and not re.search(r"\b(?:yes|no)\b", sentence, re.I):
            return opening.group(1), "first word"
        return sentence, rule
    answer = _last_number(text)
    return answer, "none" if answer is None else "last number"
