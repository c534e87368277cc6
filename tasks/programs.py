"""Metric of the code tasks: whether the program of a response passes the item's tests, in our sandbox.

Greedy and one response an item, so the share that passes is pass@1. lm-eval's own code tasks fetch their metric from
the hub and run what a model wrote with all that this user may do.
"""

import re
import textwrap
from typing import Any

from persyn.verifiers.execution import code_blocks, passes


def humaneval(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score one response against the item's `test`, which defines check(candidate).

    The item's prompt runs before the code: it holds the imports and helper functions. A response may give the whole
    function, or only its body in its last block.
    """
    name = re.escape(doc["entry_point"])
    blocks = code_blocks(results[0])
    program = [doc["prompt"], *blocks]
    if blocks and not any(re.search(rf"^\s*(async\s+)?def\s+{name}\b", block, re.MULTILINE) for block in blocks):
        program = [f"{doc['prompt']}\n{textwrap.indent(blocks[-1], '    ')}"]
    return {"pass@1": passes(program, f"{doc['test']}\n\ncheck({doc['entry_point']})")}


def mbpp(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score one response against the item's asserts."""
    tests = "\n".join([doc["test_setup_code"], *doc["test_list"]])
    return {"pass@1": passes(code_blocks(results[0]), tests)}
