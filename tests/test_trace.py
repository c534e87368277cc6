"""`persyn show`: one prompt through the pipeline, as far as it was made; data is shown, never obeyed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console
from typer.testing import CliRunner

from persyn.cli import app
from persyn.dataset import DatasetSettings, build_dataset
from persyn.defects import Policies
from persyn.errors import InputError
from persyn.generation.terms import Licenses
from persyn.inspection.trace import find_prompt, router_role, search_prompts, trace_prompt
from persyn.inspection.trace_text import trace_text
from persyn.project.snapshot import Snapshot
from persyn.router.settings import RouterSettings
from persyn.schemas import DATASET, LEARNABILITY, PAIRS, PROMPTS, QUALITY, RESPONSES, REWARDS, ROUTES, write_table
from tests.support.tables import prompts_table, responses_table, stub_teachers, texts_of

HOSTILE = "<script>alert(1)</script> \x1b[31mred\x1b[0m [red]markup[/red] [/] :smile: =1+1 \u202etxt\r\x07\nsecond line"
VISIBLE = ("<script>", r"\x1b[31mred\x1b[0m", "[red]markup[/red] [/]", ":smile:", "=1+1", r"\u202etxt\r\x07")


def rows(schema: pl.Schema, *values: tuple[Any, ...]) -> pl.DataFrame:
    return pl.DataFrame(values, schema=schema, orient="row")


def made(texts: dict[str, str], finish: dict[str, str] | None = None) -> Snapshot:
    """One prompt, teachers a and b: a is of higher quality; strategy `both` routes to both, a the stronger."""
    prompts = prompts_table(["Say <b>hi</b> to [red]"])
    identity = prompts["prompt_id"].item()
    responses = {
        name: responses_table(prompts, name, [text], (finish or {}).get(name, "stop")) for name, text in texts.items()
    }
    routes = rows(ROUTES, *((identity, name, 2.0 - place, 1.0 - 2 * place) for place, name in enumerate(texts)))
    quality = {name: rows(QUALITY, (identity, name, 1.0 - place)) for place, name in enumerate(texts)}
    routed = pl.concat(responses.values())
    terms, choice = (
        (stub_teachers("ab"), Licenses(), DatasetSettings()),
        (routes, lambda _: pl.concat(quality.values())),
    )
    dataset, _ = build_dataset(prompts, routed, Policies(), *terms, *choice)
    return Snapshot(
        {"teachers": dict.fromkeys(texts), "strategies": {"both": {}}},
        prompts=prompts,
        responses=responses,
        quality=quality,
        learnability={name: rows(LEARNABILITY, (identity, name, -1.5, 4, False)) for name in texts},
        rewards=rows(REWARDS, *((identity, name, 1.0, -1.5, 1.0 - place) for place, name in enumerate(texts))),
        pairs=rows(PAIRS, (identity, "a", "b", 1.0)),
        routes={"both": routes},
        routed={"both": routed},
        dataset={"both": dataset},
    )


def trace(found: Snapshot, **settings: Any) -> dict[str, Any]:
    return trace_prompt(found, found.need("prompts")["prompt_id"].item(), Policies(), **settings)


def printed(found: dict[str, Any], width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(trace_text(found))
    return captured.get()


def test_a_prompt_is_followed_from_responses_to_datasets() -> None:
    found = trace(made({"a": "Hi!", "b": "Hello."}), role="held out")
    assert [(row["teacher"], row["quality"], row["reward"], row["best"]) for row in found["responses"]] == [
        ("a", 1.0, 1.0, True),
        ("b", 0.0, 0.0, False),
    ]
    assert found["pairs"] == [{"winner": "a", "loser": "b", "margin": 1.0}]
    assert found["missing"] == ["defects"]
    text = printed(found)
    for piece in (
        "a, best: stop, 10 + 1 tokens, quality 1, learnability -1.5, reward 1",
        "Hello.",
        "held out",
        "second",
    ):
        assert piece in text


def test_the_students_own_response_is_shown_as_such() -> None:
    run = made({"a": "Hi!", "b": "Hello."})
    params = {**run.params, "teachers": {"a": {}, "b": {"is_student": True}}}
    rewards = run.need("rewards").filter(teacher="a")
    found = trace(run.replace(params=params, rewards=rewards, learnability={"a": run.learnability["a"]}))
    assert found["student"] == "b"
    assert [(row["teacher"], row["quality"], row["reward"]) for row in found["responses"]] == [
        ("a", 1.0, 1.0),
        ("b", 0.0, None),
    ]
    assert found["missing"] == ["defects"], "it has no learnability"
    assert "b, the student itself: stop, 10 + 1 tokens, quality 0" in printed(found)


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [("", "error", "error"), ("cut", "length", "length"), (" ", "stop", "empty"), ("worse", "stop", "second")],
)
def test_why_the_dataset_lacks_a_response_is_what_the_stage_counted(text: str, finish: str, reason: str) -> None:
    found = made({"a": "Hi!", "b": text}, {"b": finish})
    kept = {row["teacher"]: (row["kept"], row["reason"]) for row in trace(found)["strategies"]["both"]}
    assert kept == {"a": (True, None), "b": (False, reason)}


def test_a_dataset_of_other_routes_is_said_to_be_outdated() -> None:
    found = made({"a": "Hi!", "b": "Hello."})
    parts = {part: {"both": getattr(found, part)["both"].filter(teacher="b")} for part in ("routes", "routed")}
    [row] = trace(found.replace(**parts))["strategies"]["both"]
    assert (row["kept"], row["reason"]) == (False, "outdated")


def test_parts_that_are_not_made_are_named() -> None:
    text = printed(trace(Snapshot(prompts=prompts_table(["Hi"]))))
    assert (
        "Not made yet: responses, quality, learnability, defects, rewards, pairs, routes, routed, dataset"
        in " ".join(text.split())
    )
    params = {"teachers": dict.fromkeys("abc")}
    half = Snapshot(params, prompts=prompts_table(["Hi"]), responses={"a": rows(RESPONSES)}, pairs=rows(PAIRS))
    missing = trace(half)["missing"]
    assert missing[0] == "responses of b, c"
    assert "pairs" not in missing, "there are none, but it was made"
    [row] = trace(made({"a": "Hi!"}).replace(routed={}, dataset={}))["strategies"]["both"]
    assert (row["teacher"], row["response"], row["kept"]) == ("a", None, None)


@pytest.mark.parametrize("width", [30, 80, 200])
def test_hostile_text_is_shown_as_text(width: int) -> None:
    found = made({"a": HOSTILE, "b": HOSTILE[::-1]})
    text = printed(trace(found), width)
    assert all(character.isprintable() or character == "\n" for character in text)
    assert all(len(line) <= width for line in text.splitlines())
    if width == 200:
        assert all(piece in text for piece in VISIBLE)
        assert "│ second line" in text
        assert "Say <b>hi</b> to [red]" in text


def test_an_id_is_found_by_its_beginning_only_if_it_is_one() -> None:
    prompts = prompts_table(["one", "two", "three"]).with_columns(prompt_id=pl.Series(["abc1", "abd2", "ab"]))
    assert find_prompt(prompts, "abd") == "abd2"
    assert find_prompt(prompts, "ab") == "ab", "a whole id is one, whatever else begins with it"
    with pytest.raises(InputError, match="3 prompts begin with 'a': ab, abc1, abd2; give more"):
        find_prompt(prompts, "a")
    with pytest.raises(InputError, match=r"begins with 'abx2'; the nearest are abd2.*persyn show --search TEXT"):
        find_prompt(prompts, "abx2")
    with pytest.raises(InputError, match="begins with 'zzzz'; there are ab, abc1, abd2"):
        find_prompt(prompts, "zzzz")


def test_search_takes_text_as_it_stands() -> None:
    prompts = prompts_table(["What is 1+1?", "WHAT .* is?", "Else"])
    assert search_prompts(prompts, "what").height == 2
    assert texts_of(search_prompts(prompts, ".*")) == ["WHAT .* is?"]


def test_the_router_s_use_of_a_prompt_is_that_of_its_training() -> None:
    prompts = prompts_table([f"prompt {number}" for number in range(8)])
    rewards = rows(REWARDS, *((identity, "a", 1.0, -1.0, 1.0) for identity in prompts["prompt_id"][:7]))
    settings = RouterSettings(model="m", method="finetuned", holdout=0.3, validation=0.2, num_train=4)
    pairs = rows(PAIRS, *((identity, "a", "b", 0.5) for identity in prompts["prompt_id"]))
    found = Snapshot(prompts=prompts, rewards=rewards, pairs=pairs)
    roles = [str(router_role(found, settings, identity)) for identity in prompts["prompt_id"]]
    counts = {
        name: sum(role.startswith(name) for role in roles) for name in ("held out", "validation", "trained", "not used")
    }
    assert counts == {"held out": 2, "validation": 1, "trained": 3, "not used": 2}
    [first, *_] = [each for each, role in zip(prompts["prompt_id"], roles, strict=True) if role == "trained on"]
    fewer = found.replace(pairs=pairs.filter(pl.col("prompt_id") != first))
    anchored = found.replace(params={"teachers": {"a": {"anchors": 2}, "b": None}})
    for each in (fewer, anchored):
        assert str(router_role(each, settings, first)).startswith("not used: it has no pair")
    blend = RouterSettings(model="m", holdout=0.3, num_train=4)
    assert router_role(fewer, blend, first) == "trained on", "it learns from rewards"
    assert router_role(found.replace(rewards=None), settings, first) is None
    other = found.replace(prompts=prompts.with_columns(parallel=pl.lit(False)))
    assert router_role(other, settings, first) == "not used: it is not parallel"


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`persyn show` in a project whose teacher wrote hostile text."""
    monkeypatch.chdir(tmp_path)
    found = made({"a": HOSTILE})
    params = "teachers: {a: {}}\nstrategies: {both: {}}\ndefects: {length: keep}\ndataset: {}\n"
    Path("params.yaml").write_text(params + "router: {model: m, holdout: 0.5}\n")
    write_table(found.need("prompts"), "data/prompts.parquet", PROMPTS)
    for part, schema in (("responses", RESPONSES), ("routed", RESPONSES), ("routes", ROUTES), ("dataset", DATASET)):
        for name, table in getattr(found, part).items():
            write_table(table, f"data/{part}/{name}.parquet", schema)
    return lambda *arguments: CliRunner().invoke(app, ["show", *arguments])


def test_the_command_shows_a_prompt_without_escape_codes(show: Callable[..., Any]) -> None:
    [listed] = json.loads(show("--search", "SAY", "--json").stdout)
    result = show(listed["prompt_id"][:4])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert r"\x1b[31mred" in result.output
    assert "Not made yet: quality" in result.output
    assert "1 found" in show("--search", "say").output
    found = json.loads(show(listed["prompt_id"], "--json").stdout)
    assert found["responses"][0]["response"] == HOSTILE
    assert found["strategies"]["both"][0]["kept"] is True


def test_no_prompt_is_one_clear_line(show: Callable[..., Any]) -> None:
    for arguments, message in (
        ((), "neither of a prompt's id and --search"),
        (("1", "--search", "x"), "got both"),
        (("not-there",), "no prompt's id begins with 'not-there'"),
    ):
        result = show(*arguments)
        assert isinstance(result.exception, InputError)
        assert message in str(result.exception)
    Path("data/prompts.parquet").unlink()
    assert "data/prompts.parquet of workspace does not exist" in str(show("1").exception)


def test_a_thought_is_told_by_its_length() -> None:
    found = made({"a": "Hi!", "b": ""}, {"b": "length"})
    thought = pl.lit("Hm, " * 300).alias("reasoning")
    found = found.replace(responses={name: table.with_columns(thought) for name, table in found.responses.items()})
    text = printed(trace(found), width=200)
    assert "a, best: stop, 10 + 1 tokens, thought (1,200 characters), quality 1" in text
    assert "defects: unclosed_think" in text
    assert "Hm" not in text
