"""Recipes: every shipped one fits its profile, runs in a project of its own and ends in one table and one plot."""

import json
from pathlib import Path
from typing import Any

import pytest

from persyn.errors import InputError
from persyn.project.params import check_params
from science import project
from science.project import (
    lay_out,
    load_profile,
    make_project,
    profile_name,
    raw_folder,
    reproduce,
    seeded,
    with_changes,
)
from science.recipes import Recipe, card_samples, collect, load_recipes, plan_jobs, run_jobs
from science.report import ROUTER_ALONE, write_report
from science.studies import STUDIES
from tests.support.tiny import build_model, tiny_params

ROOT = Path(__file__).parent.parent
MICRO = load_profile(ROOT / "profiles/micro.yaml")
RECIPES = load_recipes(ROOT / "science/recipes.yaml")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(project, "WORK", tmp_path / "work")
    monkeypatch.setattr("science.recipes.WORK", tmp_path / "work")
    monkeypatch.setattr(project, "CACHE", tmp_path / "cache")
    return tmp_path / "work"


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_variant_of_every_recipe_binds_to_the_code(name: str) -> None:
    jobs = plan_jobs("micro", MICRO, {name: RECIPES[name]}, [0, 1])
    assert len({job.name for job in jobs}) == len(jobs) == 2 * max(1, len(RECIPES[name].variants))
    for job in jobs:
        params = check_params(job.params, job.name)
        assert {target.removeprefix("evaluation@") for target in job.targets[1:]} <= set(params.strategies)
        assert params.router.seed == params.sft.seed == params.prompts.seed == job.seed


def test_the_study_of_the_laptop_binds_to_the_code_and_has_the_untuned_student() -> None:
    folder = ROOT / "profiles/laptop"
    recipes, params = load_recipes(folder / "recipes.yaml"), load_profile(folder / "params.yaml")
    jobs = plan_jobs("laptop", params, recipes, [0, 1, 2], raw_folder(folder / "params.yaml"))
    assert [job.name for job in jobs if "beside" in job.targets] == [f"laptop/strategies-0-{seed}" for seed in range(3)]
    for job in jobs:
        strategies = set(check_params(job.params, job.name).strategies)
        assert {target.removeprefix("evaluation@") for target in job.targets[1:]} <= strategies | {"beside"}
        assert job.raw == folder / "data/raw"


def test_a_student_that_no_strategy_trains_is_refused() -> None:
    recipe = Recipe(question="why", reference="persyn", students=["persyn", "untunned"])
    with pytest.raises(
        InputError, match=r"recipe a: no strategy and no finished model is called untunned; did you mean"
    ):
        plan_jobs("micro", MICRO, {"a": recipe}, [0])


def test_a_profile_has_raw_prompts_of_its_own_or_those_of_the_demo(tmp_path: Path) -> None:
    assert raw_folder(ROOT / "profiles/micro.yaml") == raw_folder(tmp_path / "params.yaml") == ROOT / "data/raw"
    (tmp_path / "data/raw").mkdir(parents=True)
    assert raw_folder(tmp_path / "params.yaml") == tmp_path / "data/raw"


def test_a_project_has_its_parameters_to_the_letter(tmp_path: Path) -> None:
    texts = [f"Return those that {n} divides.\n\nAnswer with the code, it's ```{n}```." for n in range(40)]
    template = "{{ prompt in " + repr(texts) + " }}"
    lay_out(tmp_path, {"prompts": {"where": template}}, ROOT / "data/raw", ROOT / "tasks", tmp_path / "cache")
    assert load_profile(tmp_path / "params.yaml") == {"prompts": {"where": template}}


def test_a_profile_is_called_by_its_file_or_its_folder() -> None:
    assert profile_name(ROOT / "profiles/micro.yaml") == "micro"
    assert profile_name(ROOT / "profiles/laptop/params.yaml") == "laptop"


def test_changes_reach_deep_and_leave_the_profile_alone() -> None:
    params = {"router": {"seed": 0}, "quality": {"methods": {"math": "a"}}}
    changed = with_changes(params, {"quality.methods.math": "b", "router.lora": {"r": 4}})
    assert changed == {"router": {"seed": 0, "lora": {"r": 4}}, "quality": {"methods": {"math": "b"}}}
    assert params["quality"] == {"methods": {"math": "a"}}
    with pytest.raises(InputError, match=r"ruoter.seed: the profile has no section ruoter; did you mean router\?"):
        with_changes(params, {"ruoter.seed": 1})


def test_recipes_that_cannot_work_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipes.yaml"
    file.write_text("alpha: {question: why, reference: '3', variants: {'1': {}, '2': {}}}")
    with pytest.raises(InputError, match="recipe alpha: reference '3' is not among 1, 2"):
        load_recipes(file)
    file.write_text("alpha: {question: why, reference: '1', varants: {'1': {}}}")
    with pytest.raises(InputError, match=r"recipe alpha.varants is not a parameter; did you mean variants\?"):
        load_recipes(file)


@pytest.mark.slow
def test_a_recipe_runs_its_variants_and_ends_in_a_table_and_a_plot(work: Path, tmp_path: Path) -> None:
    """The real pipeline on a tiny random model, two values of alpha: what both share runs once."""
    params = tiny_params(build_model(tmp_path / "tiny"))
    params["teachers"] = dict(list(params["teachers"].items())[:2])
    params["strategies"] = {"persyn": {"rule": "persyn"}}
    params["evaluation"]["tasks"] = ["persyn_math"]
    variants: dict[str, dict[str, Any]] = {"0.5": {"rewards.alpha": 0.5}, "1": {"rewards.alpha": 1.0}}
    recipe = Recipe(question="Does alpha matter?", reference="1", axis="rewards.alpha", variants=variants)
    jobs = plan_jobs("tiny", params, {"alpha": recipe}, [0])
    prepared: list[int] = []
    run_jobs(jobs, 2, prepared.append)
    assert prepared == [0]
    for job in jobs:
        shared = f"Running stage 'responses@{next(iter(params['teachers']))}'"
        assert (shared in (job.folder / "repro.log").read_text()) == (job.variant == "0.5"), (
            "the second variant takes it from the run cache"
        )
    comparison = collect(recipe, jobs)
    assert comparison.keys() == {"0.5", "1"}
    assert comparison["1"]["router"]["regret"]["n_seeds"] == 1
    text = write_report("alpha", recipe.question, recipe.axis, comparison, "python -m science alpha", tmp_path / "out")
    assert "within noise" not in text, "one seed tests nothing"
    assert ROUTER_ALONE in text
    assert json.loads((tmp_path / "out/alpha.json").read_text())["variants"].keys() == {"0.5", "1"}
    assert (tmp_path / "out/alpha.svg").read_text().count("Does alpha matter?") == 1
    study, _, reference = STUDIES["controls"]
    assert set(study(jobs[0].folder, 0)) == {reference, "majority", "source", "knn", "shuffled", "unshrunk"}


def test_the_committed_results_of_the_micro_world_say_what_the_readme_says() -> None:
    """`make science`: the router finds what was planted, shuffled labels do not, and routing beats one teacher."""

    def mean(recipe: str, variant: str, task: str, metric: str) -> float:
        file = ROOT / f"metrics/science/micro/{recipe}.json"
        return json.loads(file.read_text())["variants"][variant][task][metric]["mean"]

    hits = {
        name: mean("controls", name, "router", "hit_at_1") for name in ("router", "planted", "majority", "shuffled")
    }
    assert hits["router"] >= 0.9 * hits["planted"]
    assert hits["shuffled"] < (hits["router"] + hits["majority"]) / 2
    accuracy = {name: mean("strategies", name, "micro", "math_verify") for name in RECIPES["strategies"].students}
    assert accuracy["persyn"] > accuracy["best_single"] > accuracy["strong"]
    pages = [(ROOT / name).read_text().replace("`", "") for name in ("docs/science.md", "README.md")]
    assert all(f"| {name} | {value:.3f}" in pages[0] for name, value in accuracy.items())
    assert all(f"| {name} | {value:.3f}" in pages[1] for name, value in accuracy.items() if f"| {name} |" in pages[1])


def test_the_committed_study_of_real_students_says_what_the_docs_say() -> None:
    found = json.loads((ROOT / "metrics/science/laptop/strategies.json").read_text())["variants"]
    columns = [("local_asdiv", "math_verify"), ("local_svamp", "math_verify")]
    columns += [("local_ifeval", f"{level}_level_strict_acc") for level in ("inst", "prompt")]
    page = (ROOT / "docs/profiles.md").read_text().replace("`", "")
    for student, tasks in found.items():
        cells = []
        for task, metric in columns:
            fields = tasks[task][metric]
            low, high = fields.get("difference_interval", (0, 0))
            cells += [f"{fields['mean']:.3f}", f"{fields.get('difference', 0):+.3f} [{low:+.3f}, {high:+.3f}]"]
        row = next(line for line in page.splitlines() if line.startswith((f"| {student} |", f"| {student}:")))
        told = [cell.strip() for cell in row.split("|")[2:-1]]
        assert told == ([cell if n % 2 == 0 else "" for n, cell in enumerate(cells)] if student == "persyn" else cells)
        assert all(fields["n_seeds"] == 3 for metrics in tasks.values() for fields in metrics.values())


TABLES = [file for world in ("micro", "laptop") for file in sorted((ROOT / "metrics/science" / world).glob("*.json"))]


@pytest.mark.parametrize("file", TABLES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_the_committed_tables_claim_no_more_than_they_show(file: Path) -> None:
    """No share outside [0, 1], no noise between equal runs, no accuracy where no student was trained."""
    variants = json.loads(file.read_text())["variants"]
    found = [fields for tasks in variants.values() for metrics in tasks.values() for fields in metrics.values()]
    assert all(0 <= bound <= 1 for fields in found for bound in fields["interval"] or [])
    same = [fields for fields in found if fields.get("difference_interval", ...) is None]
    assert all(fields["verdict"] in ("identical", "not tested") for fields in same)
    trained = any(task != "router" for tasks in variants.values() for task in tasks)
    assert (ROUTER_ALONE in file.with_suffix(".md").read_text()) != trained


def test_hit_at_3_of_three_teachers_is_left_out_of_tables() -> None:
    assert card_samples({"hit_at_1": 0.5, "hit_at_3": None})["metric"].to_list() == ["hit_at_1"]


def test_a_stage_that_fails_is_named_with_what_it_said(work: Path, tmp_path: Path) -> None:
    params = tiny_params(build_model(tmp_path / "tiny"))
    params["prompts"]["num_parallel"] = 1000
    folder = make_project("tiny/fails", seeded(params, 0), 0)
    with pytest.raises(InputError, match=r"(?s)dvc repro prompts failed.*num_parallel is 1000; it must be 1 to"):
        reproduce(folder, "prompts")
