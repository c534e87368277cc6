"""The summary: its numbers by hand; the tables of DVC that show it fit the screen, and show nothing that is stale."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from persyn.errors import InputError
from persyn.files import write_json
from persyn.summary import build_summary, main_score, told_hits
from stages import SUMMARY

ROOT = Path(__file__).parent.parent
METRICS = ROOT / "metrics"
MOST_NUMBERS, WIDEST, SCREEN = 12, 160, 24

ROUTER = {"regret": 0.123456, "hit_at_1": 0.5, "over_majority": {"difference": -0.0123456}}
ALLOCATION = {"persyn": {"share": {"a": 0.25, "b": 0.75}}, "random": {"share": {"a": 0.5, "b": 0.5}}}
COST = {
    "parallel": {"a": {"calls": 10, "response_tokens": 100}, "b": {"calls": 10, "response_tokens": 1000}},
    "routed": {"persyn": {"spent": {"calls": 7, "response_tokens": 70}}, "random": {}},
    "saved": {"persyn": {"calls": 1.85185, "response_tokens": 1.2}, "random": {}},
}


def scores(**tasks: float) -> dict[str, dict[str, dict[str, Any]]]:
    return {task: {"acc": {"value": value, "stderr": None, "n": 9}} for task, value in tasks.items()}


def summary(tasks: list[str], **evaluations: dict[str, Any]) -> dict[str, float]:
    return build_summary(ROUTER, ALLOCATION, evaluations, COST, tasks)


def test_two_tasks_are_told_apart() -> None:
    made = summary(
        ["x", "y"], persyn=scores(x=0.5, y=0.123456), random=scores(x=0.7, y=0.1), strong=scores(x=0.1, y=0.2)
    )
    assert made == {
        "regret": 0.1235, "gain": -0.01235, "hit_at_1": 0.5, "share": 0.75,
        "x": 0.5, "x_other": 0.7, "y": 0.1235, "y_other": 0.2,
        "calls": 27, "tokens": 1170, "fewer": 1.852,
    }  # fmt: skip
    assert len(made) <= MOST_NUMBERS


def test_of_two_tasks_each_goes_by_the_first_word_in_which_they_differ() -> None:
    made = summary(["our_ifeval", "our_math"], persyn=scores(our_ifeval=0.5, our_math=0.25))
    assert {"ifeval", "math"} < made.keys()
    made = summary(["gsm8k", "gsm8k_hard"], persyn=scores(gsm8k=0.5, gsm8k_hard=0.25))
    assert {"gsm8k", "gsm8k_hard"} < made.keys()


def test_of_more_tasks_the_mean_and_the_other_strategy_of_the_highest_mean() -> None:
    ours, good, best = scores(x=0.1, y=0.2, z=0.6), scores(x=0.9, y=0.0, z=0.0), scores(x=0.2, y=0.6, z=0.4)
    made = summary(["x", "y", "z"], persyn=ours, random=good, strong=best)
    assert (made["score"], made["score_other"]) == (0.3, 0.4)
    assert not {"x", "y", "z", "x_other"} & made.keys()
    assert len(made) <= MOST_NUMBERS


def test_of_a_group_only_its_own_score_counts() -> None:
    made = summary(["x", "group"], persyn=scores(x=0.1, group=0.2, part=0.9), random=scores(x=0.1, group=0.3, part=0.9))
    assert (made["group"], made["group_other"]) == (0.2, 0.3)
    assert "part" not in made


def test_the_untuned_student_is_no_strategy() -> None:
    evaluations = {"persyn": scores(x=0.5, y=0.25), "random": scores(x=0.1, y=0.1)}
    made = build_summary(ROUTER, ALLOCATION, evaluations, COST, ["x", "y"], scores(x=0.9, y=0.1))
    assert made["learnt"] == -0.125
    assert (made["x_other"], made["y_other"]) == (0.1, 0.1)
    assert len(made) <= MOST_NUMBERS


def test_what_a_run_does_not_have_is_left_out() -> None:
    made = build_summary({"num_held_out": 0}, ALLOCATION, {"persyn": scores(x=0.5)}, COST, ["x"])
    assert made == {"share": 0.75, "x": 0.5, "calls": 27, "tokens": 1170, "fewer": 1.852}


def test_no_strategy_called_persyn() -> None:
    with pytest.raises(InputError, match="needs one called persyn"):
        summary(["x"], random=scores(x=0.5))


@pytest.mark.parametrize(
    ("metrics", "main"),
    [
        (["exact_match", "math_verify"], "math_verify"),
        (["inst_level_strict_acc", "prompt_level_loose_acc", "prompt_level_strict_acc"], "prompt_level_strict_acc"),
        (["exact_match,flexible-extract", "exact_match,strict-match"], "exact_match,flexible-extract"),
        (["acc", "acc_norm"], "acc"),
        (["rouge", "bleu"], "bleu"),
    ],
)
def test_main_score(metrics: list[str], main: str) -> None:
    assert main_score({name: {"value": float(name == main)} for name in metrics}) == 1.0


@pytest.mark.parametrize("project", [ROOT, ROOT / "profiles/laptop"], ids=["demo", "laptop"])
def test_the_committed_summary_is_of_the_committed_metrics(project: Path, tmp_path: Path) -> None:
    folder, params = project / "metrics", YAML(typ="safe", pure=True).load(project / "params.yaml")
    shares, evaluations = [
        {name: json.loads((folder / kind / f"{name}.json").read_text()) for name in params["strategies"]}
        for kind in ("allocation", "evaluation")
    ]
    router, cost = [json.loads((folder / f"{name}.json").read_text()) for name in ("router", "cost")]
    beside = folder / "beside.json"
    untuned = json.loads(beside.read_text())["untuned"] if beside.is_file() else None
    made = build_summary(router, shares, evaluations, cost, params["evaluation"]["tasks"], untuned)
    write_json(made, tmp_path / "summary.json")
    assert (project / SUMMARY).read_text() == (tmp_path / "summary.json").read_text()
    assert len(made) <= MOST_NUMBERS


STAGE = """
import sys
from pathlib import Path
from stages import read_params, run

def main(*words):
    for out in [Path(word) for word in words if "/" in word and not Path(word).exists()]:
        file = out if out.suffix else out / "file"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(read_params().rewards))

if __name__ == "__main__":
    run(main)
"""
"""A stage that does nothing but write the outputs that its command names."""


def call(folder: Path, *words: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "1000", "PYTHONPATH": ""}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(folder: Path, *words: str) -> str:
    return call(folder, sys.executable, "-m", "dvc", *words)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This pipeline when all has run. Parameters (one teacher, two strategies) and summary are the demo's, all else is
    made up.
    """
    folder = tmp_path_factory.mktemp("repository")
    for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    params = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    params["teachers"] = dict(list(params["teachers"].items())[:1])
    params["strategies"] = {name: params["strategies"][name] for name in ("persyn", "random")}
    (folder / "params.yaml").write_text(json.dumps(params))
    for name in ("persyn", "tasks"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "stages").mkdir()
    shutil.copy(ROOT / "stages/__init__.py", folder / "stages")
    for name in YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]:
        (folder / "stages" / f"{name}.py").write_text(STAGE)
    (folder / "data/raw/evaluation").mkdir(parents=True)
    (folder / "data/raw/evaluation/items.jsonl").write_text("{}")
    call(folder, "git", "init", "-q", "-b", "main")
    call(folder, "git", "config", "user.name", "t")
    call(folder, "git", "config", "user.email", "t@localhost")
    dvc(folder, "init", "-q")
    with Repo(str(folder)) as repo:
        outputs = [Path(out.fs_path) for stage in repo.index.stages for out in stage.outs]
    for file in [path if path.suffix else path / "file" for path in outputs]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    shutil.copy(ROOT / SUMMARY, folder / SUMMARY)
    dvc(folder, "commit", "-q", "-f")
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-q", "-m", "results")
    return folder


def save_experiment(folder: Path, alpha: float) -> None:
    """An experiment with this alpha that ran to the end, every number of it another."""
    params, summary = json.loads((folder / "params.yaml").read_text()), json.loads((folder / SUMMARY).read_text())
    params["rewards"]["alpha"] = alpha
    (folder / "params.yaml").write_text(json.dumps(params))
    numbers = {name: type(number)(float(f"{(number + 1) * (1 + alpha):.4g}")) for name, number in summary.items()}
    write_json(numbers, folder / SUMMARY)
    dvc(folder, "exp", "save", "-q", "-n", f"alpha-{alpha}".replace(".", "-"))
    call(folder, "git", "checkout", "-q", ".")


@pytest.mark.slow
def test_experiments_fit_the_screen_and_one_that_stopped_early_has_no_numbers(repository: Path) -> None:
    said = dvc(repository, "exp", "run", "--temp", "-n", "early", "-S", "rewards.alpha=0.7", "routes@persyn")
    assert re.findall("Running stage '(.*)'", said) == ["rewards", "pairs", "router", "routes@persyn"]
    save_experiment(repository, 0.55)
    save_experiment(repository, 0.65)
    [command] = set(re.findall(r"^dvc exp show .*$", (ROOT / "docs/tutorial.md").read_text(), re.M))
    table = dvc(repository, *shlex.split(command.partition("#")[0])[1:], "--no-pager")
    names = json.loads((repository / SUMMARY).read_text()).keys()
    header, *rows = [
        line.split() for line in table.splitlines() if "─" not in line.replace("├──", "").replace("└──", "")
    ]
    assert header == ["Experiment", *names, "rewards.alpha"]
    shown = {row[-len(header)]: row[1 - len(header) :] for row in rows}
    assert {"main", "workspace", "[alpha-0-55]", "[alpha-0-65]", "[early]"} == shown.keys()
    assert shown["[early]"] == [*("!" for _ in names), "0.7"], "numbers of another alpha"
    assert max(map(len, table.splitlines())) <= WIDEST, table
    difference = dvc(repository, "metrics", "diff", "HEAD", "alpha-0-65")
    assert len(names) < len(difference.splitlines()) <= SCREEN, difference


@pytest.mark.parametrize(("teachers", "hit", "told"), [(4, 0.8, 3), (3, 1.0, 1), (3, None, 1), (4, None, 1)])
def test_hit_at_3_is_told_only_where_it_can_miss(teachers: int, hit: float | None, told: int) -> None:
    card = {"share": dict.fromkeys("abcd"[:teachers], 0.25), "hit_at_1": 0.5, "hit_at_3": hit, "hit_at_3_oracle": hit}
    assert told_hits(card) == ["hit_at_1", "hit_at_3", "hit_at_3_oracle"][:told]
