"""Evaluation tasks without the hub: the same tasks with local files of a few rows as data sets."""

import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from persyn.errors import InputError

ROWS = Path(__file__).parent / "rows"
SPLITS = ("train", "validation", "test")


def local_tasks(source: Path, rows: Path, out: Path) -> Path:
    """Copy a folder of lm-eval tasks, their hub data sets replaced by json lines.

    A data set `owner/name` with the config `c` becomes `<rows>/owner--name--c.jsonl`; every split has all its rows.
    Only yaml files that name a data set are rewritten. So a task shipped by lm-eval needs a yaml of the same name in
    `source` that includes it and names the data set.

    Args:
        source: task files.
        rows: the json lines.
        out: the copy; must not exist.

    Returns:
        `out`.

    Raises:
        InputError: a data set has no file in `rows`.
    """
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("__pycache__"))
    yaml = YAML()
    for path in sorted(out.glob("*.yaml")):
        task: dict[str, Any] = yaml.load(path)
        if task.get("dataset_path", "json") != "json":
            file = _rows_of(task, rows)
            if not file.is_file():
                raise InputError(f"{path.name} needs the rows of {task['dataset_path']} in {file}")
            splits = dict.fromkeys(SPLITS, str(file.resolve()))
            task |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": splits}}
            yaml.dump(task, path)
    return out


def _rows_of(task: dict[str, Any], rows: Path) -> Path:
    owner, name = task["dataset_path"].split("/")
    config = task.get("dataset_name")
    return rows / ("--".join([owner, name, *([config] if config else [])]) + ".jsonl")
