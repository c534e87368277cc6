"""What leaves the project: the folder that datasets and trainers take, its card, and what is refused."""

import functools
import hashlib
import json
import math
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

import persyn.export.hub
from persyn.errors import InputError
from persyn.export import EXPORT, NULLABLE
from persyn.export.hub import write_export
from persyn.files import write_json
from persyn.messages import user_message
from persyn.schemas import DATASET, PROMPTS, RESPONSES, REWARDS, ROUTES, write_table
from tests.support.exports import HOSTILE, PARAMS, export, load, make


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A project that was run: 3 hostile prompts, 2 of them parallel, whose answers are hostile too."""
    monkeypatch.chdir(tmp_path)
    params = json.loads(json.dumps(PARAMS))
    make(params)
    return params


def test_datasets_loads_it_with_every_text_unchanged(project: dict[str, Any]) -> None:
    assert "exports/persyn: 3 rows of 2 teachers in 1 parquet file, 2 rows with scores" in export()
    files = sorted(str(path) for path in Path("exports").rglob("*") if path.is_file())
    assert files == ["exports/persyn/README.md", "exports/persyn/data/train-00000-of-00001.parquet"]
    loaded = load("exports/persyn")
    assert loaded.column_names == EXPORT.names()
    assert str(loaded.features["messages"]) == "List({'role': Value('string'), 'content': Value('string')})"
    rows = {row["prompt"][0]["content"]: row for row in loaded}
    assert set(rows) == set(HOSTILE)
    assert [row["prompt_id"] for row in loaded] == sorted(loaded["prompt_id"])
    for row in rows.values():
        assert row["messages"] == row["prompt"] + row["completion"]
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["teacher_model"] == f"model-{row['teacher_id']}"
        assert row["source"] == "p.jsonl"
        assert (row["strength"], row["margin"], row["finish_reason"]) == (1.5, 0.25, "stop")
    assert {row["completion"][0]["content"][3:] for row in rows.values()} == set(HOSTILE)
    scores = [(row["quality"], row["learnability"], row["reward"]) for row in loaded]
    assert scores == [(0.5, -1.25, 0.75), (0.5, -1.25, 0.75), (None, None, None)]


def test_without_a_router_there_is_no_strength(project: dict[str, Any]) -> None:
    export("--strategy", "strong")
    assert set(load("exports/strong")["strength"]) == set(load("exports/strong")["margin"]) == {None}
    assert "No router chose the teachers." in Path("exports/strong/README.md").read_text()


def test_a_response_that_was_not_the_scored_one_has_no_scores(project: dict[str, Any]) -> None:
    parallel = pl.read_parquet("data/responses/a.parquet").with_columns(response=pl.lit("another"))
    write_table(parallel, "data/responses/a.parquet", RESPONSES)
    export()
    assert [row["quality"] is None for row in load("exports/persyn")] == [True, False, True]


def test_datasets_never_takes_an_older_export_of_this_name_from_its_cache(project: dict[str, Any]) -> None:
    export()
    assert load("exports/persyn")["teacher_license"][0] == "MIT"
    project["teachers"]["a"]["license"] = project["teachers"]["b"]["license"] = "GPL"
    make(project)
    export("--force")
    assert load("exports/persyn")["teacher_license"][0] == "GPL"


def test_sft_trainer_takes_it_as_it_is_with_loss_on_the_response(project: dict[str, Any], chat_model: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    export()
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(chat_model),
        processing_class=tokenizer,
        train_dataset=load("exports/persyn"),
        args=SFTConfig(output_dir="sft", max_steps=2, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no"),
    )
    prepared: Any = trainer.train_dataset
    for row, given in zip(prepared, load("exports/persyn"), strict=True):
        trained = [label for label in row["labels"] if label != -100]
        assert 0 < len(trained) < len(row["input_ids"])
        assert tokenizer.decode(trained) == given["completion"][0]["content"] + "<|im_end|>\n"
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.global_step == len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


def test_equal_inputs_give_equal_bytes_in_as_many_shards_as_it_takes(project: dict[str, Any]) -> None:
    export("--out", "one")
    export("--out", "two")
    one, two = (
        {path.relative_to(name): path.read_bytes() for path in Path(name).rglob("*") if path.is_file()}
        for name in ("one", "two")
    )
    assert one == two
    rows = pl.read_parquet("one/data/*.parquet").select(pl.col(name).cast(kind) for name, kind in EXPORT.items())
    assert write_export(rows, lambda entry: Path("one/README.md").read_text(), Path("many"), False, shard_bytes=1) == 3
    assert sorted(path.name for path in Path("many/data").iterdir())[-1] == "train-00002-of-00003.parquet"
    assert load("many").to_list() == load("one").to_list()


def test_the_card_is_valid_and_says_where_the_data_is_from(project: dict[str, Any]) -> None:
    export()
    card = DatasetCard.load(Path("exports/persyn/README.md"))
    [config] = card.data["configs"]
    assert re.fullmatch("sha256 of the data: [0-9a-f]{64}", config["description"])
    assert config["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    for said in (
        'rule persyn, parameters {"exclude": \\[\\]}',
        "alpha: 0.4",
        "made for: student (licence MIT)",
        "instruction by reward\\_model; model judge",
        "hit\\_at\\_1 0.5; its reward minus that of the one teacher of the highest mean reward: -0.300 (95 % -0.400 to "
        "-0.200), differs; measured without c",
        "over the teachers of one prompt, minus 1 where an answer has a defect (empty, refusal, repetition, ",
        "compared with: evaluation/x.jsonl",
        "6 of the prompts read repeated an item",
        "| a | 66.7% | 2 |",
        "| b | model-b |  | MIT | allowed | 1 | 33.3% |",
        "2 of 3 rows have scores",
        "git commit: unknown",
        "aclanthology.org/2026.acl-long.666",
    ):
        assert said in card.text, said
    assert all(f"| {name} |".replace("_", "\\_") in card.text for name in EXPORT.names())
    assert [name for name in EXPORT.names() if "null" in card.text.split(f"| {name} |")[-1].split("\n")[0]] == list(
        NULLABLE
    )
    for hidden in ("someone", str(Path.cwd()), "Owned", "HYPERLINK", "\x1b"):
        assert hidden not in card.content


@pytest.mark.parametrize("form", ["hub", "dpo"])
def test_the_card_says_where_a_gate_makes_the_reward(project: dict[str, Any], form: str) -> None:
    said = "Behind a gate, a least quality (math 1, code 0.5), it is the normalised learnability alone"
    table = pl.read_parquet("data/rewards.parquet")
    write_table(table.with_columns(reward=pl.int_range(pl.len()).cast(float)), "data/rewards.parquet", REWARDS)
    export("--format", form, "--out", "without")
    assert "gate" not in Path("without/README.md").read_text()
    project["rewards"]["gate"] = {"math": 1.0, "code": 0.5}
    YAML().dump(project, Path("params.yaml"))
    export("--format", form, "--out", "with")
    assert said in Path("with/README.md").read_text()


def test_names_from_params_stay_text_in_the_card(project: dict[str, Any]) -> None:
    hostile = "x | <b>y</b> [a](http://e.vil) `c` \u202e\x1b[2J"
    export("--out", "plain")
    for entry in project["teachers"].values():
        entry |= {"model": hostile, "license": hostile}
    project["student"]["model"] = project["strategies"]["persyn"]["note"] = hostile
    project["quality"]["reward_model"]["model"] = project["prompts"]["decontaminate"][0]["path"] = hostile
    make(project, hostile)
    export("--out", "hostile")
    render = MarkdownIt("commonmark").enable("table").render
    plain, card = (render(DatasetCard.load(Path(name) / "README.md").text) for name in ("plain", "hostile"))
    tags = [text.count("<") for text in (plain, card)]
    assert tags[0] == tags[1]
    assert not set("\x1b\u202e") & set(card)
    assert load("hostile")[0]["teacher_model"] == hostile, "in the data it is as it is"


def lose(path: str) -> Callable[[dict[str, Any]], None]:
    return lambda params: Path(path).unlink()


def change(path: str, schema: pl.Schema, **values: Any) -> Callable[[dict[str, Any]], None]:
    def changed(params: dict[str, Any]) -> None:
        table = pl.read_parquet(path)
        columns = [pl.Series(name, [value] * table.height).cast(schema[name]) for name, value in values.items()]
        write_table(table.with_columns(columns), path, schema)

    return changed


def forbid(params: dict[str, Any]) -> None:
    params["teachers"]["a"] |= {"training": "forbidden", "terms": "Terms, 2c"}


def show_key(params: dict[str, Any]) -> None:
    params["strategies"]["persyn"]["note"] = "hf_" + "x" * 26


def spoil(path: str) -> Callable[[dict[str, Any]], None]:
    def spoilt(params: dict[str, Any]) -> None:
        Path(path).write_bytes(b"<<<<<<< HEAD\nstages: [")

    return spoilt


def empty(params: dict[str, Any]) -> None:
    params["strategies"]["persyn"] = None


@pytest.mark.parametrize(
    ("break_it", "arguments", "message"),
    [
        (None, ["--strategy", "persym"], r"--strategy 'persym' is not in params.yaml; did you mean persyn\?"),
        (None, ["--public"], "--public says who sees what is pushed; name the dataset"),
        (None, ["--push", "name"], "--push is 'name'; it must be owner/name"),
        (None, ["--push", "../../x"], "--push is '../../x'; it must be owner/name"),
        (None, ["--push", "owner/name"], "nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN"),
        (None, ["--rev", "nonsense"], "cannot read 'nonsense'"),
        (None, ["--out", "params.yaml"], "params.yaml is not a folder"),
        (
            None,
            ["--out", "data"],
            r"data holds files, such as dataset/persyn.parquet, that are not an unchanged export",
        ),
        (lose("params.yaml"), [], "has no params.yaml here"),
        (lose("data/rewards.parquet"), [], "data/rewards.parquet of workspace does not exist; run `dvc repro`"),
        (lose("metrics/router.json"), [], "metrics/router.json of workspace does not exist; run `dvc repro`"),
        (change("data/routes/persyn.parquet", ROUTES, teacher="a"), [], "1 of 3 rows of the dataset have no route"),
        (change("data/routed/persyn.parquet", RESPONSES, response="x"), [], "3 of 3 rows .* have another response"),
        (
            change("data/dataset/persyn.parquet", DATASET, teacher="c"),
            [],
            "holds responses of c, which params.yaml does not name",
        ),
        (change("data/dataset/persyn.parquet", DATASET, training="unknown"), [], "3 of 3 rows .* have other terms"),
        (change("data/dataset/persyn.parquet", DATASET, license="GPL"), [], "3 of 3 rows .* have another licence"),
        (
            change("data/prompts.parquet", PROMPTS, prompt=user_message("x")),
            [],
            "3 of 3 rows of the dataset are not of a prompt",
        ),
        (forbid, [], r"teachers.a \(model-a\): its terms forbid training other models on its outputs \(Terms, 2c\)"),
        (show_key, [], "holds what looks like a key"),
        (empty, [], "--strategy 'persyn' is not in params.yaml"),
        (lambda params: params.pop("quality"), [], "quality in params.yaml must be keys and their values, got None"),
        (spoil("data/rewards.parquet"), [], r"data/rewards.parquet of workspace is damaged \(.*\); delete it"),
        (spoil("metrics/router.json"), [], r"metrics/router.json of workspace is no json \(.*\); run `dvc repro`"),
        (spoil("dvc.lock"), [], "cannot read dvc.lock of workspace: "),
        (None, ["--out", "x" * 300], "cannot be read: File name too long; choose another --out"),
    ],
)
def test_a_mistake_is_one_clear_line_and_writes_nothing(
    project: dict[str, Any], monkeypatch: pytest.MonkeyPatch, break_it: Any, arguments: list[str], message: str
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if break_it:
        break_it(project)
        if Path("params.yaml").exists():
            YAML().dump(project, Path("params.yaml"))
    before = sorted(Path().rglob("*"))
    with pytest.raises(InputError, match=message) as raised:
        export(*arguments)
    assert "\n" not in str(raised.value)
    assert sorted(Path().rglob("*")) == before


def test_what_lies_in_the_folder_is_never_lost(project: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("empty").mkdir()
    export("--out", "empty")
    export("--out", "empty")
    first = Path("empty/README.md").read_text()
    project["rewards"]["alpha"] = 0.5
    make(project)
    with pytest.raises(InputError, match="empty holds an earlier export that differs; --force replaces it"):
        export("--out", "empty")
    assert Path("empty/README.md").read_text() == first
    with monkeypatch.context() as broken:
        rename = Path.rename
        refuse = lambda self, to: rename(self, to) if not self.name.endswith(".partial") else 1 / 0  # noqa: E731
        broken.setattr(Path, "rename", refuse)
        with pytest.raises(ZeroDivisionError):
            export("--out", "empty", "--force")
    assert Path("empty/README.md").read_text() == first
    export("--out", "empty", "--force")
    assert "alpha: 0.5" in Path("empty/README.md").read_text()
    Path("empty/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"empty holds files, such as notes.txt, that are not an unchanged export"):
        export("--out", "empty", "--force")
    for text in ("# Mine\n", "# Mine\n\n- persyn\n", first):
        Path("other").mkdir(exist_ok=True)
        Path("other/README.md").write_text(text)
        with pytest.raises(InputError, match="other holds files that are not an unchanged export"):
            export("--out", "other", "--force")
    Path("empty/notes.txt").unlink()
    shard = Path("empty/data/train-00000-of-00001.parquet")
    shard.write_bytes(shard.read_bytes() + b"more")
    with pytest.raises(InputError, match="empty holds files that are not an unchanged export"):
        export("--out", "empty", "--force")
    assert not list(Path().glob(".*"))


def test_an_export_whose_replacement_was_killed_is_there_again(project: dict[str, Any]) -> None:
    export()
    Path("exports/persyn").rename("exports/.persyn.1.old")
    Path("exports/.persyn.1.partial").mkdir()
    project["rewards"]["alpha"] = 0.5
    make(project)
    with pytest.raises(InputError, match="holds an earlier export that differs"):
        export()
    assert "alpha: 0.4" in Path("exports/persyn/README.md").read_text()


@pytest.mark.parametrize(
    ("change_it", "message"),
    [
        (lambda params: params["rewards"].update(alpha=0.9), "rewards in params.yaml is not what dvc.lock has"),
        (lambda params: params["strategies"]["persyn"].update(x=1), "strategies.persyn in params.yaml is not"),
        (
            change("data/rewards.parquet", REWARDS, reward="7"),
            "data/rewards.parquet is not what dvc.lock has for .*rewards",
        ),
        (lambda params: write_json({"hit_at_1": 1.0}, "metrics/router.json"), "metrics/router.json is not what"),
    ],
)
def test_tables_and_parameters_of_other_runs_are_refused(
    project: dict[str, Any], change_it: Callable[[dict[str, Any]], None], message: str
) -> None:
    def recorded(path: str) -> dict[str, str]:
        return {"path": path, "md5": hashlib.md5(Path(path).read_bytes()).hexdigest()}

    def entry(params: list[str], deps: list[str], outs: list[str]) -> dict[str, Any]:
        values = {name: functools.reduce(lambda node, key: node[key], name.split("."), project) for name in params}
        of = {"deps": [recorded(path) for path in deps], "outs": [recorded(path) for path in outs]}
        return of | {"params": {"params.yaml": json.loads(json.dumps(values))}}

    stages = {
        "rewards": entry(["rewards"], [], ["data/rewards.parquet"]),
        "router": entry([], ["data/rewards.parquet"], ["metrics/router.json"]),
        "routes@persyn": entry(["strategies.persyn"], ["data/rewards.parquet"], ["data/routes/persyn.parquet"]),
        "dataset@persyn": entry([], ["data/routed/persyn.parquet"], ["data/dataset/persyn.parquet"]),
    }
    YAML().dump({"schema": "2.0", "stages": stages}, Path("dvc.lock"))
    export()
    card = Path("exports/persyn/README.md").read_text()
    assert re.search(r"DVC: data/dataset/persyn.parquet is [0-9a-f]{32} \(md5, dvc.lock\)", card)
    change_it(project)
    YAML().dump(project, Path("params.yaml"))
    with pytest.raises(InputError, match=message):
        export("--force")
    assert Path("exports/persyn/README.md").read_text() == card


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, bool]]:
    """What is pushed: folder, dataset, private. Nothing reaches the network."""
    calls: list[tuple[str, str, bool]] = []

    def push(folder: Path, repo: str, private: bool) -> str:
        calls.append((str(folder), repo, private))
        return "commit"

    def refuse(*arguments: object) -> None:
        raise AssertionError("nothing is to be asked")

    monkeypatch.setattr(persyn.export.hub, "push_export", push)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    return calls


def test_it_is_pushed_on_request_only_and_privately_unless_told(project: dict[str, Any], pushed: list[Any]) -> None:
    export()
    assert pushed == []
    assert "pushed: commit" in export("--push", "owner/name")
    export("--push", "owner/name", "--public")
    assert pushed == [("exports/persyn", "owner/name", True), ("exports/persyn", "owner/name", False)]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"training": "unknown"}, "the terms of b are unknown"),
        ({"training": "forbidden"}, "the terms of b are forbidden"),
        ({}, "the prompts of p.jsonl name no licence"),
    ],
)
def test_what_terms_forbid_or_leave_open_is_not_published_by_accident(
    project: dict[str, Any], pushed: list[Any], entry: dict[str, str], reason: str
) -> None:
    project["teachers"]["b"] |= entry
    project["licenses"]["allow_forbidden"] = ["b"]
    make(project)
    if not entry:
        change("data/prompts.parquet", PROMPTS, license="")(project)
        change("data/dataset/persyn.parquet", DATASET, license="")(project)
    with pytest.raises(InputError, match=f"not pushed publicly: {reason}; .* --accept-terms if you have permission"):
        export("--push", "owner/name", "--public")
    assert pushed == []
    assert not Path("exports").exists()
    export("--push", "owner/name")
    export("--push", "owner/name", "--public", "--accept-terms")
    assert [private for *_, private in pushed] == [True, False]
