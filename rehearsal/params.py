"""Params: the changes that a rehearsal makes in a profile. Everything else (teachers' names, strategies, defects,
rewards, the router's settings) stays.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from science.project import with_changes

PROMPTS = 24
"""Prompts of all sources together; every second one is parallel."""
MAX_TOKENS = 8
SELECT = {rule: {"rule": rule} for rule in ("oracle", "grape", "best_quality")}
"""Rules of generate-then-select: every prompt must be parallel, so they run in their own project."""
NOT_TAKEN: dict[str, Any] = {"extra_body": {}, "host": None, "quantization": None, "adapter": None}
"""Settings of a teacher that the backend transformers does not honour, and what switches them off."""
ENGINES = {"vllm", "openai", "ray", "teachers"}


def hub_models(params: Mapping[str, Any]) -> dict[str, str]:
    """Dotted path in the parameters -> the hub model there."""
    found = {f"teachers.{name}.model": teacher["model"] for name, teacher in params["teachers"].items()}
    found |= {f"{section}.model": params[section]["model"] for section in ("student", "router")}
    beside = params["evaluation"].get("beside") or {}
    found |= {f"evaluation.beside.{name}.model": finished["model"] for name, finished in beside.items()}
    if params["quality"].get("reward_model"):
        found["quality.reward_model.model"] = params["quality"]["reward_model"]["model"]
    return {path: model for path, model in found.items() if not model.startswith("packaged:")}


def rehearsed(
    params: Mapping[str, Any], model: Callable[[str, str], str], data: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    """A profile's parameters, made small and local.

    Args:
        model: (dotted path, hub id) -> the folder of its stand-in.
        data: a source of prompts or responses -> the same source, read from local rows.
    """
    changes: dict[str, Any] = {path: model(path, hub_id) for path, hub_id in hub_models(params).items()}
    for name, teacher in params["teachers"].items():
        changes[f"teachers.{name}.backend"] = "transformers"
        changes[f"teachers.{name}.sampling"] = {**_taken(teacher["sampling"]), "max_tokens": MAX_TOKENS}
        changes |= {f"teachers.{name}.{field}": value for field, value in NOT_TAKEN.items() if field in teacher}
        if teacher.get("precomputed"):
            changes[f"teachers.{name}.precomputed"] = data(teacher["precomputed"])
    sources = params["prompts"]["sources"]
    each = -(-PROMPTS // len(sources))
    changes |= {
        "prompts.sources": [{**data(source), "limit": each} for source in sources],
        "prompts.decontaminate": [data(source) for source in params["prompts"].get("decontaminate") or []],
        "prompts.num_parallel": each * len(sources) // 2,
        "licenses.allow_forbidden": [
            name for name, teacher in params["teachers"].items() if teacher.get("training") == "forbidden"
        ],
        "student.max_length": 512,
        "router.max_length": 128,
        "router.batch_size": 8,
        "sft.epochs": 1,
        "sft.batch_size": 8,
        "evaluation.max_tokens": MAX_TOKENS,
        "evaluation.limit": 2,
        "budget.max_tokens": None,
        "strategies": {k: rule for k, rule in params["strategies"].items() if rule["rule"] not in SELECT},
        "speed": _on_this_machine(params["speed"]),
    }
    return with_changes(params, changes)


def selected(params: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rehearsed parameters with only these sources of prompts, all parallel, and only `persyn` and the strategies that
    need every prompt to be parallel.
    """
    chosen = {"persyn": params["strategies"]["persyn"], **SELECT}
    return with_changes(params, {"prompts.sources": list(sources), "prompts.num_parallel": None, "strategies": chosen})


def _taken(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """What the backend transformers honours of a teacher's sampling."""
    kept = {name: value for name, value in sampling.items() if name != "extra" and not name.endswith("_penalty")}
    return {name: value for name, value in kept.items() if value is not None}


def _on_this_machine(speed: Mapping[str, Any]) -> dict[str, Any]:
    """The profile's speed knobs without those of engines and processes that a rehearsal lacks."""
    kept = {section: knobs for section, knobs in speed.items() if section not in ENGINES}
    for section in ("router", "student"):
        if section in kept:
            kept[section] = {**kept[section], "launch": None, "report_to": None}
    if kept.get("evaluation", {}).get("engine") == "vllm":
        kept["evaluation"] = {}
    return {**kept, "transformers": {"batch_size": PROMPTS}}
