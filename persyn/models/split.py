"""Split models: one too large for a device, its layers on several devices or each layer shared by several processes.

What reads a model needs to know of it only where its inputs go; the libraries' hooks do the rest.
"""

import logging
from typing import Any

from persyn.errors import InputError

WHOLE = "replicated_with_grad_allreduce"
"""The style of transformers' plans that leaves a module whole on every device."""
HEADS = ("num_attention_heads", "num_key_value_heads", "num_global_key_value_heads")
"""Fields of configurations: what the plans of most models deal out to the processes."""
logger = logging.getLogger(__name__)


def share_layers(auto_class: Any, model: str, where: dict[str, Any], parts: int, trust_remote_code: bool) -> Any:
    """The configuration by which `parts` processes load one model together, each a part of every layer.

    Embedding and head stay whole: scoring reads the head's weight itself, and both are a small part of a large model.

    Args:
        where: the arguments of `from_pretrained` that name the weights.

    Raises:
        InputError: transformers has no plan for this model, or its attention heads cannot be dealt out evenly.
    """
    import torch
    from transformers import AutoConfig
    from transformers.distributed import DistributedConfig

    config = AutoConfig.from_pretrained(**where, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        skeleton = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    ends = (skeleton.get_input_embeddings(), skeleton.get_output_embeddings())
    whole = {name: WHOLE for name, module in skeleton.named_modules() if name in skeleton.tp_plan and module in ends}
    plan = {name: style for name, style in skeleton.tp_plan.items() if name not in whole}
    if not plan:
        raise InputError(
            f"model {model}: transformers has no tensor parallel plan for {type(skeleton).__name__}; set device_map: "
            f"auto in place of tensor_parallel"
        )
    text = config.get_text_config()
    heads = {name: getattr(text, name, None) for name in HEADS}
    uneven = [f"{name} is {number}" for name, number in heads.items() if number and number % parts]
    if uneven and any(name.endswith("k_proj") and style == "colwise" for name, style in plan.items()):
        raise InputError(
            f"model {model}: {' and '.join(uneven)}, which {parts} processes cannot share evenly; set tensor_parallel "
            f"to a number that divides it, or device_map: auto in its place"
        )
    return DistributedConfig(tp_size=parts, tp_plan=whole)


def tell_offloaded(model: Any, name: str) -> None:
    """Warn of layers that found no room on a GPU: every pass fetches them anew."""
    import torch

    places = list(getattr(model, "hf_device_map", {}).values())
    slow = [place for place in ("cpu", "disk") if place in places and (place == "disk" or torch.cuda.is_available())]
    if slow:
        counts = " and ".join(f"{places.count(place)} on the {place}" for place in slow)
        logger.warning(
            "%s is too large for the memory here: of its %d parts %s, which makes each pass many times slower",
            name,
            len(places),
            counts,
        )


def is_split(model: Any) -> bool:
    """Whether the model's layers are on several devices or shared by several processes."""
    return bool(getattr(model, "hf_device_map", None) or getattr(model, "tp_size", None))


def input_device(model: Any) -> Any:
    """The device that a model's inputs go to. Weights that are fetched only when they are needed are on none (meta)."""
    return next(weight.device for weight in model.parameters() if weight.device.type != "meta")
