"""Code shared by the trainings of router and student: processes, devices, checkpoints and resuming.

A training gives the same result however it is run: the rows of an update and their order depend only on the seed, not
on the number of processes or of rows in a forward pass. `torchrun` and `accelerate launch` set RANK and WORLD_SIZE;
without them there is one process.
"""

import fcntl
import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from persyn.errors import InputError
from persyn.files import cache_folder


def is_main() -> bool:
    """Whether this process writes outputs: the first of several, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def split_batch(batch_size: int, device_batch_size: int) -> tuple[int, int]:
    """How the rows of an update are split: rows in one forward pass, and forward passes of one process.

    Their product times WORLD_SIZE is exactly `batch_size`.

    Args:
        batch_size: rows per update.
        device_batch_size: rows in one forward pass at most; the largest divisor up to it is used.

    Raises:
        InputError: a size is below 1, or the processes cannot share the rows evenly.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if batch_size < 1 or device_batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, device_batch_size {device_batch_size}; both must be 1 or more")
    if batch_size % processes:
        raise InputError(
            f"batch_size is {batch_size}, which {processes} processes cannot share evenly; make it a multiple of "
            f"{processes}, or launch with a number of processes that divides it"
        )
    share = batch_size // processes
    device = max(size for size in range(1, min(share, device_batch_size) + 1) if share % size == 0)
    return device, share // device


def training_arguments(folder: Path, batch_size: int, device_batch_size: int, seed: int) -> dict[str, Any]:
    """Arguments of TrainingArguments shared by both trainings: bf16 and gradient checkpointing on a GPU, fp32 on a
    CPU; a checkpoint after every tenth of the training.

    Raises:
        InputError: as split_batch; one process sees several GPUs; or FSDP's own activation checkpointing is on, with
            which PEFT 0.21 saves an adapter without its weights.
    """
    on_gpu = torch.cuda.is_available()
    if torch.cuda.device_count() > 1 and "WORLD_SIZE" not in os.environ:
        raise InputError(
            f"{torch.cuda.device_count()} GPUs are visible, one process trains on one; set speed.<stage>.launch to "
            f"configs/accelerate/ddp.yaml or one_gpu.yaml, or set CUDA_VISIBLE_DEVICES=0"
        )
    device, accumulation = split_batch(batch_size, device_batch_size)
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING") == "true":
        raise InputError(
            "fsdp_activation_checkpointing is true in the config file of accelerate; set it to false: gradient "
            "checkpointing is used on a GPU anyway, and with FSDP's own an adapter is saved without its weights"
        )
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": device,
        "gradient_accumulation_steps": accumulation,
        "gradient_checkpointing": on_gpu,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "save_steps": 0.1,
        "save_total_limit": 1,
        "seed": seed,
        "report_to": "none",  # monitors are callbacks (monitors.py)
    }


class SameBatches:
    """Mixin for a Trainer: its updates use the same rows in the same order for any number of processes, and after a
    resume.

    accelerate distributes the batches to the processes and would complete the last round with rows from the start,
    which would then count twice. Here `padding` completes it, a row whose labels have no weight.
    """

    padding: dict[str, Any]
    args: Any
    model: Any
    state: Any
    train_dataset: Any

    def get_train_dataloader(self) -> DataLoader:
        """The rows of this process."""
        from datasets import Dataset, concatenate_datasets

        row = Dataset.from_list([self.padding], features=self.train_dataset.features)
        self.train_dataset = concatenate_datasets([self.train_dataset, row])
        return super().get_train_dataloader()  # type: ignore[misc]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        args, rows = self.args, len(self.train_dataset) - 1
        together = args.per_device_train_batch_size * args.world_size
        updates = -(-rows // (together * args.gradient_accumulation_steps))
        filled = together if args.world_size > 1 else 1  # a single process may have a smaller last batch
        return _Padded(rows, filled, args.seed, lambda: self.state.global_step // updates)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """FSDP2 gathers a weight with two names twice; write it once."""
        twice = getattr(self.model, "all_tied_weights_keys", {}) if state_dict else {}
        once = {name: weight for name, weight in (state_dict or {}).items() if name not in twice}
        super()._save(output_dir, once or None)  # type: ignore[misc]


class ValidationLoss:
    """Mixin for TRL's SFTTrainer: `eval_loss` is the mean over all response tokens of the validation rows.

    The Trainer's own is a mean over rows of their batches' means, which depends on how rows are batched and shared.
    """

    padding: dict[str, Any]
    accelerator: Any
    args: Any
    eval_dataset: Any
    _summed: Any

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """The rows of this process. Rows without weight complete the last round; accelerate would repeat others."""
        from datasets import Dataset, concatenate_datasets

        rows = self.eval_dataset
        missing = -len(rows) % (self.args.per_device_eval_batch_size * self.args.world_size)
        padding = {name: self.padding[name] for name in rows.features}
        if missing:
            rows = concatenate_datasets([rows, Dataset.from_list([padding] * missing, features=rows.features)])
        return super().get_eval_dataloader(rows)  # type: ignore[misc]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._summed = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        output = super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]
        nats, tokens = self.accelerator.reduce(self._summed, "sum").tolist()
        output.metrics["eval_loss"] = nats / tokens
        return output

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> tuple[None, None, None]:
        inputs = self._prepare_inputs(inputs)  # type: ignore[attr-defined]
        with torch.no_grad(), self.compute_loss_context_manager():  # type: ignore[attr-defined]
            outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        self._summed += torch.stack([-outputs.log_probs.double().sum(), outputs.label_mask.sum().double()])
        return None, None, None


def early_stopping(metric: str, patience: int) -> Any:
    """A callback that ends the training as stopping_step says. transformers' own forgets at a resume how long it has
    waited; this one counts in the training's log, which checkpoints hold.
    """
    from transformers import TrainerCallback

    class EarlyStopping(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if stopping_step(state.log_history, metric, patience) is not None:
                control.should_training_stop = True

        on_train_begin = on_evaluate  # it was resumed after its end: the Trainer then takes one more step

    return EarlyStopping()


def stopping_step(log: Iterable[Mapping[str, Any]], metric: str, patience: int) -> int | None:
    """The first step at which `metric` has reached no new minimum in `patience` measurements; None if there is none.

    Args:
        log: a Trainer's log_history.
    """
    best, waited = math.inf, 0
    for entry in log:
        if metric in entry:
            better = entry[metric] < best
            best, waited = (entry[metric], 0) if better else (best, waited + 1)
            if waited >= patience:
                return int(entry["step"])
    return None


class _Padded(Sampler):
    """Positions of all rows, shuffled anew each epoch, then that of the padding, up to a multiple of `together`.

    `epoch` is a function, because accelerate's set_epoch does not reach a custom sampler when several processes resume
    within an epoch: the rest of the epoch would then have the order of the first epoch.
    """

    def __init__(self, rows: int, together: int, seed: int, epoch: Callable[[], int]) -> None:
        from accelerate.data_loader import SeedableRandomSampler

        self.shuffled, self.padding, self.epoch = SeedableRandomSampler(range(rows), data_seed=seed), rows, epoch
        self.missing = -rows % together

    def __len__(self) -> int:
        return self.padding + self.missing

    def __iter__(self) -> Iterator[int]:
        self.shuffled.set_epoch(self.epoch())
        yield from self.shuffled
        yield from [self.padding] * self.missing


@contextmanager
def checkpoints(*decides: Any) -> Iterator[Path]:
    """A folder in the cache for the checkpoints of one training; removed at the end, kept if the training is killed.

    Args:
        decides: everything that decides the result, as JSON. Its hash names the folder, so that a restarted run finds
            its own checkpoints. Speed knobs and the number of processes do not count; whether the state is sharded
            does, because the two kinds of checkpoints are incompatible.

    Raises:
        InputError: another process uses the folder.
    """
    sharded = [kind for kind in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{kind}") == "true"]
    digest = hashlib.sha256(json.dumps([*decides, *sharded], sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / "checkpoints" / digest[:24]
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        if is_main():
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"another process runs the same training and uses {folder}; wait until it ends, or end it"
                ) from error
        yield folder
        if is_main():
            shutil.rmtree(folder)
    finally:
        os.close(held)


def train(trainer: Any, padding: dict[str, Any]) -> None:
    """Train to the end; resumes from the last complete checkpoint in the trainer's folder, if there is one.

    Args:
        trainer: a SameBatches.
        padding: a row like those of its dataset, whose labels have no weight.
    """
    from transformers.trainer_utils import get_last_checkpoint

    folder = Path(trainer.args.output_dir)
    if is_main():
        for checkpoint in folder.glob("checkpoint-*"):
            if not _is_whole(checkpoint):
                shutil.rmtree(checkpoint)
    trainer.accelerator.wait_for_everyone()
    trainer.padding = padding
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)


def _is_whole(checkpoint: Path) -> bool:
    """Whether it was written completely: the Trainer writes its state last."""
    try:
        return bool(json.loads((checkpoint / "trainer_state.json").read_text()))
    except (OSError, json.JSONDecodeError):
        return False


def save_trained(trainer: Any, base: Callable[[], Any] | None, folder: str | Path) -> Path | None:
    """Write the whole trained model, as safetensors, and its tokenizer. Every process must call it, since sharded
    weights are gathered. The files exist when it returns on the main process.

    Args:
        base: loads, on the CPU, the model that the trained adapter is merged into; None without an adapter.

    Returns:
        On the main process, the folder of the adapter, which is that of a checkpoint; None without one.
    """
    saved = Path(trainer.args.output_dir) / "adapter" if base else Path(folder)
    trainer.save_model(str(saved))
    if not is_main():
        return None
    (saved / "training_args.bin").unlink()
    if not base:
        return None
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")  # else the base would be saved as trained
        merged = PeftModel.from_pretrained(base(), str(saved)).merge_and_unload()
    for name in ("config", "generation_config"):  # training has aligned their special tokens with the tokenizer
        if hasattr(trainer.model, name):
            setattr(merged, name, getattr(trainer.model, name))
    if hasattr(merged.config, "quantization_config"):  # the base in training had 4 bits; this one has not
        del merged.config.quantization_config
    merged.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    return saved


def leave_to_main() -> None:
    """End every process but the main one, which continues alone: work after training is not distributed."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if not is_main():
        raise SystemExit(0)
