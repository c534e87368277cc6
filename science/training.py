"""Training of the micro-world's models: its tokenizer, new models, and a plain loop.

torch is seeded wherever it draws, so that a rebuild on the same machine gives the same bytes.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

Text = tuple[str, str]
"""Prompt and response."""
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
BATCH = 64
SIZES: dict[str, dict[str, Any]] = {
    "base": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4},
    "student": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4},
}
INITIAL = {"base": 0.08, "student": 0.1}
"""Standard deviation of new weights: at this width the usual 0.02 makes learning ten times slower."""
RATES = {"base": 3e-3, "teacher": 2e-3, "student": 4e-3}
"""Peak learning rates."""


def build_tokenizer(texts: Sequence[Text]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of this world's text in which a digit is a token and a word is one."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<end>", "<user>", "<assistant>", "<system>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    core.train_from_iterator([part for text in texts for part in text], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def new_model(size: str, tokenizer: Any, seed: int) -> LlamaForCausalLM:
    """An untrained model of SIZES."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            **SIZES[size],
            vocab_size=len(tokenizer),
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=INITIAL[size],
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(model: LlamaForCausalLM, tokenizer: Any, texts: Sequence[Text], rate: float, name: str) -> None:
    """Fit the responses in BATCH at a time, texts of like length together: AdamW, a short warm-up, then a cosine."""
    batches = _batches(tokenizer, texts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(batches), pct_start=0.1)
    model.train()
    bar = tqdm(batches, desc=name, unit="update", disable=None)
    for ids, labels, mask in bar:
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def train_reward_model(
    base: LlamaForCausalLM, tokenizer: Any, pairs: Sequence[tuple[Text, Text]], rate: float
) -> LlamaForSequenceClassification:
    """A model of one score a conversation, from `base`: the better text of a pair should score higher."""
    torch.manual_seed(0)
    config = LlamaConfig(**base.config.to_dict() | {"num_labels": 1})
    model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(base.model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    starts = range(0, len(pairs), BATCH // 2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(starts), pct_start=0.1)
    for start in tqdm(starts, desc="reward", unit="update", disable=None):
        batch = pairs[start : start + BATCH // 2]
        texts = [
            f"<user>{prompt}<end><assistant>{response}<end>"
            for side in zip(*batch, strict=True)
            for prompt, response in side
        ]
        scores = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]  # (2B,): the better first
        loss = -torch.nn.functional.logsigmoid(scores[: len(batch)] - scores[len(batch) :]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def _batches(tokenizer: Any, texts: Sequence[Text]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Ids, labels (-100 at prompt and padding) and mask, each (BATCH, T)."""
    prompts = tokenizer([f"<user>{prompt}<end><assistant>" for prompt, _ in texts])["input_ids"]
    responses = tokenizer([f"{response}<end>" for _, response in texts])["input_ids"]
    rows = list(zip(prompts, responses, strict=True))
    batches = []
    for start in range(0, len(rows), 8 * BATCH):
        near = sorted(rows[start : start + 8 * BATCH], key=lambda row: len(row[0]) + len(row[1]))
        batches += [near[first : first + BATCH] for first in range(0, len(near), BATCH)]
    Random(0).shuffle(batches)
    return [_tensors(batch, tokenizer.pad_token_id) for batch in batches]


def _tensors(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    gaps = [longest - len(prompt) - len(response) for prompt, response in rows]
    ids = [prompt + response + [pad] * gap for (prompt, response), gap in zip(rows, gaps, strict=True)]
    labels = [
        [-100] * len(prompt) + response + [-100] * gap for (prompt, response), gap in zip(rows, gaps, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(labels), (torch.tensor(ids) != pad).long()
