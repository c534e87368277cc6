"""A served teacher asked in batches: each prompt is billed once, and no response is lost, whatever happens."""

import json
import logging
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from persyn.errors import InputError
from persyn.generation import Teacher
from persyn.generation.batch_notes import open_notes
from persyn.responses import generate_responses
from persyn.store import shelves, verify
from tests.support.batches import BatchServer, Fate, batch_server
from tests.support.stub import stub_teacher
from tests.support.tables import prompts_table

PROMPTS = prompts_table([f"Tell story number {number}." for number in range(40)])


def teacher(**changes: Any) -> Teacher:
    fields: dict[str, Any] = {"model": "stub", "license": "x", "backend": "openai", "sampling": {"max_tokens": 40}}
    return Teacher(**{**fields, **changes})


def ask(server: BatchServer, folder: Path, prompts: pl.DataFrame = PROMPTS, **speed: Any) -> pl.DataFrame:
    return generate_responses(prompts, "t", teacher(), folder, server.speed(**speed), max_error_share=1.0)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(payload)["row"] for shelf in shelves(folder) for payload in verify(shelf)[1].values()]


def left_out(folder: Path) -> int:
    return sum(len(open_notes(shelf / "batches")) for shelf in folder.iterdir())


def check_bill(server: BatchServer, folder: Path, count: int = len(PROMPTS)) -> None:
    """Each of the prompts was billed once, and all that was billed is in the store."""
    assert len(server.billed) == count
    assert set(server.billed.values()) == {1}
    counted = sum(row["num_prompt_tokens"] + row["num_response_tokens"] for row in rows(folder))
    assert counted == server.tokens
    assert left_out(folder) == 0


def test_batches_bring_what_single_calls_bring(tmp_path: Path) -> None:
    with stub_teacher() as plain:
        expected = generate_responses(PROMPTS, "t", teacher(), tmp_path / "plain", plain.speed())
    with batch_server() as server:
        found = ask(server, tmp_path / "batches")
        assert found.equals(expected)
        check_bill(server, tmp_path / "batches")
        assert ask(server, tmp_path / "batches").equals(expected)
        assert server.calls["POST /batches"] == 1, "what is stored is not asked for"
    assert {row["batch"] for row in rows(tmp_path / "batches")} == {"batch_0"}
