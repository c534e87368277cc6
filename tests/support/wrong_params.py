"""Wrong parameters: replaces every value of every shipped params.yaml by wrong ones, which check_params must report.

`python -m tests.support.wrong_params` prints the counts and fails if one that must be 0 is not.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from persyn.errors import InputError
from persyn.project.params import check_params
from tests.support.tiny import ROOT

FILES = [ROOT / "params.yaml", ROOT / "profiles/micro.yaml", *sorted(ROOT.glob("profiles/*/params.yaml"))]
WRONG: dict[str, Any] = {
    "text": "nonsense",
    "-1": -1,
    "a list": ["nonsense"],
    "a mapping": {"nonsense": "nonsense"},
    "null": None,
}
FAULTS = ("tracebacks", "accepted although the type is wrong", "messages that do not name the path")

SOURCE = r"prompts\.(sources|decontaminate)\.\d+\."
LEGAL = {
    "text, and any text is taken": (
        "text",
        SOURCE + r"(path|hub|license|prompt|reference|config|split|where|label)",
        r"teachers\.[^.]+\.(model|license|system|terms|family|examples\.\d+\.(prompt|response))",
        r"teachers\.[^.]+\.precomputed\.(path|hub|prompt|response|config|split|where|tokenizer)",
        r"(student|router|quality\.(judge|reward_model))\.model",
        r"student\.(license|family)",
        r"quality\.judge\.rubric",
        r"evaluation\.tasks\.\d+",
        r"budget\.since",
        r"prices\.currency",
        r"speed\.(router|student)\.launch",
        r"speed\.(openai|teachers\.[^.]+)\.(base_url|api_key_env)",
    ),
    "null, which stands for a default that the documentation names": (
        "null",
        SOURCE + r"(reference|revision|config|where|limit|label)",
        r"prompts\.num_parallel",
        r"teachers\.[^.]+\.(revision|terms|system|family|anchors|precomputed(\.(revision|config|where|limit|tokenizer))?)",
        r"(student|router|quality\.reward_model)\.(revision|family)",
        r"router\.(layers|lora|num_train)",
        r"sft\.lora",
        r"strategies\.[^.]+\.(teacher|strong|weak|router|max_tokens|second_below)",
        r"evaluation\.(max_tokens|limit|num_fewshot)",
        r"budget\.max_tokens",
        r"prices\.gpu_hour",
        r"learnability\.max_tokens",
        r"speed\.learnability\.(batch_tokens|device_map)",
        r"speed\.(router|student)\.(device_batch_size|launch|report_to)",
        r"speed\.(\w+|teachers\.[^.]+)\.(ray|api_key_env|dtype|max_model_len)",
        r"speed\.(\w+|teachers\.[^.]+)\.ray\.address",
    ),
    "null, a section without keys": (
        "null",
        r"licenses|learnability|responses|defects|pairs|dataset|sft|budget|prices|speed",
    ),
    "a list of texts, and any text is taken": (
        "a list",
        r"evaluation\.tasks",
        r"speed\.(openai|teachers\.[^.]+)\.base_url",
    ),
    "a number that may be negative": (
        "-1",
        r"strategies\.[^.]+\.second_below",
        r"rewards\.alpha_slope",
        r"quality\.judge\.(lowest|highest)",
    ),
}
"""Why a value of WRONG is legal -> the value, and the places where it is legal; written by hand, not from the code."""


def places(node: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The place of every value below `node`: mappings and lists before their content."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield (*at, key)
        yield from places(value, (*at, key))


def replaced(params: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """A copy of `params` with another value at `place`."""
    copy = deepcopy(params)
    node = copy
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = value
    return copy


def why_legal(kind: str, path: str) -> str | None:
    """Why one of WRONG is legal at `path`, or None."""
    for reason, (legal, *patterns) in LEGAL.items():
        if kind == legal and any(re.fullmatch(pattern, path) for pattern in patterns):
            return reason
    return None


def try_wrong(file: Path) -> tuple[Counter[str], list[str]]:
    """Replace every value of a params.yaml in turn: counts, and a line for each fault."""
    params = YAML(typ="safe", pure=True).load(file)
    schema = Draft202012Validator(json.loads((ROOT / "params.schema.json").read_text()))
    counts: Counter[str] = Counter()
    faults = []
    for place in places(params):
        path, original = ".".join(map(str, place)), params
        for part in place:
            original = original[part]
        for kind, value in WRONG.items():
            if value == original and type(value) is type(original):
                continue
            data, found = replaced(params, place, value), None
            counts["replaced"] += 1
            try:
                check_params(data, file.name)
                counts["accepted"] += 1
                if not (why_legal(kind, path) and (schema.is_valid(data) or len(place) == 1)):
                    found = FAULTS[1]
                counts[f"accepted: {why_legal(kind, path)}"] += not found
            except InputError as error:
                counts["refused"] += 1
                counts["refused by what the schema cannot say"] += schema.is_valid(data)
                if not any(line.startswith(f"{file.name}: {path}") for line in map(str, error.args)):
                    found = f"{FAULTS[2]}: {error}"
            except Exception as error:  # noqa: BLE001  whatever ends in a traceback
                found = f"{FAULTS[0]}: {error!r}"
            if found:
                counts[found.partition(":")[0]] += 1
                faults.append(f"{file.parent.name}/{file.name} {path} = {kind}: {found}")
    return counts, faults


def main() -> int:
    """Print the counts of all files, and every fault; the exit status says whether there was one."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    for file in FILES:
        more, found = try_wrong(file)
        counts += more
        faults += found
    for name, count in counts.items():
        print(f"{count:6,}  {name}")  # noqa: T201
    for name in FAULTS:
        print(f"{counts[name]:6,}  {name} (must be 0)")  # noqa: T201
    print(*faults, sep="\n")  # noqa: T201
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
