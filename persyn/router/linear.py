"""The linear router: one Bradley-Terry layer over the states of a frozen encoder, fitted in seconds.

Legend: N prompts, L layers read, H hidden units, M teachers.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from persyn.files import read_json, read_tensors, write_text
from persyn.router.features import embed, encoder_of
from persyn.router.losses import LOSSES
from persyn.router.settings import RouterSettings

WEIGHTS, CONFIG = "linear_router.safetensors", "linear_router.json"


class LinearRouter:
    """Mean hidden states of the encoder, times `weight` (L * H, M), plus `bias` (M)."""

    def __init__(self, encoder: dict[str, Any], teachers: Sequence[str], weight: np.ndarray, bias: np.ndarray) -> None:
        self.encoder, self.teachers, self.weight, self.bias = encoder, list(teachers), weight, bias

    def strengths(
        self, prompts: Sequence[str], sources: Sequence[str] | None = None, features: np.ndarray | None = None
    ) -> np.ndarray:
        """Strengths (N, M), in the order of the prompts; `features` (N, L, H) are theirs, if known."""
        features = embed(prompts, **self.encoder) if features is None else features
        return features.reshape(len(features), -1) @ self.weight + self.bias

    def save(self, folder: str | Path) -> None:
        """Write the layer as safetensors, and the name of the encoder."""
        from safetensors.numpy import save_file

        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({"weight": self.weight, "bias": self.bias}, Path(folder) / WEIGHTS)
        write_text(json.dumps({"encoder": self.encoder, "teachers": self.teachers}, indent=2), Path(folder) / CONFIG)

    @classmethod
    def load(cls, folder: str | Path) -> "LinearRouter":
        """Read a saved router."""
        config, tensors = read_json(Path(folder) / CONFIG), read_tensors(Path(folder) / WEIGHTS)
        return cls(config["encoder"], config["teachers"], tensors["weight"], tensors["bias"])


def fit_linear_router(
    features: np.ndarray, targets: Sequence[np.ndarray], teachers: Sequence[str], settings: RouterSettings
) -> LinearRouter:
    """Fit the linear layer on all prompts at once, by L-BFGS: the problem is convex, so there is no learning rate.

    Args:
        features: (N, L, H).
        targets: one for each prompt, as the loss takes them.
    """
    states = torch.from_numpy(features).double().flatten(start_dim=1)  # (N, L * H)
    mean, scale = states.mean(dim=0), states.std(dim=0, unbiased=False).clamp(min=1e-6)
    standardised, labels = (states - mean) / scale, torch.from_numpy(np.stack(targets)).double()
    weight = torch.zeros(states.shape[1], len(teachers), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(teachers), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = (
            LOSSES[settings.loss]({"logits": standardised @ weight + bias}, labels)
            + settings.l2 * weight.square().sum()
        )
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        plain = weight / scale[:, None]
        return LinearRouter(
            encoder_of(settings), teachers, plain.float().numpy(), (bias - mean @ plain).float().numpy()
        )
