"""The light router: a frozen encoder and one linear layer, fitted in seconds. With word embeddings alone as the encoder
(`layers: 0`) it routes 50,000 prompts in a minute on two cores.

Legend: N prompts, H hidden units, M teachers.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from persyn.files import write_text
from persyn.models import load_model, load_tokenizer
from persyn.router.losses import LOSSES
from persyn.router.settings import LightSettings, RouterSettings

WEIGHTS, CONFIG = "light_router.safetensors", "light_router.json"


class LightRouter:
    """Mean hidden state of the first `layers` layers of `model`, times `weight` (H, M), plus `bias` (M)."""

    def __init__(self, encoder: dict[str, Any], teachers: Sequence[str], weight: np.ndarray, bias: np.ndarray) -> None:
        self.encoder, self.teachers, self.weight, self.bias = encoder, list(teachers), weight, bias

    def strengths(self, prompts: Sequence[str]) -> np.ndarray:
        """Strengths (N, M), in the order of the prompts."""
        return embed(prompts, **self.encoder) @ self.weight + self.bias

    def save(self, folder: str | Path) -> None:
        """Write the layer as safetensors, and the name of the encoder."""
        from safetensors.numpy import save_file

        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({"weight": self.weight, "bias": self.bias}, Path(folder) / WEIGHTS)
        write_text(json.dumps({"encoder": self.encoder, "teachers": self.teachers}, indent=2), Path(folder) / CONFIG)

    @classmethod
    def load(cls, folder: str | Path) -> "LightRouter":
        """Read a saved router."""
        from safetensors.numpy import load_file

        config, tensors = json.loads((Path(folder) / CONFIG).read_text()), load_file(Path(folder) / WEIGHTS)
        return cls(config["encoder"], config["teachers"], tensors["weight"], tensors["bias"])


def fit_light_router(
    prompts: Sequence[str],
    targets: Sequence[np.ndarray],
    teachers: Sequence[str],
    settings: RouterSettings,
    light: LightSettings,
) -> LightRouter:
    """Fit the linear layer on all prompts at once, by L-BFGS: the problem is convex, so there is no learning rate.

    Args:
        targets: one for each prompt, as the loss takes them.
        light: settings.light.
    """
    encoder = {name: getattr(settings, name) for name in ("model", "revision", "max_length")} | {"layers": light.layers}
    features = torch.from_numpy(embed(prompts, **encoder)).double()  # (N, H)
    mean, scale = features.mean(dim=0), features.std(dim=0, unbiased=False).clamp(min=1e-6)
    standardised, labels = (features - mean) / scale, torch.from_numpy(np.stack(targets)).double()
    weight = torch.zeros(features.shape[1], len(teachers), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(teachers), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = (
            LOSSES[settings.loss]({"logits": standardised @ weight + bias}, labels) + light.l2 * weight.square().sum()
        )
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        plain = weight / scale[:, None]
        return LightRouter(encoder, teachers, plain.float().numpy(), (bias - mean @ plain).float().numpy())


@torch.inference_mode()
def embed(
    prompts: Sequence[str],
    model: str,
    revision: str | None = None,
    max_length: int = 512,
    layers: int | None = None,
    batch_size: int = 64,
) -> np.ndarray:
    """Mean hidden states (N, H) of the frozen model, after all of its layers or the first ones."""
    from transformers import AutoModel

    tokenizer = load_tokenizer(model, revision)
    shape: dict[str, Any] = {} if layers is None else {"num_hidden_layers": layers}
    backbone = load_model(AutoModel, model, revision, dtype=torch.float32, **shape)
    encoded = tokenizer(list(prompts), truncation=True, max_length=max_length, split_special_tokens=True)["input_ids"]
    order = sorted(range(len(encoded)), key=lambda position: -len(encoded[position]))
    vectors = np.zeros((len(prompts), backbone.config.hidden_size), dtype=np.float32)
    with tqdm(total=len(prompts), desc="embedding", unit="prompt") as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids = tokenizer.pad(
                {"input_ids": [encoded[position] for position in batch]}, padding_side="right", return_tensors="pt"
            )
            hidden = backbone(**ids.to(backbone.device)).last_hidden_state  # (B, T, H)
            mask = ids["attention_mask"].unsqueeze(2).to(hidden)
            vectors[batch] = ((hidden * mask).sum(dim=1) / mask.sum(dim=1)).cpu().numpy()
            bar.update(len(batch))
    return vectors
