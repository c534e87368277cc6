"""`persyn diff`: what moved between two states, as far as both were made; data is shown, never obeyed."""

import json
import logging
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console
from typer.testing import CliRunner

from persyn.cli import app
from persyn.errors import InputError
from persyn.inspection.diff import build_diff
from persyn.inspection.diff_text import diff_text
from persyn.messages import user_message
from persyn.project.snapshot import Snapshot, changed_values
from persyn.schemas import PROMPTS, REWARDS, ROUTES, SAMPLES, write_table
from tests.support.tables import prompts_table

PARAMS: dict[str, Any] = {"rewards": {"alpha": 0.4}, "strategies": {"persyn": {}, "strong": {}}}
TEXTS = ["one", "two", "three", "<b>four</b> \x1b[31m [red] [/] =1+1 \u202e"]
PROMPTS_A = prompts_table(TEXTS)
IDS = PROMPTS_A["prompt_id"].to_list()


def routes(teachers: str, margin: float | None = 0.5) -> pl.DataFrame:
    values = [(identity, name, margin, margin) for identity, name in zip(IDS, teachers, strict=True)]
    return pl.DataFrame(values, schema=ROUTES, orient="row")


def samples(values: list[float], metric: str = "acc", first: int = 0) -> pl.DataFrame:
    rows = [("task", f"item {number + first:03}", metric, value, "", False) for number, value in enumerate(values)]
    return pl.DataFrame(rows, schema=SAMPLES, orient="row")


def rewards(teacher: str, value: float, count: int = 4) -> pl.DataFrame:
    rows = [(identity, teacher, value, -1.0, value) for identity in IDS[:count]]
    return pl.DataFrame(rows, schema=REWARDS, orient="row")


def printed(found: dict[str, Any], limit: int = 20, width: int = 100) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(diff_text(found, limit))
    return captured.get()


def test_the_flow_counts_who_went_where() -> None:
    a = Snapshot(
        PARAMS, name="A", prompts=PROMPTS_A, routes={"persyn": routes("aabb", 0.25), "strong": routes("aaaa", None)}
    )
    b = Snapshot(PARAMS, name="B", prompts=PROMPTS_A, routes={"persyn": routes("abca"), "strong": routes("aaaa", None)})
    found = build_diff(a, b)
    flow = {(row["from"], row["to"]): row["prompts"] for row in found["allocation"]["persyn"]["flow"]}
    assert flow == {("a", "a"): 1, ("a", "b"): 1, ("b", "a"): 1, ("b", "c"): 1}
    moved = {row["prompt_id"]: row for row in found["allocation"]["persyn"]["moved"]}
    assert set(moved) == set(IDS[1:])
    two = {
        "prompt_id": IDS[1],
        "prompt": user_message("two"),
        "from": "a",
        "to": "b",
        "margin_a": 0.25,
        "margin_b": 0.5,
    }
    assert moved[IDS[1]] == two
    assert found["allocation"]["strong"]["unlike"] == 0
    text = printed(found, limit=1)
    assert "allocation of persyn: 3 of 4 prompts moved" in text
    assert "2 more moved: --limit lists more" in text
    assert "strong" not in text, "what did not change is not shown"
    assert build_diff(a, b, "strong")["same"]


def test_a_prompt_with_two_teachers_is_one_prompt() -> None:
    second = pl.DataFrame([(IDS[0], "b", 0.1, -0.4)], schema=ROUTES, orient="row")
    a, b = (Snapshot(PARAMS, name=name, routes={"persyn": table}) for name, table in
            (("A", routes("aaaa")), ("B", routes("aaaa").vstack(second))))  # fmt: skip
    allocation = build_diff(a, b)["allocation"]["persyn"]
    assert allocation["prompts"] == 4
    [row] = allocation["moved"]
    assert (row["from"], row["to"], row["margin_b"], row["prompt"]) == ("a", "a + b", 0.5, None)


def test_evaluations_are_paired_by_item_and_say_what_is_noise() -> None:
    zeros, ones = [0.0] * 20, [1.0] * 20
    a = Snapshot(PARAMS, name="A", samples={"persyn": samples(zeros), "strong": samples([0.0, 1.0] * 10)})
    b = Snapshot(PARAMS, name="B", samples={"persyn": samples(ones)[::-1], "strong": samples([1.0, 0.0] * 10, first=2)})
    found = build_diff(a, b)["evaluation"]
    fields = found["persyn"]["task"]["acc"]
    assert (fields["a"], fields["b"], fields["difference"], fields["n"]) == (0.0, 1.0, 1.0, 20)
    assert fields["verdict"] == "differs"
    assert fields["p_holm"] == 2 * fields["p"], "two strategies are compared on this task and metric"
    shifted = found["strong"]["task"]["acc"]
    assert (shifted["n"], shifted["unpaired"], shifted["verdict"]) == (18, 4, "within noise")
    text = printed(build_diff(a, b), width=80)
    for piece in ("evaluation of persyn", "[+0.5514, +1]", "n 18 of 22", "within noise"):
        assert piece in text


def test_metrics_without_samples_are_plain_values() -> None:
    scored = {"task": {"acc": {"value": 0.25, "stderr": None, "n": 4}}}
    a, b = (
        Snapshot(PARAMS, name="A", metrics={"evaluation": {"persyn": scored}}),
        Snapshot(PARAMS, name="B", metrics={"evaluation": {"persyn": {}}}),
    )
    found = build_diff(a, b)
    assert found["evaluation"] == {"persyn": {"task": {"acc": {"a": 0.25}}}}
    assert not found["same"]
    assert "one side only" in printed(found)


def test_scores_are_means_of_the_prompts_that_both_scored() -> None:
    a = Snapshot(PARAMS, name="A", rewards=rewards("a", 0.5).vstack(rewards("b", 1.0)))
    b = Snapshot(PARAMS, name="B", rewards=rewards("a", 1.0, 2).vstack(rewards("c", 1.0)))
    found = build_diff(a, b)
    assert found["scores"]["a"]["rows"] == 2
    assert found["scores"]["a"]["reward"] == {"a": 0.5, "b": 1.0}
    assert (found["scores"]["b"], found["scores"]["c"]) == ({"only": "a"}, {"only": "b"})
    text = printed(found)
    assert "teacher b: only A has its rewards" in text
    assert "+0.5" in text


def test_what_only_one_side_has_is_a_difference() -> None:
    """Fewer prompts scored, fewer items evaluated, though all that both have is equal."""
    a, b = (Snapshot(PARAMS, name=name, rewards=rewards("a", 0.5, count)) for name, count in (("A", 4), ("B", 2)))
    found = build_diff(a, b)
    assert (found["scores"]["a"]["unpaired"], found["same"]) == (2, False)
    assert "teacher a: 2 prompts are scored on one side only" in printed(found)
    a, b = (
        Snapshot(PARAMS, name=name, samples={"persyn": samples([0.0] * count)}) for name, count in (("A", 4), ("B", 2))
    )
    found = build_diff(a, b)
    assert not found["same"]
    assert "n 2 of 4" in printed(found)
    apart = Snapshot(PARAMS, name="B", samples={"persyn": samples([0.0], first=50)})
    assert "no item" in printed(build_diff(a, apart))


def test_another_teacher_or_student_is_another_scale() -> None:
    a = Snapshot(PARAMS, name="A", rewards=rewards("a", 0.5))
    for section in ("teachers", "student"):
        b = Snapshot(PARAMS | {section: {"x": 1}}, name="B", rewards=rewards("a", 0.7))
        assert "scales differ" in " ".join(printed(build_diff(a, b)).split())
    assert "scales differ" not in printed(build_diff(a, Snapshot(PARAMS, name="B", rewards=rewards("a", 0.7))))


def test_what_differs_is_named_by_its_path() -> None:
    a = {"x": {"y": 1, "gone": [1, 2]}, "list": [{"limit": 24}, {"limit": 3}], "flag": 1, "same": None}
    b = {"x": {"y": 1.0, "new": {"deep": "v"}}, "list": [{"limit": 24}, {"limit": 4}], "flag": True, "same": None}
    assert changed_values(a, b) == {
        "flag": {"a": 1, "b": True},
        "list.1.limit": {"a": 3, "b": 4},
        "x.gone": {"a": [1, 2]},
        "x.new.deep": {"b": "v"},
    }


def test_prompts_and_strategies_of_one_side() -> None:
    changed = PROMPTS_A[1:].with_columns(license=pl.when(prompt_id=IDS[1]).then(pl.lit("MIT")).otherwise("license"))
    a = Snapshot(PARAMS, name="A", prompts=PROMPTS_A, routes={"strong": routes("aaaa")})
    b = Snapshot({"strategies": {"persyn": {}}}, name="B", prompts=changed)
    found = build_diff(a, b)
    assert found["prompts"] == {"same": 3, "changed": [IDS[1]], "added": [], "removed": [IDS[0]]}
    assert found["allocation"] == {"strong": {"only": "a"}}
    text = printed(found)
    for piece in ("3 in both, 0 added, 1 removed, 1 changed", "strategy strong: only A has it"):
        assert piece in text
    assert text.splitlines()[-1].endswith("dvc params diff A B; dvc metrics diff A B")


@pytest.mark.parametrize("width", [40, 120])
def test_hostile_text_is_shown_as_text(width: int) -> None:
    name = "[red]\x1b[31m\u202e"
    params = PARAMS | {"teachers": {name: {"system": f"{name} [/] =1+1"}}}
    a = Snapshot(PARAMS, name=name, prompts=PROMPTS_A, routes={"persyn": routes("aaaa")})
    b = Snapshot(params, name=name, prompts=PROMPTS_A, routes={"persyn": routes("aaab")}, lacking={name: [name]})
    text = printed(build_diff(a, b), width=width)
    assert all(character.isprintable() or character == "\n" for character in text)
    if width == 120:
        assert r"<b>four</b> \x1b[31m [red] [/] =1+1 \u202e" in text


def git(*command: str) -> None:
    subprocess.run(["git", *command], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository, in which `old` sent all to a; the files as they lie send one prompt to b."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "test")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "test@localhost")
    from dvc.repo import Repo

    git("init")
    # DVC's handlers write to the streams of whichever test first loaded it, which may be closed by now.
    monkeypatch.setattr(logging.getLogger("dvc"), "handlers", [])
    dvc = Repo.init()
    Path("params.yaml").write_text("rewards: {alpha: 0.4}\nstrategies: {persyn: {}}\n")
    write_table(PROMPTS_A, "data/prompts.parquet", PROMPTS)
    write_table(routes("aaaa"), "data/routes/persyn.parquet", ROUTES)
    write_table(samples([0.0] * 20), "data/evaluation/persyn.parquet", SAMPLES)
    dvc.add(["data"])
    git("add", ".")
    git("commit", "-m", "old")
    git("tag", "old")
    write_table(routes("aaab"), "data/routes/persyn.parquet", ROUTES)
    write_table(samples([1.0] * 20), "data/evaluation/persyn.parquet", SAMPLES)
    Path("params.yaml").write_text("rewards: {alpha: 0.9}\nstrategies: {persyn: {}}\n")
    return tmp_path


def test_a_commit_is_compared_with_the_files_as_they_lie(repository: Path) -> None:
    result = CliRunner().invoke(app, ["diff"])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    for piece in ("A is HEAD, B is workspace", "1 of 4 prompts moved", "differs", "dvc params diff HEAD"):
        assert piece in " ".join(result.output.split())
    assert "workspace: data/rewards.parquet" in " ".join(result.output.split()), "what was not made is said"
    found = json.loads(CliRunner().invoke(app, ["diff", "old", "--json"]).stdout)
    assert found["scale"] == ["rewards"]
    assert [row["to"] for row in found["allocation"]["persyn"]["moved"]] == ["b"]
    assert "no difference" in CliRunner().invoke(app, ["diff", "old", "HEAD"]).output
    wrong = CliRunner().invoke(app, ["diff", "old", "--strategy", "persin"]).exception
    assert isinstance(wrong, InputError)
    assert "did you mean persyn?" in str(wrong)
    shown = CliRunner().invoke(app, ["show", IDS[0], "--rev", "old"])
    assert shown.exit_code == 0, shown.output
    assert "one" in shown.output


def test_what_the_cache_lacks_is_said_and_the_rest_compared(repository: Path) -> None:
    for file in Path(".dvc/cache/files/md5").glob("*/*"):
        if not file.name.endswith(".dir"):
            file.unlink()
    result = CliRunner().invoke(app, ["diff"])
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    assert (
        "HEAD: data/prompts.parquet, data/routes/persyn.parquet, data/evaluation/persyn.parquet: not in DVC's" in output
    )
    assert "no difference" in output
    assert "only" not in output
