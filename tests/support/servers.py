"""The page docs/servers.md, made from the table in persyn/generation/servers.py.

python -m tests.support.servers
"""

from collections.abc import Sequence
from pathlib import Path

from persyn.generation.completions import BYTES_A_TOKEN, CUT_SHORT, FILTER, LIMIT, STOP, TOKENS_A_MESSAGE, TOOL
from persyn.generation.servers import ACTIONS, BODILESS, CASES, FEW_REFUSALS, Action, Case

PAGE = Path("docs/servers.md")
WORD: dict[Action, str] = {
    "again": "asked again",
    "refuse": "an error",
    "skip": "never for this prompt",
    "stop": "the run stops",
    "rename": "repeated under the other name",
}
WHOM: dict[Action, str] = {
    "again": "this call",
    "refuse": "this prompt",
    "skip": "this prompt",
    "stop": "all",
    "rename": "all",
}
INTRO = """\
# What servers say

A teacher behind an API may say many things instead of a response. One table decides what each means: whether it was
paid for, whether it is asked again, for this prompt or for all, and what you are told. `persyn/generation/servers.py`
holds it, the backend `openai` reads it, and this page is made from it by `python -m tests.support.servers`.

Servers differ in form: an object, a list, text, HTML, json inside text. So a line looks at the status, at the codes
(`code`, `type`, `status`, wherever they stand) and at the words. The first line that fits holds. An error in a body
with status 200 counts as the status that the body names. What a server says is shown in one line, cut, without keys and
without what it repeats of the prompt.
"""
COUNTED = f"""\
## What is paid is counted

- **A text is a response**, whatever its finish reason is called. {{stop}} mean `stop`; {{limit}}
  mean `length`, as do {{cut}}, which end in mid-text. Any other name, null and "" are
  `stop` below `max_tokens` and `length` at it; a warning counts them.
- **Content as a list of parts** is text; thoughts among the parts are the thought.
- **An empty response that cost tokens** is not asked again at the same limit: it would be empty again. It is a row with
  its finish reason, the [defect](howto.md) `empty` drops it, and a warning says how many there are.
- **{{filter}}**, a `refusal` and {{tool}}
  without text are records of their own kind.
- **Attempts without a response** (empty, malformed, cut, timed out) are paid for too. Their tokens stand in the row as
  `lost_prompt_tokens` and `lost_response_tokens`; the budget and the ledger count them. One whose count never arrived
  counts as much as the attempt that brought the response: it asked the same.
- **No `usage`**: one token for every {BYTES_A_TOKEN} bytes of UTF-8, and {TOKENS_A_MESSAGE} for each message of the
  prompt; a text that was cut at the limit counts `max_tokens`. The row says `estimated`, a warning counts such rows. If
  thoughts are counted in `total_tokens` alone, they are taken from there.

## How a run ends early

- The first call goes alone, for up to two seconds: what no call can survive is said once.
- Where no call can succeed, none starts; calls in flight are waited for and stored. {FEW_REFUSALS} refusals (or
  bodies that are no chat completion) and not one response end the run too.
- `Retry-After`, in seconds or as a date, holds all calls back. Beyond `max_outage` it ends the run.
- A host that never answered is given up after ten seconds. One that did, and fails, is waited for up to `max_outage`.

## Prompts that can never be answered

They are too long for the model's context, or a filter refuses them. Each is a record with its kind (`too_long`,
`filtered`, `tool_calls`), not asked again at this `max_tokens`; with another one, or another setting, it is. The table
of responses has the row as `error`, so defects, rewards, routing and the dataset leave it out. They do not count for
`responses.max_error_share`: nothing that you run again would change them. A warning tells each teacher's share. Look at
it: a teacher that cannot answer half of the prompts is a poor choice.

`python -m benchmarks.servers` tries more than 70 behaviours of servers and checks calls, bills, rows and messages.
`python -m benchmarks.real_servers` does the same with vLLM's server and llama-cpp-python's
([figures](scaling.md#real-servers-killed-and-made-to-refuse)).
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


def page() -> str:
    """The text of docs/servers.md."""
    actions = "\n".join(f"- **{WORD[action]}**: {meaning}." for action, meaning in ACTIONS.items())
    names = {
        "stop": _names(STOP),
        "limit": _names(LIMIT),
        "cut": _names(CUT_SHORT),
        "filter": _names(FILTER),
        "tool": _names(TOOL),
    }
    return "\n".join(
        [
            INTRO,
            "## Errors\n",
            _table(CASES),
            "",
            "## Answers without a response, and no answers\n",
            _table(BODILESS),
            "",
            actions + "\n",
            COUNTED.format(**names),
        ]
    )


def _table(cases: Sequence[Case]) -> str:
    columns = ["case", "the server says", "paid", "then", "for", "record", "you"]
    rows = [
        [case.name, case.said, case.paid, WORD[case.action], WHOM[case.action], case.kind, case.cure] for case in cases
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [columns, ["---"] * len(columns), *rows])


def _names(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


if __name__ == "__main__":
    main()
