"""GSM8K and SVAMP: the worked solution of an example, and whether math-verify finds the answer equal."""

import re
from typing import Any

from persyn.verifiers import is_right_answer


def worked_solution(doc: dict[str, Any]) -> str:
    """GSM8K's own solution without its calculator's notes (`<<48/2=24>>`), the answer after #### boxed."""
    reasoning, answer = re.sub("<<.*?>>", "", doc["answer"]).split("####")
    return f"{reasoning.strip()}\nThe answer is \\boxed{{{_number(answer)}}}."


def score_gsm8k(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score one response against the number after ####."""
    gold = _number(doc["answer"].split("####")[1])
    return {"math_verify": is_right_answer(doc["question"], results[0], gold)}


def score_svamp(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score one response against the item's `Answer`: a text on the hub, a number in the authors' own file."""
    return {"math_verify": is_right_answer(doc["Question"], results[0], str(doc["Answer"]))}


def _number(text: str) -> str:
    return text.strip().replace(",", "")
