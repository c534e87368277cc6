"""Student: fine-tune the base model on its dataset with TRL, the loss on response tokens only."""

import hashlib
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import polars as pl
import polars.selectors as cs
from pydantic import Field, model_validator

from persyn.chat import count_altered, encode_completion, student_tokenizer
from persyn.errors import InputError
from persyn.messages import as_messages
from persyn.models import Student, load_causal_lm, load_tokenizer, model_identity
from persyn.settings import Misfit, Seed, Settings, Thinking
from persyn.training.lora import (
    LoraSettings,
    check_bitsandbytes,
    check_four_bits,
    load_four_bits,
    lora_config,
    write_adapter,
)

if TYPE_CHECKING:
    from persyn.training.monitors import Live


logger = logging.getLogger(__name__)
LEARNED = ["prompt", "completion", "reasoning", "finish_reason"]
"""The columns of DATASET that decide what is learned."""
THOUGHTS = {"none": "which the student does not learn (student.thinking)", "keep": "which the student learns"}


class SftSettings(Settings):
    """The section `sft`: how the student is fine-tuned."""

    later: ClassVar = frozenset(
        {"dtype", "load_in_4bit", "keep_adapter", "optim", "lr_scheduler_type", "warmup_steps", "weight_decay"}
        | {"max_grad_norm", "validation", "eval_steps", "early_stopping_patience"}
    )

    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """Peak learning rate: it rises over `warmup`, then follows `lr_scheduler_type`."""
    epochs: Annotated[float, Field(gt=0)] = 2
    """Passes over the dataset."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows per update over all processes, reached by gradient accumulation."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the updates over which the learning rate rises."""
    warmup_steps: Annotated[int, Field(ge=1)] | None = None
    """Number of updates over which it rises instead; null takes the share `warmup`."""
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup", "inverse_sqrt"] = "cosine"
    """How the learning rate goes on after its rise: cosine and linear fall to 0, inverse_sqrt falls slowly."""
    optim: Literal["adamw_torch_fused", "adafactor", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"] = (
        "adamw_torch_fused"
    )
    """Optimiser. With _bnb_, its states take 8 bits; paged ones move to the CPU's memory where the GPU's is full (both
    need a GPU and the extra qlora). adafactor takes the least memory when all weights are trained."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of the optimiser, on all weights but biases and norms."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """A longer gradient is cut to this length; 0 cuts none."""
    packing: bool = False
    """Whether short rows are packed into sequences of up to the student's `max_length` tokens. Rows do not see each
    other, so the loss stays the same, but `batch_size` then counts sequences."""
    lora: LoraSettings | None = None
    """Trains a LoRA adapter and merges it into the model; null trains every weight, kept in float32."""
    keep_adapter: bool = False
    """Whether the adapter is also kept apart from the merged model, in `adapter` in the student's folder."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the frozen weights beside a LoRA adapter. bfloat16 halves their memory. The adapter is trained in
    float32, and merged into the weights in the precision of their files (with float32: in float32)."""
    load_in_4bit: bool = False
    """Whether the frozen weights have 4 bits (QLoRA: NF4, computed with in bfloat16). The adapter, in bfloat16 too, is
    merged into the weights in the precision of their files. Needs a GPU and the extra qlora."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the prompts whose rows are not trained on, drawn by a hash of prompt_id. The loss on them is measured
    (`eval_loss`); 0 measures none."""
    eval_steps: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The validation loss is measured after every such share of the updates."""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    """Training stops when so many measurements in a row bring no new lowest validation loss, and the model of the
    lowest is kept; null trains to the end and keeps the last."""
    seed: Seed = 0
    """Seed of the order of rows and of LoRA's first weights."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.lora is None and self.dtype == "bfloat16":
            raise Misfit(
                "dtype", "is bfloat16, in which small updates of trained weights are lost: set lora, or float32"
            )
        if self.lora is None and self.load_in_4bit:
            raise Misfit("load_in_4bit", "is true, but 4-bit weights cannot be trained: set lora, or false")
        if self.lora is None and self.keep_adapter:
            raise Misfit("keep_adapter", "is true, but without lora there is no adapter: set lora, or false")
        if self.warmup_steps is not None and self.warmup not in (0, type(self).model_fields["warmup"].default):
            raise Misfit("warmup_steps", f"is {self.warmup_steps}, but warmup is {self.warmup}: leave one out")
        if self.early_stopping_patience is not None and not self.validation:
            raise Misfit("early_stopping_patience", "needs a validation loss: set validation, such as 0.05, or null")
        return self


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
        The loss curve: columns step and loss; with a validation share also eval_loss, where it was measured.

    Raises:
        InputError: as training_arguments, check_lengths, split_rows and check_targets; the model cannot keep packed
            rows apart; or `settings` needs a package or a GPU that is not here.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from persyn.training import trainer as shared

    class StudentTrainer(shared.SameBatches, shared.ValidationLoss, SFTTrainer):
        """Nothing beyond the three."""

    check_devices(settings)
    tokenizer = student_tokenizer(load_tokenizer(*_where(student)), student.thinking, student.date)
    rows, held_out = split_rows(encode_dataset(tokenizer, dataset, student.thinking), dataset, settings.validation)
    check_lengths(rows, student.max_length)
    check_lengths(held_out, student.max_length, "validation rows")
    decides = dataset.select(cs.by_name(*LEARNED, require_all=False)).write_json()
    identity = model_identity(student.model, student.revision)
    drawn = [dataset["prompt_id"].to_list()] if settings.validation else []
    with shared.checkpoints(decides, student.model_dump(), identity, settings.model_dump(), *drawn) as scratch:
        args = SFTConfig(**_arguments(student, settings, scratch, device_batch_size or settings.batch_size))
        model = _load_base(student, settings)  # after SFTConfig, which connects the processes
        if settings.packing and shared.is_main():
            _check_rows_stay_apart(model, rows)
        trainer: Any = StudentTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(held_out) if held_out else None,
            peft_config=lora_config("CAUSAL_LM", settings.lora, model) if settings.lora is not None else None,
            args=args,
            callbacks=[*(live.callbacks() if live else []), *_stopping(settings)],
        )
        shared.train(
            trainer, {"input_ids": [0], "labels": [-100], **({"seq_lengths": [1]} if settings.packing else {})}
        )
        base = partial(_load_original, student, settings) if settings.lora is not None else None
        adapter = shared.save_trained(trainer, base, folder)
        if adapter and settings.keep_adapter:
            write_adapter(adapter, Path(folder) / "adapter", student.model, student.revision)
        shared.leave_to_main()
    return _curve(trainer.state, settings)


def check_devices(settings: SftSettings) -> None:
    """Refuse, before anything is loaded, what this machine cannot train.

    Raises:
        InputError: a package or a GPU is missing.
    """
    if settings.load_in_4bit:
        check_four_bits()
    if "bnb" in settings.optim or "paged" in settings.optim:
        check_bitsandbytes(f"sft.optim is {settings.optim}", "set it to adamw_torch_fused")


def split_rows(rows: list[Any], dataset: pl.DataFrame, share: float) -> tuple[list[Any], list[Any]]:
    """The rows to train on, and those held out: all rows of `share` of the prompts, drawn by a hash of prompt_id, so
    that every strategy holds out the same prompts.

    Args:
        rows: one for each row of `dataset`.

    Raises:
        InputError: either part would be empty.
    """
    if not share:
        return rows, []
    prompts = dataset["prompt_id"].unique().to_list()
    prompts.sort(key=lambda identity: hashlib.sha256(f"validation:{identity}".encode()).hexdigest())
    number = round(share * len(prompts))
    if not 0 < number < len(prompts):
        raise InputError(
            f"sft.validation {share} of {len(prompts)} prompts holds out {number}; one prompt at least must be held "
            f"out, and one be left: change it, or set it to 0"
        )
    drawn = set(prompts[:number])
    parts: tuple[list[Any], list[Any]] = ([], [])
    for row, identity in zip(rows, dataset["prompt_id"], strict=True):
        parts[identity in drawn].append(row)
    logger.info(
        "%d of %d rows (%d of %d prompts) are held out to measure the validation loss and are not trained on",
        *(len(parts[1]), len(rows), number, len(prompts)),
    )
    return parts


def _where(student: Student) -> tuple[str, str | None, bool]:
    return student.model, student.revision, student.trust_remote_code


def _load_base(student: Student, settings: SftSettings) -> Any:
    """The model that is trained, or that an adapter is trained beside. A Trainer places it; one of 4 bits is placed."""
    if settings.load_in_4bit:
        return load_four_bits(*_where(student))
    return load_causal_lm(*_where(student), dtype=settings.dtype, device="cpu")


def _load_original(student: Student, settings: SftSettings) -> Any:
    """The model that an adapter is merged into, on the CPU: never one of rounded weights."""
    rounded = settings.load_in_4bit or settings.dtype != "float32"
    return load_causal_lm(*_where(student), dtype="auto" if rounded else "float32", device="cpu")


def _arguments(student: Student, settings: SftSettings, scratch: Path, device_batch_size: int) -> dict[str, Any]:
    """Arguments of SFTConfig."""
    from persyn.training.trainer import training_arguments

    arguments = training_arguments(scratch, settings.batch_size, device_batch_size, settings.seed) | {
        "max_length": student.max_length,
        "packing": settings.packing,
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": settings.warmup if settings.warmup_steps is None else settings.warmup_steps,
        "optim": settings.optim,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "logging_steps": 1,
    }
    if settings.validation:
        measured = {"eval_strategy": "steps", "eval_steps": settings.eval_steps, "eval_packing": False}
        arguments |= measured | {"per_device_eval_batch_size": device_batch_size}
    if settings.early_stopping_patience is not None:
        best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
        arguments |= best | {"save_steps": settings.eval_steps}
    return arguments


def _stopping(settings: SftSettings) -> list[Any]:
    """The callback that stops early, if that is wanted."""
    from persyn.training.trainer import early_stopping

    patience = settings.early_stopping_patience
    return [] if patience is None else [early_stopping("eval_loss", patience)]


def _curve(state: Any, settings: SftSettings) -> pl.DataFrame:
    """The losses of a training, by its Trainer's state."""
    from persyn.training.trainer import stopping_step

    patience = settings.early_stopping_patience
    stop = None if patience is None else stopping_step(state.log_history, "eval_loss", patience)
    log = [entry for entry in state.log_history if stop is None or entry["step"] <= stop]
    if patience is not None:
        end = "to its end" if stop is None else f"until step {stop} of {state.max_steps}"
        logger.info(
            "trained %s; the model of step %d, of the lowest validation loss, is kept", end, state.best_global_step
        )
    curve = pl.DataFrame(
        [(entry["step"], entry["loss"]) for entry in log if "loss" in entry],
        schema={"step": pl.Int64, "loss": pl.Float64},
        orient="row",
    )
    if not settings.validation:
        return curve
    measured = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    return curve.with_columns(eval_loss=pl.col("step").replace_strict(measured, default=None, return_dtype=pl.Float64))


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


def check_lengths(rows: list[dict[str, list[int]]], max_length: int, name: str = "rows") -> None:
    """Log what a student's `max_length` takes away. TRL cuts the end of every longer row and drops those that keep no
    token of their response (packed ones it keeps; they then teach nothing).

    Args:
        rows: of encode_dataset.
        name: what they are called in the log.

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
            "%d of %d %s (%.1f %%) are longer than student.max_length %d and lose their end; %d (%.1f %%) have no "
            "token of their response left and are not trained on",
            *(cut, len(rows), name, 100 * cut / len(rows), max_length, lost, 100 * lost / len(rows)),
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

    first, second = (torch.tensor([row["input_ids"][-16:]]).to(model.device) for row in (rows[0], rows[-1]))
    places = torch.cat([torch.arange(ids.shape[1]) for ids in (first, second)]).unsqueeze(0).to(model.device)
    with torch.inference_mode():
        packed = model(torch.cat([first, second], dim=1), position_ids=places, use_cache=False).logits[
            :, first.shape[1] :
        ]
        alone = model(second, use_cache=False).logits
    tolerance = 1e-3 if alone.dtype == torch.float32 else 3e-2
    if not torch.allclose(packed, alone, rtol=tolerance, atol=tolerance * alone.abs().max().item()):
        raise InputError(
            f"sft.packing: in {type(model).__name__} ({model.config._attn_implementation} attention) a packed row sees "
            f"the row before it; set sft.packing to false"
        )
