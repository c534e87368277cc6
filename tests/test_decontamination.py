"""Which prompts repeat an evaluation item, nearly repeat one, or nearly repeat each other; and which must not count."""

import json
import logging
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from ruamel.yaml import YAML

from persyn.files import write_json
from persyn.messages import assistant_message, user_message
from persyn.prompts import PromptSettings, build_prompts
from persyn.prompts.decontamination import EXAMPLES, SHOWN
from persyn.prompts.near import Similar, shingles
from persyn.prompts.overlap import SHORTEST, Items, runs, words_of
from tests.support.tables import texts_of
from tests.support.tiny import ROOT

LONG = (
    "A farmer has twelve hens and every hen lays two eggs on each day of the week. She sells a dozen eggs for three "
    "dollars at the market. How many dollars does she earn in a week?"
)
THAI = "แมวดำตัวหนึ่งนั่งอยู่บนหลังคาบ้านไม้เก่าริมแม่น้ำ และมองดูปลาว่ายน้ำไปมาอย่างเงียบ ๆ ทุกเช้า"
CHINESE = "小明有十二只母鸡,每只母鸡每天下两个蛋。他一个星期一共能卖出多少个鸡蛋?"
SHORT = "What is the capital of France?"
FEW = "Yes or no?"


def build(
    folder: Path, prompts: list[Any], items: Sequence[Any] = (), **params: Any
) -> tuple[pl.DataFrame, dict[str, Any]]:
    for name, rows in (("p.jsonl", prompts), ("e.jsonl", items)):
        (folder / name).write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    sets = [{"path": "e.jsonl", "label": "exam"}] if items else []
    section = {"sources": [{"path": "p.jsonl"}], "decontaminate": sets, "num_parallel": None} | params
    return build_prompts(folder, PromptSettings.parse(section, "prompts"))


@pytest.mark.parametrize(
    "item", [LONG, SHORT, CHINESE, THAI, "Compute 12 + 30 and then halve it.", "오늘 서울 의 날씨 는 어떻습니까"]
)
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text + " Put the final answer in \\boxed{}.",
        lambda text: f"Think step by step.\n\n{text}",
        str.upper,
        lambda text: text.replace(" ", "  \n"),
        lambda text: text.replace(".", " ").replace("?", "!!").replace(",", ";"),
        lambda text: f"**{text}**",
        lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),  # full width
        lambda text: text[:3] + "\u200b" + text[3:],
    ],
)
def test_an_item_is_found_however_it_is_written(tmp_path: Path, item: str, change: Any) -> None:
    _, counts = build(tmp_path, ["Another question.", change(item)], [item, FEW], decontaminate_near=None)
    assert counts["dropped"] == {"contaminated": 1}


@pytest.mark.parametrize(
    ("item", "prompt"),
    [
        (FEW, "Is water wet, yes or no?"),
        ("Go on.", "Please go on. Tell me more."),
        ("What is 5 + 6?", "What is 5 - 6?"),
        ("What is $x^2$ for x = 3?", "What is x2 for x = 3?"),
        (SHORT, "What is the capital of Germany?"),
        ("继续。", "请继续。说说更多。"),
        (CHINESE, "小红有十二只母鸭,每只都很大。"),
        (THAI, "แมวดำตัวหนึ่งกินปลา"),
        ("hindi: हिन्दी में एक कविता", "hindi: हनद म एक कवत"),
        (LONG, "A farmer has twelve hens and every hen lays two eggs on Sunday."),
    ],
)
def test_what_only_resembles_an_item_is_kept(tmp_path: Path, item: str, prompt: str) -> None:
    assert build(tmp_path, [prompt, "Other."], [item])[1]["dropped"] == {}


def test_a_generic_item_drops_only_prompts_that_say_nothing_else(tmp_path: Path) -> None:
    prompts = ["yes, or no", *(f"Is {number} a prime? Yes or no?" for number in range(50))]
    table, counts = build(tmp_path, prompts, [FEW, "Why?", "?!"])
    assert counts["dropped"] == {"contaminated": 1}
    assert table.height == 50


def test_words_of_a_text() -> None:
    assert words_of("The  CAT's — _well-known_ add_2(x) costs $1.50!") == words_of(
        "the cat s well known add_2 x costs 1 50"
    )
    words = words_of("5-6, 10-year-old, -3, x - 2, a - b, 3 \u00d7 4")
    assert " ".join(words) == "5 - 6 10 year old - 3 x - 2 a b 3 * 4"
    assert words_of("x^{2} + 1 = 3") == ("x", "^", "2", "+", "1", "=", "3")
    assert words_of("日本語text") == ("日", "本", "語", "text")
    assert words_of("हिन्दी में") == ("हिन्दी", "में")
    assert words_of("Straße ﬁne ①") == ("strasse", "fine", "1")
    assert words_of(" 🙂 \n") == ("🙂",)


def test_runs_are_worth_their_words() -> None:
    assert list(runs(words_of("a b c d"), 3)) == [("a", "b", "c"), ("b", "c", "d")]
    assert list(runs(words_of("a b"), 3)) == []
    assert list(runs(words_of("日本語の本"), 2)) == [tuple("日本語の"), tuple("本語の本")]
    assert list(runs(words_of("กขคงจ"), 1)) == [tuple("กขคง"), tuple("ขคงจ")]
    assert list(runs(words_of("é 日本 b"), 2)) == [("é", "日", "本"), ("日", "本", "b")]


def test_runs_equal_the_obvious_way_and_so_does_the_search() -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcd", k=rng.randint(1, 16))) for _ in range(300)]
    items, prompts = texts[:60], texts[60:]
    found = Items(8)
    for number, item in enumerate(items):
        found.add(number, item, True)

    def inside(part: list[str], whole: list[str]) -> bool:
        return any(whole[start : start + len(part)] == part for start in range(len(whole) - len(part) + 1))

    def meets(item: list[str], prompt: list[str]) -> bool:
        if len(item) >= 8:
            return any(inside(item[start : start + 8], prompt) for start in range(len(item) - 7))
        return item == prompt or (len(item) >= SHORTEST and inside(item, prompt))

    for prompt in prompts:
        met = found.find(prompt)
        expected = [number for number, item in enumerate(items) if meets(item.split(), prompt.split())]
        assert (met is None) == (not expected)
        assert met is None or met[0] in expected


def test_a_reworded_item_is_nearly_contaminated(tmp_path: Path) -> None:
    words = LONG.split()
    reworded = " ".join("old" if place in (8, 20) else word for place, word in enumerate(words))
    shuffled = " ".join(sentence + "." for sentence in reversed(LONG.rstrip("?").split(". ")))
    assert build(tmp_path, [reworded, "Other."], [LONG], ngram=25, decontaminate_near=None)[1]["dropped"] == {}
    for prompt in (reworded, shuffled):
        _, counts = build(tmp_path, [prompt, "Other."], [FEW, LONG], ngram=25)
        assert counts["dropped"] == {"nearly contaminated": 1}
        (met,) = counts["met"]["nearly contaminated"].values()
        assert met["item"] == LONG[: SHOWN - 3] + "..." if len(LONG) > SHOWN else LONG
        assert 0.6 <= met["similarity"] < 1


def test_near_duplicates_are_dropped_only_where_a_parameter_says_so(tmp_path: Path) -> None:
    other = LONG.replace("three", "four")
    prompts = [LONG, other, LONG.upper(), "What is 5 + 6?", "what is 5 + 6", "What is 5 + 7?"]
    assert build(tmp_path, prompts)[1]["dropped"] == {}
    table, counts = build(tmp_path, prompts, near_duplicates=0.7)
    assert counts["dropped"] == {"near duplicate": 3}
    assert set(texts_of(table)) == {LONG, "What is 5 + 6?", "What is 5 + 7?"}
    met = list(counts["met"]["near duplicate"].values())
    assert [found["similarity"] for found in met] == [pytest.approx(28 / 34, abs=0.05), 1, 1]
    assert {found["source"] for found in met} == {"p.jsonl"}


def test_a_conversation_is_compared_as_a_whole_and_by_its_system_message(tmp_path: Path) -> None:
    def asked(system: str, text: str) -> list[Any]:
        return [
            {"role": "system", "content": system},
            *user_message(text),
            *assistant_message("Well."),
            *user_message("Go on."),
        ]

    prompts = [asked("Be brief.", LONG), asked("Be brief.", LONG.lower()), asked("Be kind.", LONG)]
    assert build(tmp_path, prompts, near_duplicates=0.9)[1]["dropped"] == {"near duplicate": 1}


def test_examples_say_what_was_met_and_stay_few(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = ["Keep me.", *(f"{SHORT} Say it {number} times.\n\x1b[1m" + "x" * 500 for number in range(8))]
    with caplog.at_level(logging.INFO, "persyn.prompts.decontamination"):
        _, counts = build(tmp_path, prompts, ["Unmet item with some more words.", SHORT])
    examples = counts["met"]["contaminated"]
    assert (counts["dropped"], len(examples)) == ({"contaminated": 8}, EXAMPLES)
    first = next(iter(examples.values()))
    assert first["prompt"].startswith(f"{SHORT} Say it 0 times. \\x1b[1mxxx")
    assert len(first["prompt"]) == SHOWN
    assert (first["item"], first["source"], first["similarity"]) == (SHORT, "exam", None)
    assert first["shared"] == "what is the capital of france"
    lines = [record.getMessage() for record in caplog.records if record.name == "persyn.prompts.decontamination"]
    assert len(lines) == EXAMPLES
    assert lines[0].startswith(f"contaminated: '{SHORT} Say it 0 times.")
    assert lines[0].endswith(f"meets '{SHORT}' of exam; both have 'what is the capital of france'")


PROGRAM = """
import random
from persyn.prompts.near import Similar
rng = random.Random(3)
words = [f"w{number}" for number in range(200)]
texts = [[rng.choice(words) for _ in range(40)] for _ in range(300)]
texts += [[word if rng.random() > 0.06 else rng.choice(words) for word in text] for text in texts]
similar = Similar(0.6, 13)
for text in texts[:300]:
    similar.add(" ".join(text))
print([similar.find(" ".join(text)) for text in texts[300:]])
"""


def test_every_run_finds_the_same(tmp_path: Path) -> None:
    found = set()
    for seed in ("1", "2"):
        env = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, check=True, capture_output=True, text=True)
        found.add(done.stdout)
    assert len(found) == 1
    assert "None" in done.stdout
    assert "(1, " in done.stdout
    for name in ("a.json", "b.json"):
        write_json(build(tmp_path, [LONG, SHORT, "Other."], [LONG.upper(), SHORT])[1], tmp_path / name)
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.6, 0.9, 1.0])
def test_minhash_misses_few_and_makes_up_none(threshold: float) -> None:
    rng = random.Random(1)
    words = [f"w{number}" for number in range(300)]
    texts = [" ".join(rng.choices(words, k=40)) for _ in range(120)]
    changed = [
        " ".join(word if rng.random() > rng.random() / 5 else rng.choice(words) for word in text.split())
        for text in texts
    ]
    similar, missed, pairs = Similar(threshold, 13), 0, 0
    for text in texts:
        similar.add(text)
    for text in changed:
        one = shingles(text, 13)
        best = max(len(one & other) / len(one | other) for other in (shingles(kept, 13) for kept in similar.texts))
        found = similar.find(text)
        pairs += best >= threshold
        missed += best >= threshold and found is None
        assert found is None or (found[1] >= threshold and found[1] <= best)
    assert missed <= 0.03 * pairs


def test_no_prompt_of_the_demo_is_an_evaluation_item() -> None:
    """Although both are made from templates that resemble each other."""
    section = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")["prompts"]
    _, counts = build_prompts(ROOT / "data" / "raw", PromptSettings.parse(section, "prompts"))
    asked = sum(source["limit"] for source in section["sources"])
    assert (counts["kept"], counts["dropped"], counts["met"]) == (asked, {}, {})


def test_text_that_is_no_text_in_an_evaluation_set_is_harmless(tmp_path: Path) -> None:
    items = [
        "\ud800",
        "",
        "x\ud800y " * 20,
        "\u200b",
        [*user_message("Hi"), *assistant_message("Yes?"), *user_message("")],
    ]
    assert build(tmp_path, ["A.", "B."], items)[1]["dropped"] == {}
