"""Sample: it unpacks to what the tables say; it is a fair draw; it fits its budget, whatever the texts."""

import base64
import gzip
import json
from typing import Any

import polars as pl
import pytest

from persyn.messages import as_text, user_message
from persyn.project.snapshot import Snapshot
from persyn.report.sample import Sample, build_sample, draw_prompts
from persyn.schemas import ROUTES
from tests.support.invented import made_up
from tests.support.texts import HOSTILE


def unpack(sample: Sample) -> dict[str, Any]:
    """The payload, with a list of the own responses and routes of every prompt in place of their count."""
    packed = json.loads(gzip.decompress(base64.b64decode(sample.payload, validate=True)))
    tables = {
        name: [dict(zip(packed[name], row, strict=True)) for row in zip(*packed[name].values(), strict=True)]
        for name in ("prompts", "responses", "routes")
    }
    left = {"responses": iter(tables["responses"]), "routes": iter(tables["routes"])}
    for prompt in tables["prompts"]:
        for name, rows in left.items():
            prompt[name] = [next(rows) for _ in range(prompt[name])]
    assert not [*left["responses"], *left["routes"]]
    return packed | {"prompts": {prompt["prompt_id"]: prompt for prompt in tables["prompts"]}}


@pytest.fixture(scope="module")
def tables() -> dict[str, Any]:
    """A made-up project: 60 prompts, half of them parallel, 4 teachers, 2 strategies."""
    return made_up(60, 4, 100, parallel=0.5)


def test_the_payload_is_what_the_tables_say(tables: dict[str, Any]) -> None:
    packed = unpack(build_sample(Snapshot(**tables)))
    prompts = packed["prompts"]
    assert list(prompts) == sorted(tables["prompts"]["prompt_id"])
    for row in tables["prompts"].iter_rows(named=True):
        shown = prompts[row["prompt_id"]]
        assert (shown["prompt"], shown["reference"], shown["parallel"]) == (
            as_text(row["prompt"]),
            None,
            int(row["parallel"]),
        )
        assert [packed[f"{name}s"][shown[name]] for name in ("domain", "source", "license")] == [
            row["domain"],
            row["source"],
            row["license"],
        ]
        asked = {tables["routes"][name].filter(prompt_id=row["prompt_id"])["teacher"][0] for name in tables["routes"]}
        answered = {packed["teachers"][one["teacher"]] for one in shown["responses"]}
        assert answered == (set(tables["responses"]) if row["parallel"] else asked)

    for row in tables["rewards"].join(tables["defects"], on=["prompt_id", "teacher"]).iter_rows(named=True):
        (shown,) = (
            one
            for one in prompts[row["prompt_id"]]["responses"]
            if packed["teachers"][one["teacher"]] == row["teacher"]
        )
        answer = tables["responses"][row["teacher"]].filter(prompt_id=row["prompt_id"]).row(0, named=True)
        assert shown["response"] == answer["response"]
        assert shown["tokens"] == answer["num_response_tokens"]
        assert packed["finish_reasons"][shown["finish_reason"]] == answer["finish_reason"]
        for score in ("quality", "learnability", "reward"):
            assert shown[score] == pytest.approx(row[score], rel=1e-3)
        for bit, kind in enumerate(packed["defects"]):
            assert bool(shown["defects"] & 1 << bit) == row[kind]

    for strategy, table in tables["routes"].items():
        kept = set(tables["dataset"][strategy]["prompt_id"])
        assert 0 < len(kept) < 60
        for row in table.iter_rows(named=True):
            (shown,) = (
                one for one in prompts[row["prompt_id"]]["routes"] if packed["strategies"][one["strategy"]] == strategy
            )
            assert packed["teachers"][shown["teacher"]] == row["teacher"]
            assert shown["kept"] == (row["prompt_id"] in kept)
            for number in ("strength", "margin"):
                assert shown[number] == (row[number] and pytest.approx(row[number], rel=1e-3))


def test_a_prompt_of_two_teachers_has_both_the_stronger_first(tables: dict[str, Any]) -> None:
    first, *_ = tables["prompts"]["prompt_id"].sort()
    rows = {"prompt_id": [first] * 2, "teacher": ["teacher-1", "teacher-2"], "strength": [1.0, 2.0], "margin": 0.5}
    routes = {"two": pl.DataFrame(rows, schema=ROUTES)}
    packed = unpack(build_sample(Snapshot(**{**tables, "routes": routes, "dataset": {}})))
    shown = packed["prompts"][first]["routes"]
    assert [packed["teachers"][one["teacher"]] for one in shown] == ["teacher-2", "teacher-1"]
    assert [one["kept"] for one in shown] == [None, None]


def test_what_is_not_made_yet_is_left_out(tables: dict[str, Any]) -> None:
    sample = build_sample(Snapshot(prompts=tables["prompts"]))
    packed = unpack(sample)
    assert (sample.prompts, packed["teachers"], packed["strategies"]) == (60, [], [])
    assert all(not prompt["responses"] and not prompt["routes"] for prompt in packed["prompts"].values())
    assert not unpack(build_sample(Snapshot(**tables), limit=0))["prompts"]


def test_equal_tables_give_equal_bytes_in_any_order(tables: dict[str, Any]) -> None:
    shuffled = {**tables, "prompts": tables["prompts"].reverse(), "rewards": tables["rewards"].reverse()}
    assert build_sample(Snapshot(**shuffled)) == build_sample(Snapshot(**tables))


def test_the_draw_is_fair_and_holds_parallel_prompts(tables: dict[str, Any]) -> None:
    prompts = made_up(2000, 1, 30, parallel=0.02)["prompts"]
    there = prompts.filter("parallel").height
    drawn = draw_prompts(prompts, 500)
    assert (drawn.height, drawn.filter("parallel").height) == (500, there)
    assert drawn["prompt_id"].is_sorted()
    assert drawn.join(prompts, on="prompt_id", how="semi").height == 500
    others = prompts.filter(~pl.col("parallel"))
    assert set(drawn.filter(~pl.col("parallel"))["prompt_id"]) == set(others["prompt_id"].sort().head(500 - there))
    # Half of all are parallel: so is about half of the draw. A larger draw keeps what a smaller one had.
    small, large = (draw_prompts(tables["prompts"], limit) for limit in (20, 40))
    assert small.filter("parallel").height == round(20 * tables["prompts"]["parallel"].mean())
    assert set(small["prompt_id"]) < set(large["prompt_id"])
    assert draw_prompts(prompts.with_columns(parallel=pl.lit(True)), 7).height == 7
    assert draw_prompts(prompts.with_columns(parallel=pl.lit(False)), 7).height == 7


def test_long_texts_are_cut_to_fit_and_say_so() -> None:
    tables = made_up(40, 3, 3000)
    whole = build_sample(Snapshot(**tables))
    assert (whole.cut_prompt, whole.cut_response) == (None, None)
    cut = build_sample(Snapshot(**tables), max_bytes=len(whole.payload) // 3)
    assert cut.cut_response is not None
    assert len(whole.payload) // 6 < len(cut.payload) <= len(whole.payload) // 3
    packed = unpack(cut)
    assert packed["cut"] == {"prompt": cut.cut_prompt, "reference": cut.cut_prompt, "response": cut.cut_response}
    for prompt_id, prompt in packed["prompts"].items():
        for shown in prompt["responses"]:
            table = tables["responses"][packed["teachers"][shown["teacher"]]]
            text = table.filter(prompt_id=prompt_id)["response"][0]
            assert shown["response"] == text[: cut.cut_response] + "…"


def test_fewer_prompts_are_drawn_where_the_shortest_texts_do_not_fit() -> None:
    tables = made_up(400, 19, 500)
    sample = build_sample(Snapshot(**tables), max_bytes=50_000)
    assert len(sample.payload) <= 50_000
    assert 0 < sample.prompts < 400 == sample.total_prompts
    assert len(unpack(sample)["prompts"]) == sample.prompts


def test_texts_that_pack_well_do_not_make_a_page_that_opens_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persyn.report.sample.MAX_CHARACTERS", 20_000)
    tables = made_up(40, 3, 1000)
    tables["responses"] = {
        name: table.with_columns(response=pl.lit("a" * 1000)) for name, table in tables["responses"].items()
    }
    packed = unpack(build_sample(Snapshot(**tables)))
    texts = [one["response"] for prompt in packed["prompts"].values() for one in prompt["responses"]]
    assert 100 < max(map(len, texts)) < 1000


def test_hostile_texts_come_whole_and_the_payload_is_plain_letters(tables: dict[str, Any]) -> None:
    few = (
        tables["prompts"]
        .sort("prompt_id")
        .head(len(HOSTILE))
        .with_columns(prompt=pl.Series([user_message(text) for text in HOSTILE]))
    )
    hostile = {**tables, "prompts": few.with_columns(source=pl.Series(HOSTILE))}
    sample = build_sample(Snapshot(**hostile))
    packed = unpack(sample)
    assert [prompt["prompt"] for prompt in packed["prompts"].values()] == HOSTILE
    assert packed["sources"] == sorted(HOSTILE)
    assert not set(sample.payload) & set("<>&\"' \\-")


def test_of_a_thought_only_its_length_is_in_the_page(tables: dict[str, Any]) -> None:
    name, table = next(iter(tables["responses"].items()))
    thinks = {**tables["responses"], name: table.with_columns(reasoning=pl.lit("Hm, " * 50))}
    packed = unpack(build_sample(Snapshot(**{**tables, "responses": thinks})))
    shown = [one for prompt in packed["prompts"].values() if prompt["parallel"] for one in prompt["responses"]]
    assert {(packed["teachers"][one["teacher"]] == name, one["thought"]) for one in shown} == {
        (True, 200),
        (False, None),
    }
    assert "Hm, " not in json.dumps(packed)
    old = {name: table.drop("reasoning") for name, table in tables["responses"].items()}
    assert unpack(build_sample(Snapshot(**{**tables, "responses": old}))) == unpack(build_sample(Snapshot(**tables)))
