"""Student: fine-tune the base model on its dataset with TRL, the loss on response tokens only."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import torch

from persyn.chat import encode_completion, with_chat_template
from persyn.models import Student, cache_folder, load_causal_lm, load_tokenizer, lora_config
from persyn.schemas import DATASET, check_keys


def train_student(
    dataset: pl.DataFrame,
    student: Student,
    folder: str | Path,
    device_batch_size: int,
    *,
    learning_rate: float = 1e-5,
    epochs: float = 2,
    batch_size: int = 32,
    warmup: float = 0.1,
    lora: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Train and write a complete model (LoRA merged in) and its tokenizer to `folder`, as safetensors.

    Checkpoints live in the cache, named by a hash of everything that decides the result: a run that was
    killed and is started again with the same inputs goes on from its last one.

    Args:
        dataset: DATASET.
        device_batch_size: rows in one forward pass.
        batch_size: rows an update, reached by accumulation.
        warmup: share of the updates over which the learning rate rises; it falls by a cosine after that.
        lora: the arguments of lora_config, or None to train every weight.

    Returns:
        The loss curve: columns step and loss.
    """
    from datasets import Dataset
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTConfig, SFTTrainer

    check_keys("sft.lora", lora or {}, lora_config)
    settings = {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size, "warmup": warmup}
    checkpoints = _checkpoint_folder(dataset, student, dict(settings, lora=lora, seed=seed))
    where = (student.model, student.revision, student.trust_remote_code)
    on_gpu = torch.cuda.is_available()
    device_batch_size = min(batch_size, device_batch_size)
    tokenizer = with_chat_template(load_tokenizer(*where))
    trainer: Any = SFTTrainer(
        model=load_causal_lm(*where, dtype=torch.float32),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(encode_dataset(tokenizer, dataset)),
        peft_config=lora_config("CAUSAL_LM", **lora) if lora is not None else None,
        args=SFTConfig(
            output_dir=str(checkpoints),
            max_length=student.max_length,
            learning_rate=learning_rate,
            num_train_epochs=epochs,
            per_device_train_batch_size=device_batch_size,
            gradient_accumulation_steps=max(1, batch_size // device_batch_size),
            gradient_checkpointing=on_gpu,
            lr_scheduler_type="cosine",
            warmup_steps=warmup,
            logging_steps=1,
            save_steps=0.1,
            save_total_limit=1,
            seed=seed,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            dataloader_pin_memory=on_gpu,
            report_to="none",
        ),
    )
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    trained = trainer.model.merge_and_unload() if lora is not None else trainer.model
    trained.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    curve = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    shutil.rmtree(checkpoints, ignore_errors=True)
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


def _checkpoint_folder(dataset: pl.DataFrame, student: Student, settings: dict[str, Any]) -> Path:
    decides = [dataset.select(DATASET.names()).to_dicts(), vars(student), settings]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "checkpoints" / digest[:24]
