from pathlib import Path

import polars as pl
import pytest

from persyn.errors import InputError
from persyn.files import write_json
from persyn.schemas import PAIRS, QUALITY, read_folder, read_table, write_table


def quality(*rows: tuple[str, str, float | None]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=QUALITY, orient="row")


def test_a_table_comes_back_sorted_and_as_the_same_bytes(tmp_path: Path) -> None:
    rows = [("b", "t", 1.0), ("a", "u", 0.5), ("a", "t", 0.25)]
    write_table(quality(*rows), tmp_path / "1.parquet", QUALITY)
    write_table(quality(*reversed(rows)), tmp_path / "2.parquet", QUALITY)
    assert read_table(tmp_path / "1.parquet", QUALITY).rows() == sorted(rows)
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_bad_number_is_named_and_nothing_is_written(tmp_path: Path, value: float | None) -> None:
    with pytest.raises(InputError, match=r"1 missing or non-finite values in quality, at \[\('a', 't'\)\]"):
        write_table(quality(("a", "t", value)), tmp_path / "q.parquet", QUALITY)
    assert not list(tmp_path.iterdir())


def test_wrong_columns_types_and_duplicate_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs columns quality"):
        write_table(quality(("a", "t", 1.0)).drop("quality"), tmp_path / "q.parquet", QUALITY)
    with pytest.raises(InputError, match="share a key"):
        write_table(quality(("a", "t", 1.0), ("a", "t", 2.0)), tmp_path / "q.parquet", QUALITY)
    with pytest.raises(InputError, match="dvc repro"):
        read_table(tmp_path / "absent.parquet", PAIRS)


def test_a_left_over_file_is_refused(tmp_path: Path) -> None:
    for teacher in ("kept", "removed"):
        write_table(quality(("a", teacher, 1.0)), tmp_path / f"{teacher}.parquet", QUALITY)
    assert read_folder(tmp_path, ["kept", "removed"], QUALITY).keys() == {"kept", "removed"}
    with pytest.raises(InputError, match=r"removed, which params\.yaml does not name"):
        read_folder(tmp_path, ["kept"], QUALITY)


def test_json_is_sorted_rounded_and_refuses_nan(tmp_path: Path) -> None:
    write_json({"b": 1 / 3, "a": [1, None]}, tmp_path / "m.json")
    assert (tmp_path / "m.json").read_text().split() == ["{", '"a":', "[", "1,", "null", "],", '"b":', "0.333333", "}"]
    with pytest.raises(ValueError, match="JSON"):
        write_json({"a": float("nan")}, tmp_path / "m.json")
