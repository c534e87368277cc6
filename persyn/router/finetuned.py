"""The router at full strength: a Hugging Face backbone with a linear head of one coefficient a teacher.

That is exactly a sequence-classification model, so saving, loading, LoRA and sharding are the library's. An encoder is
read at its own class token; a decoder has none, so one is added after every prompt. All pairs of a prompt share its one
forward pass.

Legend: B prompts, M teachers.
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from persyn.models import cache_folder, load_model, load_tokenizer, lora_config
from persyn.router.losses import LOSSES
from persyn.router.metrics import routing_metrics
from persyn.router.settings import Settings
from persyn.schemas import check_keys

CLASS_TOKEN = "<|route|>"


class FinetunedRouter:
    """A sequence-classification model and its tokenizer. The teachers' names and order are its `id2label`."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.teachers = [model.config.id2label[position] for position in range(model.config.num_labels)]

    @torch.inference_mode()
    def strengths(self, prompts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Strengths (len(prompts), M), in the order of the prompts."""
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
    settings: Settings,
    validation: tuple[Sequence[str], np.ndarray] | None = None,
) -> FinetunedRouter:
    """Fine-tune the backbone and its head.

    Args:
        targets: one a prompt, as the loss takes them.
        teachers: the order of the M strengths.
        validation: prompts and their rewards (N, M); after each epoch the regret on them is measured, training stops
            once it has not fallen for `patience` epochs, and the best epoch is kept. None trains all epochs.
    """
    from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, set_seed

    set_seed(settings.seed)
    tokenizer, router = _new_router(settings, teachers)
    # The regret is taken from the strengths; the loss on the validation prompts is not used, any target will do.
    unused = [targets[0]] * len(validation[0]) if validation else []
    every = "epoch" if validation else "no"
    on_gpu = torch.cuda.is_available()
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="router-") as scratch:
        trainer = Trainer(
            model=router,
            args=TrainingArguments(
                output_dir=scratch,
                learning_rate=settings.learning_rate,
                num_train_epochs=settings.epochs,
                per_device_train_batch_size=settings.batch_size,
                per_device_eval_batch_size=settings.batch_size,
                lr_scheduler_type="constant",
                seed=settings.seed,
                bf16=on_gpu,
                use_cpu=not on_gpu,
                eval_strategy=every,
                save_strategy=every,
                save_total_limit=1,
                load_best_model_at_end=bool(validation),
                metric_for_best_model="regret",
                greater_is_better=False,
                report_to="none",
                remove_unused_columns=False,
                dataloader_pin_memory=on_gpu,
            ),
            train_dataset=_dataset(tokenizer, prompts, targets),
            eval_dataset=_dataset(tokenizer, validation[0], unused) if validation else None,
            processing_class=tokenizer,
            compute_loss_func=LOSSES[settings.loss],
            compute_metrics=partial(_regret, validation[1]) if validation else None,
            callbacks=[EarlyStoppingCallback(settings.patience)] if validation else None,
        )
        trainer.train()
    return FinetunedRouter(router.merge_and_unload() if settings.lora is not None else router, tokenizer)


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts, cut to the tokenizer's maximum; a decoder's class token comes last and is never cut off."""
    appended = [tokenizer.convert_tokens_to_ids(CLASS_TOKEN)] if CLASS_TOKEN in tokenizer.get_added_vocab() else []
    limit = tokenizer.model_max_length - len(appended)
    encoded = tokenizer(list(prompts), truncation=True, max_length=limit, split_special_tokens=True)
    return [ids + appended for ids in encoded["input_ids"]]


def _regret(rewards: np.ndarray, prediction: Any) -> dict[str, float]:
    return {"regret": routing_metrics(prediction.predictions, rewards)["regret"]}


def _dataset(tokenizer: Any, prompts: Sequence[str], targets: Sequence[np.ndarray] | np.ndarray) -> Any:
    from datasets import Dataset

    encoded = encode_prompts(tokenizer, prompts)
    return Dataset.from_dict({"input_ids": encoded, "labels": [target.tolist() for target in targets]})


def _new_router(settings: Settings, teachers: Sequence[str]) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification

    tokenizer = load_tokenizer(settings.model, settings.revision)
    tokenizer.model_max_length = settings.max_length
    tokenizer.padding_side = "right"
    router = load_model(
        AutoModelForSequenceClassification,
        settings.model,
        settings.revision,
        num_labels=len(teachers),
        id2label=dict(enumerate(teachers)),
        label2id={teacher: position for position, teacher in enumerate(teachers)},
        dtype=torch.float32,
    )
    router.config.pad_token_id = tokenizer.pad_token_id  # a causal backbone finds its last token by it
    added = None
    if tokenizer.cls_token_id is None:
        tokenizer.add_tokens([CLASS_TOKEN], special_tokens=True)
        added = [tokenizer.convert_tokens_to_ids(CLASS_TOKEN)]
        if len(tokenizer) > router.get_input_embeddings().num_embeddings:
            router.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if settings.lora is None:
        return tokenizer, router
    from peft import get_peft_model

    check_keys("router.lora", settings.lora, lora_config)
    return tokenizer, get_peft_model(router, lora_config("SEQ_CLS", added, **settings.lora))
