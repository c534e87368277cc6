"""The transformers backend: Hugging Face `generate` in this process, on a GPU if there is one, else on the CPU."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from persyn.chat import Message, encode_prompt, stop_strings, with_chat_template
from persyn.errors import InputError
from persyn.generation import Generation, Sampling, Teacher, check_context, read_text
from persyn.models import load_causal_lm, load_tokenizer

DTYPES = ("bfloat16", "float16", "float32")


class TransformersBackend:
    """Batched, length-sorted generation. See the Backend protocol.

    Args:
        batch_size: conversations answered at once.
        dtype: of the weights: bfloat16, float16 or float32; None is bfloat16 on a GPU, float32 on a CPU. Answers differ
            by it as they do between machines. A CPU with AMX or AVX-512 BF16 is many times faster in bfloat16.
    """

    def __init__(self, teacher: Teacher, *, batch_size: int = 16, dtype: str | None = None) -> None:
        if dtype not in (None, *DTYPES):
            raise InputError(f"speed.transformers.dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
        where = (teacher.model, teacher.revision, teacher.trust_remote_code)
        self.tokenizer = with_chat_template(load_tokenizer(*where))
        self.model = load_causal_lm(*where, **({"dtype": getattr(torch, dtype)} if dtype else {}))
        self.batch_size = batch_size

    def generate(
        self, conversations: Sequence[Sequence[Message]], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[dict[int, Generation]]:
        """Yield each batch's answers by position, longest prompts first (memory trouble shows at once)."""
        prompts = [encode_prompt(self.tokenizer, conversation) for conversation in conversations]
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        check_context(prompts, sampling.max_tokens, context, self.tokenizer.name_or_path)
        order = sorted(range(len(prompts)), key=lambda position: -len(prompts[position]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            rows = self._generate_batch([prompts[i] for i in batch], [keys[i] for i in batch], sampling)
            yield {position: self._read(prompts[position], row) for position, row in zip(batch, rows, strict=True)}

    def close(self) -> None:
        """Give the memory back."""
        del self.model

    @torch.inference_mode()
    def _generate_batch(self, prompts: list[list[int]], keys: list[str], sampling: Sampling) -> list[list[int]]:
        batch = self.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        batch = batch.to(self.model.device)
        output = self.model.generate(
            **batch,
            max_new_tokens=sampling.max_tokens,
            do_sample=False,  # sampling is a processor: see RowSampler
            repetition_penalty=1.0,  # whatever the model's own files say, as with every engine
            logits_processor=row_sampler(sampling, keys),
            stop_strings=stop_strings(self.tokenizer) or None,
            tokenizer=self.tokenizer,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return output[:, batch["input_ids"].shape[1] :].tolist()  # (B, T) response ids, padded on the right

    def _read(self, prompt: list[int], row: list[int]) -> Generation:
        ends = self._end_ids()
        length = next((i for i, token in enumerate(row) if token in ends), None)
        finished, ids = length is not None, row[:length]
        while ids and ids[-1] == self.tokenizer.pad_token_id:  # a batch mate went on after a stop string
            ids.pop()
        text, found = read_text(self.tokenizer, ids)
        return Generation(
            response=text,
            finish_reason="stop" if finished or found else "length",
            num_prompt_tokens=len(prompt),
            num_response_tokens=len(ids) + (length is not None),
        )

    def _end_ids(self) -> set[int]:
        declared = self.model.generation_config.eos_token_id
        return {self.tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])} - {None}


def row_sampler(sampling: Sampling, keys: list[str]) -> LogitsProcessorList:
    """Temperature, top-p and a draw per row; empty (greedy) at temperature 0."""
    if sampling.temperature == 0:
        return LogitsProcessorList()
    return LogitsProcessorList(
        [
            TemperatureLogitsWarper(sampling.temperature),
            TopPLogitsWarper(sampling.top_p),
            RowSampler(sampling.seed, keys),
        ]
    )


class RowSampler(LogitsProcessor):
    """Turns greedy decoding into sampling, row by row: adding Gumbel noise and taking the maximum is an exact draw
    from the softmax (the Gumbel-max trick). Each row has a generator of its own, seeded by (seed, key), so what a
    prompt gets does not depend on which prompts share its batch.
    """

    def __init__(self, seed: int, keys: list[str]) -> None:
        digests = [hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys]
        self.generators = [torch.Generator().manual_seed(int.from_bytes(digest[:7])) for digest in digests]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Add noise to `scores` (B, V)."""
        noise = torch.stack(
            [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators]
        )
        return scores.float() - noise.log().to(scores.device)
