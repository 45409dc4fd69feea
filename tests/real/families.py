"""Model families by their configuration: random weights, a few layers, the demo's tokenizer, a template of the kind.

A family is what can go wrong in it, not its weights: end tokens, the roles and switches of its template, its kinds of
layer, the size of its heads, whether its tokenizer pads. Templates are written anew after what each family's does.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DEMO_MODEL = ROOT / "demo" / "model"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

CHATML = """{%- for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# Without a switch Qwen3 thinks; with enable_thinking false its template ends with an empty thought.
QWEN3 = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}",
)
LLAMA3 = """{%- for m in messages %}<{{ m['role'] }}>

{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<assistant>

{% endif %}"""
GEMMA3 = """{%- for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}
{%- endif %}<turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<turn>model
{% endif %}"""
PHI3 = """{%- for m in messages %}<{{ m['role'] }}>
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<assistant>
{% endif %}"""

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SLIDING, FULL = "sliding_attention", "full_attention"


class Family(NamedTuple):
    """One family: the class of its configuration, what it sets there, its template, and what is its own."""

    config: str
    values: dict
    template: str = CHATML
    end_tokens: tuple = (2,)
    pads: bool = True  # False: its tokenizer has no padding token


FAMILIES = {
    "Qwen2.5": Family("Qwen2Config", {"tie_word_embeddings": True}),
    "Qwen3": Family("Qwen3Config", {"head_dim": 32}, QWEN3),
    "Llama-3": Family(
        "LlamaConfig",
        {
            "pad_token_id": None,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
        },
        LLAMA3,
        end_tokens=(2, 7, 9),
        pads=False,
    ),
    "Gemma-3": Family(
        "Gemma3TextConfig",
        {
            "head_dim": 48,
            "num_key_value_heads": 1,
            "num_hidden_layers": 4,
            "query_pre_attn_scalar": 48,
            "sliding_window": 512,  # as Gemma-3-1B
            "layer_types": [SLIDING, SLIDING, SLIDING, FULL],
        },
        GEMMA3,
        end_tokens=(2, 7),
    ),
    "Phi-3 and Phi-4-mini": Family(
        "Phi3Config",
        {
            "sliding_window": 2047,
            "original_max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
        },
        PHI3,
    ),
    "Phi-2": Family("PhiConfig", {}, PHI3),
    "OLMo-2": Family("Olmo2Config", {}),
    "OLMo-3": Family("Olmo3Config", {"sliding_window": 4096, "layer_types": [SLIDING, FULL]}),
    "SmolLM3": Family("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "Mistral": Family("MistralConfig", {"sliding_window": None, "head_dim": 32}),
    "Pythia (GPT-NeoX)": Family("GPTNeoXConfig", {"rotary_pct": 0.25}),
    "Qwen3-MoE": Family(
        "Qwen3MoeConfig",
        {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        QWEN3,
    ),
    "Gemma-2": Family(
        "Gemma2Config",
        {"head_dim": 48, "sliding_window": 4096, "layer_types": [SLIDING, FULL], "query_pre_attn_scalar": 48},
        GEMMA3,
    ),
    "a window shorter than the text": Family("MistralConfig", {"sliding_window": 32}),
    "Qwen3.5 (linear attention)": Family(
        "Qwen3_5TextConfig",
        {
            "head_dim": 32,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "layer_types": ["linear_attention", FULL],
        },
        QWEN3,
    ),
    "Mamba-2": Family(
        "Mamba2Config", {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16, "chunk_size": 16}
    ),
}


def make_family(name, folder):
    """A model directory of a family under `folder`; returns its path."""
    import torch
    import transformers

    family, path = FAMILIES[name], Path(folder) / "".join(c for c in name if c.isalnum() or c in ".-")
    path.mkdir(parents=True)
    for file in TOKENIZER_FILES:
        shutil.copy(DEMO_MODEL / file, path)
    (path / "chat_template.jinja").write_text(family.template, encoding="utf-8")
    tokenizer_config = json.loads((path / "tokenizer_config.json").read_text())
    if not family.pads:
        del tokenizer_config["pad_token"]
    tokenizer_config["model_max_length"] = 1024
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    vocabulary = json.loads((DEMO_MODEL / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = getattr(transformers, family.config)(**{**SMALL, "vocab_size": vocabulary, **family.values})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # the 0.02 of an initialisation makes every token alike
    model.generation_config.eos_token_id = list(family.end_tokens) if len(family.end_tokens) > 1 else 2
    model.generation_config.pad_token_id = config.pad_token_id
    model.save_pretrained(path)
    return path
