"""Tiny models built in the process, tiny tables, and a store and cache of each test session's own."""

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HOME=tempfile.mkdtemp(prefix="persyn-tests-"),
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    CUDA_VISIBLE_DEVICES="",
    OMP_NUM_THREADS="1",  # pytest -n fills the cores; and one number of threads, or the last bits of a sum differ
)

import polars as pl
import pytest

from benchmarks.tiny import CHATML, build_model
from persyn.generation import Teacher
from persyn.prompts import prompt_id
from persyn.schemas import DOMAINS, FINISH_REASONS, PROMPTS, RESPONSES


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's store or cache."""
    monkeypatch.setenv("PERSYN_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PERSYN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny base model, without a chat template."""
    return build_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model with the ChatML template."""
    return build_model(tmp_path_factory.mktemp("chat"), chat_template=CHATML)


def load_module(file: Path) -> Any:
    """A module that is in no package, by its path, as lm-eval loads those of tasks/."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prompts_table(
    texts: list[str], domain: str = "instruction", references: list[str | None] | None = None
) -> pl.DataFrame:
    """PROMPTS of these texts, all parallel."""
    return pl.DataFrame(
        {
            "prompt_id": [prompt_id(text) for text in texts],
            "prompt": texts,
            "domain": pl.Series([domain] * len(texts), dtype=DOMAINS),
            "reference": pl.Series(references or [None] * len(texts), dtype=pl.String),
            "source": ["test"] * len(texts),
            "license": ["Apache-2.0"] * len(texts),
            "parallel": [True] * len(texts),
        },
        schema=PROMPTS,
    )


def stub_teachers(names: str, training: str = "allowed", terms: str | None = None) -> dict[str, Teacher]:
    """A Teacher for every letter of `names`, all under these terms."""
    fields: dict[str, Any] = {"sampling": {"max_tokens": 40}, "backend": "openai", "training": training, "terms": terms}
    return {name: Teacher(model=f"model-{name}", license="MIT", **fields) for name in names}


def responses_table(prompts: pl.DataFrame, teacher: str, texts: list[str], finish: str = "stop") -> pl.DataFrame:
    """RESPONSES of one teacher to these prompts."""
    return pl.DataFrame(
        {
            "prompt_id": prompts["prompt_id"],
            "teacher": [teacher] * len(texts),
            "response": texts,
            "finish_reason": pl.Series([finish] * len(texts), dtype=FINISH_REASONS),
            "num_prompt_tokens": [10] * len(texts),
            "num_response_tokens": [len(text.split()) for text in texts],
        },
        schema=RESPONSES,
    )
