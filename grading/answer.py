r"""Find where the final answer of a completion stands, looking at a bounded part of the text from its end."""

import re

from .number import DIGIT_RE, LEAD_RE, NUMBER_RE, SIMPLE_RE, SOLUTIONS_RE, plain_text, says_number, without_remark
from .text import ANSWER_CHARS, boxed, cut

# ---- marks of an answer, with an example of each

END_RE = re.compile(r"(?<=\S)\s{0,9}(?:<\|(?:im_end|im_start|endoftext|eot_id|end_of_text|end)\|>|</s>|\[INST\])")
STEP = r"(?:step|part|case|problem|question|example|method)\b[\s*_]*(?:\d|[a-z]\b|[ivx]+\b)"  # Step 2: add
NOTE = r"(?:explanation|reasoning|calculation|verification|check|note)s?\b"
HEADING_RE = re.compile(rf"[\s*_]*(?:{STEP}|{NOTE})|\W*(?:\d{{1,2}}|[A-Za-z])[.)]\s+\W*[A-Za-z]", re.I)  # 2. Income
BULLET_RE = re.compile(r"\A(?:[->*•]\s+)+")
LABEL = r"(?:the\s+)?(?:final\s+)?(?:answer|solution|result|conclusion)(?:\s*is)?"
LABEL_RE = re.compile(rf"[\s#:>*_=.-]*(?:{LABEL}[\s:*_]*)?$", re.I)  # nothing, or: Final Answer:
IS = r"(?<=\s)(?:is|was|equals|(?:would|will|should|could|must)\s{1,5}be)\b"
QUESTION = r"(?:\s{1,5}(?:to|for|in)\s[\w ]{1,40}?)?"  # answer to the question is
NO_ANSWER = r"(?!(?:in)?correct\b|right\b|wrong\b|valid\b|verified\b|reasonable\b)"  # the answer is correct
COLON = r"(?P<colon>(?<!our answer)[:=\n])"  # Answer: 18; ## Answer; but not: let us check our answer:
MARK = rf"answer{QUESTION}[ \t*_]{{0,20}}+(?:{IS}|{COLON})[\s:*_]{{0,20}}+{NO_ANSWER}"
ANSWER_IS_RE = re.compile(rf"{MARK}|\n(?P<line>A:)\s*", re.I)
VALUE_RE = re.compile(r"[\s*_~$\\]*-?\$?\.?\d[\d,.]*+(?!\)?\s*[-+*/×÷=x]\s*[$(\d])")  # 18 eggs; not 9 * 2
BREAK_RE = re.compile(r"(?<=[.!?])(?<!\d!)(?<!\bM[rs]\.)(?<!\bDr\.)(?<!\bMrs\.)\s+(?=[^a-z\s])")  # of sentences
LAST_DIGIT_RE = re.compile(r"(?s).*\d")
RESULT_RE = re.compile(r"=\s*([-$]*\s*\.?\d[\d,.]*+(?!\s*[-+*/x^(])[^=,;.:~<>]*\.?)$")  # = 13 eggs out of the 16 eggs.
JOINT_RE = re.compile(r"\s*(?:/|\s|or|to|-|and|\*|\^|\()\s*")  # between the numbers of a fraction or a range
SPACING = r"(?:\s|\$|\\q?quad|\\[()\[\],;: ])"
AND = r"(?:,|and|or|\\text\{\s*(?:and|or)\s*\})"
BOX_JOINT_RE = re.compile(rf"\}}{SPACING}*{AND}{SPACING}*(?:(?:and|or){SPACING}*)?(?:[A-Za-z](?:_\w)?\s*=\s*)?\\f?")
NUMBERS_JOINT_RE = re.compile(r"\}[^.!?\d]{0,80}")  # where several numbers are asked for
DOLLARS = r"\$\$((?:[^$\\]|\\.)+)\$\$|(?<!\\)\$((?:[^$\\\n]|\n(?!\s*\n)|\\.)+)\$"
FORMULA_RE = re.compile(rf"{DOLLARS}|\\\(((?:[^\\]|\\[^()])+)\\\)|\\\[((?:[^\\]|\\[^\[\]])+)\\\]", re.S)


def _after_marker(text, kind):
    """What stands after the last `####` line that is neither empty nor a heading; None when there is none."""
    at = len(text)
    for _ in range(8):  # more empty markers than this are noise
        at = text.rfind("####", 0, at)
        if at < 0:
            return None
        line, _, following = text[at + 4 : at + 4 * ANSWER_CHARS].lstrip("# \t:").partition("\n")
        if SIMPLE_RE.fullmatch(line):  # nearly all real answers
            return line
        line = cut(line)
        following = following.strip()
        if LABEL_RE.match(line):  # `####` alone or `#### Answer:`: the answer is below
            line = _first_sentence(following, kind) or ""
        elif following and kind not in ("text", "ratio", "latex") and not says_number(line):  # #### Income
            continue
        if re.search(r"\w", line) and not HEADING_RE.match(line):
            return line
    return None


def _first_sentence(text, kind):
    """The first sentence below "Answer:"; None where it is no answer but begins a whole solution, which ends in one."""
    sentence, *rest = re.split(rf"{BREAK_RE.pattern}|\n", cut(text), maxsplit=1)
    sentence = BULLET_RE.sub("", sentence, count=1).rstrip(". ")
    leads_on = kind != "text" and rest and DIGIT_RE.search(rest[0])
    return None if leads_on and ("=" in sentence or not VALUE_RE.match(sentence)) else sentence


def _answer_is(text, kind):
    """The sentence after the last "answer is", "Answer:", heading "Answer" or line that begins with "A:"; or None."""
    line = text.rfind("\nA:")
    if line >= 0 and SIMPLE_RE.fullmatch(text, line + 3):  # a completion of plain text often ends so; saves a search
        return text[line + 3 :].strip()
    text = "\n" + text[-10 * ANSWER_CHARS :]
    *_, found = [None, *ANSWER_IS_RE.finditer(text)]
    if found is None:
        return None
    colon = found["colon"] or found["line"]
    return _first_sentence(text[found.end() : found.end() + 2 * ANSWER_CHARS], kind if colon else "text") or None


def _last_number(text):
    """The number that ends the last line with a digit, with what makes it a fraction or a range; None without one."""
    last = LAST_DIGIT_RE.match(text)
    if not last:
        return None
    begin = max(text.rfind("\n", 0, last.end()) + 1, last.end() - ANSWER_CHARS // 2)
    line = plain_text(BULLET_RE.sub("", text[begin : last.end() + 40].partition("\n")[0], count=1))
    sentence = without_remark(next((s for s in reversed(BREAK_RE.split(line)) if DIGIT_RE.search(s)), ""))
    if SOLUTIONS_RE.search(sentence):  # x = 4 or x = 5
        return sentence
    if result := RESULT_RE.search(sentence):
        return result.group(1)
    numbers = list(NUMBER_RE.finditer(sentence))
    if not numbers or DIGIT_RE.search(sentence, numbers[-1].end()):
        return None
    first = len(numbers) - 1
    while first and JOINT_RE.fullmatch(sentence, numbers[first - 1].end(), numbers[first].start()):
        first -= 1
    return sentence[numbers[first].start() :]


def _last_sentence(text, kind="text"):
    """The last sentence; where several numbers are asked for and it has only one, the list that ends the text."""
    paragraph = text.strip()[-ANSWER_CHARS:].split("\n\n")[-1]
    sentence = BREAK_RE.split(paragraph.rsplit("\n", 1)[-1])[-1]
    several = kind == "numbers" and len(NUMBER_RE.findall(sentence)) < 2
    lines = paragraph.rpartition(":\n")[2].split("\n")
    return "; ".join(BULLET_RE.sub("", line) for line in lines) if several else sentence


def _last_formula(text):
    """(answer, rule) for LaTeX without a box: the last formula of what follows "answer is", else of the text."""
    answer = _answer_is(text, "latex")
    said, rule = (answer, "answer is") if answer else (text[-2 * ANSWER_CHARS :].strip(), "last formula")
    *_, last = [None, *FORMULA_RE.finditer(said)]
    if last is None or DIGIT_RE.search(said, last.end()):
        said = next((s for s in reversed(BREAK_RE.split(said)) if DIGIT_RE.search(s)), _last_sentence(said))
        said = LEAD_RE.split(said)[-1]  # so the simplified form is 2k + 17.
        return said.strip().rstrip("."), "answer is" if answer else "last sentence"
    return next(group for group in last.groups() if group), rule


def extract_answer(completion, kind="integer"):
    r"""Where the final answer of a completion stands; thoughts and what follows an end token do not count.

    Returns (answer, rule): the raw text or None, and "####", "boxed", "answer is", "last number", "last formula",
    "last sentence", or "none"; kind, one of KINDS, decides which rule goes first and what the last resort is."""
    thought, _, said = completion.rpartition("</think>")
    completion = said if said.strip() else thought
    if "<|" in completion or "</s>" in completion or "[INST]" in completion:
        completion = END_RE.split(completion, maxsplit=1)[0]
    marked = _after_marker(completion, kind)
    if marked is not None and not (kind == "latex" and "boxed{" in completion):
        return marked, "####"
    box, has_box = boxed(completion, NUMBERS_JOINT_RE if kind == "numbers" else BOX_JOINT_RE)
    if has_box:
        return box, "boxed" if box is not None else "none"
    if kind == "latex":
        answer, rule = _last_formula(completion)
    elif (answer := _answer_is(completion, kind)) and (kind in ("text", "ratio") or says_number(answer)):
        rule = "answer is"
    elif kind in ("text", "ratio", "numbers"):
        answer = _last_sentence(completion, kind)
        rule = "last sentence"
    else:
        answer = _last_number(completion)
        rule = "last number"
    return (answer, rule) if answer else (None, "none")
