"""dvc.yaml tells the truth: names, modules, parameters and paths agree with the code. Seeded faults show it."""

import ast
import copy
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from persyn.project.params import Params
from stages import KEEP_SUMMARY, SUMMARY

ROOT = Path(__file__).parent.parent
UNTRACKED = {"budget", "prices", "speed"}  # how fast and for how much, never what
# Rooms that only check, read parameters or write files: they do not decide a result. `project` imports every noun.
NEUTRAL = {"persyn/__init__.py", "persyn/project"} | {
    f"persyn/{name}.py" for name in ("errors", "files", "schemas", "settings")
}
# What a training tells while it runs is no result; a DVC file cannot be an output.
UNDECLARED = re.compile(r"metrics/live/|metrics/reports/dvc\.yaml$")
DERIVED = {"anchored": "teachers", "asked_student": "teachers", "pool": "teachers", "finished": "evaluation"}
DERIVED |= {"speed_of": "speed", "told": "rewards"}  # what Params tells of a section
NAMED = {"data/raw/evaluation"}  # by task files
RAW = {"data/raw"}  # named by `precomputed`, and by `mix` and `decontaminate`
IMPLIED = {"evaluation": NAMED, "beside": NAMED, "quality": RAW, "dataset": RAW}
# What only refuses or warns: another licence allowed asks nothing again, nor does a weight that the responses are for.
WHETHER = {"responses": {"licenses", "rewards"}, "routed": {"licenses"}}


def load(name: str) -> Any:
    return YAML(typ="safe", pure=True).load(ROOT / name)


PARAMS = load("params.yaml")
PIPELINE = load("dvc.yaml")


def stages(pipeline: Any) -> dict[str, Any]:
    """Every stage with its `foreach` filled in by the first entry."""
    filled = {}
    for name, stage in pipeline["stages"].items():
        if "foreach" in stage:
            key = next(iter(PARAMS[stage["foreach"].strip("${}")]))
            stage = ast.literal_eval(repr(stage["do"]).replace("${key}", key))
        filled[name] = stage
    return filled


def module_file(module: str) -> Path | None:
    base = ROOT / module.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def room(module: str) -> str:
    """The folder or file of persyn/ that a module is in, as dvc.yaml names it."""
    path = f"persyn/{module.split('.')[1]}"
    return path if (ROOT / path).is_dir() else f"{path}.py"


@cache
def names_in(script: Path) -> frozenset[str]:
    """The modules that a file imports, and the names that it imports from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def imported(script: Path, seen: set[str] | None = None) -> set[str]:
    """The modules of persyn that `script` imports, itself or through others. Neutral rooms are not looked into."""
    seen = set() if seen is None else seen
    for name in sorted(names_in(script) - seen):
        file = module_file(name) if name.startswith("persyn.") else None
        if file and room(name) not in NEUTRAL:
            seen.add(name)
            imported(file, seen)
    return seen


def rooms(*scripts: Path) -> set[str]:
    """The rooms that scripts need. All modules of a room count, since a stage depends on the whole of it."""
    found: set[str] = set()
    waiting = list(scripts)
    while waiting:
        new = {room(module) for module in imported(waiting.pop())} - found
        found |= new
        waiting += [file for path in new for file in sorted((ROOT / path).rglob("*.py"))]
    return found


def attributes(tree: ast.AST) -> Iterator[str]:
    """The sections read as attributes of `params`: `params.teachers[name]` is `teachers.*` where `name` is a word of
    the stage's command, anything else is the whole section.
    """
    mains = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "main"]
    words = {argument.arg for node in mains for argument in node.args.args}
    entries = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Name) and node.slice.id in words
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "params.named":
            yield f"{ast.literal_eval(node.args[0])}.*"
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "params" and node.attr != "named":
            section = DERIVED.get(node.attr, node.attr)
            yield f"{section}.*" if id(node) in entries else section


def sections(script: Path) -> set[str]:
    """The sections of params.yaml that a stage reads; of an entry, only where it reads no other way."""
    tree = ast.parse(script.read_text())
    found = set(attributes(tree))
    return {name for name in found if name.split(".")[0] == name or name.split(".")[0] not in found}


def outputs(stage: Any) -> set[str]:
    entries = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def faults(pipeline: Any) -> list[str]:
    """What dvc.yaml says that the code does not, stage by stage."""
    wrong = []
    for name, stage in stages(pipeline).items():
        script = ROOT / "stages" / f"{name}.py"
        words = shlex.split(stage["cmd"])
        if words[:3] != ["python", "-m", f"stages.{name}"]:
            wrong.append(f"{name}: runs {words[:3]}, not its own script")
            continue
        deps = set(stage["deps"])
        code = {path for path in deps if path.startswith(("persyn/", "stages/"))}
        loaded = (ROOT / "tasks").glob("*.py") if "tasks" in deps else ()  # lm-eval imports them
        needed = rooms(script, *loaded) | {f"stages/{name}.py"}
        if code != needed:
            wrong.append(f"{name}: code deps differ by {sorted(code ^ needed)}")
        reads = {read for read in sections(script) if read.split(".")[0] not in UNTRACKED} - WHETHER.get(name, set())
        tracked = {re.sub(r"^(teachers|strategies)\..*", r"\1.*", param) for param in stage.get("params", [])}
        if reads != tracked:
            wrong.append(f"{name}: params differ by {sorted(reads ^ tracked)}")
        paths = {word for word in words[3:] if ("/" in word or word == "tasks") and not UNDECLARED.match(word)}
        paths |= IMPLIED.get(name, set())
        declared = (deps - code) | outputs(stage)
        if paths != declared:
            wrong.append(f"{name}: paths differ by {sorted(paths ^ declared)}")
    return wrong


def test_dvc_yaml_tells_the_truth() -> None:
    assert faults(PIPELINE) == []


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (lambda s: s["pairs"]["deps"].remove("persyn/pairs.py"), r"pairs: code deps differ by \['persyn/pairs.py'\]"),
        (lambda s: s["routed"]["do"]["deps"].remove("persyn/generation"), "routed: code deps differ by .*generation"),
        (lambda s: s["rewards"]["deps"].append("persyn/router"), "rewards: code deps differ"),
        (lambda s: s["student"]["do"]["params"].remove("sft"), r"student: params differ by \['sft'\]"),
        (lambda s: s["pairs"].update(outs=["data/pair.parquet"]), "pairs: paths differ"),
        (lambda s: s["cost"].update(cmd=s["cost"]["cmd"].replace("stages.cost", "stages.costs")), "cost: runs"),
    ],
)
def test_a_seeded_fault_is_found(seed: Callable[[Any], Any], message: str) -> None:
    pipeline = copy.deepcopy(PIPELINE)
    seed(pipeline["stages"])
    [fault] = faults(pipeline)
    assert re.match(message, fault)


def test_every_stage_has_its_script_and_every_section_is_read() -> None:
    scripts = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert scripts == set(PIPELINE["stages"])
    read = {name.split(".")[0] for script in scripts for name in sections(ROOT / "stages" / f"{script}.py")}
    assert read | {"prices"} == set(PARAMS) == set(Params.model_fields), "only the command line reads prices"


def test_outputs_have_one_maker() -> None:
    made = [path for stage in stages(PIPELINE).values() for path in outputs(stage)]
    assert len(made) == len(set(made))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("params.rewards.alpha", {"rewards"}),
        ("params.teachers[name]", {"teachers.*"}),
        ('params.named("teachers", name)', {"teachers.*"}),
        ("params.teachers[name], list(params.teachers)", {"teachers"}),
        ("params.anchored", {"teachers"}),
        ("{t: params.teachers[t] for t in order}", {"teachers"}),
        ('params.strategies["persyn"]', {"strategies"}),
    ],
)
def test_what_a_script_reads(body: str, expected: set[str], tmp_path: Path) -> None:
    script = tmp_path / "stage.py"
    script.write_text(f"def main(name: str, out: str) -> None:\n    params = read_params()\n    {body}\n")
    assert sections(script) == expected


def test_a_stage_that_the_summary_depends_on_removes_it() -> None:
    makers = {path: name for name, stage in stages(PIPELINE).items() for path in outputs(stage)}
    needs = {
        name: {maker for dep in stage["deps"] for path, maker in makers.items() if path == dep or is_below(path, dep)}
        for name, stage in stages(PIPELINE).items()
    }
    upstream: set[str] = set()
    waiting = [makers[str(SUMMARY)]]
    while waiting:
        new = needs[waiting.pop()] - upstream
        upstream |= new
        waiting += new
    assert set(PIPELINE["stages"]) - upstream == KEEP_SUMMARY


def is_below(path: str, folder: str) -> bool:
    return path.startswith(f"{folder}/")


def test_the_run_cache_keeps_every_stage() -> None:
    """DVC keeps none that has a plain output in git; an experiment that was killed would then run it again."""
    for name, stage in PIPELINE["stages"].items():
        outs = (stage["do"] if "foreach" in stage else stage).get("outs", [])
        assert name == "plots" or all(isinstance(out, str) for out in outs), name


def test_dvc_yaml_is_short() -> None:
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) < 200


def test_functions_and_stages_are_short() -> None:
    """Bodies of at most 50 lines, at most 8 arguments (options of the command line aside); stages of at most 40."""
    for path in (ROOT / "stages").glob("*.py"):
        assert path.stem == "__init__" or len(path.read_text().splitlines()) <= 40, path
    for path in [*(ROOT / "persyn").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) and node.body[1:] else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
                given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                names = [each.arg for each in given if "attr='Option'" not in ast.dump(each)]
                assert lines <= 50, f"{path}: {node.name} has {lines} lines"
                assert len([name for name in names if name not in ("self", "cls")]) <= 8, f"{path}: {node.name}"
