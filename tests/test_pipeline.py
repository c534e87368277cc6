"""dvc.yaml tells the truth: names, modules, parameters and paths agree with the code. Five seeded faults show it."""

import ast
import copy
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from persyn.generation import BACKENDS
from stages import SECTIONS

ROOT = Path(__file__).parent.parent
UNTRACKED = {"budget", "prices", "speed"}  # how fast and for how much, never what
# What a training tells while it runs is no result; a DVC file cannot be an output.
UNDECLARED = re.compile(r"metrics/live/|metrics/reports/dvc\.yaml$")


def load(name: str) -> Any:
    return YAML(typ="safe", pure=True).load(ROOT / name)


PARAMS = load("params.yaml")
PIPELINE = load("dvc.yaml")


def stages(pipeline: Any) -> dict[str, Any]:
    """Every stage with its `foreach` filled in by the first entry."""
    filled = {}
    for name, stage in pipeline["stages"].items():
        if "foreach" in stage:
            key, item = next(iter(PARAMS[stage["foreach"].strip("${}")].items()))
            text = repr(stage["do"]).replace("${key}", key)
            for field in re.findall(r"\$\{item\.(\w+)\}", text):
                text = text.replace(f"${{item.{field}}}", item[field])
            stage = ast.literal_eval(text)
        filled[name] = stage
    return filled


def module_file(module: str) -> Path | None:
    base = ROOT / module.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def imported(script: Path, seen: set[Path]) -> set[Path]:
    """The persyn files that `script` imports, directly or through others; backends count as imported."""
    source = script.read_text()
    names = set(re.findall(r'"(persyn\.generation\.\w+):', source))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    for file in {module_file(name) for name in names if name.startswith("persyn.")} - {None} - seen:
        assert file
        seen.add(file)
        imported(file, seen)
    return seen


def sections(script: Path) -> set[str]:
    """The sections of params.yaml that a stage reads."""
    found = set()
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("read_entries", "read_params", "read_value"):
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                found.add(str(argument.value))
            elif isinstance(argument, ast.JoinedStr):
                found.add("".join(str(p.value) if isinstance(p, ast.Constant) else "*" for p in argument.values))
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
        packages = {d for d in stage["deps"] if (ROOT / d / "__init__.py").is_file()}
        deps, code = set(stage["deps"]), {d for d in stage["deps"] if d.endswith(".py")} | packages
        needed = {str(path.relative_to(ROOT)) for path in imported(script, set())}
        if name == "evaluation":  # the task files import it
            files = [path for task in (ROOT / "tasks").glob("*.py") for path in imported(task, set())]
            needed |= {str(path.relative_to(ROOT)) for path in files}
        if name == "responses":  # of the backends, it runs its teacher's
            teacher = next(iter(PARAMS["teachers"].values()))
            needed -= {f"persyn/generation/{other}.py" for other in BACKENDS if other != teacher["backend"]}
        if name in ("quality", "dataset"):  # a judge is behind a server
            needed -= {f"persyn/generation/{other}.py" for other in {"pdeath", "ray", *BACKENDS} - {"openai"}}
        needed = needed - {"persyn/schemas.py"} | {f"stages/{name}.py"}
        needed = {next((p for p in packages if file.startswith(f"{p}/")), file) for file in needed}
        if code != needed:
            wrong.append(f"{name}: module deps differ by {sorted(code ^ needed)}")
        reads = {name for name in sections(script) if name.split(".")[0] not in UNTRACKED}
        tracked = {re.sub(r"^(teachers|strategies)\..*", r"\1.*", param) for param in stage.get("params", [])}
        if name in ("responses", "routed"):  # whether, never what: another name allowed asks nothing again
            reads.discard("licenses")
        if reads != tracked:
            wrong.append(f"{name}: params differ by {sorted(reads ^ tracked)}")
        paths = {word for word in words[3:] if ("/" in word or word == "tasks") and not UNDECLARED.match(word)}
        declared = (deps - code) | outputs(stage)
        implied = {"data/raw/evaluation"} if name == "evaluation" else set()  # named by the task files
        if paths | implied != declared:
            wrong.append(f"{name}: paths differ by {sorted((paths | implied) ^ declared)}")
    return wrong


def test_dvc_yaml_tells_the_truth() -> None:
    assert faults(PIPELINE) == []


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (lambda s: s["pairs"]["deps"].remove("persyn/pairs.py"), r"pairs: module deps differ by \['persyn/pairs.py'\]"),
        (lambda s: s["rewards"]["deps"].append("persyn/router.py"), "rewards: module deps differ"),
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
    assert read | {"prices"} == set(PARAMS) == set(SECTIONS), "only the command line reads prices"


def test_outputs_have_one_maker() -> None:
    made = [path for stage in stages(PIPELINE).values() for path in outputs(stage)]
    assert len(made) == len(set(made))


def test_budgets() -> None:
    """Small files and thin stages."""
    for path in [*(ROOT / "persyn").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        lines = len(path.read_text().splitlines())
        thin = path.parent.name == "stages" and path.stem != "__init__"
        assert lines <= (25 if thin else 250), f"{path.name} has {lines} lines"
