"""The transformers backend: Hugging Face `generate` in this process, on a GPU if there is one, else on the CPU."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from persyn.chat import stop_ids, stop_strings, with_chat_template
from persyn.generation import BackendSpeed, Generation, Sampling, Teacher, check_context
from persyn.generation.reading import encode_conversations, read_generation
from persyn.messages import Message
from persyn.models import load_causal_lm, load_tokenizer


class TransformersSpeed(BackendSpeed):
    """Knobs of the backend transformers."""

    batch_size: Annotated[int, Field(ge=1)] = 16
    """Conversations in one batch."""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Precision of the weights; null is bfloat16 on a GPU, float32 on a CPU. It changes responses slightly, as another
    machine does. A CPU with AMX or AVX-512 BF16 is many times faster in bfloat16."""


class TransformersBackend:
    """Batched, length-sorted generation. See the Backend protocol."""

    Speed = TransformersSpeed
    takes = frozenset({"top_k", "min_p", "stop"})
    """Other arguments of `generate` would make a response depend on its batch (a penalty counts its padding), or draw
    by another generator than RowSampler's.
    """

    def __init__(self, teacher: Teacher, speed: TransformersSpeed) -> None:
        import torch

        self.teacher = teacher
        where = (teacher.model, teacher.revision, teacher.trust_remote_code)
        self.tokenizer = with_chat_template(load_tokenizer(*where), date=teacher.date)
        self.model = load_causal_lm(*where, **({"dtype": getattr(torch, speed.dtype)} if speed.dtype else {}))
        self.batch_size = speed.batch_size

    def generate(
        self, conversations: Sequence[Sequence[Message]], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[dict[int, Generation]]:
        """Yield each batch's responses by position, longest prompts first, so that lack of memory shows at once."""
        prompts = encode_conversations(self.tokenizer, conversations, self.teacher)
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        check_context(prompts, sampling.max_tokens, context, self.tokenizer.name_or_path)
        order = sorted(range(len(prompts)), key=lambda position: -len(prompts[position]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            rows = self._generate_batch([prompts[i] for i in batch], [keys[i] for i in batch], sampling)
            yield {
                position: self._read(prompts[position], row, sampling.stop or ())
                for position, row in zip(batch, rows, strict=True)
            }

    def close(self) -> None:
        """Release the memory."""
        del self.model

    def _generate_batch(self, prompts: list[list[int]], keys: list[str], sampling: Sampling) -> list[list[int]]:
        from persyn.generation.row_sampler import row_sampler

        batch = self.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        batch = batch.to(self.model.device)
        output = self.model.generate(
            **batch,
            max_new_tokens=sampling.max_tokens,
            do_sample=False,  # a processor samples: see RowSampler
            repetition_penalty=1.0,  # overrides the model's own files, as with every engine
            logits_processor=row_sampler(sampling, keys),
            stop_strings=[*stop_strings(self.tokenizer), *(sampling.stop or ())] or None,
            tokenizer=self.tokenizer,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return output[:, batch["input_ids"].shape[1] :].tolist()  # (B, T) response ids, padded on the right

    def _read(self, prompt: list[int], row: list[int], stops: Sequence[str]) -> Generation:
        ends = stop_ids(self.tokenizer, self.model)
        length = next((i for i, token in enumerate(row) if token in ends), None)
        ids = row[:length]
        while ids and ids[-1] == self.tokenizer.pad_token_id:  # padding, while a longer row of the batch went on
            ids.pop()
        reason = "length" if length is None else "stop"
        num_tokens = len(ids) + (length is not None)
        return read_generation(self.tokenizer, prompt, ids, reason, num_tokens, stops)
