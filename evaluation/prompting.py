"""What an evaluation puts around its questions: a chat, or plain text, with worked examples or without.

Used by maths_evaluations.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282).

    template = make_template(args, tokenizer, model_dir, problems)
    prompts = template.encode([template.prompt("What is 1 + 2?")])
"""

from common.datasets import FILE, find_dataset, load_examples
from common.files import BadInput, get_cache_dir
from common.prompts import PlainText, Template
from common.record import read_record
from common.values import read_mapping, read_switch


def add_prompting(parser):
    """Add the flags that decide what stands around a question."""
    template = "JSON for the model's chat template (default: what the run was trained with)"
    parser.add_argument("--chat_template_kwargs", type=read_mapping, help=template)
    plain = "false: prompts of plain text, as lm-evaluation-harness's, for base models (default: true)"
    parser.add_argument("--apply_chat_template", type=read_switch, default=True, metavar="BOOL", help=plain)
    parser.add_argument("--num_fewshot", type=int, default=0, help="worked examples before each question (default: 0)")
    source = "data set whose training rows are the examples (default: gsm8k, or demo for the demo's problems)"
    parser.add_argument("--fewshot_dataset", help=source)


def check_prompting(args):
    """Raise BadInput for flags about prompts that contradict each other."""
    if args.num_fewshot < 0:
        raise BadInput(f"--num_fewshot {args.num_fewshot}: must be 0 or more")
    if args.fewshot_dataset and not args.num_fewshot:
        raise BadInput(f"--fewshot_dataset {args.fewshot_dataset}: needs --num_fewshot, how many examples")
    if args.chat_template_kwargs and not args.apply_chat_template:
        raise BadInput("--chat_template_kwargs: there is no chat template with --apply_chat_template false")
    if args.fewshot_dataset:
        find_dataset(args.fewshot_dataset)


def make_template(args, tokenizer, model_dir, problems):
    """What writes the prompts: the Template of the model's chat, or PlainText; both with the examples asked for.

    args: the command line. problems: {data set: ...}, what is evaluated.
    """
    examples = []
    if args.num_fewshot:
        cache_dir = get_cache_dir(args.cache_dir)
        source = find_fewshot_dataset(args.fewshot_dataset, problems)
        with_notes = not args.apply_chat_template
        examples = load_examples(source, args.num_fewshot, args.seed, cache_dir, with_notes)
    if not args.apply_chat_template:
        return PlainText(tokenizer, examples)
    return Template(tokenizer, find_template_kwargs(args, model_dir), examples)


def find_fewshot_dataset(asked, problems):
    """The data set whose training rows are examples: gsm8k, or demo where only the demo's problems are evaluated.

    Raises BadInput for a file that is evaluated itself: its answers would stand in the prompts.
    """
    if asked is None:
        return "demo" if set(problems) == {"demo"} else "gsm8k"
    name, data = find_dataset(asked)
    if data is FILE and name in problems:
        raise BadInput(f"--fewshot_dataset {asked}: its problems are evaluated, so they cannot be examples too")
    return asked


def find_template_kwargs(args, model_dir):
    """--chat_template_kwargs, else those of the model's run: a model is asked as it was trained."""
    if args.chat_template_kwargs is not None:
        return args.chat_template_kwargs
    record = read_record(model_dir) or read_record(model_dir.parent)
    return (record.config.get("chat_template_kwargs") if record else None) or {}
