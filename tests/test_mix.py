"""Rows of existing data sets that join the routed ones, and the most rows of a teacher and of a source."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from persyn.dataset import DatasetSettings, build_dataset
from persyn.dataset.card import build_card, count_origins
from persyn.dataset.mix import MIX, choose_mixes
from persyn.defects import Policies
from persyn.errors import InputError
from persyn.export import EXPORT, against_publishing, build_export
from persyn.generation.terms import Licenses
from persyn.project.pins import hub_entries
from persyn.prompts import PromptSettings
from persyn.schemas import DATASET, REWARDS, ROUTES, check_table
from tests.support.tables import prompts_table, responses_table, stub_teachers

TEACHERS = stub_teachers("ab")
ASKED = prompts_table([f"routed question {number}" for number in range(10)])
ROUTED = pl.concat([responses_table(ASKED[:6], "a", ["x"] * 6), responses_table(ASKED[6:], "b", ["y"] * 4)])
ITEM = "what is the capital of the country that lies north of the old border"


def dataset_of(**settings: Any) -> tuple[pl.DataFrame, dict[str, Any]]:
    return build_dataset(ASKED, ROUTED, Policies(), TEACHERS, Licenses(), DatasetSettings(**settings))


def turns(asked: str, answer: str = "an answer") -> dict[str, Any]:
    said = {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
    return said if answer else {"messages": said["messages"][:1]}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def mixed(raw: Path, *mix: dict[str, Any], seed: int = 0) -> tuple[pl.DataFrame, dict[str, Any]]:
    write(raw / "items.jsonl", [{"prompt": ITEM}])
    prompts = PromptSettings(
        sources=[{"path": "p"}],  # type: ignore[list-item]
        decontaminate=[{"path": "items.jsonl"}],  # type: ignore[list-item]
        num_parallel=None,
    )
    settings = DatasetSettings(mix=[{"license": "MIT", **entry} for entry in mix], seed=seed)  # type: ignore[misc]
    dataset = dataset_of()[0]
    chosen, counts = choose_mixes(dataset["prompt_id"], settings.mix, settings.seed, prompts, raw)
    tables = [pl.concat(one.tables(rows=2)).sort("prompt_id") for one in chosen if one.prompt_ids]
    return pl.concat([dataset, *tables]), counts


def test_every_row_of_a_mix_is_kept_or_counted(tmp_path: Path) -> None:
    fit = [turns(f"replayed {number}") for number in range(9)]
    rows = [
        turns(ITEM),
        *fit,
        fit[0],
        turns("routed question 3"),
        turns("no reply", ""),
        turns("cut", "<think>so"),
        turns(""),
    ]
    write(tmp_path / "m.jsonl", rows)
    dataset, counts = mixed(tmp_path, {"path": "m.jsonl", "ratio": 0.4, "label": "replay", "training": "conditional"})
    check_table(dataset, DATASET, "dataset")
    dropped = {"contaminated": 1, "duplicate": 1, "empty": 1, "no answer": 2, "not chosen": 5, "routed": 1}
    assert {name: counts["replay"][name] for name in ("read", "kept", "dropped", "license")} == {
        **{"read": 15, "kept": 4, "dropped": dropped, "license": "MIT"}
    }
    assert counts["replay"]["origin"].startswith("m.jsonl@")
    assert dataset[:10].equals(dataset_of()[0]), "the routed rows are as without a mix"
    terms = dataset[10:].select("teacher", "license", "teacher_license", "training", "finish_reason").unique().rows()
    assert terms == [(f"{MIX}replay", "MIT", "MIT", "conditional", "stop")]
    write(tmp_path / "m.jsonl", rows[::-1])
    entry = {"path": "m.jsonl", "count": 4, "label": "replay", "training": "conditional"}
    again, more = mixed(tmp_path, entry)
    assert again.equals(dataset), "not by its order"
    assert more["replay"]["read"] == 15
    assert not mixed(tmp_path, entry, seed=1)[0].equals(dataset)
    nine, _ = mixed(tmp_path, entry | {"count": 99})
    prompts = [row[0]["content"] for row in nine[10:]["prompt"].to_list()]
    assert sorted(prompts) == [f"replayed {number}" for number in range(9)], "never a contaminated row"


def test_a_thought_in_tags_stands_apart(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", [turns("one", "<think>\nhm\n</think>\n\nyes")])
    row = mixed(tmp_path, {"path": "m.jsonl", "count": 1})[0].row(-1, named=True)
    assert (row["reasoning"], row["completion"][0]["content"]) == ("hm", "yes")


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_a_thought_in_a_field_of_its_own_is_kept(tmp_path: Path, field: str) -> None:
    written = [("one", "yes", " hm\n"), ("two", "no", None), ("three", "", "all of it"), ("four", "4", "\ud800")]
    rows = [
        {"messages": [*turns(asked, "")["messages"], {"role": "assistant", "content": answer, field: thought}]}
        for asked, answer, thought in written
    ]
    write(tmp_path / "m.jsonl", rows)
    dataset, counts = mixed(tmp_path, {"path": "m.jsonl", "count": 2})
    found = [(row["completion"][0]["content"], row["reasoning"]) for row in dataset[-2:].to_dicts()]
    assert sorted(found) == [("no", None), ("yes", "hm")]
    assert counts["m.jsonl"]["dropped"] == {"no answer": 1, "not text": 1}


def test_mixes_share_no_prompt_and_may_have_any_shape(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", [turns("one"), turns("two")])
    said = [{"from": "human", "value": "one"}, {"from": "gpt", "value": "again"}]
    write(tmp_path / "s.jsonl", [{"conversations": said}])
    write(tmp_path / "a.jsonl", [{"instruction": "three", "input": "more", "output": "done"}])
    paths = [{"path": name, "count": 2} for name in ("m.jsonl", "s.jsonl", "a.jsonl")]
    dataset, counts = mixed(tmp_path, *paths)
    assert [one["kept"] for one in counts.values()] == [2, 0, 1]
    assert counts["s.jsonl"]["dropped"] == {"duplicate": 1}
    assert counts["a.jsonl"]["wanted"] == 2
    last = dataset.row(-1, named=True)
    assert (last["prompt"][0]["content"], last["completion"][0]["content"]) == ("three\n\nmore", "done")


def test_a_mix_needs_a_licence_an_amount_a_name_of_its_own_and_a_pin(tmp_path: Path) -> None:
    for entry in ({"path": "m.jsonl", "count": 1}, {"path": "m.jsonl", "count": 1, "license": " "}):
        with pytest.raises(InputError, match=r"^dataset\.mix\.0\.license is .*it must be the name of a licence"):
            DatasetSettings.parse({"mix": [entry]}, "dataset")
    with pytest.raises(InputError, match=r"dataset\.mix\.0 \(m\.jsonl\): its terms forbid .* \(licence MIT\)"):
        mixed(tmp_path, {"path": "m.jsonl", "count": 1, "training": "forbidden"})
    for amounts in ({}, {"ratio": 0.5, "count": 2}):
        with pytest.raises(ValueError, match="give one of them"):
            mixed(tmp_path, {"path": "m.jsonl", **amounts})
    with pytest.raises(ValueError, match="two entries called"):
        mixed(tmp_path, {"path": "m.jsonl", "count": 1}, {"path": "m.jsonl", "count": 1})
    with pytest.raises(ValueError, match=r"two entries called 'm\.jsonl'"):
        mixed(tmp_path, {"path": "/a/m.jsonl", "count": 1}, {"path": "/b/m.jsonl", "count": 1})
    with pytest.raises(ValueError, match="a template, which writes no conversation with its answer; it must be a col"):
        mixed(tmp_path, {"path": "m.jsonl", "count": 1, "messages": "{{ prompt }}"})
    with pytest.raises(InputError, match="needs its 40-hex commit"):
        mixed(tmp_path, {"hub": "owner/name", "count": 1})
    [found] = hub_entries({"dataset": {"mix": [{"path": "x"}, {"hub": "owner/name"}]}})
    assert (found.label, found.kind) == ("dataset.mix.1.revision", "dataset")


def test_most_rows_of_a_teacher_and_of_a_source() -> None:
    dataset, counts = dataset_of(max_per_teacher=5)
    assert dict(dataset["teacher"].value_counts().rows()) == {"a": 5, "b": 4}
    assert (counts["kept"], counts["dropped"]) == (9, {"max_per_teacher": 1})
    dataset, counts = dataset_of(max_per_teacher=5, max_per_source=3)
    assert (dataset.height, counts["dropped"]) == (3, {"max_per_teacher": 1, "max_per_source": 6})
    assert dataset.equals(dataset_of(max_per_teacher=5, max_per_source=3)[0])
    assert not dataset.equals(dataset_of(max_per_teacher=5, max_per_source=3, seed=7)[0])


def test_an_export_and_its_card_tell_a_mix_from_what_teachers_wrote(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", [turns("one")])
    entry = {"path": "m.jsonl", "count": 1, "license": "CC-BY-4.0", "domain": "math", "label": "old | chats"}
    dataset, counts = mixed(tmp_path, entry)
    routes = ROUTED.select("prompt_id", "teacher", strength=pl.lit(None, pl.Float64), margin=pl.lit(None, pl.Float64))
    tables = ASKED, dataset, routes.cast(dict(ROUTES)), ROUTED, ROUTED, REWARDS.to_frame()  # type: ignore[arg-type]
    mixes = DatasetSettings(mix=[entry]).mix  # type: ignore[list-item]
    export = build_export(*tables, TEACHERS, mixes)
    assert export.schema == EXPORT
    [row] = export.filter(pl.col("teacher_id").str.starts_with(MIX)).to_dicts()
    assert (row["source"], row["license"], row["domain"]) == ("old | chats", "CC-BY-4.0", "math")
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
    assert row["quality"] is row["reward"] is row["strength"] is row["num_response_tokens"] is None
    assert against_publishing(export) == ["the terms of mix:old | chats are unknown"]
    with pytest.raises(InputError, match=r"whose terms are CC-BY-4\.0, allowed now"):
        build_export(*tables, TEACHERS, [mixes[0].changed(training="allowed")])
    with pytest.raises(InputError, match=r"dataset\.mix does not name; run `dvc repro`"):
        build_export(*tables, TEACHERS)
    of_responses = dataset_of()[1]
    about = TEACHERS, {"read": 10, "kept": 10, "dropped": {}}
    card = build_card("persyn", count_origins(ASKED, dataset), of_responses | {"mix": counts}, *about)
    assert "## Mixes" in card
    assert re.search(r"\| old \\\| chats \| m\.jsonl@[0-9a-f]{64} \| CC-BY-4\.0 \| 1 \| 1 \| none \|", card)
    assert (
        "- Rows of old \\| chats (licence CC-BY-4.0) may or may not train models: the terms were not looked up." in card
    )
    assert card.count("| test | Apache-2.0 | 10 |") == 1
    assert "Mixes" not in build_card("persyn", count_origins(ASKED, dataset_of()[0]), of_responses, *about)
