import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from persyn.cli import app, main
from persyn.store import Store, store_folder

ROW: dict[str, Any] = {"response": "x", "finish_reason": "stop", "num_prompt_tokens": 3, "num_response_tokens": 2}


@pytest.fixture
def journal() -> Path:
    """Of a store with one model, two answers and one failure."""
    rows = {
        "a": ROW,
        "b:2": ROW | {"finish_reason": "length"},
        "c:error": {"finish_reason": "error"},
        "d": {"quality": 1},
    }
    Store(store_folder() / "model-12345678").put(rows)
    [journal] = (store_folder() / "model-12345678").glob("j*-*.log")
    return journal


def test_stats_say_what_was_paid_for(journal: Path) -> None:
    result = CliRunner().invoke(app, ["store", "stats"])
    assert result.exit_code == 0
    counts = "1 answers, 1 cut at max_tokens, 1 failed, 1 scores, 6 prompt tokens, 4 response tokens"
    assert result.stdout == f"model-12345678: {counts}\n"


def test_verify_finds_damage_and_gc_clears_it(journal: Path) -> None:
    run = CliRunner().invoke
    assert run(app, ["store", "verify"]).exit_code == 0
    journal.write_bytes(journal.read_bytes()[:-1])
    damaged = run(app, ["store", "verify"])
    assert damaged.exit_code == 1
    assert "3 rows in 3 records in 1 journals, 0 answered twice, 1 damaged" in damaged.output
    assert f"damaged: {journal} bytes" in damaged.output
    assert "3 rows kept, 1 journals merged into 1, 1 damaged records dropped" in run(app, ["store", "gc"]).stdout
    assert run(app, ["store", "verify"]).exit_code == 0


def test_a_store_that_is_not_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["persyn", "store", "stats", "--store", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="error: there is no store at"):
        main()


def test_help_says_it_all_without_loading_anything() -> None:
    program = "import sys, persyn.cli; assert not {'torch', 'polars', 'openai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
    for command in (["--help"], ["store", "--help"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0
        assert "store" in result.stdout
