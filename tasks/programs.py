"""Metric of the code tasks: whether the program of a response passes the item's tests, in our confined process.

Greedy and one response an item, so the share that passes is pass@1. lm-eval's own code tasks fetch their metric from
the hub and run what a model wrote with all that this user may do.
"""

import re
import textwrap
from typing import Any

from persyn.verifiers.execution import code_of, passes


def humaneval(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score one response against the item's `test`, which defines check(candidate).

    The item's prompt stands before the code: it holds the imports and helper functions. A response may give the whole
    function or only its body.
    """
    name = re.escape(doc["entry_point"])
    code = textwrap.dedent(code_of(results[0], name))
    if not re.search(rf"^\s*(async\s+)?def\s+{name}\b", code, re.MULTILINE):
        code = textwrap.indent(code, "    ")
    program, tests = f"{doc['prompt']}\n{code}", f"{doc['test']}\n\ncheck({doc['entry_point']})"
    return {"pass@1": passes(program, tests)}


def mbpp(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score one response against the item's asserts."""
    return {"pass@1": passes(code_of(results[0]), "\n".join([doc["test_setup_code"], *doc["test_list"]]))}
