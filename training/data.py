"""The rows that a model is trained on: what TRL's trainers read of them, and that the model can take every one in.

Used by maths_finetuning.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282).

    from training.data import load_training_data
    data = load_training_data(plan, Template(tokenizer), load_config(model_path)[0])    # {"train", "validation"}
"""

from common.datasets import load_training_split
from common.files import get_cache_dir
from common.prompts import Room, check_vocabulary, find_fitting, positions_of

LEFT_OUT = "they are neither trained nor validated on"
# What of a configuration decides whether a model can take its rows in, and follow the options about its tokens.
ROOM_FOR_ROWS = (
    "chat_template_kwargs max_completion_length max_length eos_token pad_token router_aux_loss_coef"
).split()


def load_training_data(plan, template, text_config):
    """{"train", "validation"} for TRL: `prompt`, and `gold` and `kind` for the reward or `completion` for SFT.

    plan: of maths_finetuning.py. template: Template. text_config: the model's, see load_config. Raises BadInput as
    load_training_split does, and for rows that TRL would cut or drop or the model cannot take in.
    """
    from datasets import Dataset  # slow to import

    args = plan.command.args
    sft = args.trust_region_method == "sft"
    parts = load_training_split(plan.command.dataset, plan.config.seed, get_cache_dir(args.cache_dir), sft)
    room = room_for_rows(plan.config, text_config)

    def add(row):
        prompt = {"prompt": template.prompt(row["question"])}
        if sft:
            return {**prompt, "completion": [{"role": "assistant", "content": row["solution"]}]}
        return {**prompt, "gold": row["gold"], "kind": row["kind"]}

    data = {}
    for part, rows in zip(("train", "validation"), parts, strict=True):
        messages = Dataset.from_list([add(row) for row in rows])
        tokens = encode_rows(messages, template)
        check_vocabulary(template.tokenizer, tokens, text_config)
        lengths = list(zip(rows["id"][:], map(len, tokens), strict=True))
        fitting = find_fitting(plan.command.dataset, lengths, room, args.skip_long_prompts, LEFT_OUT)
        data[part] = messages.select(fitting)
    return data


def key_of_rows(plan):
    """What decides whether the rows of a Plan fit its model, as text: Plans that agree in it have one answer.

    The seed is no part of it: it only says which rows are trained and which are validated on.
    """
    args = plan.command.args
    said = (args.model, plan.command.dataset, args.cache_dir, args.trust_region_method == "sft", args.skip_long_prompts)
    model_config = vars(plan.model_config)
    adapter = [model_config[name] for name in sorted(model_config) if name == "use_peft" or name.startswith("lora_")]
    return repr([*said, adapter, *(getattr(plan.config, name, None) for name in ROOM_FOR_ROWS)])


def room_for_rows(config, text_config):
    """The Room that a row has: SFT's is the whole row, up to max_length; GRPO samples behind the prompt."""
    positions = positions_of(text_config)
    if hasattr(config, "max_completion_length"):
        completion = config.max_completion_length
        return Room(positions, f"the model's {positions} positions", completion, "lower --max_completion_length")
    if config.max_length is not None and config.max_length < positions:
        return Room(config.max_length, f"max_length {config.max_length}", 0, "raise --max_length")
    return Room(positions, f"the model's {positions} positions", 0, "")


def encode_rows(messages, template):
    """Token ids [rows][tokens] of what the trainer reads: SFT the prompt with its answer, GRPO the prompt."""
    prompts = messages["prompt"][:]
    if "completion" not in messages.column_names:
        return template.encode(prompts)
    answers = messages["completion"][:]
    return template.encode_answered([[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)])
