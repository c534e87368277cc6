"""Models: a hub id pinned by revision, a local folder, or a packaged model."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from tqdm import tqdm

from persyn.errors import InputError
from persyn.files import cache_folder, write_text
from persyn.models.packaged import PACKAGED, find_packaged, packaged_model
from persyn.settings import DATE, Commit, Day, Settings, Thinking


class Student(Settings):
    """The section `student`: which model learns."""

    model: Annotated[str, Field(min_length=1)]
    """`packaged:<name>`, a local folder or a hub id."""
    license: str
    """Licence of the model."""
    revision: Commit | None = None
    """40-hex commit of a hub id."""
    max_length: Annotated[int, Field(ge=2)] = 4096
    """Tokens of prompt and response at most, in scoring and in training."""
    family: str | None = None
    """Family of models, compared with the teachers' own by the strategy family_strong."""
    trust_remote_code: bool = False
    """Whether code from the model's repository may run."""
    thinking: Thinking = "none"
    """What becomes of a teacher's thought. none: the student learns the answer alone, written as the chat template
    writes one without a thought. keep: it learns the thought too, in the template's own form."""
    date: Day = DATE
    """What the chat template writes as today's date, where it writes one, in scoring, training and evaluation."""


def locate_model(model: str, revision: str | None) -> dict[str, Any]:
    """Turn a params entry into the arguments of `from_pretrained` that name its weights.

    Args:
        model: `packaged:<name>`, a local folder, or a hub id `<owner>/<name>`.
        revision: the 40-hex commit of a hub id; None for the others.

    Raises:
        InputError: no such model, or a hub id that is not pinned.
    """
    if model.startswith("packaged:"):
        return {"pretrained_model_name_or_path": str(packaged_model(model.removeprefix("packaged:")))}
    if Path(model).is_dir():
        return {"pretrained_model_name_or_path": model}
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise InputError(
            f"model {model!r} is neither an existing folder, nor a hub id owner/name, nor packaged:<name> "
            f"with one of {', '.join(PACKAGED)}"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise InputError(
            f"model {model}: revision is {revision!r}; a hub model needs the 40-hex commit it is pinned to"
        )
    return {"pretrained_model_name_or_path": model, "revision": revision}


def adapter_folder(adapter: str) -> Path:
    """The folder of a LoRA adapter.

    Raises:
        InputError: it is not there, or its weights are no safetensors.
    """
    folder = Path(adapter)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(
                f"adapter is {adapter!r}, where there is no {name}; it must be a local folder as PEFT saves it: "
                f"download the adapter, or save it again with safetensors"
            )
    return folder


def model_identity(model: str, revision: str | None) -> str:
    """The identity of the weights: name and revision of a hub id, the pinned sha256 of a packaged model, the sha256 of
    a local folder's files. New weights in the same folder are another model.
    """
    if model.startswith("packaged:"):
        return f"{model}@{find_packaged(model.removeprefix('packaged:')).sha256}"
    if not Path(model).is_dir():
        return f"{model}@{revision}"
    files = sorted(path for path in Path(model).iterdir() if path.is_file())
    content = [f"{path.name} {_content(path)}" for path in tqdm(files, desc=f"identity of {model}", disable=None)]
    return f"{Path(model).name}@{hashlib.sha256(chr(10).join(content).encode()).hexdigest()}"


def _content(path: Path) -> str:
    """sha256 of a file, cached until the file's size or time changes, because weights are large."""
    status = path.stat()
    seen = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
    known = cache_folder() / "identities" / hashlib.sha256(seen.encode()).hexdigest()
    if not known.is_file():
        with path.open("rb") as file:
            write_text(hashlib.file_digest(file, "sha256").hexdigest(), known)
    return known.read_text()


def load_tokenizer(model: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer, with a padding token (its end-of-sequence token where it has none)."""
    from transformers import AutoTokenizer

    with _named(model):
        tokenizer = AutoTokenizer.from_pretrained(**locate_model(model, revision), trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(model: str, revision: str | None = None, trust_remote_code: bool = False, **kwargs: Any) -> Any:
    """The causal LM, as load_model loads it."""
    from transformers import AutoModelForCausalLM

    return load_model(AutoModelForCausalLM, model, revision, trust_remote_code=trust_remote_code, **kwargs)


def load_model(
    auto_class: Any,
    model: str,
    revision: str | None = None,
    device: str = "",
    device_map: Any = None,
    tensor_parallel: int = 1,
    **kwargs: Any,
) -> Any:
    """A model in evaluation mode, from safetensors only, in default_precision unless `dtype` says otherwise.

    Args:
        auto_class: which kind of head: one of transformers' AutoModel classes.
        device: this process's own GPU if there is one, unless named; cpu for a Trainer, which places the model itself.
        device_map: that of transformers: puts layers on several devices; a warning tells those on no GPU.
        tensor_parallel: processes that hold the model together; all of them must load it.
    """
    import torch

    from persyn.models.split import share_layers, tell_offloaded

    device = device or (f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
    kwargs.setdefault("dtype", getattr(torch, default_precision(device)))
    with _named(model):
        where = locate_model(model, revision)
        if tensor_parallel > 1:
            trusted = kwargs.get("trust_remote_code", False)
            kwargs["distributed_config"] = share_layers(auto_class, model, where, tensor_parallel, trusted)
        elif device_map is not None:
            kwargs["device_map"] = device_map
        loaded = auto_class.from_pretrained(**where, use_safetensors=True, **kwargs)
    if tensor_parallel > 1 or device_map is not None:  # it is where it belongs
        tell_offloaded(loaded, model)
        return loaded.eval()
    return loaded.to(device).eval()


def default_precision(device: str = "") -> str:
    """The name of the torch dtype of a loaded model: bfloat16 on a GPU, float32 on a CPU.

    Args:
        device: such as cpu or cuda:0; if empty, this machine's GPU if it has one.
    """
    import torch

    on_cpu = device == "cpu" or (not device and not torch.cuda.is_available())
    return "float32" if on_cpu else "bfloat16"


@contextmanager
def _named(model: str) -> Iterator[None]:
    """Turn a failure to load this model into an InputError."""
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"model {model} cannot be loaded; check its name, files and the network: {reason}") from error
