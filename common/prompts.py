"""How a question becomes a model's tokens, and whether they fit the model: one answer for training and evaluation.

For the experiments of Probability Smoothing Policy Optimisation (arXiv 2509.21282). What a model cannot take in is
refused here before any weights are read, in the same words wherever it was asked.

    from common.prompts import Template, Room, check_vocabulary, find_fitting
    template = Template(load_tokenizer([path]), {"enable_thinking": False})
    ids = template.encode([template.prompt("What is 1 + 2?")])      # a list of token ids for each prompt
"""

import inspect
import math
import sys
from dataclasses import dataclass

from common.datasets import build_prompt
from common.files import BadInput


class Template:
    """A tokenizer's chat template with the arguments it is given (--chat_template_kwargs).

    A template that refuses a system role, as Gemma's does, or passes over it, has the system prompt in front of the
    question. Raises BadInput if it can write no prompt at all. examples: [(question, solution)] before each question.
    """

    stop = None  # a completion ends with an end token

    def __init__(self, tokenizer, kwargs=None, examples=()):
        self.tokenizer = tokenizer
        self.examples = examples
        self.kwargs = dict(kwargs or {})
        taken = inspect.signature(tokenizer.apply_chat_template).parameters.keys() - {"documents", "kwargs"}
        if clash := sorted(self.kwargs.keys() & taken):
            raise BadInput(f"chat_template_kwargs: {clash[0]} is no argument of the template's own: leave it out")
        self.system_role = True
        self.system_role = self._writes_system_prompt()

    def _writes_system_prompt(self):
        """Whether a prompt with a system message holds its text; raises BadInput if one without fails as well."""
        from jinja2 import TemplateError

        # a template is a program, which can fail as one
        errors = (TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)
        system, *asked = self.prompt("QUESTION")
        try:
            return system["content"] in self.write([system, *asked])
        except errors:
            pass
        try:
            self.write(build_prompt("QUESTION", False, self.examples))
            return False
        except errors as error:
            raise BadInput(
                f"the chat template of {self.tokenizer.name_or_path} cannot write a prompt: {error}"
            ) from None

    def prompt(self, question):
        """The conversation for a question, a list of messages."""
        return build_prompt(question, self.system_role, self.examples)

    def write(self, messages):
        """The text of a conversation with the beginning of the answer."""
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **self.kwargs)

    def encode(self, conversations):
        """Token ids [conversations][tokens] with the beginning of the answer, as TRL's own path makes them."""
        if not conversations:
            return []
        ids = self.tokenizer.apply_chat_template(conversations, add_generation_prompt=True, **self.kwargs)
        return ids["input_ids"]

    def encode_answered(self, conversations):
        """Token ids [conversations][tokens] of conversations that hold their answers, as SFT reads them."""
        return self.tokenizer.apply_chat_template(conversations, **self.kwargs)["input_ids"] if conversations else []


class PlainText:
    """Prompts without a chat template, for base models: worked examples, the question, and the model goes on.

    The form is that of lm-evaluation-harness's task gsm8k
    (https://github.com/EleutherAI/lm-evaluation-harness/blob/main/lm_eval/tasks/gsm8k/gsm8k.yaml), which has no system
    prompt either. A completion ends where the model asks itself the next question.
    """

    kwargs = {}
    stop = "Question:"

    def __init__(self, tokenizer, examples=()):
        self.tokenizer = tokenizer
        self.examples = examples

    def prompt(self, question):
        """The text for a question, which ends where its answer begins."""
        shown = [f"Question: {asked}\nAnswer: {answered}" for asked, answered in self.examples]
        return "\n\n".join([*shown, f"Question: {question}\nAnswer:"])

    def encode(self, texts):
        """Token ids [texts][tokens], with the beginning of a text where the tokenizer marks it."""
        return self.tokenizer(texts)["input_ids"] if texts else []


@dataclass
class Room:
    """How many tokens a prompt may have: `limit` with the `completion` (0 where the answer is part of it)."""

    limit: float
    what: str  # "the model's 512 positions", "max_length 1024"
    completion: int
    way_out: str  # what the user can change to make room, with the flag: "lower --max_new_tokens"

    def holds(self, tokens):
        """Whether there is room for so many tokens."""
        return tokens + self.completion <= self.limit


def positions_of(config):
    """The positions of a model by its configuration (see load_config), infinity where it states none."""
    return getattr(config, "max_position_embeddings", None) or math.inf


def check_vocabulary(tokenizer, ids, config):
    """Raise BadInput if a token of `ids`, [rows][tokens], or the padding is none of the model's."""
    largest = max((max(row) for row in ids if row), default=0)
    if tokenizer.pad_token_id is not None:
        largest = max(largest, tokenizer.pad_token_id)
    if largest >= config.vocab_size:
        raise BadInput(f"the tokenizer has tokens that the model lacks (token {largest}): they do not match")


def find_fitting(name, lengths, room, skip, left_out):
    """The places of a data set's rows that fit into the Room, in order.

    lengths: [(id of a row, tokens)]. Rows that do not fit raise BadInput, or with `skip` are named on stderr; left_out:
    what becomes of them then, "they count as wrong". Raises BadInput if none fits.
    """
    fitting = [place for place, (_, tokens) in enumerate(lengths) if room.holds(tokens)]
    if len(fitting) == len(lengths):
        return fitting
    long = [row for row, tokens in lengths if not room.holds(tokens)]
    longest = max(tokens for _, tokens in lengths)
    exceed = f"exceed {room.what}{' with their completions' if room.completion else ''}"
    what = "prompts" if room.completion else "rows"
    found = f"{name}: {len(long)} of {len(lengths)} {what} ({long[0]} for one; the longest has {longest} tokens)"
    way_out = room.way_out if longest < room.limit or not room.completion else ""
    if not fitting:
        raise BadInput(f"{found} {exceed}, so none is left{f': {way_out}' if way_out else ''}")
    if not skip:
        ways = ", or ".join([*([way_out] if way_out else []), f"--skip_long_prompts leaves them out, and {left_out}"])
        raise BadInput(f"{found} {exceed}: {ways}")
    print(f"{found} {exceed}: left out, {left_out}", file=sys.stderr)
    return fitting
