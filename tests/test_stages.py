"""The whole chain on tiny random models: every stage's main(), from raw prompts to the comparison."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import polars as pl
import pytest
from huggingface_hub import DatasetCard
from ruamel.yaml import YAML

from persyn import schemas
from persyn.errors import InputError
from persyn.models.packaged import packaged_model
from persyn.project.params import PARAMS
from persyn.schemas import read_table
from persyn.store import count_rows, shelves, store_folder
from tests.support.damage import damaged_inputs
from tests.support.tiny import build_model, tiny_params, tiny_project


def run_stage(name: str, *arguments: str) -> None:
    import_module(f"stages.{name}").main(*arguments)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped parameters, every model replaced by a tiny random one."""
    folder = tiny_project(tmp_path / "project", tiny_params(build_model(tmp_path / "tiny")))
    monkeypatch.chdir(folder)
    return folder


PROMPTS, SHARES = "data/prompts.parquet", "metrics/allocation"


def run_up_to_routed(teachers: list[str], strategies: list[str]) -> None:
    run_stage("prompts", "data/raw", PROMPTS, "metrics/prompts.json")
    for teacher in teachers:
        responses = f"data/responses/{teacher}.parquet"
        run_stage("responses", teacher, PROMPTS, responses)
        run_stage("quality", teacher, PROMPTS, responses, f"data/quality/{teacher}.parquet")
    run_stage("learnability", PROMPTS, "data/responses", "data/learnability")
    run_stage("defects", PROMPTS, "data/responses", "data/defects.parquet", "metrics/defects.json")
    scored = "data/quality", "data/learnability", "data/defects.parquet"
    run_stage("rewards", PROMPTS, *scored, "data/rewards.parquet", "metrics/rewards.json")
    run_stage("pairs", "data/rewards.parquet", "data/pairs.parquet")
    trained = "models/router", "metrics/router.json", "metrics/reports/reliability.csv", "metrics/live/router"
    run_stage("router", PROMPTS, "data/rewards.parquet", "data/pairs.parquet", *trained)
    for name in strategies:
        routes, routed = f"data/routes/{name}.parquet", f"data/routed/{name}.parquet"
        run_stage(
            "routes",
            name,
            PROMPTS,
            "data/rewards.parquet",
            "models/router",
            "data/responses",
            "data/defects.parquet",
            routes,
            f"{SHARES}/{name}.json",
        )
        run_stage("routed", PROMPTS, routes, "data/responses", routed)
    run_stage("cost", PROMPTS, "data/responses", "data/routes", "data/routed", "metrics/cost.json")


def answered() -> set[tuple[str, str]]:
    """Every (prompt, teacher) that a table holds an answer for."""
    files = [*Path("data/responses").iterdir(), *Path("data/routed").iterdir()]
    return {pair for file in files for pair in pl.read_parquet(file).select("prompt_id", "teacher").rows()}


def paid() -> int:
    """Calls that the store has seen."""
    return sum(
        count_rows(shelf)["answers"] + count_rows(shelf)["cut at max_tokens"] for shelf in shelves(store_folder())
    )


def test_from_raw_prompts_to_the_comparison(project: Path) -> None:
    params = YAML(typ="safe", pure=True).load(project / PARAMS)
    teachers, strategies = list(params["teachers"]), list(params["strategies"])
    run_up_to_routed(teachers, strategies)
    for name in strategies:
        routes, routed = f"data/routes/{name}.parquet", f"data/routed/{name}.parquet"
        made = f"data/dataset/{name}.parquet", f"metrics/d-{name}.json", f"data/cards/{name}.md"
        run_stage("dataset", name, PROMPTS, "metrics/prompts.json", routes, routed, *made)
        trained = f"models/student/{name}", f"metrics/{name}.csv", f"metrics/live/student/{name}"
        run_stage("student", f"data/dataset/{name}.parquet", *trained)
        scores, samples = f"metrics/evaluation/{name}.json", f"data/evaluation/{name}.parquet"
        run_stage("evaluation", f"models/student/{name}", "tasks", scores, samples)
    run_stage("beside", "tasks", "data/beside", "metrics/beside.json")
    run_stage("comparison", "data/evaluation", "data/beside", "metrics/comparison.json", "metrics/comparison.md")
    scored = "data/quality", "data/learnability", "data/defects.parquet", "data/rewards.parquet"
    measured = SHARES, "metrics/evaluation", "metrics/beside.json", "metrics/comparison.json", "metrics/cost.json"
    run_stage("plots", PROMPTS, *scored, *measured, "metrics/reports/plots", "metrics/reports/dvc.yaml")

    for table in ("rewards", "pairs", "prompts", "defects"):
        read_table(f"data/{table}.parquet", getattr(schemas, table.upper()))
    answers = read_table("data/routed/persyn.parquet", schemas.RESPONSES)
    chosen = read_table("data/routes/persyn.parquet", schemas.ROUTES)
    assert answers.select("prompt_id", "teacher").equals(chosen.select("prompt_id", "teacher"))
    assert set(answers["prompt_id"]) == set(read_table(PROMPTS, schemas.PROMPTS)["prompt_id"])
    parallel = pl.concat([pl.read_parquet(f"data/responses/{teacher}.parquet") for teacher in teachers])
    reused = answers.join(parallel, on=["prompt_id", "teacher"], how="inner", validate="1:1")
    assert reused.height == 8, "a parallel prompt is not answered twice"
    assert reused["response"].equals(reused["response_right"])
    rows = read_table("data/dataset/strong.parquet", schemas.DATASET)
    assert set(rows.select("license", "teacher_license", "training").rows()) == {("Apache-2.0", "Gemma", "conditional")}
    card = DatasetCard.load(Path("data/cards/strong.md"))
    assert card.data["license"] == "other"
    assert f"| conditional | {rows.height} | 100.0% |" in card.text
    assert "is a Model Derivative" in card.text
    assert str(project) not in card.content
    measured = json.loads(Path("metrics/evaluation/persyn.json").read_text())
    assert measured["persyn_ifeval"]["prompt_level_strict_acc"]["n"] == 2
    assert measured["persyn_math"]["math_verify"]["n"] == 2
    comparison = json.loads(Path("metrics/comparison.json").read_text())
    assert comparison.keys() == {*strategies, "untuned"} - {"persyn"}
    assert "untuned" not in json.loads(Path("metrics/cost.json").read_text())["routed"]
    assert pl.read_csv("metrics/reports/plots/allocation.csv").height == len(strategies) * len(teachers)
    assert pl.read_csv("metrics/live/student/persyn/plots/metrics/loss.tsv", separator="\t").columns == ["step", "loss"]
    assert json.loads(Path("metrics/cost.json").read_text())["generate_then_select"]["calls"] == 36
    assert not list(project.rglob("*.partial"))
    survived, told = set(), []
    for damage, call in damaged_inputs(project / "scratch"):
        try:
            call()
            survived.add(damage.split()[1])
        except InputError as error:
            told.append(str(error))
    assert len(told) > 100
    assert not [message for message in told if "\n" in message]
    # What was responded to the parallel set is read by a rule that needs lengths alone; sources are those of one file.
    assert survived <= {"data/responses", "data/raw", "models/student/persyn"}, survived


def test_no_answer_is_paid_for_twice(project: Path) -> None:
    """Outputs deleted, another alpha, a second student, a new strategy: only what nobody answered is asked."""
    params = YAML(typ="safe", pure=True).load(project / PARAMS)
    teachers, strategies = list(params["teachers"]), list(params["strategies"])
    run_up_to_routed(teachers, strategies)
    known, calls = answered(), paid()
    ledger = json.loads(Path("metrics/cost.json").read_text())
    assert calls == len(known) == ledger["total"]["spent"]["calls"]

    for folder in ("data/responses", "data/routed"):
        shutil.rmtree(folder)  # as DVC does before a stage runs
    run_up_to_routed(teachers, strategies)
    assert paid() == calls
    assert json.loads(Path("metrics/cost.json").read_text()) == ledger

    params["rewards"]["alpha"] = 1.0
    params["student"]["model"] = build_model(project / "second", family="qwen2")
    params["strategies"]["other"] = {"rule": "strong", "teacher": teachers[0]}
    params["router"]["beside"] = ["source"]
    params["strategies"]["two"] = {"rule": "persyn", "router": "source", "max_tokens": 1e6, "second_below": 1e6}
    params["strategies"]["itself"] = {"rule": "persyn", "router": "regression"}
    YAML().dump(params, project / PARAMS)
    run_up_to_routed(teachers, [*strategies, "other", "two", "itself"])
    assert pl.read_parquet("data/routes/itself.parquet").equals(pl.read_parquet("data/routes/persyn.parquet"))
    new = answered() - known
    assert new, "the new strategy needs some"
    assert paid() == calls + len(new)
    tables = PROMPTS, "metrics/prompts.json", "data/routes/two.parquet", "data/routed/two.parquet"
    run_stage("dataset", "two", *tables, "d.parquet", "metrics/d.json", "d.md")
    counts = json.loads(Path("metrics/d.json").read_text())
    assert counts["rows"] == 2 * 12, "two teachers for every prompt"
    assert counts["kept"] == pl.read_parquet("d.parquet")["prompt_id"].n_unique()
    assert counts["kept"] == 24 - sum(counts["dropped"].values())


def test_the_student_itself_responds_to_the_parallel_set_and_to_nothing_else(project: Path) -> None:
    """It is in the tables of what was asked and scored, in the ledger, and in nothing that routes or trains."""
    params = YAML(typ="safe", pure=True).load(project / PARAMS)
    teachers, strategies = list(params["teachers"]), list(params["strategies"])
    entry = dict(params["teachers"]["smollm2-terse"], training="forbidden", is_student=True)
    params["teachers"]["me"] = {name: value for name, value in entry.items() if name != "system"}
    params["rewards"]["unsolved"] = 0.5
    YAML().dump(params, project / PARAMS)
    run_up_to_routed([*teachers, "me"], strategies)
    assert {file.stem for file in Path("data/learnability").iterdir()} == set(teachers)
    for table in ("rewards", "routes/persyn", "routed/strong", "routed/random"):
        assert set(pl.read_parquet(f"data/{table}.parquet")["teacher"]) <= set(teachers)
    assert set(pl.read_parquet("data/defects.parquet")["teacher"]) <= {*teachers, "me"}
    assert json.loads(Path("metrics/router.json").read_text())["share"].keys() == set(teachers)
    counts = json.loads(Path("metrics/rewards.json").read_text())
    assert counts["teachers"].keys() == set(teachers)
    assert counts["unsolved"]["prompts"] + counts["unsolved"]["left_out"]["response"] == counts["kept"] == 8
    ledger = json.loads(Path("metrics/cost.json").read_text())
    assert ledger["parallel"]["me"]["calls"] == 8
    assert ledger["generate_then_select"]["calls"] == 36
    assert ledger["total"]["spent"]["calls"] == len(answered()) == paid()
    assert {name for _, name in answered()} == {*teachers, "me"}


def test_unknown_tasks_teachers_and_packages_are_named(project: Path) -> None:
    params = YAML(typ="safe", pure=True).load(project / PARAMS)
    params["evaluation"]["tasks"] = ["persyn_maths"]
    YAML().dump(params, project / PARAMS)
    model = params["student"]["model"]
    with pytest.raises(InputError, match=r"\['persyn_maths'\]"):
        run_stage("evaluation", model, "tasks", "metrics/e.json", "data/e.parquet")
    with pytest.raises(InputError, match=r"'smollm2-ters' .*teachers.*did you mean smollm2-terse\?"):
        run_stage("responses", "smollm2-ters", "data/prompts.parquet", "data/r.parquet")
    with pytest.raises(InputError, match=r"'persin' .*strategies.*did you mean persyn\?"):
        run_stage("routes", "persin", *["none"] * 7)
    with pytest.raises(InputError, match="there is no packaged model 'gpt2'"):
        packaged_model("gpt2")
    assert not (project / "metrics").exists()


def test_references_that_cannot_be_used_stop_the_prompts_all_at_once(project: Path) -> None:
    """Before anything is generated: answers, instruction arguments and missing references, in one line."""
    check = {"instruction_id": "length_constraints:number_words", "kwargs": {"num_words": "30", "relation": "at least"}}
    rows = [
        {"prompt": "Say hello to everyone.", "reference": json.dumps([check])},
        {"prompt": "How many apples are left?", "reference": "see above"},
        {"prompt": "How many pears are left?", "reference": "1,22"},
    ]
    for number, row in enumerate(rows):
        (project / f"data/raw/{number}.jsonl").write_text(json.dumps(row))
    (project / "data/raw/3.jsonl").write_text(json.dumps({"prompt": "Write a program that adds."}))
    params = YAML(typ="safe").load(Path("params.yaml"))
    domains = ("instruction", "math", "math", "code")
    params["prompts"] |= {
        "sources": [
            {"path": f"{number}.jsonl", "domain": domain} | ({} if domain == "code" else {"reference": "reference"})
            for number, domain in enumerate(domains)
        ],
        "decontaminate": [],
        "num_parallel": None,
    }
    params["quality"]["methods"] = {"instruction": "checkers", "math": "math_verify", "code": "unit_tests"}
    YAML().dump(params, Path("params.yaml"))
    with pytest.raises(InputError) as error:
        run_stage("prompts", "data/raw", PROMPTS, "metrics/prompts.json")
    message = str(error.value)
    assert message.startswith("3 references cannot be used by quality.methods of instruction, math; first: ")
    assert "num_words of length_constraints:number_words is '30'; it must be a whole number" in message
    assert "'see above' is not a mathematical answer (source 1.jsonl)" in message
    assert "'1,22' can be read in two ways (source 2.jsonl)" in message
    assert "1 parallel prompts of code have no reference, which unit_tests needs" in message
    assert "\n" not in message
    assert not Path(PROMPTS).exists()
