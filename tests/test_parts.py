"""Tables that come in parts: what is made of small parts is what is made of the whole."""

import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from persyn import schemas
from persyn.dataset import Building, DatasetSettings, build_dataset
from persyn.dataset.card import build_card, count_origins
from persyn.dataset.mix import choose_mixes
from persyn.dataset.parts import sink_dataset
from persyn.defects import Policies
from persyn.errors import InputError
from persyn.generation.terms import Licenses
from persyn.prompts import PromptSettings
from persyn.routed import Asking, Retries, sink_routed
from persyn.schemas import DATASET, PROMPTS, QUALITY, RESPONSES, ROUTES, read_parts, read_table, sink_parts, write_table
from tests.support.tables import prompts_table, responses_table, stub_teachers

TEACHERS = stub_teachers("abc")
SUMS = prompts_table([f"What is {number} + 1?" for number in range(12)], "math", ["1"] * 12)
OTHERS = prompts_table([f"Say {number}." for number in range(6)]).with_columns(source=pl.lit("others"))
ASKED = pl.concat([SUMS, OTHERS]).sort("prompt_id")


def said(teacher: str, prompts: pl.DataFrame = ASKED) -> pl.DataFrame:
    """Texts of one to five words, some empty."""
    places = [int(identity, 16) % (5 + "abc".index(teacher)) for identity in prompts["prompt_id"]]
    return responses_table(prompts, teacher, ["word " * place for place in places])


ROUTED = pl.concat([said("a"), said("b", ASKED[::2]), said("c", ASKED[1::3])])
CHOSEN = pl.concat([ROUTED.filter(teacher="a"), ROUTED.filter(teacher="b")]).select(
    "prompt_id", "teacher", strength=pl.col("num_response_tokens").cast(pl.Float64), margin=pl.lit(None, pl.Float64)
)
NEXT = CHOSEN.with_columns(next=pl.Series([["c"]] * CHOSEN.height, dtype=schemas.NEXT))


def samples(table: pl.DataFrame) -> pl.DataFrame:
    """Two samples of teacher a, one of the others."""
    second = table.filter(teacher="a").with_columns(sample=pl.lit(1, pl.Int64), response=pl.lit("one more word"))
    return pl.concat([table.with_columns(sample=pl.lit(0, pl.Int64)), second])


def by_words(prompts: pl.DataFrame, responses: pl.DataFrame) -> pl.DataFrame:
    assert responses.join(prompts, on="prompt_id", how="anti").is_empty()
    quality = pl.col("response").str.count_matches(r"\w+").cast(pl.Float64)
    return responses.select("prompt_id", "teacher", quality.alias("quality"), pl.col("^sample$"))


def written(folder: Path, routed: pl.DataFrame) -> tuple[Path, tuple[Path, pl.Schema], tuple[Path, pl.Schema]]:
    files = tuple(folder / f"{name}.parquet" for name in ("prompts", "routes", "routed"))
    for table, file, schema in zip((ASKED, NEXT, routed), files, (PROMPTS, ROUTES, RESPONSES), strict=True):
        write_table(table, file, schema)
    return files[0], (files[1], ROUTES), (files[2], RESPONSES)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"require": {"math": 3.0}, "retries": 1},
        {"max_per_teacher": 3, "max_per_source": 5},
        {"require": {"math": 2.0}, "max_per_source": 4, "mix": [{"path": "m.jsonl", "license": "MIT", "ratio": 0.9}]},
        {"mix": [{"path": name, "license": "MIT", "count": 5, "label": name} for name in ("m.jsonl", "n.jsonl")]},
    ],
    ids=lambda settings: "+".join(settings) or "plain",
)
@pytest.mark.parametrize("routed", [ROUTED, samples(ROUTED)], ids=["one", "samples"])
def test_a_dataset_in_small_parts_is_the_whole(
    routed: pl.DataFrame, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("m", "n"):
        turns = [
            [{"role": "user", "content": f"{name} {number}"}, {"role": "assistant", "content": "<think>so</think>yes"}]
            for number in range(9)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    chosen = DatasetSettings.parse(settings, "dataset")
    asked = PromptSettings(sources=[{"path": "p"}], decontaminate=[], num_parallel=None)  # type: ignore[list-item]
    files = written(tmp_path, routed)

    def make(out: Path) -> tuple[pl.DataFrame, dict[str, Any], str]:
        building = Building(Policies(), TEACHERS, chosen, by_words)
        with schemas.parts_folder(out) as folder:
            mixes = partial(choose_mixes, mixes=chosen.mix, seed=0, prompts=asked, raw=tmp_path)
            joined = mixes if chosen.mix else None
            counts, origins = sink_dataset(lambda: read_parts(*files), building, joined, folder, str(out))
        card = build_card("x", origins, counts, TEACHERS, {"read": 18, "kept": 18, "dropped": {}})
        return read_table(out, DATASET), counts, card

    whole, counts, card = make(tmp_path / "whole.parquet")
    monkeypatch.setattr(schemas, "PART", 4)
    parts = make(tmp_path / "parts.parquet")
    assert parts[0].equals(whole)
    assert parts[1:] == (counts, card)
    plain, expected = build_dataset(
        ASKED, routed, Policies(), TEACHERS, Licenses(), chosen, NEXT, lambda responses: by_words(ASKED, responses)
    )
    mixed = whole.filter(pl.col("teacher").str.starts_with("mix:"))
    assert whole.join(mixed, on="prompt_id", how="anti", maintain_order="left").equals(plain)
    assert {name: value for name, value in counts.items() if name != "mix"} == expected
    assert mixed.height == sum(one["kept"] for one in counts.get("mix", {}).values())
    assert count_origins(ASKED, whole)["rows"].sum() == whole.height
    assert [path.name for path in tmp_path.glob("*.parts*")] == []


def test_what_is_written_in_parts_is_what_is_written_at_once(tmp_path: Path) -> None:
    plain, several = ROUTED.sort("prompt_id"), samples(ROUTED).sort("prompt_id")
    ordered = ASKED["prompt_id"]
    edges = ["", ordered[4], ordered[9], ordered[-1]]

    def cut(table: pl.DataFrame) -> list[pl.DataFrame]:
        return [
            table.filter((pl.col("prompt_id") > low) & (pl.col("prompt_id") <= high)).sample(fraction=1, shuffle=True)
            for low, high in pairwise(edges)
        ]

    none_said = plain.with_columns(sample=pl.lit(0, pl.Int64))
    mixed = [cut(plain)[0], *cut(several)[1:2], cut(none_said)[2]]
    for parts, whole in ((cut(plain), plain), (cut(several), several), (cut(none_said), plain)):
        sink_parts(parts, tmp_path / "parts.parquet", RESPONSES)
        write_table(whole, tmp_path / "whole.parquet", RESPONSES)
        assert (tmp_path / "parts.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    sink_parts(mixed, tmp_path / "parts.parquet", RESPONSES)
    found = read_table(tmp_path / "parts.parquet", RESPONSES)
    write_table(pl.concat(schemas.alike(mixed)), tmp_path / "whole.parquet", RESPONSES)
    assert found.equals(read_table(tmp_path / "whole.parquet", RESPONSES))
    with pytest.raises(InputError, match="2 rows share a key"):
        sink_parts([plain[:2], plain[3:4].extend(plain[3:4])], tmp_path / "twice.parquet", RESPONSES)
    with pytest.raises(AssertionError, match="part 1 begins before the end of another"):
        sink_parts([plain[:2], plain[1:3]], tmp_path / "twice.parquet", RESPONSES)
    assert not list(tmp_path.glob("*.sink.parts"))


def test_tables_are_read_along_with_their_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "PART", 4)
    files = written(tmp_path, ROUTED)
    parts = list(read_parts(*files))
    assert [prompts.height for prompts, *_ in parts] == [4, 4, 4, 4, 2]
    for prompts, *others in parts:
        for table in others:
            assert set(table["prompt_id"]) == set(prompts["prompt_id"])
    for place, table in enumerate((ASKED, NEXT, ROUTED)):
        found = pl.concat(part[place] for part in parts)
        assert found.equals(table.sort("prompt_id", *(["teacher"] if place else [])))
    write_table(QUALITY.to_frame(), tmp_path / "none.parquet", QUALITY)
    assert [part[1].height for part in read_parts(files[0], (tmp_path / "none.parquet", QUALITY))] == [0] * 5
    for unknown in ("0", "8000000000000000", "g"):
        strange = pl.concat([ROUTED, ROUTED[:1].with_columns(prompt_id=pl.lit(unknown))])
        write_table(strange, tmp_path / "strange.parquet", RESPONSES)
        with pytest.raises(InputError, match=f"has rows of prompts that .* lacks, first {unknown}; run `dvc repro`"):
            list(read_parts(files[0], (tmp_path / "strange.parquet", RESPONSES)))
    ASKED[::-1].write_parquet(tmp_path / "prompts.parquet")
    with pytest.raises(InputError, match=r"prompts.parquet is not in the order of prompt_id; run `dvc repro`"):
        list(read_parts(*files))
    for twice in (pl.concat([ASKED[:4], ASKED[3:]]), pl.concat([ASKED[:1], ASKED])):  # in two parts, and in one
        twice.write_parquet(tmp_path / "prompts.parquet")
        with pytest.raises(
            InputError, match=f"has the prompt_id {twice.filter(pl.col('prompt_id').is_duplicated())[0, 0]}"
        ):
            list(read_parts(*files))
    ASKED[:0].write_parquet(tmp_path / "prompts.parquet")
    with pytest.raises(InputError, match=r"prompts.parquet has no rows"):
        list(read_parts(files[0]))


@pytest.mark.parametrize(
    ("routes", "limit", "message"),
    [
        (CHOSEN[:0], 0, "routes.parquet has no rows"),
        (NEXT[:0], 1, "routes.parquet has no rows"),
        (CHOSEN, 1, "dataset.retries is 1, and .*routes.parquet does not say which teachers to ask next"),
        (
            pl.concat([CHOSEN, CHOSEN[:2].with_columns(prompt_id=pl.lit("x") + pl.col("teacher"))]),
            *(0, "2 of 29 routes are of prompts that are not in the table of prompts, first xa"),
        ),
    ],
)
def test_routes_that_do_not_fit_are_refused(tmp_path: Path, routes: pl.DataFrame, limit: int, message: str) -> None:
    routes.write_parquet(tmp_path / "routes.parquet")
    asking = Asking(lambda: [(ASKED, ROUTED)], TEACHERS, Licenses(), tmp_path, {}, {}, tmp_path)
    retries = Retries(limit, {"math": 1.0}, Policies(), by_words)
    with pytest.raises(InputError, match=message):
        sink_routed(asking, str(tmp_path / "routes.parquet"), str(tmp_path / "routed.parquet"), retries)
