"""New: a first project of one's own, a profile with a params.yaml that runs as it is."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from ruamel.yaml import YAML

from persyn.errors import InputError, nearest
from persyn.models.packaged import PACKAGED
from persyn.project.params import check_params
from persyn.prompts import build_prompts
from persyn.schemas import Domain
from persyn.settings import NAME

SMOLLM2 = {
    "model": "packaged:smollm2-135m-instruct",
    "license": "Apache-2.0",
    "training": "allowed",
    "backend": "transformers",
}
GEMMA = {
    "model": "packaged:gemma3-270m",
    "license": "Gemma",
    "training": "conditional",
    "terms": "a model trained on its outputs to perform like Gemma is a Model Derivative, to be passed on under the "
    "same terms (Gemma Terms of Use, 1.1(e) and 3.1, https://ai.google.dev/gemma/terms)",
    "backend": "transformers",
}
TERSE = "Answer as briefly as you can. Give only the answer, no explanation."
STEPS = "Think step by step, then give the answer."
EXAMPLES = [
    {"prompt": "Name two colours of the rainbow. Use fewer than 10 words.", "response": "Red and blue."},
    {
        "prompt": "A shop sells pens at 3 dollars each. How much do 7 pens cost? Put the final answer in \\boxed{}.",
        "response": "7 pens cost 7 * 3 = 21 dollars. The answer is \\boxed{21}.",
    },
]
TEACHERS: dict[str, dict[str, Any]] = {
    "smollm2-terse": {**SMOLLM2, "system": TERSE},
    "smollm2-steps": {**SMOLLM2, "system": STEPS},
    "gemma3-fewshot": {**GEMMA, "examples": EXAMPLES},
    "qwen-coder": {**SMOLLM2, "model": "packaged:qwen2.5-coder-1.5b-instruct", "system": STEPS},
}
"""The packaged teachers, by the name that `--teacher` takes."""
FIRST = ("smollm2-terse", "smollm2-steps")
"""The teachers where none is named."""
STUDENTS = {"packaged:gemma3-270m": "Gemma", "packaged:smollm2-135m-instruct": "Apache-2.0"}
"""The packaged students and their licences."""
HUB = re.compile(r"[\w.-]+/[\w.-]+")
SERVED = re.compile(r"(?P<model>.+?)@(?P<url>https?://[^,\s]+)(?:,(?P<key>\w+))?")
VARIABLE = re.compile(r"[A-Za-z_]\w*")
SETS = {
    "persyn_ifeval": ("evaluation/ifeval.jsonl", "prompt"),
    "persyn_math": ("evaluation/math.jsonl", "problem"),
    "persyn_code": ("evaluation/code.jsonl", "prompt"),
}
"""Task that needs no hub -> the file of its items, and the column of its prompts."""
TASKS: dict[Domain, str] = {"instruction": "persyn_ifeval", "math": "persyn_math", "code": "persyn_code"}
FORMS = "A packaged teacher ({}), a hub id (owner/name), or a server: MODEL@https://host/v1,KEY_VARIABLE"
NOTES = {
    ("license", ""): "  # unknown: fill in, and read whether its terms allow training",
    ("training", "unknown"): "  # whether its outputs may train other models: allowed, conditional, forbidden",
    ("revision", None): "  # `persyn pin` fills it in",
}


@dataclass
class Project:
    """All that a first project is made of."""

    name: str
    file: Path
    prompt: str
    domain: Domain
    method: str
    reference: str | None
    teachers: dict[str, dict[str, Any]]
    student: dict[str, Any]
    license: str = ""
    form: bool = False
    """Whether the reference is form_checks."""
    scorer: dict[str, Any] = field(default_factory=dict)
    """The section of the method reward_model or judge."""
    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Teacher (or judge) -> where its server is."""
    max_tokens: int = 96
    limit: int = 0
    parallel: int = 1
    tasks: list[str] = field(default_factory=list)
    items: int = 16
    link: bool = False

    @property
    def needs_pins(self) -> bool:
        """Whether `persyn pin` has something to fill in."""
        return any("revision" in one for one in (*self.teachers.values(), self.student, self.scorer))


def find_root() -> Path:
    """The folder of the main project: this one, or one around it.

    Raises:
        InputError: there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "Makefile").is_file() and (folder / "dvc.yaml").is_file() and (folder / "persyn").is_dir():
            return folder
    raise InputError(f"{here} is in no copy of the PerSyn repository; run the command in one, where the Makefile is")


def check_name(root: Path, name: str) -> None:
    """Refuse a name that is no folder's, or that is taken.

    Raises:
        InputError: it is.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            f"the name is {name!r}; use up to 64 of a-z, 0-9, '-' and '_', a letter or digit first, such as mine"
        )
    if (root / "profiles" / name).exists() or (root / "profiles" / name).is_symlink():
        raise InputError(f"profiles/{name} exists and is not overwritten; choose another name, or remove the folder")


def read_teachers(given: Sequence[str]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The entries of `teachers` and of `speed.teachers`.

    Raises:
        InputError: some are none of the forms, a line each.
    """
    teachers, servers, mistakes = dict[str, dict[str, Any]](), dict[str, dict[str, Any]](), list[str]()
    for text in given:
        if text in TEACHERS:
            teachers[text] = TEACHERS[text]
        elif match := SERVED.fullmatch(text):
            name = _free(match["model"], teachers)
            teachers[name] = {"model": match["model"], "license": "", "training": "unknown", "backend": "openai"}
            servers[name] = server(match["url"], match["key"])
        elif HUB.fullmatch(text):
            entry = {"model": text, "revision": None, "license": "", "training": "unknown", "backend": "transformers"}
            teachers[_free(text, teachers)] = entry
        else:
            mistakes.append(f"--teacher is {text!r}; give one of: {FORMS.format(', '.join(TEACHERS))}")
    if len(given) != len(set(given)):
        mistakes.append("--teacher names one teacher twice; name each once")
    if mistakes:
        raise InputError(*mistakes)
    return teachers, servers


def server(url: str, key: str | None) -> dict[str, Any]:
    """Where a server is, and the environment variable of its key."""
    return {"base_url": url, **({"api_key_env": key} if key else {})}


def read_student(text: str) -> dict[str, Any]:
    """The beginning of the section `student`.

    Raises:
        InputError: it is neither packaged nor a hub id nor a folder.
    """
    model = f"packaged:{text}" if text in PACKAGED else text
    if model in STUDENTS:
        return {"model": model, "license": STUDENTS[model]}
    if Path(text).is_dir():
        return {"model": str(Path(text).resolve()), "license": ""}
    if HUB.fullmatch(text):
        return {"model": text, "license": "", "revision": None}
    raise InputError(f"--student is {text!r}; it must be a hub id (owner/name), a folder or packaged{_known(text)}")


def _known(text: str) -> str:
    return nearest(text, STUDENTS)


def form_checks(max_tokens: int, is_english: bool) -> tuple[str, str]:
    """A reference that is the same for every prompt, and what it measures: checks of form, which need no model."""
    fewest, most = 5, max(20, max_tokens * 2 // 3)
    checks: list[dict[str, Any]] = [
        {"instruction_id": "length_constraints:number_words", "kwargs": {"relation": relation, "num_words": words}}
        for relation, words in (("at least", fewest), ("less than", most))
    ]
    if is_english:
        checks.append({"instruction_id": "language:response_language", "kwargs": {"language": "en"}})
    says = f"{fewest} to {most - 1} words{', in English' if is_english else ''}"
    return f"{{{{ {json.dumps(checks)} | tojson }}}}", says


def usable_prompts(project: Project, root: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The prompts that are left, and the counts of build_prompts, before anything is written.

    Raises:
        InputError: the parameters are wrong, or none is left.
    """
    params = check_params(
        YAML(typ="safe", pure=True).load(params_text(project)), f"profiles/{project.name}/params.yaml"
    )
    source = params.prompts.sources[0].changed(path=str(project.file.resolve()))
    items = [one.changed(path=str(root / "data" / "raw" / str(one.path))) for one in params.prompts.decontaminate]
    settings = params.prompts.changed(sources=[source], decontaminate=items, num_parallel=None)
    return build_prompts(root, settings)


def write_project(project: Project, root: Path, make: Callable[[Path, str], None] | None = None) -> Path:
    """Make the folder of the profile, whole or not at all.

    Raises:
        InputError: the parameters are wrong, or the folder cannot be made.
    """
    check_name(root, project.name)
    text = params_text(project)
    check_params(YAML(typ="safe", pure=True).load(text), f"profiles/{project.name}/params.yaml")
    folder = root / "profiles" / project.name
    raw = folder / "data" / "raw"
    raw.mkdir(parents=True)
    try:
        shutil.copytree(root / "data" / "raw" / "evaluation", raw / "evaluation")
        if project.link:
            (raw / project.file.name).symlink_to(project.file.resolve())
        else:
            shutil.copyfile(project.file, raw / project.file.name)
        (folder / "params.yaml").write_text(text, encoding="utf-8")
        (make or make_profile)(root, project.name)
    except BaseException:
        shutil.rmtree(folder)
        raise
    return folder


def make_profile(root: Path, name: str) -> None:
    """What `make profile` adds to a folder: links to the code, and DVC's settings.

    Raises:
        InputError: make is not there, or fails.
    """
    command = ["make", "--silent", "--no-print-directory", "profile", f"NAME={name}"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError("there is no program make, which makes the folder of a profile; install it") from None
    if done.returncode:
        raise InputError(f"`{' '.join(command)}` failed: {' '.join(done.stderr.split())}")


def params_text(project: Project) -> str:
    """The params.yaml of a project, with comments."""
    environment = Environment(
        loader=PackageLoader("persyn", "project"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    decontaminate = dict(SETS[task] for task in project.tasks if task in SETS)
    fields = {**vars(project), "path": project.file.name, "decontaminate": decontaminate, "notes": NOTES}
    return environment.get_template("new.yaml.j2").render(**fields, q=_quoted) + "\n"


def _quoted(value: Any) -> str:
    """A value as JSON, which YAML reads."""
    return json.dumps(value, ensure_ascii=False)


def _free(model: str, taken: dict[str, Any]) -> str:
    """A teacher's name from its model's."""
    name = re.sub(r"[^a-z0-9_]+", "-", model.rpartition("/")[2].lower()).strip("-_")[:56] or "teacher"
    numbers = (f"{name}-{number}" for number in range(2, 99))
    return name if name not in taken and name != "judge" else next(one for one in numbers if one not in taken)
