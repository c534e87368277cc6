"""Metric of the micro-world's task: whether math-verify finds the answer equal."""

from typing import Any

from persyn.verifiers import is_right_answer


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score one response against the item's `answer`."""
    return {"math_verify": is_right_answer(doc["prompt"], results[0], doc["answer"])}
