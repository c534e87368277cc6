"""The fine-tuned router: a Hugging Face backbone with a linear head of one coefficient per teacher.

This is a sequence-classification model, so the library does the saving, loading, LoRA and sharding. An encoder is read
at its own class token; a decoder has none, so one is added after every prompt. All pairs of a prompt share one forward
pass.

Legend: B prompts, M teachers.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from persyn.models import load_model, load_tokenizer
from persyn.router.losses import ITEMS, LOSSES
from persyn.router.metrics import routing_metrics
from persyn.router.settings import RouterSettings
from persyn.training import Session
from persyn.training.lora import lora_config
from persyn.training.trainer import SameBatches, early_stopping, is_main, save_trained, train, training_arguments

CLASS_TOKEN = "<|route|>"


class FinetunedRouter:
    """A sequence-classification model and its tokenizer. The teachers' names and order are its `id2label`."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.teachers = [model.config.id2label[position] for position in range(model.config.num_labels)]

    @torch.inference_mode()
    def strengths(
        self,
        prompts: Sequence[str],
        sources: Sequence[str] | None = None,
        features: np.ndarray | None = None,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Strengths (len(prompts), M), in the order of the prompts. It reads nothing but their text."""
        encoded = encode_prompts(self.tokenizer, prompts)
        order = sorted(range(len(encoded)), key=lambda position: -len(encoded[position]))
        strengths = np.zeros((len(prompts), len(self.teachers)), dtype=np.float32)
        with tqdm(total=len(prompts), desc="routing", unit="prompt") as bar:
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                ids = self.tokenizer.pad({"input_ids": [encoded[position] for position in batch]}, return_tensors="pt")
                strengths[batch] = self.model(**ids.to(self.model.device)).logits.float().cpu().numpy()
                bar.update(len(batch))
        return strengths

    def save(self, folder: str | Path) -> None:
        """Write it as safetensors."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "FinetunedRouter":
        """Read a saved router; fp32 on every device."""
        from transformers import AutoModelForSequenceClassification

        model = load_model(AutoModelForSequenceClassification, str(folder), dtype=torch.float32)
        return cls(model, load_tokenizer(str(folder)))


def finetune_router(
    prompts: Sequence[str],
    targets: Sequence[np.ndarray],
    teachers: Sequence[str],
    settings: RouterSettings,
    session: Session,
    validation: tuple[Sequence[str], np.ndarray] | None = None,
) -> FinetunedRouter:
    """Fine-tune the backbone and its head.

    Args:
        targets: one for each prompt, as the loss takes them.
        teachers: the order of the M strengths.
        session: where and how it runs; resumes from a killed run's checkpoint found in its scratch folder.
        validation: prompts and their rewards (N, M). The regret on them is measured after each epoch; training stops
            when it has not fallen for `patience` epochs, and the best epoch is kept. None trains all epochs.

    Raises:
        InputError: as training_arguments.
    """
    from transformers import Trainer, TrainingArguments, set_seed

    class RouterTrainer(SameBatches, Trainer):
        def get_batch_samples(self, *args: Any) -> tuple[list[Any], Any]:
            """The batches of an update, and the number of items over all processes."""
            batches, _ = super().get_batch_samples(*args)
            items = torch.stack([ITEMS[settings.loss](batch["labels"]) for batch in batches]).sum()
            return batches, self.accelerator.reduce(items.to(self.args.device), "sum")

    def base() -> Any:
        set_seed(settings.seed)
        return _new_router(settings, teachers, tokenizer)

    assert session.scratch is not None
    tokenizer, trained = _router_tokenizer(settings), session.scratch / "trained"
    if trained.is_dir():
        return FinetunedRouter(FinetunedRouter.load(trained).model, tokenizer)
    args = TrainingArguments(**_arguments(settings, session, bool(validation)))
    router = base()  # after TrainingArguments, which connects the processes
    if settings.lora is not None:
        from peft import get_peft_model

        router = get_peft_model(router, lora_config("SEQ_CLS", settings.lora, router, _class_token(tokenizer) or None))
    watching = session.live.callbacks() if session.live else []
    # The regret needs only the strengths. The loss on the validation prompts is not used, so any target will do.
    unused = [targets[0]] * len(validation[0]) if validation else []
    trainer = RouterTrainer(
        model=router,
        args=args,
        train_dataset=_dataset(tokenizer, prompts, targets),
        eval_dataset=_dataset(tokenizer, validation[0], unused) if validation else None,
        processing_class=tokenizer,
        compute_loss_func=LOSSES[settings.loss],
        compute_metrics=partial(_regret, validation[1]) if validation else None,
        callbacks=[*watching, *([early_stopping("eval_regret", settings.patience)] if validation else [])],
    )
    train(trainer, {"input_ids": [0], "labels": np.full_like(targets[0], np.nan).tolist()})
    save_trained(trainer, base if settings.lora is not None else None, session.scratch / "saving")
    if is_main():
        (session.scratch / "saving").rename(trained)
    trainer.accelerator.wait_for_everyone()
    return FinetunedRouter(FinetunedRouter.load(trained).model, tokenizer)


def _arguments(settings: RouterSettings, session: Session, with_validation: bool) -> dict[str, Any]:
    """Arguments of TrainingArguments."""
    assert session.scratch is not None
    device_batch_size = session.device_batch_size or settings.batch_size
    arguments = training_arguments(session.scratch, settings.batch_size, device_batch_size, settings.seed)
    if with_validation:
        arguments |= {"eval_strategy": "epoch", "save_strategy": "epoch"}
    return arguments | {
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "per_device_eval_batch_size": device_batch_size,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "load_best_model_at_end": with_validation,
        "metric_for_best_model": "regret",
        "greater_is_better": False,
        "remove_unused_columns": False,
    }


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts, cut to the tokenizer's maximum; a decoder's class token comes last and is never cut off."""
    appended = _class_token(tokenizer)
    limit = tokenizer.model_max_length - len(appended)
    encoded = tokenizer(list(prompts), truncation=True, max_length=limit, split_special_tokens=True)
    return [ids + appended for ids in encoded["input_ids"]]


def _regret(rewards: np.ndarray, prediction: Any) -> dict[str, float]:
    return {"regret": routing_metrics(prediction.predictions, rewards)["regret"]}


def _class_token(tokenizer: Any) -> list[int]:
    """The class token that was added to a decoder's tokenizer; none in an encoder's."""
    return [tokenizer.convert_tokens_to_ids(CLASS_TOKEN)] if CLASS_TOKEN in tokenizer.get_added_vocab() else []


def _dataset(tokenizer: Any, prompts: Sequence[str], targets: Sequence[np.ndarray]) -> Any:
    from datasets import Dataset

    encoded = encode_prompts(tokenizer, prompts)
    return Dataset.from_dict({"input_ids": encoded, "labels": [target.tolist() for target in targets]})


def _router_tokenizer(settings: RouterSettings) -> Any:
    tokenizer = load_tokenizer(settings.model, settings.revision)
    tokenizer.model_max_length = settings.max_length
    tokenizer.padding_side = "right"
    if tokenizer.cls_token_id is None:
        tokenizer.add_tokens([CLASS_TOKEN], special_tokens=True)
    return tokenizer


def _new_router(settings: RouterSettings, teachers: Sequence[str], tokenizer: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    router = load_model(
        AutoModelForSequenceClassification,
        settings.model,
        settings.revision,
        device="cpu",
        num_labels=len(teachers),
        id2label=dict(enumerate(teachers)),
        label2id={teacher: position for position, teacher in enumerate(teachers)},
        dtype=torch.float32,
    )
    router.config.pad_token_id = tokenizer.pad_token_id  # a causal backbone needs it to find its last token
    if _class_token(tokenizer) and len(tokenizer) > router.get_input_embeddings().num_embeddings:
        router.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return router
