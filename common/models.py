"""Models and their tokenizers: found, checked and loaded in one way by training and evaluation.

For the experiments of Probability Smoothing Policy Optimisation (arXiv 2509.21282). Nothing here touches the network
and no code of a checkpoint is run: weights are safetensors or they are not read.

    from common.models import choose_precision, find_model, load_model, load_tokenizer
    model = load_model([find_model("demo", "cached_files")], choose_precision("cpu")[1])
"""

import hashlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from common.files import DEMO_DIR, BadInput, check_sizes, fetch_command, hash_file, read_json, read_manifest

MODEL_MARKERS = ("config.json", "adapter_config.json")  # what makes a directory a model: full weights or a LoRA adapter
MODELS = {  # names in the cache and where they come from on the Hub
    "Qwen2.5-0.5B": "Qwen/Qwen2.5-0.5B",
    "Qwen2.5-1.5B": "Qwen/Qwen2.5-1.5B",
    "Qwen2.5-3B": "Qwen/Qwen2.5-3B",
}
# What decides a completion.
DECIDING_FILES = "*.safetensors *config.json tokenizer.json special_tokens_map.json vocab.json merges.txt *.jinja"


# ---- finding


def find_model(name_or_path, cache_dir):
    """Directory of a model: "demo", a name in the cache (organisation optional), a run, a checkpoint or an adapter.

    Raises BadInput naming what is missing and the command that fetches it.
    """
    path = Path(name_or_path).expanduser()
    cached = Path(cache_dir) / Path(name_or_path).name
    if name_or_path == "demo":
        path = DEMO_DIR / "model"
    elif is_model(cached) and name_or_path in (cached.name, hub_id_of(cached.name, cache_dir)):
        check_sizes(cache_dir, cached.name, fetch_command("--models", name_or_path, cache_dir))
        path = cached
    if is_model(path):
        return path
    if name_or_path == "demo":
        raise BadInput(f"{path} is missing; it comes with the repository: git checkout -- demo")
    if path.exists():
        raise BadInput(f"{path} is not a model directory: it holds neither {' nor '.join(MODEL_MARKERS)}")
    if name_or_path in MODELS or re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_path):
        command = fetch_command("--models", name_or_path, cache_dir)
        raise BadInput(f"model {name_or_path} is not in {cache_dir}; where there is internet, run: {command}")
    known = ", ".join(["demo", *MODELS])
    raise BadInput(f"there is no model or directory {name_or_path}: models are {known}, and ORGANISATION/NAME")


def is_demo(name_or_path):
    """Whether a model is the embedded default, by its name: the demo's own, or a directory called demo."""
    return Path(name_or_path).name == "demo"


def is_model(path):
    """True for a directory with a model's or an adapter's config file."""
    return any((Path(path) / marker).is_file() for marker in MODEL_MARKERS)


def hub_id_of(name, cache_dir):
    """The Hub id of a cached item by its manifest, else of a known model; None if neither knows it."""
    return read_manifest(cache_dir).get(name, {}).get("hub_id", MODELS.get(name))


def find_model_dirs(name_or_path, cache_dir):
    """[model], or [adapter, base] for a LoRA adapter; raises BadInput naming what is missing."""
    path = find_model(name_or_path, cache_dir)
    if (path / "config.json").is_file():
        return [path]
    if not (path / "adapter_model.safetensors").is_file():
        raise BadInput(f"{path} has no adapter_model.safetensors (other formats can run code and are not read)")
    base = read_json(path / "adapter_config.json", "copy the adapter again").get("base_model_name_or_path")
    if not isinstance(base, str):
        raise BadInput(f"{path / 'adapter_config.json'} is damaged, or names no base model")
    for name in (base, Path(base).name):  # a path of another machine: its last part is a name in the cache
        try:
            return [path, find_model(name, cache_dir)]
        except BadInput as error:
            reason = error
    raise BadInput(f"{path} is an adapter and its base model was not found: {reason}")


def hash_model(directory):
    """SHA-256 of what decides a model's completions: weights, configuration, tokenizer."""
    files = sorted({path for pattern in DECIDING_FILES.split() for path in directory.glob(pattern)})
    return hashlib.sha256("".join(f"{p.name}\0{hash_file(p)}\n" for p in files).encode()).hexdigest()


def check_weights(path):
    """Raises BadInput unless the directory holds safetensors whose headers match the files' sizes; reads no weights."""
    from safetensors import SafetensorError, safe_open

    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise BadInput(f"no safetensors in {path}: fetch the model with save_model_locally.py")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{file} is damaged ({error}): fetch the model again") from None


def fp32_bytes(path):
    """Bytes of a model's weights in fp32, as training keeps them; a checkpoint has AdamW's two moments too."""
    config = read_json(path / "config.json", "fetch the model again") or {}
    half = config.get("dtype", config.get("torch_dtype")) in ("bfloat16", "float16")
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) * (2 if half else 1)


# ---- loading


def choose_precision(device="auto"):
    """(device, number type): a GPU in bf16, fp16 where it has no bf16, else the CPU in fp32.

    Training keeps fp32 weights and takes the number type for autocast: bf16 weights lose updates at a learning rate of
    1e-6. Evaluation loads the weights in it. Raises BadInput if `device` is "cuda" and there is none.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: PyTorch sees no CUDA device here; use --device cpu, or ask for a GPU node")
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu", torch.float32
    return "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


@dataclass(frozen=True)
class Device:
    """Where numbers are computed, as far as that moves their last bits."""

    kind: str  # "cpu" or "cuda"
    name: str  # the card's name, or "2 threads"
    number_type: str  # "float32", "bfloat16", "float16"

    def __str__(self):
        return f"{self.kind}, {self.name}, {self.number_type}"


def describe_device(kind, dtype):
    """The Device of a kind ("cpu", "cuda") and a torch.dtype on this machine."""
    import torch

    name = torch.cuda.get_device_name() if kind == "cuda" else f"{torch.get_num_threads()} threads"
    return Device(kind, name, str(dtype).removeprefix("torch."))


def load_tokenizer(dirs, needs_template=True):
    """The tokenizer of the first directory that has one; raises BadInput without a chat template, if one is needed.

    Llama's and others have no padding token: theirs is then the end token, as in TRL. What is padded is masked.
    """
    from transformers import AutoTokenizer

    path = next((d for d in dirs if (d / "tokenizer_config.json").is_file()), None)
    if path is None:
        raise BadInput(f"{dirs[0]} has no tokenizer (tokenizer_config.json is missing)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise BadInput(f"cannot load the tokenizer in {path}: {error}") from None
    if needs_template and not tokenizer.chat_template:
        raise BadInput(
            f"the tokenizer in {path} has no chat template; add a chat_template.jinja to it (an evaluation can do "
            "without: --apply_chat_template false)"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(path):
    """(configuration, generation configuration) of a model's text part; raises BadInput if either is damaged."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(path).get_text_config()
        if (path / "generation_config.json").is_file():
            return config, GenerationConfig.from_pretrained(path)
        return config, GenerationConfig.from_model_config(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"cannot read the model's configuration in {path}: {error}") from None


def causal_lm_class(config):
    """The class of transformers that a text configuration belongs to; raises BadInput where it writes no text."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BadInput(f"a model of type {config.model_type} is not a causal language model")
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def load_model(dirs, dtype, **kwargs):
    """A causal language model in `dtype`, an adapter (see find_model_dirs) merged into its base; on the CPU.

    kwargs go to from_pretrained; its attention is SDPA, or eager where the family has no other. Raises BadInput for
    weights that are damaged, incomplete or not finite.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    kwargs = {**kwargs, "use_safetensors": True, "output_loading_info": True}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(dirs[-1], dtype=dtype, **kwargs)
        if missing := sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])}):
            raise ValueError(f"weights are missing or of another shape, {missing[0]} for one")
        if len(dirs) > 1:
            model = merge_adapter(model, dirs[0])
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, UserWarning, SafetensorError) as error:
        raise BadInput(f"cannot load the model in {dirs[0]}: {error}") from None
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.is_floating_point()):
        raise BadInput(f"the weights in {dirs[0]} hold values that are not finite: the training went wrong")
    return model


def merge_adapter(model, path):
    """A base model with a LoRA adapter's update added to its weights; raises UserWarning if weights are missing."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        return PeftModel.from_pretrained(model, path).merge_and_unload()


def get_eos_token_ids(tokenizer, generation_config):
    """Every token that ends a completion: the model's own, the tokenizer's, and ChatML's, which base models omit."""
    own = generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own]), tokenizer.get_vocab().get("<|im_end|>")}
    return sorted(ids - {None})
