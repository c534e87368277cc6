"""LoRA over frozen bases, and the adapter that is kept."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import TrainerCallback

from persyn.dataset import DatasetSettings, build_dataset
from persyn.defects import Policies
from persyn.errors import InputError
from persyn.generation.terms import Licenses
from persyn.models import Student, adapter_folder, load_causal_lm, load_tokenizer
from persyn.student import SftSettings, check_devices, train_student
from persyn.training.lora import LoraSettings, check_four_bits, check_targets
from persyn.training.monitors import Live
from tests.support.tables import prompts_table, responses_table, stub_teachers

PROMPTS = prompts_table([f"Say the word number {i}." for i in range(8)])
RESPONSES = responses_table(PROMPTS, "t", ["The clock struck twelve."] * 8)
DATASET, _ = build_dataset(PROMPTS, RESPONSES, Policies(), stub_teachers("t"), Licenses(), DatasetSettings())
LORA = LoraSettings(r=4, alpha=8)
SETTINGS = SftSettings(learning_rate=1e-2, epochs=4, batch_size=4, warmup=0.0, lora=LORA)


@dataclass(frozen=True)
class Precisions(Live):
    """Records the precisions in a training: of the frozen weights, of the trained ones, of gradients."""

    seen: dict[str, set[torch.dtype]] = field(default_factory=lambda: defaultdict(set))

    def callbacks(self) -> list[Any]:
        seen = self.seen

        class Look(TrainerCallback):
            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
                for weight in model.parameters():
                    seen["trained" if weight.requires_grad else "frozen"].add(weight.dtype)
                    if weight.grad is not None:
                        seen["gradient"].add(weight.grad.dtype)

        return [Look()]


def train(model: str, out: Path, settings: SftSettings, live: Live | None = None) -> pl.DataFrame:
    return train_student(DATASET, Student(model=model, license="x", max_length=256), out, settings, 2, live)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.arange(1, 20).unsqueeze(0)).logits.float()


def test_a_frozen_base_in_bfloat16_learns_as_in_float32(base_model: str, tmp_path: Path) -> None:
    """The adapter and its gradients are in float32, and it is merged into the weights as their files have them."""
    curves, precisions = {}, {}
    for dtype in ("float32", "bfloat16"):
        live = Precisions(tmp_path, None)
        curves[dtype] = train(base_model, tmp_path / dtype, SETTINGS.changed(dtype=dtype), live)["loss"].to_list()
        precisions[dtype] = dict(live.seen)
    whole, half = {torch.float32}, {torch.bfloat16}
    assert precisions["float32"] == {"frozen": whole, "trained": whole, "gradient": whole}
    assert precisions["bfloat16"] == {"frozen": half, "trained": whole, "gradient": whole}
    assert curves["bfloat16"] == pytest.approx(curves["float32"], rel=0.02)
    assert curves["bfloat16"] != curves["float32"]
    assert curves["bfloat16"][-1] < curves["bfloat16"][0]
    base, merged = (load_file(f"{folder}/model.safetensors") for folder in (base_model, tmp_path / "bfloat16"))
    assert {weight.dtype for weight in merged.values()} == whole
    untouched = [name for name in base if "embed" in name or "norm" in name]
    assert untouched
    assert all(torch.equal(base[name], merged[name]) for name in untouched), "not those that were rounded"


def test_a_base_of_bfloat16_files_stays_one(base_model: str, tmp_path: Path) -> None:
    load_causal_lm(base_model, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    load_tokenizer(base_model).save_pretrained(tmp_path / "base")
    train(str(tmp_path / "base"), tmp_path / "out", SETTINGS.changed(dtype="bfloat16", epochs=1))
    assert {weight.dtype for weight in load_file(tmp_path / "out/model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


SHAPES: list[dict[str, Any]] = [{}, {"use_rslora": True}, {"use_dora": True}, {"target_modules": ["v_proj", "q_proj"]}]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kept_adapter_is_what_was_merged(shape: dict[str, Any], base_model: str, tmp_path: Path) -> None:
    """And its files name no folder of this machine but as params.yaml does."""
    settings = SETTINGS.changed(keep_adapter=True, lora=LORA.changed(**shape), epochs=1)
    train(base_model, tmp_path / "out", settings)
    folder = adapter_folder(str(tmp_path / "out/adapter"))
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base_model
    assert config["target_modules"] == sorted(shape.get("target_modules", config["target_modules"]))
    assert {name: config[name] for name in shape if name != "target_modules"} == {
        name: value for name, value in shape.items() if name != "target_modules"
    }
    merged = logits(load_causal_lm(str(tmp_path / "out")))
    assert torch.allclose(logits(PeftModel.from_pretrained(load_causal_lm(base_model), folder)), merged, atol=1e-4)
    assert not torch.allclose(logits(load_causal_lm(base_model)), merged, atol=1e-4)


def test_no_adapter_is_kept_unless_it_is_asked_for(base_model: str, tmp_path: Path) -> None:
    train(base_model, tmp_path / "out", SETTINGS.changed(epochs=1))
    assert not (tmp_path / "out/adapter").exists()


def test_a_name_that_no_layer_has_is_refused(base_model: str) -> None:
    model = load_causal_lm(base_model)
    check_targets(model, ["q_proj", "self_attn.v_proj"])
    with pytest.raises(InputError, match=r"'q_porj', but .* there are down_proj, .*; did you mean q_proj\?"):
        check_targets(model, ["v_proj", "q_porj"])
    with pytest.raises(InputError, match="'lm_head'"):
        check_targets(model, ["lm_head"])


@pytest.mark.parametrize(("field", "value"), [("load_in_4bit", True), ("optim", "paged_adamw_8bit")])
def test_what_needs_bitsandbytes_or_a_gpu_is_refused_before_it_loads(
    field: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, said = SETTINGS.changed(**{field: value}), rf"sft.{field} is {str(value).lower()}"
    monkeypatch.setattr("persyn.training.lora.find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"{said}, but bitsandbytes is not installed; run `make setup EXTRAS=qlora`"):
        train("no/model", tmp_path / "out", settings)
    monkeypatch.setattr("persyn.training.lora.find_spec", lambda name: object())
    with pytest.raises(InputError, match=f"{said}, which needs a GPU, and none is visible; set it to"):
        check_devices(settings)


def test_a_4_bit_base_is_not_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persyn.training.lora.check_bitsandbytes", lambda *_: None)
    check_four_bits()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"shards the model \(FSDP\)"):
        check_four_bits()
