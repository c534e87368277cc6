"""Student: fine-tune the base model on its dataset with TRL, the loss on response tokens only."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch

from persyn.chat import encode_completion, end_by_turn, with_chat_template
from persyn.errors import InputError, check_keys
from persyn.models import Student, load_causal_lm, load_tokenizer, lora_config, model_identity
from persyn.training import SameBatches, checkpoints, is_main, leave_to_main, save_trained, train, training_arguments
from persyn.training.monitors import Live


def train_student(
    dataset: pl.DataFrame,
    student: Student,
    folder: str | Path,
    device_batch_size: int,
    live: Live | None = None,
    *,
    learning_rate: float = 1e-5,
    epochs: float = 2,
    batch_size: int = 32,
    warmup: float = 0.1,
    packing: bool = False,
    lora: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Train and write a complete model (LoRA merged in) and its tokenizer to `folder`, as safetensors.

    A run that was killed and is started again with the same inputs goes on from its last checkpoint. Where several
    processes train together, only the main one returns; the others end.

    The loss is TRL's: log-likelihoods are computed in chunks, no logits of a whole batch are ever held.

    Args:
        dataset: DATASET.
        device_batch_size: rows in one forward pass at most.
        live: where the training reports to while it runs.
        batch_size: rows an update over all processes, reached by accumulation.
        warmup: share of the updates over which the learning rate rises; it falls by a cosine after that.
        packing: whether short rows share a sequence of up to the student's `max_length` tokens. Rows do not see each
            other, so the loss stays the same, but `batch_size` then counts sequences.
        lora: the arguments of lora_config, or None to train every weight.

    Returns:
        The loss curve: columns step and loss.

    Raises:
        InputError: as training_arguments, or the model cannot keep packed rows apart.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    class StudentTrainer(SameBatches, SFTTrainer):
        """Nothing beyond the two."""

    check_keys("sft.lora", lora or {}, lora_config)
    settings: dict[str, Any] = {
        "learning_rate": learning_rate,
        "epochs": epochs,
        "batch_size": batch_size,
        "warmup": warmup,
    }
    settings |= {"packing": packing, "lora": lora, "seed": seed}
    where = (student.model, student.revision, student.trust_remote_code)
    load_base = partial(load_causal_lm, *where, dtype=torch.float32, device="cpu")
    tokenizer = end_by_turn(with_chat_template(load_tokenizer(*where)))
    rows = encode_dataset(tokenizer, dataset)
    identity = model_identity(student.model, student.revision)
    with checkpoints(dataset.select("prompt", "completion").write_json(), vars(student), identity, settings) as scratch:
        args = SFTConfig(
            **training_arguments(scratch, batch_size, device_batch_size, seed),
            max_length=student.max_length,
            packing=packing,
            learning_rate=learning_rate,
            num_train_epochs=epochs,
            lr_scheduler_type="cosine",
            warmup_steps=warmup,
            logging_steps=1,
        )
        model = load_base()  # after SFTConfig, which makes the processes know each other
        if packing and is_main():
            _check_rows_stay_apart(model, rows)
        trainer: Any = StudentTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            peft_config=lora_config("CAUSAL_LM", **lora) if lora is not None else None,
            args=args,
            callbacks=live.callbacks() if live else None,
        )
        train(trainer, {"input_ids": [0], "labels": [-100], **({"seq_lengths": [1]} if packing else {})})
        save_trained(trainer, load_base if lora is not None else None, folder)
        leave_to_main()
    curve = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return pl.DataFrame(curve, schema={"step": pl.Int64, "loss": pl.Float64}, orient="row")


def encode_dataset(tokenizer: Any, dataset: pl.DataFrame) -> list[dict[str, list[int]]]:
    """DATASET as the token ids and labels that TRL trains on: the very tokens that learnability scores. The label of
    a prompt token is -100, which the loss ignores.
    """
    encoded = [
        encode_completion(tokenizer, prompt[0]["content"], completion[0]["content"], finished=True)
        for prompt, completion in dataset.select("prompt", "completion").iter_rows()
    ]
    return [{"input_ids": prompt + response, "labels": [-100] * len(prompt) + response} for prompt, response in encoded]


@torch.inference_mode()
def _check_rows_stay_apart(model: Any, rows: list[dict[str, list[int]]]) -> None:
    """Refuse a model in which a packed row sees the row before it: attention that goes by no positions, or a state that
    is carried on."""
    first, second = (torch.tensor([row["input_ids"][-16:]]) for row in (rows[0], rows[-1]))
    places = torch.cat([torch.arange(ids.shape[1]) for ids in (first, second)]).unsqueeze(0)
    packed = model(torch.cat([first, second], dim=1), position_ids=places, use_cache=False).logits[:, first.shape[1] :]
    alone = model(second, use_cache=False).logits
    if not torch.allclose(packed, alone, rtol=1e-3, atol=1e-3 * alone.abs().max().item()):
        raise InputError(
            f"sft.packing: in {type(model).__name__} ({model.config._attn_implementation} attention) a packed row sees "
            f"the row before it; set sft.packing to false"
        )
