"""Features: what a frozen language model makes of a prompt.

Legend: N prompts, H hidden units, L layers read.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from persyn.errors import InputError
from persyn.models import load_model, load_tokenizer, locate_model
from persyn.router.settings import RouterSettings

CHUNK = 4096
"""Prompts whose features are scaled at once, so that those of 50,000 are not held in memory twice."""


def encoder_of(settings: RouterSettings) -> dict[str, Any]:
    """The arguments of `embed` that the settings name; a saved router keeps them."""
    return {name: getattr(settings, name) for name in ("model", "revision", "max_length", "layers")}


@torch.inference_mode()
def embed(
    prompts: Sequence[str],
    model: str,
    revision: str | None = None,
    max_length: int = 512,
    layers: Sequence[int] | None = None,
    batch_size: int = 16,
) -> np.ndarray:
    """Mean hidden states (N, L, H) of the frozen model, each token's scaled to a mean square of 1.

    Without that scale a few tokens, such as the first, would drown the others: their states are hundreds of times
    larger in the middle layers of today's models (massive activations, arXiv 2402.17762).

    Args:
        layers: which layers to read: 0 is the word embeddings, None a quarter of the way up and the last.

    Raises:
        InputError: the model has no such layer.
    """
    from transformers import AutoConfig, AutoModel

    tokenizer = load_tokenizer(model, revision)
    has = AutoConfig.from_pretrained(**locate_model(model, revision)).get_text_config().num_hidden_layers
    if layers is not None and max(layers) > has:
        raise InputError(f"router.layers is {list(layers)}, but {model} has {has} layers; name layers from 0 to {has}")
    shape: dict[str, Any] = {} if layers is None else {"num_hidden_layers": max(layers)}
    backbone = load_model(AutoModel, model, revision, dtype=torch.float32, **shape)
    config = backbone.config.get_text_config()
    last = config.num_hidden_layers
    read = sorted({round(last / 4), last}) if layers is None else list(layers)
    encoded = tokenizer(list(prompts), truncation=True, max_length=max_length, split_special_tokens=True)["input_ids"]
    order = sorted(range(len(encoded)), key=lambda position: -len(encoded[position]))
    vectors = np.zeros((len(prompts), len(read), config.hidden_size), dtype=np.float32)
    with tqdm(total=len(prompts), desc="embedding", unit="prompt") as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids = tokenizer.pad(
                {"input_ids": [encoded[position] for position in batch]}, padding_side="right", return_tensors="pt"
            )
            states = backbone(**ids.to(backbone.device), output_hidden_states=True).hidden_states
            mask = ids["attention_mask"][:, :, None].float()
            for position, layer in enumerate(read):
                hidden = torch.nn.functional.rms_norm(states[layer].float(), states[layer].shape[-1:])  # (B, T, H)
                vectors[batch, position] = ((hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).cpu().numpy()
            bar.update(len(batch))
    return vectors


class Scaling:
    """Turns features into few numbers of equal standing: standardises them by those of the training prompts, gives each
    layer the same weight, and keeps the leading principal components. Rows come out with length 1, so that dot products
    are cosines. On real prompts 20 components tell more than all: the rest is noise to neighbours and ridge alike.
    """

    def __init__(self, mean: np.ndarray, deviation: np.ndarray, centre: np.ndarray, axes: np.ndarray) -> None:
        self.mean, self.deviation, self.centre, self.axes = mean, deviation, centre, axes

    @classmethod
    def fit(cls, features: np.ndarray, components: int) -> "Scaling":
        """From the features (N, L, H) of the training prompts."""
        exact: Any = {"axis": 0, "dtype": np.float64}  # in float32 the mean of equal numbers is another one
        mean, deviation = features.mean(**exact), np.maximum(features.std(**exact), 1e-6)
        found = cls(mean.astype(np.float32), deviation.astype(np.float32), np.zeros(()), np.zeros(()))
        unit = found._unit(features)
        found.centre = unit.mean(**exact).astype(np.float32)
        found.axes = _principal_axes(unit - found.centre, components)
        return found

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(N, L, H) -> (N, D), float32, each row of length 1, or 0 where the features are the mean."""
        scaled = np.zeros((len(features), self.axes.shape[1]), dtype=np.float32)
        for start in range(0, len(features), CHUNK):
            part = features[start : start + CHUNK]
            scaled[start : start + CHUNK] = _to_length_1((self._unit(part) - self.centre) @ self.axes)
        return scaled

    def _unit(self, features: np.ndarray) -> np.ndarray:
        return _to_length_1((features - self.mean) / self.deviation).reshape(len(features), -1)


def _principal_axes(rows: np.ndarray, components: int) -> np.ndarray:
    """The leading principal axes (P, D) of centred rows (N, P). D is `components`, or the number of directions in which
    the rows differ at all, if this is smaller; it is 1 at least.
    """
    if len(rows) > rows.shape[1]:
        squares, axes = np.linalg.eigh(rows.T @ rows)  # ten times as fast as the decomposition of the rows
        variance, axes = squares[::-1], axes[:, ::-1]
    else:
        values, transposed = np.linalg.svd(rows, full_matrices=False)[1:]
        variance, axes = values**2, transposed.T
    differ = int((variance > 1e-6 * variance[0]).sum())
    return np.ascontiguousarray(axes[:, : max(1, min(components, differ))])


def _to_length_1(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-6)
