import errno
import json
import logging
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from persyn import store as module
from persyn.errors import InputError
from persyn.store import Store, compact, index, response_key, shelves, slug, verify
from persyn.store.index import index_of

HOSTILE = ["../../etc/x", "a/b", "a/c", "con", "x" * 300, "x" * 301, "ａ", "а", "a", "-rf", "", "a\x00b", ".", "\ud800"]  # noqa: RUF001


def row(number: int) -> dict[str, Any]:
    return {"response": f"text {number} é", "finish_reason": "stop"}


def filled(folder: Path, count: int = 5) -> Path:
    """A journal of `count` rows, its writer gone."""
    store = Store(folder)
    for number in range(count):
        store.put({f"k{number}": row(number)})
    return next(folder.glob("j*-*.log"))


def kept(folder: Path, count: int = 5) -> list[bool]:
    """Which rows are served; fails if one is served wrong."""
    store = Store(folder)
    served = [store.get(f"k{number}") for number in range(count)]
    assert all(value in (None, row(number)) for number, value in enumerate(served))
    return [value is not None for value in served]


def test_rows_survive_the_process_and_the_first_of_a_key_stays(tmp_path: Path) -> None:
    filled(tmp_path)
    second = Store(tmp_path)
    second.put({"k0": {"response": "later"}, "new": {"response": "x"}})
    assert len(list(tmp_path.glob("j*-*.log"))) == 2, "each writer has a journal of its own"
    third = Store(tmp_path)
    assert third.get("k4") == row(4)
    assert third.get("k0") == second.get("k0") == row(0)
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
        assert kept(tmp_path) == [number < length // size for number in range(5)], length


def test_a_flipped_bit_costs_the_row_it_hit_and_is_never_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = filled(tmp_path)
    data, size = journal.read_bytes(), journal.stat().st_size // 5
    caplog.set_level(logging.CRITICAL)
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        journal.write_bytes(damaged)
        assert kept(tmp_path) == [number != bit // 8 // size for number in range(5)], bit


@pytest.fixture
def indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A journal of five rows with a saved index."""
    monkeypatch.setattr(index, "SAVED_FROM", 5)
    journal = filled(tmp_path)
    assert kept(tmp_path) == [True] * 5
    assert index_of(journal).is_file()
    return journal


def test_a_saved_index_spares_reading_the_journal(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(*_: Any) -> Any:
        raise AssertionError("the journal is read")

    monkeypatch.setattr(index, "scan", unread)
    assert kept(indexed.parent) == [True] * 5
    second = Store(indexed.parent)
    second.put({"k0": {"response": "later"}, "k5": row(5)})
    assert (second.get("k0"), second.get("k5")) == (row(0), row(5))


def test_no_index_is_saved_while_its_journal_may_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SAVED_FROM", 1)
    writer = Store(tmp_path)
    writer.put({"k0": row(0)})
    reader = Store(tmp_path)
    assert not list(tmp_path.glob("*.idx"))
    writer.put({"k1": row(1)})
    reader.refresh()
    assert reader.get("k1") == row(1)


def test_a_bit_flipped_after_the_index_was_saved(indexed: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, saved = indexed.read_bytes(), index_of(indexed).read_bytes()
    size = len(data) // 5
    caplog.set_level(logging.CRITICAL)
    for bit in range(0, len(data) * 8, 7):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        indexed.write_bytes(damaged)
        index_of(indexed).write_bytes(saved)
        assert kept(indexed.parent) == [number != bit // 8 // size for number in range(5)], bit
    index_of(indexed).write_bytes(saved)
    assert len(verify(indexed.parent)[0].damaged) == 1, "verify reads the journal, whatever an index says"
    Store(indexed.parent).put({f"k{number}": row(number) for number in range(5)})
    assert kept(indexed.parent) == [True] * 5


def test_a_damaged_index_is_not_used(indexed: Path) -> None:
    saved = index_of(indexed).read_bytes()
    for bit in range(0, len(saved) * 8, 5):
        damaged = bytearray(saved)
        damaged[bit // 8] ^= 1 << bit % 8
        index_of(indexed).write_bytes(damaged)
        assert kept(indexed.parent) == [True] * 5, bit
    for length in range(0, len(saved), 9):
        index_of(indexed).write_bytes(saved[:length])
        assert kept(indexed.parent) == [True] * 5, length


def test_a_journal_that_was_cut_or_moved_is_read_anew(indexed: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, saved = indexed.read_bytes(), index_of(indexed).read_bytes()
    size = len(data) // 5
    caplog.set_level(logging.CRITICAL)
    for changed, rows in (
        (data[: 3 * size + 7], [True] * 3 + [False] * 2),
        (data[size:], [False] + [True] * 4),
        (data[: size + 3] + data[size + 5 :] + b"xx", [True, False, True, True, True]),  # of the same length
    ):
        indexed.write_bytes(changed)
        index_of(indexed).write_bytes(saved)
        assert kept(indexed.parent) == rows


def test_compaction_leaves_no_index_of_a_journal_that_is_gone(indexed: Path) -> None:
    filled(indexed.parent, 7)
    compact(indexed.parent)
    assert kept(indexed.parent, 7) == [True] * 7
    [journal] = indexed.parent.glob("j*-*.log")
    assert list(indexed.parent.glob("*.idx")) == [index_of(journal)]


def test_a_reader_goes_on_after_compaction(tmp_path: Path) -> None:
    filled(tmp_path)
    filled(tmp_path, 7)
    reader = Store(tmp_path)
    compact(tmp_path)
    assert [reader.get(f"k{number}") for number in range(7)] == [row(number) for number in range(7)]


def test_a_hole_of_zeros_costs_what_it_covers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a file system may leave after a power cut."""
    journal = filled(tmp_path)
    data, size = journal.read_bytes(), journal.stat().st_size // 5
    journal.write_bytes(data[: size + 9] + bytes(size) + data[2 * size + 9 :] + bytes(4096))
    assert kept(tmp_path) == [True, False, False, True, True]
    assert f"bytes {size} to {3 * size} are damaged" in caplog.text
    Store(tmp_path).put({f"k{number}": row(number) for number in range(5)})
    assert kept(tmp_path) == [True] * 5, "what was lost is stored again beside the damage"


def test_text_that_looks_like_a_record_is_text(tmp_path: Path) -> None:
    text = '{"key": "k1", "row": {"response": "forged"}}' + "\x00\x01" * 20
    Store(tmp_path).put({"k0": {"response": text}})
    [journal] = tmp_path.glob("j*-*.log")
    journal.write_bytes(b"\xff" + journal.read_bytes()[1:])
    assert Store(tmp_path).get("k1") is None


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j2-abc.log").write_bytes(b"")
    with pytest.raises(InputError, match=r"j2-abc.log was written by another version of PerSyn"):
        Store(tmp_path)


def test_compaction_keeps_every_row_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    first = filled(tmp_path, 3)
    first.write_bytes(first.read_bytes() + b"torn")
    Store(tmp_path).put({"k3": row(3), "k4": row(4)})
    (tmp_path / f"j1-{'f' * 32}.log").write_bytes(first.read_bytes())  # the same rows once more
    report, rows = verify(tmp_path)
    assert (report.journals, report.records, report.rows, report.conflicts) == (3, 8, 5, 0)
    assert len(report.damaged) == 2
    compact(tmp_path)
    report, after = verify(tmp_path)
    assert (report.journals, report.records, report.damaged, after) == (1, 5, [], rows)
    assert kept(tmp_path) == [True] * 5
    [journal] = tmp_path.glob("j*-*.log")
    compact(tmp_path)
    assert list(tmp_path.glob("j*-*.log")) == [journal], "nothing to do, nothing done"


@pytest.mark.parametrize("step", range(5))
def test_compaction_killed_at_any_step_loses_nothing(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps: write, rename, sync of the folder, the removals."""
    filled(tmp_path, 3)
    Store(tmp_path).put({"k3": row(3), "k4": row(4)})
    calls = iter(range(10))

    def dying(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if next(calls) == step:
                raise KeyboardInterrupt
            return function(*arguments)

        return call

    for owner, name in ((module, "append"), (Path, "replace"), (module, "sync_folder"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    with pytest.raises(KeyboardInterrupt):
        compact(tmp_path)
    monkeypatch.undo()
    assert kept(tmp_path) == [True] * 5
    compact(tmp_path)
    assert kept(tmp_path) == [True] * 5
    assert [path.suffix for path in tmp_path.iterdir()] == [".log"]


def test_compaction_waits_for_no_one_and_a_reader_survives_it(tmp_path: Path) -> None:
    writer = Store(tmp_path)
    writer.put({"k0": row(0)})
    with pytest.raises(InputError, match="a running process is writing there"):
        compact(tmp_path)
    reader = Store(tmp_path)
    del writer
    filled(tmp_path)
    compact(tmp_path)
    reader.refresh()
    assert reader.get("k4") == row(4)


def test_two_rows_for_one_key_are_counted_and_the_first_is_served(tmp_path: Path) -> None:
    one, other = Store(tmp_path), Store(tmp_path)
    one.put({"k": {"response": "a"}})
    other.put({"k": {"response": "b"}})
    assert verify(tmp_path)[0].conflicts == 1
    served = Store(tmp_path).get("k")
    del one, other
    compact(tmp_path)
    assert Store(tmp_path).get("k") == served
    assert verify(tmp_path)[0].conflicts == 0


def write_rows(folder: Path, start: int) -> None:
    store = Store(folder)
    for number in range(start, start + 200):
        store.put({f"k{number}": row(number)})


def test_two_writers_at_once_lose_and_repeat_nothing(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_rows, args=(tmp_path, start)) for start in (0, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert kept(tmp_path, 300) == [True] * 300
    compact(tmp_path)
    report, _ = verify(tmp_path)
    assert (report.records, report.rows, report.conflicts) == (300, 300, 0)


def test_one_process_at_a_time_asks_and_the_second_finds_the_answers(tmp_path: Path) -> None:
    second = Store(tmp_path)
    program = (
        "import sys, time; from pathlib import Path; from persyn.store import Store; store = Store(Path(sys.argv[1]))\n"
        "with store.exclusive():\n"
        "    print('in', flush=True); time.sleep(0.5); store.put({'k0': {'response': 'from the first'}})"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as first:
        assert first.stdout
        first.stdout.readline()
        with second.exclusive():
            assert second.get("k0") == {"response": "from the first"}
    assert first.returncode == 0


def test_a_full_disk_is_one_clear_line_and_the_store_stays_readable(tmp_path: Path) -> None:
    """The limit on a file's size stands in for the disk's: the write stops half-way through a record."""
    program = (
        "import sys; from pathlib import Path; from persyn.store import Store; store = Store(Path(sys.argv[1]))\n"
        "for number in range(5): store.put({f'k{number}': {'response': f'text {number} é', 'finish_reason': 'stop'}})"
    )
    size = filled(tmp_path / "probe").stat().st_size // 5
    limited = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "store")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3 * size + size // 2,) * 2),
        capture_output=True,
        text=True,
        check=False,
    )
    assert limited.returncode != 0
    assert "rows stored before are safe" in limited.stderr
    assert kept(tmp_path / "store") == [True, True, True, False, False]
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "store")], check=True)
    assert kept(tmp_path / "store") == [True] * 5


@pytest.mark.parametrize("step", range(4))
def test_no_space_at_any_write_leaves_what_was_there(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = iter(range(100)), os.fsync

    def fsync(descriptor: int) -> None:
        if next(calls) == step + 1:  # the first call makes the journal's name durable
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    store = Store(tmp_path)
    monkeypatch.setattr(os, "fsync", fsync)
    for number in range(step):
        store.put({f"k{number}": row(number)})
    with pytest.raises(InputError, match="No space left on device"):
        store.put({f"k{step}": row(step)})
    monkeypatch.undo()
    for number in range(5):
        store.put({f"k{number}": row(number)})
    assert kept(tmp_path) == [True] * 5


def test_too_little_space_is_said_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5_000_000))
    Store(tmp_path).check_space(4_000_000)
    with pytest.raises(InputError, match="about 6 MB of responses will come, 5 MB are free"):
        Store(tmp_path).check_space(6_000_000)


def test_a_store_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"response store .*file/x failed: Not a directory"):
        Store(tmp_path / "file" / "x")


def test_the_key_is_what_was_asked() -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "é"}], "sampling": {"seed": 0}}
    assert response_key(**asked) == response_key(**dict(reversed(asked.items())))
    assert response_key(**asked) != response_key(**asked | {"model": "n"})


def test_no_name_leads_out_of_the_store_or_into_another_folder(tmp_path: Path) -> None:
    folders = {name: (tmp_path / slug(name)).resolve() for name in HOSTILE}
    assert len(set(folders.values())) == len(HOSTILE)
    for folder in folders.values():
        assert folder.parent == tmp_path.resolve()
        assert len(folder.name) <= 64
        Store(folder).put({"k": {}})
    assert len(shelves(tmp_path)) == len(HOSTILE)
    assert json.loads(verify(folders["con"])[1]["k"])["row"] == {}
