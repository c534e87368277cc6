"""The paper's profiles: docs/paper.md says of them what is true, and its recipes set what is there."""

import re
import shlex
import shutil
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps, to_hydra_overrides
from ruamel.yaml import YAML

from persyn.project.params import check_params, read_params

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/paper.md").read_text()
COMMIT = re.compile("[0-9a-f]{40}")
STUDENTS = {
    *(f"Qwen/Qwen2.5-{size}B" for size in ("0.5", "1.5", "3", "7", "14")),
    *("google/gemma-2-2b", "google/gemma-2-9b", "meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.1-8B"),
}


def recipes() -> list[tuple[str, list[str]]]:
    """(profile folder, words of the command) of every `dvc exp run` on the page."""
    found = []
    for block in re.findall(r"```sh[^\n]*\n(.*?)```", PAGE, re.S):
        lines = block.replace("\\\n", " ").strip().split("\n")
        assert lines[0].startswith("cd profiles/"), "a block says where it runs"
        found += [(lines[0].removeprefix("cd "), shlex.split(line)) for line in lines[1:]]
    return found


RECIPES = recipes()


def settings(words: list[str]) -> list[str]:
    return [words[position + 1] for position, word in enumerate(words) if word == "-S"]


def value_path(override: Any) -> list[str]:
    return str(override.key_or_group).split(".")


def load(path: Path) -> dict[str, Any]:
    return YAML(typ="safe").load(path)


@pytest.mark.parametrize(("folder", "words"), RECIPES, ids=[" ".join(words[3:]) for _, words in RECIPES])
def test_a_recipe_sets_what_the_profile_has(folder: str, words: list[str], tmp_path: Path) -> None:
    assert words[:4] == ["dvc", "exp", "run", "--queue"], "params.yaml must stay as it is"
    path = ROOT / folder / "params.yaml"
    params = load(path)
    for override in to_hydra_overrides(settings(words)):
        *parents, key = value_path(override)
        section: Mapping[str, Any] = reduce(lambda node, name: node[name], parents, params)
        assert (key in section) == (not override.is_add())
    for variant in get_hydra_sweeps({"params.yaml": settings(words)}):
        copy = tmp_path / "params.yaml"
        shutil.copy(path, copy)
        apply_overrides(copy, variant["params.yaml"])
        changed = load(copy)
        checked = check_params(changed, folder)
        assert COMMIT.fullmatch(checked.student.revision or "")
        assert COMMIT.fullmatch(checked.router.revision or "")
        assert (checked.sft.lora is not None) == checked.student.model.endswith("14B"), "LoRA from 14B on"
        for override in to_hydra_overrides(variant["params.yaml"]):
            now, value = reduce(lambda node, name: node[name], value_path(override), changed), override.value()
            assert ({**now, **value} if isinstance(value, dict) else value) == now
        for target in (word for word in words if word.count("@") == 1):
            assert target.split("@")[1] in checked.strategies


def test_no_two_recipes_have_one_name() -> None:
    """Experiments of both profiles are refs of one git repository."""
    names = [words[words.index("-n") + 1] for _, words in RECIPES if "-n" in words]
    assert len(set(names)) == len(names)


def test_all_nine_students_have_a_recipe() -> None:
    found = set()
    for folder, words in RECIPES:
        for override in to_hydra_overrides(settings(words)):
            if override.key_or_group == "student":
                found.add((folder, override.value()["model"]))
    default = "Qwen/Qwen2.5-1.5B"
    assert {model for folder, model in found if folder.endswith("instruct")} == STUDENTS - {default}
    for profile in ("instruct", "math"):
        assert load(ROOT / f"profiles/paper-{profile}/params.yaml")["student"]["model"] == default


@pytest.mark.parametrize("profile", ["instruct", "math"])
def test_the_page_has_each_teacher_as_the_profile_has_it(profile: str) -> None:
    params = read_params(ROOT / f"profiles/paper-{profile}/params.yaml")
    assert len(params.teachers) == {"instruct": 19, "math": 15}[profile]
    for teacher in params.teachers.values():
        revision = teacher.revision or ""
        assert COMMIT.fullmatch(revision)
        row = f"| `{teacher.model}` | `{revision[:7]}` | {teacher.license} |"
        assert row + f" {'' if teacher.training == 'unknown' else teacher.training}" in PAGE
    sources = [*params.prompts.sources, *params.prompts.decontaminate]
    missing = [source.hub for source in sources if not COMMIT.fullmatch(source.revision or "")]
    assert missing == {"instruct": [], "math": ["hengyuanya/PerSyn_dataset"]}[profile]
