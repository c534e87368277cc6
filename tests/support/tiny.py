"""Tiny stand-ins: random two-layer models of real architectures, and the whole pipeline on them."""

import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from transformers import PreTrainedTokenizerFast

from rehearsal.models import SIZES, random_model, train_bpe

ROOT = Path(__file__).parents[2]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ARCHITECTURES = {"llama": "Llama", "gemma3": "Gemma3Text", "qwen2": "Qwen2"}


def build_tokenizer(chat_template: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens."""
    core = train_bpe(["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"])
    ends = "<|im_end|>" if chat_template else "<eos>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token=ends,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def build_model(folder: Path, family: str = "llama", chat_template: str | None = None, head_dim: int = 8) -> str:
    """Save a random two-layer model and its tokenizer; returns the folder's name."""
    tokenizer = build_tokenizer(chat_template)
    shape = SIZES | {
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
        "vocab_size": len(tokenizer),
    }
    if family == "gemma3":
        shape |= {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    elif family == "qwen2":
        del shape["head_dim"]
    else:
        shape["head_dim"] = head_dim
    model = random_model(ARCHITECTURES[family], shape, seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def random_student(folder: Path, tokenizer: PreTrainedTokenizerFast, vocabulary: int | None = None) -> None:
    """Save a random two-layer Qwen2 with this tokenizer."""
    shape = {name: size for name, size in SIZES.items() if name != "head_dim"}
    shape |= {"max_position_embeddings": 2048, "tie_word_embeddings": True, "pad_token_id": 0}
    shape |= {"vocab_size": vocabulary or len(tokenizer), "bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    random_model(ARCHITECTURES["qwen2"], shape, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_params(model: str) -> dict[str, Any]:
    """The shipped parameters with `model` in place of every model, made short to run."""
    params = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    for entry in [*params["teachers"].values(), params["student"], params["router"]]:
        entry["model"] = model
    for teacher in params["teachers"].values():
        teacher["sampling"] = {"max_tokens": 8, "temperature": 1.0}
    params["prompts"]["num_parallel"] = 8
    for source in params["prompts"]["sources"]:
        source["limit"] = 6
    params["strategies"]["strong"] = {"rule": "strong", "teacher": "gemma3-fewshot"}
    params["student"]["max_length"] = 512
    params["evaluation"].update(limit=2, max_tokens=4)
    return params


def tiny_project(folder: Path, params: dict[str, Any]) -> Path:
    """A copy of this project's pipeline in `folder` with these parameters, not run yet."""
    for name in ("stages", "persyn", "tasks", "configs", "data/raw"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    YAML().dump(params, folder / "params.yaml")
    return folder
