import polars as pl
from conftest import prompts_table, responses_table

from persyn.cost import build_ledger


def test_the_ledger_by_hand() -> None:
    """Two teachers, four prompts, two of them parallel. 10 prompt tokens and 1 or 3 response tokens a call."""
    prompts = prompts_table(["p1", "p2", "p3", "p4"])
    parallel = prompts[:2]
    responses = pl.concat([responses_table(parallel, "a", ["x", "x"]), responses_table(parallel, "b", ["x y z"] * 2)])
    all_a = responses_table(prompts, "a", ["x"] * 4)
    mixed = pl.concat([all_a[:3], responses_table(prompts[3:], "b", ["x y z"])])
    ledger = build_ledger(prompts, responses, {"persyn": mixed, "strong": all_a})
    assert ledger["parallel"]["b"] == {"calls": 2, "prompt_tokens": 20, "response_tokens": 6}
    assert ledger["routed"]["persyn"]["spent"] == {"calls": 2, "prompt_tokens": 20, "response_tokens": 4}
    assert ledger["routed"]["persyn"]["cached"] == {"calls": 2, "prompt_tokens": 20, "response_tokens": 2}
    assert ledger["generate_then_select"] == {"calls": 8, "prompt_tokens": 80, "response_tokens": 16}
    assert ledger["saved"]["persyn"] == {"calls": round(8 / 6, 4), "response_tokens": round(16 / 12, 4)}
    # p3 by `a` serves both strategies: paid once.
    assert ledger["total"]["spent"]["calls"] == 4 + 2 + 1
    assert ledger["total"]["cached"]["calls"] == 12 - 7
    assert ledger["money"] is None


def test_the_papers_ratio() -> None:
    """19 teachers, 2.5K parallel of 50K prompts: 97.5K calls instead of 950K (here a hundredth of it)."""
    prompts = prompts_table([f"p{i}" for i in range(500)])
    responses = pl.concat([responses_table(prompts[:25], f"t{m:02}", ["x"] * 25) for m in range(19)])
    other = responses_table(prompts[25:], "t00", ["x"] * 475)
    routed = pl.concat([responses.filter(teacher="t00"), other])
    assert build_ledger(prompts, responses, {"persyn": routed})["saved"]["persyn"]["calls"] == 10.0
