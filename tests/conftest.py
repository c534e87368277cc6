"""Tiny models built in the process, tiny tables, and a store and cache of each test session's own."""

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HOME=tempfile.mkdtemp(prefix="persyn-tests-"),
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    CUDA_VISIBLE_DEVICES="",
)

import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from persyn.prompts import prompt_id
from persyn.schemas import DOMAINS, FINISH_REASONS, PROMPTS, RESPONSES

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's store or cache."""
    monkeypatch.setenv("PERSYN_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PERSYN_CACHE", str(tmp_path / "cache"))


def build_tokenizer(chat_template: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 400 tokens, trained on this very file's text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([Path(__file__).read_text()], trainer)
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


def build_model(folder: Path, family: str = "llama", chat_template: str | None = None) -> str:
    """Save a random two-layer model and its tokenizer; returns the folder's name."""
    tokenizer = build_tokenizer(chat_template)
    ids: dict[str, Any] = {
        "bos_token_id": 1,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
        "vocab_size": len(tokenizer),
    }
    torch.manual_seed(0)
    model: Any
    if family == "gemma3":
        sliding: dict[str, Any] = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
        model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **ids, **sliding))
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"}, **ids))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES, **ids))
    with torch.no_grad():  # random weights of a real size: scores then differ between tokens
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny base model, without a chat template."""
    return build_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model with the ChatML template."""
    return build_model(tmp_path_factory.mktemp("chat"), chat_template=CHATML)


def prompts_table(
    texts: list[str], domain: str = "instruction", references: list[str | None] | None = None
) -> pl.DataFrame:
    """PROMPTS of these texts, all parallel."""
    return pl.DataFrame(
        {
            "prompt_id": [prompt_id(text) for text in texts],
            "prompt": texts,
            "domain": pl.Series([domain] * len(texts), dtype=DOMAINS),
            "reference": pl.Series(references or [None] * len(texts), dtype=pl.String),
            "source": ["test"] * len(texts),
            "license": ["Apache-2.0"] * len(texts),
            "parallel": [True] * len(texts),
        },
        schema=PROMPTS,
    )


def responses_table(prompts: pl.DataFrame, teacher: str, texts: list[str], finish: str = "stop") -> pl.DataFrame:
    """RESPONSES of one teacher to these prompts."""
    return pl.DataFrame(
        {
            "prompt_id": prompts["prompt_id"],
            "teacher": [teacher] * len(texts),
            "response": texts,
            "finish_reason": pl.Series([finish] * len(texts), dtype=FINISH_REASONS),
            "num_prompt_tokens": [10] * len(texts),
            "num_response_tokens": [len(text.split()) for text in texts],
        },
        schema=RESPONSES,
    )
