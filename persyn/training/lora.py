"""LoRA: its settings, checks and the frozen base that it is trained beside."""

import json
import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from persyn.errors import InputError, did_you_mean
from persyn.files import write_json
from persyn.models import load_causal_lm
from persyn.settings import Settings, Share

FILES = ("adapter_config.json", "adapter_model.safetensors")
"""The files of an adapter."""


class LoraSettings(Settings):
    """LoRA, trained and merged by PEFT."""

    later: ClassVar = frozenset({"target_modules", "use_rslora", "use_dora"})

    r: Annotated[int, Field(ge=1)] = 16
    """Rank."""
    alpha: Annotated[int, Field(ge=1)] = 32
    """The update is scaled by alpha / r."""
    dropout: Share = 0.0
    """Dropout of the inputs of LoRA's layers."""
    target_modules: (
        Literal["all-linear"] | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    ) = "all-linear"
    """The linear layers that are adapted: all but the head, or a list of names such as `[q_proj, v_proj]`."""
    use_rslora: bool = False
    """Whether the update is scaled by alpha / sqrt(r) instead (rank-stabilised LoRA), for high ranks."""
    use_dora: bool = False
    """Whether the size of each weight's columns is trained beside their direction (DoRA); slower."""


def lora_config(task: str, lora: LoraSettings, model: Any, trained_tokens: list[int] | None = None) -> Any:
    """PEFT's configuration of LoRA for a model; the embeddings of `trained_tokens` are trained whole.

    Raises:
        InputError: as check_targets.
    """
    from peft import LoraConfig

    if not isinstance(lora.target_modules, str):
        check_targets(model, lora.target_modules)
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        target_modules=lora.target_modules,
        task_type=task,
        trainable_token_indices=trained_tokens,
    )


def check_targets(model: Any, names: Sequence[str]) -> None:
    """Refuse names that no linear layer of the model has, its head aside: PEFT would ignore some of them.

    Raises:
        InputError: there is one.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    ]
    for name in names:
        if not any(f".{layer}".endswith(f".{name}") for layer in linear):
            short = sorted({layer.rpartition(".")[2] for layer in linear})
            raise InputError(
                f"lora.target_modules has {name!r}, but no adapted layer of {type(model).__name__} is called so; there "
                f"are {', '.join(short)}{did_you_mean(name, short)}"
            )


def check_four_bits() -> None:
    """Refuse a 4-bit base where it cannot be trained beside.

    Raises:
        InputError: as check_bitsandbytes, or the state is sharded.
    """
    check_bitsandbytes("sft.load_in_4bit is true", "set it to false and sft.dtype to bfloat16")
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise InputError(
            "sft.load_in_4bit is true, but speed.student.launch shards the model (FSDP); name "
            "configs/accelerate/ddp.yaml there, where each GPU holds the whole 4-bit model, or set it to false"
        )


def check_bitsandbytes(what: str, instead: str) -> None:
    """Refuse what bitsandbytes does, where it cannot run.

    Args:
        what: the parameter and its value.
        instead: what to do where it cannot.

    Raises:
        InputError: it is not installed, or there is no GPU.
    """
    import torch

    if find_spec("bitsandbytes") is None:
        raise InputError(
            f"{what}, but bitsandbytes is not installed; run `make setup EXTRAS=qlora` (or `pip install "
            f"'persyn[qlora]'`), or {instead}"
        )
    if not torch.cuda.is_available():
        raise InputError(f"{what}, which needs a GPU, and none is visible; {instead}")


def load_four_bits(model: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The causal LM as QLoRA has it, on this process's GPU: weights in 4-bit NormalFloat with doubly quantised scales,
    computed with in bf16.
    """
    import torch
    from transformers import BitsAndBytesConfig

    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    scheme = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    shape = {"quantization_config": scheme, "device_map": {"": device}, "dtype": torch.bfloat16}
    return load_causal_lm(model, revision, trust_remote_code, device=device, **shape)


def write_adapter(adapter: Path, folder: Path, model: str, revision: str | None) -> None:
    """Copy an adapter that PEFT saved. Its base is named as in params.yaml, not by a path of this machine, and lists
    are sorted, so that the same adapter has the same bytes everywhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((adapter / FILES[0]).read_text())
    config |= {"base_model_name_or_path": model, "revision": revision}
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    write_json(config, folder / FILES[0])
    shutil.copyfile(adapter / FILES[1], folder / FILES[1])
