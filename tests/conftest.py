"""Tiny models built in the process, and a store and cache of each test session's own."""

import os
import tempfile
from pathlib import Path

os.environ.update(
    HF_HOME=tempfile.mkdtemp(prefix="persyn-tests-"),
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    CUDA_VISIBLE_DEVICES="",
    OMP_NUM_THREADS="1",  # pytest -n fills the cores; and one number of threads, or the last bits of a sum differ
)

import pytest

from tests.support.tiny import CHATML, build_model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first: other workers (`-n 3`) run the rest meanwhile."""
    items.sort(key=lambda item: item.name != "test_every_command_runs")


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
