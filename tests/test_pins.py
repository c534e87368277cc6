"""`persyn pin`: commits from a stub hub go into params.yaml, and nothing else in it changes."""

import difflib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from persyn.cli import app
from persyn.errors import InputError
from persyn.project.pins import hub_entries, pin_revisions
from tests.support.hub import StubHub, stub_hub
from tests.support.tiny import ROOT

A, B, C, D, E = (digit * 40 for digit in "abcde")
OLD = "0123456789abcdef" * 2 + "01234567"
PARAMS = f"""\
# A comment on top.
prompts:
  sources:
    - {{path: local.jsonl, domain: math}}
    - hub: o/gsm  # of grade school
      domain: math
    - {{hub: o/chat, revision: null, domain: instruction}}
  decontaminate:
    - {{hub: o/gsm, split: test, prompt: question, revision: {OLD}}}
teachers:
  flow: {{
    model: o/big, revision: null,  # the big one
    family: big, sampling: &sampling {{max_tokens: 8}}, backend: vllm,
    precomputed: &zoo {{hub: o/zoo, response: first}},
  }}
  merged: {{model: o/small, backend: transformers, precomputed: {{<<: *zoo, response: second}}}}
  served: {{model: o/served, revision: null, backend: openai}}
  packed: {{model: "packaged:tiny", backend: transformers}}
  folder: {{model: models/mine, backend: vllm}}
quality:
  reward_model: {{model: o/judge, revision: main}}

student:
  model: "o/small"   # learns
  license: MIT
router:
  model: o/small
  revision:   # fill in
  seed: 0
"""
COMMITS = {
    "models/o/big": A,
    "models/o/small": B,
    "models/o/judge/revision/main": C,
    "models/o/judge": E,
    "datasets/o/gsm": D,
    "datasets/o/chat": E,
    "datasets/o/zoo": A,
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    """A stub that stands for the hub; nobody is logged in."""
    with stub_hub(
        COMMITS,
        {"models/o/gated/revision/main": (403, "GatedRepo"), "models/o/big/revision/v9": (404, "RevisionNotFound")},
    ) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        huggingface_hub.close_session()
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A params.yaml in a folder of its own, with a local model."""
    monkeypatch.chdir(tmp_path)
    Path("models/mine").mkdir(parents=True)
    path = Path("params.yaml")
    path.write_text(PARAMS)
    return path


def changes(before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in lines if line[:2] not in ("--", "++", "@@")]


def test_every_hub_entry_gets_its_commit_and_nothing_else_changes(hub: StubHub, params: Path) -> None:
    result = CliRunner().invoke(app, ["pin"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"teachers.flow.revision: null -> {A}",
        f"teachers.merged.revision: null -> {B}",
        f"student.revision: null -> {B}",
        f"router.revision: null -> {B}",
        f"quality.reward_model.revision: main -> {C}",
        f"teachers.flow.precomputed.revision: null -> {A}",
        f"teachers.merged.precomputed.revision: null -> {A}",
        f"prompts.sources.1.revision: null -> {D}",
        f"prompts.sources.2.revision: null -> {E}",
        "params.yaml: 9 revisions filled in, 1 as before",
    ]
    text = params.read_text()
    assert len([line for line in changes(PARAMS, text) if line[0] == "-"]) == 6
    assert f"    - hub: o/gsm  # of grade school\n      revision: {D}\n" in text
    assert f"    model: o/big, revision: {A},  # the big one\n" in text
    assert f"precomputed: &zoo {{hub: o/zoo, revision: {A}, response: first}}," in text
    assert f"merged: {{model: o/small, revision: {B}, backend" in text
    assert f'  model: "o/small"   # learns\n  revision: {B}\n  license: MIT\n' in text
    assert f"  revision: {B}   # fill in\n  seed: 0\n" in text
    assert text.count(A) + text.count(B) + text.count(C) + text.count(D) + text.count(E) == 8
    assert len(hub.asked) == len(set(hub.asked)) == 6, "each question is asked once"
    again = CliRunner().invoke(app, ["pin"])
    assert again.stdout == "params.yaml: 0 revisions filled in, 10 as before\n"
    assert len(hub.asked) == 6


def test_a_dry_run_writes_nothing_and_an_update_asks_for_the_newest(hub: StubHub, params: Path) -> None:
    dry = CliRunner().invoke(app, ["pin", "--dry-run"])
    assert "9 revisions would be filled in (dry run), 1 as before" in dry.stdout
    assert params.read_text() == PARAMS
    assert len(pin_revisions(params, update=True).changes) == 10
    assert OLD not in params.read_text()
    found = pin_revisions(params, update=True)
    assert found.changes == [f"quality.reward_model.revision: {C} -> {E}"], "its branch is no longer named"


def test_all_that_cannot_be_found_is_said_at_once_and_the_rest_is_written(hub: StubHub, params: Path) -> None:
    text = PARAMS.replace("o/small", "o/none").replace("o/judge", "o/gated").replace("hub: o/chat", "hub: o//chat")
    params.write_text(text.replace("o/big, revision: null", "o/big, revision: v9"))
    found = pin_revisions(params)
    assert found.changes == [
        f"teachers.flow.precomputed.revision: null -> {A}",
        f"teachers.merged.precomputed.revision: null -> {A}",
        f"prompts.sources.1.revision: null -> {D}",
    ]
    assert params.read_text().count(A) == params.read_text().count(D) == 1
    patterns = [
        r"teachers\.flow\.revision: the model o/big has no branch or tag 'v9'; write null",
        r"teachers\.merged\.revision: the model o/none is not on the hub, or not for everybody; check its name",
        r"student\.revision: the model o/none is not on the hub",
        r"router\.revision: the model o/none is not on the hub",
        r"quality\.reward_model\.revision: the model o/gated is gated; accept its terms .* HF_TOKEN",
        r"prompts\.sources\.2\.revision: the data set o//chat is no name that the hub allows",
    ]
    assert all(map(re.match, patterns, found.mistakes)), found.mistakes
    assert len(found.mistakes) == len(patterns)
    again = CliRunner().invoke(app, ["pin"])
    assert again.exit_code == 1
    assert isinstance(again.exception, InputError)


def test_a_token_is_sent_and_who_has_none_is_told_of_gates(
    hub: StubHub, params: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = {"models/o/big"}
    assert [line for line in pin_revisions(params, dry_run=True).changes if "gated" in line] == [
        f"teachers.flow.revision: null -> {A} (gated: before it is loaded, accept its terms on its page, then set "
        "HF_TOKEN or run `hf auth login`)"
    ]
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert not [line for line in pin_revisions(params, dry_run=True).changes if "gated" in line]
    assert set(hub.tokens) == {None, "Bearer secret"}


def test_a_network_that_goes_away_is_one_line_and_what_was_found_is_kept(hub: StubHub, params: Path) -> None:
    hub.drops_after = 2
    found = pin_revisions(params)
    assert len(found.changes) == 4
    [line] = found.mistakes
    assert "cannot be reached" in line
    assert "revisions still to fill in: 5;" in line
    hub.drops_after = None
    assert (len(pin_revisions(params).changes), pin_revisions(params).kept) == (5, 10)


@pytest.mark.parametrize("offline", ["HF_HUB_OFFLINE", "HF_ENDPOINT"])
def test_without_a_network_the_command_says_so_in_one_line(params: Path, offline: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline == "HF_HUB_OFFLINE" else {"HF_ENDPOINT": "http://127.0.0.1:9"}
    environment |= {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "persyn.cli", "pin"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "params.yaml: 0 revisions filled in, 1 as before\n")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: the hub (http")
    assert "cannot be reached" in line
    assert "revisions still to fill in: 9" in line
    assert params.read_text() == PARAMS


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("student: {model: o/big}", f"student: {{model: o/big, revision: {A}}}"),
        ("student:\n  model: o/big", f"student:\n  model: o/big\n  revision: {A}"),
        ("student:\r\n  model: o/big\r\n  x: 1\r\n", f"student:\r\n  model: o/big\r\n  revision: {A}\r\n  x: 1\r\n"),
        ("m: &m o/big\nstudent: {model: *m}\n", f"m: &m o/big\nstudent: {{revision: {A}, model: *m}}\n"),
        ("student: &s\n  model: o/big\nrouter: *s\n", f"student: &s\n  model: o/big\n  revision: {A}\nrouter: *s\n"),
        ("student:\n  'model': 'o/big'\n", f"student:\n  'model': 'o/big'\n  revision: {A}\n"),
        ("student:\n  model: o/big\n  revision: 'main'\n", f"student:\n  model: o/big\n  revision: {B}\n"),
        ("# ä ö 🙂\nstudent: {model: o/big}\n", f"# ä ö 🙂\nstudent: {{model: o/big, revision: {A}}}\n"),
    ],
)
def test_every_layout_of_yaml_keeps_its_form(hub: StubHub, params: Path, before: str, after: str) -> None:
    hub.commits = {**COMMITS, "models/o/big/revision/main": B}
    params.write_bytes(before.encode())
    pin_revisions(params)
    assert params.read_bytes().decode() == after


def test_what_cannot_be_written_in_place_is_left_to_the_user(hub: StubHub, params: Path) -> None:
    text = "x: &r\nstudent:\n  model: o/big\n  revision: *r\n"
    params.write_text(text)
    with pytest.raises(InputError, match=r"nothing was written.*\nstudent: revision: a{40}"):
        pin_revisions(params)
    assert params.read_text() == text


def test_a_commit_of_digits_stays_text(hub: StubHub, params: Path) -> None:
    hub.commits = {"models/o/big": "1" * 40}
    params.write_text("student: {model: o/big}\n")
    pin_revisions(params)
    assert YAML(typ="safe", pure=True).load(params)["student"]["revision"] == "1" * 40


def test_every_revision_that_a_parameter_can_hold_is_known() -> None:
    """A section with a new revision must be looked at here too."""
    schema = json.loads((ROOT / "params.schema.json").read_text())
    sections = {name for name, part in schema["$defs"].items() if "revision" in part.get("properties", {})}
    assert sections == {
        "Teacher",
        "Finished",
        "MixSource",
        "Precomputed",
        "Source",
        "Student",
        "RouterSettings",
        "RewardModelSettings",
    }


@pytest.mark.parametrize("profile", ["paper-math", "paper-instruct", "code"])
def test_the_layouts_of_the_shipped_profiles_can_be_edited(
    params: Path, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    text = (ROOT / f"profiles/{profile}/params.yaml").read_text()
    blank = re.sub(r"revision: [0-9a-f]{40}", "revision: null", text)
    params.write_text(blank)
    entries: list[Any] = list(hub_entries(YAML(typ="safe", pure=True).load(blank)))
    with stub_hub({f"{entry.kind}s/{entry.name}": OLD for entry in entries}) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.close_session()
        found = pin_revisions(params)
    huggingface_hub.close_session()
    assert (len(found.changes), found.mistakes) == (len(entries), [])
    lines = (
        line if line.lstrip()[:1] == "#" else line.replace("revision: null", f"revision: {OLD}")
        for line in blank.splitlines()
    )
    assert params.read_text().splitlines() == list(lines)
