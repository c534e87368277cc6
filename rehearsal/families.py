"""Families: which architecture, chat template and control tokens the model behind a hub id has.

Written from what the families' published templates do, cut down to what PerSyn can trip over: which tokens open and end
a turn, whether a system message is allowed, whether roles must alternate, what a thinking model's turn begins with.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from persyn.errors import InputError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    + CHATML
)
QWQ = CHATML.replace("assistant\n{%", "assistant\n<think>\n{%")
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<\uff5cUser\uff5c>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<\uff5cAssistant\uff5c>{{ m['content'].split('</think>')[-1] }}{{ eos_token }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<\uff5cAssistant\uff5c><think>\n{% endif %}"
)
DEEPSEEK_CODER = (
    "{{ bos_token }}You are an AI programming assistant.\n{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "### Response:\n{{ m['content'] }}\n<|EOT|>\n{% else %}### Instruction:\n{{ m['content'] }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}"
)
PHI4 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}<|im_sep|>{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
GPT_OSS = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|start|>assistant<|channel|>final<|message|>"
    "{{ m['content'] }}{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}"
    "<|start|>{{ 'developer' if m['role'] == 'system' else m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}[INST] {{ m['content'] }}[/INST]{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Tokens:
    """The control tokens of a family, and what ends what."""

    end_of_text: str
    end_of_turn: str
    others: tuple[str, ...] = ()
    bos: str | None = None
    """Put before every text by the tokenizer itself, too, where there is one."""
    pad: str | None = None
    """None where the tokenizer names none."""


CHATML_TOKENS = Tokens("<|endoftext|>", "<|im_end|>", ("<|im_start|>",), pad="<|endoftext|>")
LLAMA_TOKENS = Tokens(
    "<|end_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>"), bos="<|begin_of_text|>"
)
GEMMA_TOKENS = Tokens("<eos>", "<end_of_turn>", ("<start_of_turn>",), bos="<bos>", pad="<pad>")
PHI_TOKENS = Tokens("<|endoftext|>", "<|end|>", ("<|user|>", "<|assistant|>", "<|system|>"), pad="<|endoftext|>")
PHI4_TOKENS = Tokens("<|endoftext|>", "<|im_end|>", ("<|im_start|>", "<|im_sep|>"), pad="<|endoftext|>")
DEEPSEEK_TOKENS = Tokens(
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"),
    bos="<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    pad="<\uff5cend\u2581of\u2581sentence\uff5c>",
)
DEEPSEEK_CODER_TOKENS = Tokens(
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<|EOT|>",
    bos="<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    pad="<\uff5cend\u2581of\u2581sentence\uff5c>",
)
MISTRAL_TOKENS = Tokens("</s>", "</s>", ("[INST]", "[/INST]"), bos="<s>")
GPT_OSS_TOKENS = Tokens(
    "<|endoftext|>",
    "<|return|>",
    ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"),
    bos="<|startoftext|>",
    pad="<|endoftext|>",
)

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
DEEPSEEK_V3 = {
    **EXPERTS,
    **{"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    "num_key_value_heads": 4,
}
GPT_OSS_SIZES = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}
MIXTRAL = {"num_local_experts": 4}
GEMMA_2 = {"query_pre_attn_scalar": 8, "sliding_window": 8, "tie_word_embeddings": True}


@dataclass(frozen=True)
class Family:
    """What a tiny model has in common with the real one."""

    ids: str
    """A regular expression: the hub ids."""
    architecture: str
    """transformers' name: `<architecture>Config` is its configuration."""
    tokens: Tokens
    template: str | None
    ends_text: bool = False
    """Whether the tokenizer names the end of the text, not of the turn, as its end, as base models that come with a
    chat template do."""
    context: int = 32_768
    """Tokens of prompt and answer at most; the default is no more than what those that do not say have."""
    sizes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Fields of the configuration, where the common ones do not fit."""


FAMILIES = (
    Family(r"Qwen/Qwen2\.5-Math-[\d.]+B-Instruct", "Qwen2", CHATML_TOKENS, QWEN, context=4096),
    Family(r"Qwen/Qwen2(\.5)?-(Coder-)?[\d.]+B-Instruct", "Qwen2", CHATML_TOKENS, QWEN),
    Family(r"Qwen/Qwen2(\.5)?-(Coder-)?[\d.]+B", "Qwen2", CHATML_TOKENS, QWEN, ends_text=True),
    Family(r"Qwen/QwQ-32B(-Preview)?", "Qwen2", CHATML_TOKENS, QWQ),
    Family(
        r"(Qwen/Qwen3-[\d.]+B(-AWQ)?|Skywork/Skywork-Reward-V2-Qwen3-[\d.]+B)",
        "Qwen3",
        CHATML_TOKENS,
        CHATML,
        sizes={"head_dim": 8},
    ),
    Family(r"Qwen/Qwen3-[\d.]+B-Base", "Qwen3", CHATML_TOKENS, CHATML, ends_text=True, sizes={"head_dim": 8}),
    Family(
        r"Qwen/Qwen3-\d+B-A\d+B(-Instruct-2507|-Thinking-2507)?",
        "Qwen3Moe",
        CHATML_TOKENS,
        CHATML,
        sizes={**EXPERTS, "num_experts": 4, "head_dim": 8},
    ),
    Family(r"deepseek-ai/DeepSeek-R1-Distill-Qwen-[\d.]+B", "Qwen2", DEEPSEEK_TOKENS, DEEPSEEK),
    Family(r"deepseek-ai/DeepSeek-R1-Distill-Llama-\d+B", "Llama", DEEPSEEK_TOKENS, DEEPSEEK),
    Family(r"deepseek-ai/DeepSeek-(R1|V3)(-\d+)?", "DeepseekV3", DEEPSEEK_TOKENS, DEEPSEEK, sizes=DEEPSEEK_V3),
    Family(
        r"deepseek-ai/deepseek-coder-[\d.]+b-instruct", "Llama", DEEPSEEK_CODER_TOKENS, DEEPSEEK_CODER, context=16_384
    ),
    Family(r"meta-llama/Meta-Llama-3-\d+B-Instruct", "Llama", LLAMA_TOKENS, LLAMA3, context=8192),
    Family(r"(meta-llama/(Meta-)?Llama-3\.\d-\d+B-Instruct|Skywork/Skywork-.*Llama.*)", "Llama", LLAMA_TOKENS, LLAMA3),
    Family(r"meta-llama/(Meta-)?Llama-3(\.\d)?-\d+B", "Llama", LLAMA_TOKENS, None),
    Family(r"google/gemma-2-\d+b-it", "Gemma2", GEMMA_TOKENS, GEMMA, context=8192, sizes=GEMMA_2),
    Family(r"google/gemma-2-\d+b", "Gemma2", GEMMA_TOKENS, None, context=8192, sizes=GEMMA_2),
    # Phi-3-small is an architecture of its own, which transformers does not have: it is code on the hub.
    Family(r"microsoft/Phi-3(\.5)?-(mini|small|medium)-128k-instruct", "Phi3", PHI_TOKENS, PHI3),
    Family(r"openai/gpt-oss-\d+b", "GptOss", GPT_OSS_TOKENS, GPT_OSS, context=131_072, sizes=GPT_OSS_SIZES),
    Family(r"microsoft/phi-4", "Phi3", PHI4_TOKENS, PHI4, context=16_384),
    Family(r"mistralai/(Mistral-7B-Instruct-v0\.[23]|Mathstral-7B-v0\.1)", "Mistral", MISTRAL_TOKENS, MISTRAL),
    Family(r"mistralai/Mixtral-8x7B-Instruct-v0\.1", "Mixtral", MISTRAL_TOKENS, MISTRAL, sizes=MIXTRAL),
)


def family_of(model: str) -> Family:
    """The family of a hub id: the first whose ids it matches.

    Raises:
        InputError: none does.
    """
    for family in FAMILIES:
        if re.fullmatch(family.ids, model):
            return family
    raise InputError(
        f"the rehearsal does not know the architecture of {model}; add it to FAMILIES in rehearsal/families.py"
    )
