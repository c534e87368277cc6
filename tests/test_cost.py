import re

import polars as pl
import pytest

from persyn.cost import Paid, Prices, TokenPrice, build_ledger
from persyn.errors import InputError
from persyn.planning.text import ledger_text
from tests.support.tables import prompts_table, responses_table


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


def test_the_students_own_responses_are_paid_for_and_selecting_needs_none() -> None:
    prompts = prompts_table(["p1", "p2", "p3", "p4"])
    parallel = [responses_table(prompts[:2], name, ["x", "x"]) for name in ("a", "b", "me")]
    routed = {"strong": responses_table(prompts, "a", ["x"] * 4)}
    prices = Prices(teachers={"me": TokenPrice(input=0, output=1e6), "a": TokenPrice(input=0, output=1e6)})
    paid_for = Paid({"me": {"prompt_tokens": 0, "response_tokens": 5}})
    ledger = build_ledger(prompts, pl.concat(parallel), routed, prices, paid_for=paid_for, student="me")
    assert ledger["parallel"]["me"]["calls"] == 2
    assert ledger["total"]["spent"]["calls"] == 6 + 2
    assert ledger["total"]["spent"]["response_tokens"] == 8 + 5
    assert ledger["money"]["spent"] == 4 + 2 + 5
    assert ledger["generate_then_select"]["calls"] == 8
    assert ledger["money"]["generate_then_select"] == 4
    assert ledger["saved"]["strong"]["calls"] == 8 / (6 + 2)


def test_money_by_hand() -> None:
    """a: 1 a million prompt tokens, 10 a million response tokens; b has no price and is not in the sums."""
    prompts = prompts_table(["p1", "p2", "p3", "p4"])
    responses = pl.concat([responses_table(prompts[:2], name, ["x", "x y z"]) for name in ("a", "b")])
    routed = {"strong": responses_table(prompts, "a", ["x", "x y z", "x", "x"])}
    prices = Prices(teachers={"a": TokenPrice(input=1e6, output=10e6)})
    ledger = build_ledger(prompts, responses, routed, prices)
    # a: 4 calls of 10 prompt tokens, 6 response tokens. All four by a: 40 and, at a mean of 2, 8.
    money = {"currency": "USD", "spent": 100, "judge": 0, "strategies": {"strong": 100}, "generate_then_select": 120}
    assert ledger["money"] == {**money, "unpriced": ["b"]}
    judge = {"calls": 3, "prompt_tokens": 7, "response_tokens": 2}
    of_judge = Prices(teachers={"judge": TokenPrice(input=1e6, output=3e6)})
    graded = build_ledger(prompts, responses, routed, of_judge, judge)
    money = {"spent": 13, "judge": 13, "strategies": {"strong": 0}, "generate_then_select": 0, "unpriced": ["a", "b"]}
    assert graded["money"] == {"currency": "USD", **money}
    assert "USD 13.00 spent (13.00 of it on the judge), generate" in ledger_text(graded)
    assert "money: USD 100.00 spent, generate then select would take 120.00; no price given for b" in ledger_text(
        ledger
    )
    batched = responses.select("prompt_id", "teacher")  # of a: 2 calls, 20 prompt tokens and 4 response tokens
    cheaper = build_ledger(prompts, responses, routed, prices, paid_for=Paid(batched=batched))
    assert cheaper["money"]["spent"] == 100 - 60 / 2
    half = prices.in_batches(["a", "c"])
    assert half.money("a", 1, 1) == 5.5
    unpriced = build_ledger(prompts, responses, routed, Prices(gpu_hour=3.0))
    assert unpriced == build_ledger(prompts, responses, routed)
    title, header, _, *rows, last = ledger_text(unpriced).splitlines()
    assert (title, header.split()) == ("ledger", ["calls", "prompt", "tokens", "response", "tokens"])
    assert [re.split(r"\s{2,}", row.strip()) for row in rows] == [
        ["spent", "6", "60", "10"],
        ["cached: used again, not paid", "2", "20", "4"],
        ["generate then select would take", "8", "80", "16"],
        ["times fewer, parallel set included:"],
        ["strong", "1.3", "1.6"],
    ]
    assert last == "money: no price given (params.yaml, prices)"


def test_prices_that_make_no_sense_are_named() -> None:
    assert Prices.parse(None) == Prices()
    for fields, message in (
        ({"sizes": 3}, r"prices\.sizes is 3; .*mapping"),
        ({"gpu_hour": "2"}, r"prices\.gpu_hour is '2'; .*0 or more"),
        ({"teachers": {"a": {"input": 1, "output": -2}}}, r"prices\.teachers\.a\.output is -2; .*0 or more"),
        ({"teachers": {"a": {"input": 1}}}, r"prices\.teachers\.a\.output is missing"),
        ({"sizes": {"a": 0}}, r"prices\.sizes\.a is 0; "),
    ):
        with pytest.raises(InputError, match=message):
            Prices.parse(fields, "prices")


def test_the_papers_ratio() -> None:
    """19 teachers, 2.5K parallel of 50K prompts: 97.5K calls instead of 950K (here a hundredth of it)."""
    prompts = prompts_table([f"p{i}" for i in range(500)])
    responses = pl.concat([responses_table(prompts[:25], f"t{m:02}", ["x"] * 25) for m in range(19)])
    other = responses_table(prompts[25:], "t00", ["x"] * 475)
    routed = pl.concat([responses.filter(teacher="t00"), other])
    assert build_ledger(prompts, responses, {"persyn": routed})["saved"]["persyn"]["calls"] == 10.0
