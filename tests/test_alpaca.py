"""The profile `alpaca`: its files are joined from invented ones, and its parameters read them."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from persyn.dataset import DatasetSettings, build_dataset
from persyn.defects import Policies
from persyn.errors import InputError
from persyn.generation.terms import Licenses
from persyn.project.params import read_params
from persyn.schemas import PROMPTS, RESPONSES, read_table
from stages.prompts import main as prompts_stage
from stages.responses import main as responses_stage
from tests.support.modules import load_module
from tests.support.tables import texts_of
from tests.support.tiny import ROOT

PROFILE = ROOT / "profiles/alpaca"
TEACHERS = {"gpt-4-preview": "gpt4_1106_preview", "gemma-2b": "gemma-2b-it", "mixtral-8x7b-concise": "Mixtral-8x7B"}
ASKED = {"Name a colour.": "koala", "Count to 3.\n": "oasst", "Why?": "koala", "Sing!": "vicuna"}


def output(text: str, said: str) -> dict[str, Any]:
    return {"dataset": ASKED.get(text, "koala"), "instruction": text, "output": said, "generator": "g"}


def annotation(text: str, said: str, preference: float | None) -> dict[str, Any]:
    return {"instruction": text, "output_1": "other", "output_2": said, "preference": preference}


def test_outputs_are_joined_with_their_preferences_and_the_rest_is_counted() -> None:
    outputs = [output(text, text.upper()) for text in "abcdef"] + [output("a", "again"), output("g", " ")]
    judged = [annotation(text, text.upper(), 1.25) for text in "abce"] + [annotation("g", " ", 2.0)]
    judged[1] |= {"output_2": "another"}
    judged[2] |= {"preference": None}
    judged += [annotation("e", "E", 1.5), annotation("z", "Z", 1.5)]
    rows, counts = load_module(PROFILE / "fetch.py").join(outputs, judged)
    assert rows == [
        {"instruction": "a", "output": "A", "preference": 0.25},
        {"instruction": "g", "output": " ", "preference": 1.0},
    ]
    assert counts == {
        "a second output": 1,
        "another output was judged": 1,
        "no preference": 1,
        "judged more than once": 1,
        "not judged": 2,
        "empty": 1,
        "judged without an output": 1,
    }
    assert len(outputs) == len(rows) + sum(counts.values()) - counts["empty"] - counts["judged without an output"]


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A working folder with the profile's files, made from a git repository of invented ones."""
    repository, fetch = tmp_path / "repository", load_module(PROFILE / "fetch.py")
    for name in TEACHERS.values():
        folder = repository / "results" / name
        (folder / "weighted_alpaca_eval_gpt4_turbo").mkdir(parents=True)
        said = {text: "" if (name, text) == ("gemma-2b-it", "Why?") else f"{name}: {text} é" for text in ASKED}
        outputs, judged = [output(*pair) for pair in said.items()], [annotation(*pair, 1.1) for pair in said.items()]
        (folder / "model_outputs.json").write_text(json.dumps(outputs))
        (folder / "weighted_alpaca_eval_gpt4_turbo" / "annotations.json").write_text(json.dumps(judged))
    who = "-c", "user.name=t", "-c", "user.email=t@localhost"
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "invented")):
        subprocess.run(("git", *words), cwd=repository, check=True)
    head = subprocess.run(("git", "rev-parse", "HEAD"), cwd=repository, check=True, capture_output=True, text=True)
    monkeypatch.setattr(fetch, "COMMIT", head.stdout.strip())
    monkeypatch.setattr(fetch, "TEACHERS", tuple(TEACHERS.values()))
    fetch.fetch(str(repository), tmp_path / "work/data/raw/alpaca")
    assert capsys.readouterr().out.splitlines() == [
        "prompts: 4",
        "gpt4_1106_preview: 4 rows",
        "gemma-2b-it: 4 rows, 1 empty",
        "Mixtral-8x7B: 4 rows",
    ]
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_the_profile_reads_what_was_fetched_and_no_dataset_holds_it(fetched: Path, chat_model: str) -> None:
    params = YAML(typ="safe", pure=True).load(PROFILE / "params.yaml")
    params["teachers"] = {name: params["teachers"][name] for name in TEACHERS}
    params["prices"] = {}
    for name, file in TEACHERS.items():
        where = {"path": f"data/raw/alpaca/{file}.jsonl", "tokenizer": chat_model}
        params["teachers"][name]["precomputed"] |= where
    YAML().dump(params, fetched / "params.yaml")
    prompts_stage("data/raw", "data/prompts.parquet", "prompts.json")
    prompts = read_table("data/prompts.parquet", PROMPTS)
    assert dict(zip(texts_of(prompts), prompts["source"], strict=True)) == {
        text.strip(): name for text, name in ASKED.items()
    }
    assert prompts["parallel"].all()
    for name, file in TEACHERS.items():
        responses_stage(name, "data/prompts.parquet", f"{name}.parquet")
        told = read_table(f"{name}.parquet", RESPONSES).join(prompts, on="prompt_id")
        silent = "Why?" if name == "gemma-2b" else None
        for text, response in zip(texts_of(told), told["response"], strict=True):
            whole = next(asked for asked in ASKED if asked.strip() == text)
            assert response == ("" if text == silent else f"{file}: {whole} é")
    forbidden = read_table("gpt-4-preview.parquet", RESPONSES)
    with pytest.raises(InputError, match=r"^teachers.gpt-4-preview .*compete with OpenAI"):
        build_dataset(prompts, forbidden, Policies(), read_params().teachers, Licenses(), DatasetSettings())


def test_every_teacher_of_the_profile_has_a_file_and_states_its_terms() -> None:
    params, fetch = YAML(typ="safe", pure=True).load(PROFILE / "params.yaml"), load_module(PROFILE / "fetch.py")
    entries = params["teachers"].values()
    files = [Path(entry["precomputed"]["path"]) for entry in entries]
    assert sorted(file.stem for file in files) == sorted(fetch.TEACHERS)
    assert {str(file.parent) for file in files} == {"data/raw/alpaca"}
    assert all(entry.get("terms") for entry in entries if entry["training"] != "allowed")
    assert len({source["label"] for source in params["prompts"]["sources"]}) == 5


def test_the_pages_give_the_routers_of_real_teachers_as_they_were_measured() -> None:
    """Rows of docs/science.md and, of the default router, of the README are those of `make evidence`, rounded once."""
    tables = json.loads((ROOT / "metrics/science/alpaca/evidence.json").read_text())["tables"]
    readme, science = ((ROOT / page).read_text().splitlines() for page in ("README.md", "docs/science.md"))
    learnt = "smollm2-135m-instruct, alpha {}, 600 prompts"
    for alpha, name in {"0": "alpha 0", "0.4": learnt.format(0.4), "0.7": learnt.format(0.7)}.items():
        for row in tables[name]:
            told = "| {difference:+.3f} [{low:+.3f}, {high:+.3f}] | {won}, {lost} |".format(**row)
            if row["router"] in ("regression", "blend", "knn"):
                assert any(line.startswith(f"| `{row['router']}`") and told in line for line in science), told
            if row["router"] == "regression":
                assert any(line.startswith(f"| {alpha}: ") and told in line for line in readme), told
    gemma = {
        name.split(", ")[1]: table for name, table in tables.items() if re.fullmatch(r"gemma3.* \d+ prompts", name)
    }
    assert sorted(gemma) == ["alpha 0.2", "alpha 0.4", "alpha 0.7", "alpha 1.0"]
    for name, table in gemma.items():
        row = next(row for row in table if row["router"] == "regression")
        told = "| {difference:+.3f} [{low:+.3f}, {high:+.3f}] | {won}, {lost} |".format(**row)
        assert f"{name.replace('alpha', '|')} {told}" in "\n".join(science), told
