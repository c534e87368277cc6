import logging
from pathlib import Path

import pytest

from persyn.store import Store, response_key


def filled(folder: Path, count: int = 5) -> Path:
    store = Store(folder)
    for number in range(count):
        store.put({f"k{number}": {"response": f"text {number} é"}})
    return next(folder.glob("j-*.log"))


def test_rows_survive_the_process_and_the_first_of_a_key_stays(tmp_path: Path) -> None:
    filled(tmp_path)
    second = Store(tmp_path)
    second.put({"k0": {"response": "later"}, "new": {"response": "x"}})
    assert len(list(tmp_path.glob("j-*.log"))) == 2, "each writer has a journal of its own"
    third = Store(tmp_path)
    assert third.get("k4") == {"response": "text 4 é"}
    assert third.get("k0") == second.get("k0") == {"response": "text 0 é"}
    assert third.get("new") == {"response": "x"}
    assert third.get("absent") is None


def test_a_journal_cut_anywhere_gives_exactly_its_whole_records(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = filled(tmp_path)
    data, size = journal.read_bytes(), journal.stat().st_size // 5
    caplog.set_level(logging.CRITICAL)
    for length in range(len(data)):
        journal.write_bytes(data[:length])
        store = Store(tmp_path)
        assert [store.get(f"k{n}") is not None for n in range(5)] == [n < length // size for n in range(5)], length


def test_a_flipped_bit_is_never_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = filled(tmp_path)
    data = journal.read_bytes()
    caplog.set_level(logging.CRITICAL)
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        journal.write_bytes(damaged)
        store = Store(tmp_path)
        for number in range(5):
            assert store.get(f"k{number}") in (None, {"response": f"text {number} é"}), bit


def test_damage_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = filled(tmp_path)
    journal.write_bytes(journal.read_bytes()[:-1])
    Store(tmp_path)
    assert "damaged at byte" in caplog.text


def test_the_key_is_what_was_asked() -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "é"}], "sampling": {"seed": 0}}
    assert response_key(**asked) == response_key(**dict(reversed(asked.items())))
    assert response_key(**asked) != response_key(**asked | {"model": "n"})
