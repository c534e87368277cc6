"""Student: fine-tune the base model on its dataset with TRL, the loss on response tokens only."""

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
import polars.selectors as cs
from pydantic import Field

from persyn.chat import count_altered, encode_completion, student_tokenizer
from persyn.errors import InputError
from persyn.messages import as_messages
from persyn.models import LoraSettings, Student, load_causal_lm, load_tokenizer, lora_config, model_identity
from persyn.settings import Seed, Settings, Thinking

if TYPE_CHECKING:
    from persyn.training.monitors import Live


logger = logging.getLogger(__name__)
LEARNED = ["prompt", "completion", "reasoning", "finish_reason"]
"""The columns of DATASET that decide what is learned."""
THOUGHTS = {"none": "which the student does not learn (student.thinking)", "keep": "which the student learns"}


class SftSettings(Settings):
    """The section `sft`: how the student is fine-tuned."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """Peak learning rate: it rises over `warmup`, then falls by a cosine."""
    epochs: Annotated[float, Field(gt=0)] = 2
    """Passes over the dataset."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows per update over all processes, reached by gradient accumulation."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the updates over which the learning rate rises."""
    packing: bool = False
    """Whether short rows are packed into sequences of up to the student's `max_length` tokens. Rows do not see each
    other, so the loss stays the same, but `batch_size` then counts sequences."""
    lora: LoraSettings | None = None
    """Trains a LoRA adapter and merges it into the model; null trains every weight."""
    seed: Seed = 0
    """Seed of the order of rows and of LoRA's first weights."""


def train_student(
    dataset: pl.DataFrame,
    student: Student,
    folder: str | Path,
    settings: SftSettings,
    device_batch_size: int | None = None,
    live: "Live | None" = None,
) -> pl.DataFrame:
    """Train and write a complete model (LoRA merged in) and its tokenizer to `folder`, as safetensors.

    Resumes from the last checkpoint of a killed run with the same inputs. If several processes train together, only
    the main one returns; the others end.

    The loss is TRL's: log-likelihoods are computed in chunks, so the logits of a whole batch never exist at once.

    Args:
        dataset: DATASET.
        device_batch_size: rows in one forward pass at most; None takes the whole batch.
        live: receives the training's curves while it runs.

    Returns:
        The loss curve: columns step and loss.

    Raises:
        InputError: as training_arguments and check_lengths, or the model cannot keep packed rows apart.
    """
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from persyn.training import trainer as shared

    class StudentTrainer(shared.SameBatches, SFTTrainer):
        """Nothing beyond the two."""

    packing, lora = settings.packing, settings.lora
    device_batch_size = device_batch_size or settings.batch_size
    where = (student.model, student.revision, student.trust_remote_code)
    load_base = partial(load_causal_lm, *where, dtype=torch.float32, device="cpu")
    tokenizer = student_tokenizer(load_tokenizer(*where), student.thinking, student.date)
    rows = encode_dataset(tokenizer, dataset, student.thinking)
    check_lengths(rows, student.max_length)
    identity = model_identity(student.model, student.revision)
    decides = dataset.select(cs.by_name(*LEARNED, require_all=False)).write_json()
    with shared.checkpoints(decides, student.model_dump(), identity, settings.model_dump()) as scratch:
        args = SFTConfig(
            **shared.training_arguments(scratch, settings.batch_size, device_batch_size, settings.seed),
            max_length=student.max_length,
            packing=packing,
            learning_rate=settings.learning_rate,
            num_train_epochs=settings.epochs,
            lr_scheduler_type="cosine",
            warmup_steps=settings.warmup,
            logging_steps=1,
        )
        model = load_base()  # after SFTConfig, which connects the processes
        if packing and shared.is_main():
            _check_rows_stay_apart(model, rows)
        trainer: Any = StudentTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            peft_config=lora_config("CAUSAL_LM", lora) if lora is not None else None,
            args=args,
            callbacks=live.callbacks() if live else None,
        )
        shared.train(trainer, {"input_ids": [0], "labels": [-100], **({"seq_lengths": [1]} if packing else {})})
        shared.save_trained(trainer, load_base if lora is not None else None, folder)
        shared.leave_to_main()
    curve = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return pl.DataFrame(curve, schema={"step": pl.Int64, "loss": pl.Float64}, orient="row")


def encode_dataset(tokenizer: Any, dataset: pl.DataFrame, thinking: Thinking = "none") -> list[dict[str, list[int]]]:
    """DATASET as the token ids and labels that TRL trains on: exactly the tokens that learnability scores. The label
    of a prompt token is -100, which the loss ignores. A completion that was cut has no end of turn.

    Raises:
        InputError: a completion is not one message of the assistant.
    """
    if "reasoning" not in dataset.columns:
        dataset = dataset.with_columns(reasoning=pl.lit(None, dtype=pl.String))
    if "finish_reason" not in dataset.columns:
        dataset = dataset.with_columns(finish_reason=pl.lit("stop"))
    _check_completions(dataset)
    thoughts = dataset.height - dataset["reasoning"].null_count()
    if thinking == "keep" and thoughts < dataset.height:
        logger.warning(
            "student.thinking is keep, but only %d of %d rows have a thought: the student learns both to think and not "
            "to; keep only teachers that think, or set student.thinking: none",
            *(thoughts, dataset.height),
        )
    elif thoughts:
        logger.info("%d of %d rows have a thought, %s", thoughts, dataset.height, THOUGHTS[thinking])
    conversations = (as_messages(row["prompt"]) + row["completion"] for row in dataset.iter_rows(named=True))
    count_altered(tokenizer, conversations, "dataset")
    encoded = [
        encode_completion(tokenizer, prompt, completion[0]["content"], finish != "length", reasoning, thinking)
        for prompt, completion, reasoning, finish in dataset.select(LEARNED).iter_rows()
    ]
    return [{"input_ids": prompt + response, "labels": [-100] * len(prompt) + response} for prompt, response in encoded]


def check_lengths(rows: list[dict[str, list[int]]], max_length: int) -> None:
    """Log what a student's `max_length` takes away. TRL cuts the end of every longer row and drops those that keep no
    token of their response (packed ones it keeps; they then teach nothing).

    Args:
        rows: of encode_dataset.

    Raises:
        InputError: no row keeps one.
    """
    cut = sum(len(row["input_ids"]) > max_length for row in rows)
    lost = sum(all(label == -100 for label in row["labels"][:max_length]) for row in rows)
    if rows and lost == len(rows):
        starts = (number for row in rows for number, label in enumerate(row["labels"], 1) if label != -100)
        needed = min(starts, default=None)
        raise InputError(
            f"student.max_length is {max_length}, and within it no row of the dataset has a token of its response, so "
            f"that nothing would be learned; the earliest is token {needed}: raise student.max_length"
        )
    if cut or lost:
        logger.warning(
            "%d of %d rows (%.1f %%) are longer than student.max_length %d and lose their end; %d (%.1f %%) have no "
            "token of their response left and are not trained on",
            *(cut, len(rows), 100 * cut / len(rows), max_length, lost, 100 * lost / len(rows)),
        )


def _check_completions(dataset: pl.DataFrame) -> None:
    for number, completion in enumerate(dataset["completion"]):
        roles = [message["role"] for message in completion]
        if roles != ["assistant"]:
            raise InputError(
                f"row {number} of the dataset (from 0): its completion has the turns "
                f"{', '.join(roles) or 'none'}; it must be one message of the assistant (earlier turns belong to its "
                f"prompt)"
            )


def _check_rows_stay_apart(model: Any, rows: list[dict[str, list[int]]]) -> None:
    """Refuse a model in which a packed row sees the row before it, because its attention ignores positions or it
    carries a state across rows."""
    import torch

    first, second = (torch.tensor([row["input_ids"][-16:]]) for row in (rows[0], rows[-1]))
    places = torch.cat([torch.arange(ids.shape[1]) for ids in (first, second)]).unsqueeze(0)
    with torch.inference_mode():
        packed = model(torch.cat([first, second], dim=1), position_ids=places, use_cache=False).logits[
            :, first.shape[1] :
        ]
        alone = model(second, use_cache=False).logits
    if not torch.allclose(packed, alone, rtol=1e-3, atol=1e-3 * alone.abs().max().item()):
        raise InputError(
            f"sft.packing: in {type(model).__name__} ({model.config._attn_implementation} attention) a packed row sees "
            f"the row before it; set sft.packing to false"
        )
