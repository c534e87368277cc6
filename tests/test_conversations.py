"""A conversation is the unit, in every shape of a source, through requests, router and dataset to the student."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from persyn.chat import encode_prompt, with_chat_template
from persyn.dataset import DatasetSettings, build_dataset
from persyn.defects import Policies, detect_defects
from persyn.errors import InputError
from persyn.generation import Example, Sampling, Teacher
from persyn.generation.requests import prepare_requests
from persyn.generation.terms import Licenses
from persyn.messages import as_messages, assistant_message, user_message
from persyn.models import load_tokenizer
from persyn.planning.usage import size_of
from persyn.prompts import PromptSettings, build_prompts
from persyn.prompts.conversations import prompt_id
from persyn.router.reading import prompt_text, prompt_texts
from persyn.schemas import MESSAGES, PROMPTS, check_table, parse_table, read_table
from persyn.student import encode_dataset
from tests.support.tables import prompts_table, responses_table, stub_teachers, texts_of

HI, YES, MORE = user_message("Hi"), assistant_message("Yes?"), user_message("Say more.")
BRIEF = [{"role": "system", "content": "Be brief."}]
LONG = BRIEF + HI + YES + MORE
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}, {"from": "human", "value": "Say more."}]
TEACHER = Teacher(model="m", backend="openai", license="MIT", sampling=Sampling(max_tokens=40))


def build(folder: Path, rows: list[dict[str, Any]], **fields: Any) -> tuple[pl.DataFrame, dict[str, Any]]:
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": "p.jsonl"} | fields
    return build_prompts(folder, PromptSettings.parse({"sources": [source], "num_parallel": None}, "prompts"))


@pytest.mark.parametrize(
    ("row", "fields", "shape", "messages", "answer"),
    [
        ({"prompt": " Hi \r\n"}, {}, "text", HI, None),
        ({"prompt": [*HI, *YES]}, {}, "messages", HI, "Yes?"),
        ({"messages": [*LONG, *YES]}, {}, "messages", LONG, "Yes?"),
        ({"messages": LONG, "conversations": 3, "instruction": "no"}, {}, "messages", LONG, None),
        ({"messages": [*HI, {"role": "assistant", "content": "a", "tool_calls": []}, *YES]}, {}, "messages", HI,
         "a\n\nYes?"),
        ({"conversations": SHAREGPT}, {}, "sharegpt", HI + YES + MORE, None),
        ({"conversations": [{"from": "system", "value": " "}, *SHAREGPT]}, {}, "sharegpt", HI + YES + MORE, None),
        ({"messages": [{"role": "Human", "content": "Hi"}, {"role": "chatgpt", "content": "o"}]}, {}, "messages", HI,
         "o"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, "i"]}]}, {}, "messages",
         user_message("H\ni"), None),
        ({"turns": ["Hi", "Say more."]}, {"prompt": "turns"}, "turns", HI + MORE, None),
        ({"instruction": "Hi"}, {}, "alpaca", HI, None),
        ({"instruction": "Hi", "input": None, "output": "o"}, {}, "alpaca", HI, "o"),
        ({"instruction": "Hi", "input": "there", "output": "o "}, {}, "alpaca", user_message("Hi\n\nthere"), "o"),
        ({"instruction": "Say more.", "output": "o", "system": "Be brief.", "history": [["Hi", "Yes?"]]}, {}, "alpaca",
         LONG, "o"),
        ({"instruction": "Hi", "output": "o", "system": "", "history": []}, {}, "alpaca", HI, "o"),
        ({"instruction": "Hi", "system": None, "history": None}, {}, "alpaca", HI, None),
        ({"conversations": SHAREGPT, "system": "Be brief."}, {}, "sharegpt", LONG, None),
        ({"conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT], "system": "Be long."}, {}, "sharegpt",
         LONG, None),
        ({"messages": HI, "system": "gpt-4"}, {}, "messages", HI, None),
        ({"instruction": "Hi", "input": "there"}, {"prompt": "instruction"}, "text", HI, None),
        ({"messages": [*LONG, *YES]}, {"prompt": "{{ messages[1].content }}"}, "text", HI, None),
    ],
)  # fmt: skip
def test_every_shape_becomes_messages(
    row: dict[str, Any],
    fields: dict[str, Any],
    shape: str,
    messages: list[dict[str, str]],
    answer: str | None,
    tmp_path: Path,
) -> None:
    table, counts = build(tmp_path, [row], **fields)
    check_table(table, PROMPTS, "prompts")
    assert table["prompt"].to_list() == [messages]
    assert table["prompt_id"].to_list() == [prompt_id(messages)]
    assert counts["shapes"] == {shape: 1}
    assert table["reference"].to_list() == [None], "an answer is dropped unless it is asked for"
    if answer:
        kept, _ = build(tmp_path, [row], answer_as_reference=True, **fields)
        assert kept["reference"].to_list() == [answer]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "no user turn"),
        ([*BRIEF, *YES], "no user turn"),
        ([*HI, *BRIEF], "no user turn at the end"),
        ([*HI, {"role": "narrator", "content": "x"}], "unknown role"),
        ([*HI, {"role": "tool", "content": "3"}], "tool turn"),
        ([*HI, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}], "tool turn"),
        ([{"from": "human", "value": "Hi"}, {"from": "function-call", "value": "f()"}], "tool turn"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url"}]}], "not text"),
        ([{"role": "user", "content": {"text": "x"}}], "not text"),
        ([{"role": "user", "content": "a\x00b"}], "not text"),
        ([*HI, {"role": "user", "content": None}], "empty"),
        ([*HI, {"role": "assistant", "content": " "}, *MORE], "empty"),
        ([" "], "empty"),
        (None, "empty"),
        ([*HI, *YES, *user_message("x" * 30_000)], "too long"),
        ([*user_message("x" * 15_000), *user_message("x" * 15_000)], "too long"),
    ],
)
def test_an_unfit_conversation_is_dropped_and_counted(value: Any, reason: str, tmp_path: Path) -> None:
    table, counts = build(tmp_path, [{"messages": value}, {"messages": LONG}, {"messages": LONG}])
    assert counts["dropped"] == {"duplicate": 1, reason: 1}
    assert (counts["read"], table.height) == (3, 1)


@pytest.mark.parametrize(("pair", "reason"), [(["Hi", ""], "empty"), (["Hi", None], "empty"), ("Hi", "not text")])
def test_a_history_that_cannot_be_read_is_counted(pair: Any, reason: str, tmp_path: Path) -> None:
    _, counts = build(tmp_path, [{"instruction": "Say more.", "history": [pair]}, {"instruction": "Hi"}])
    assert counts["dropped"] == {reason: 1}


def test_an_unknown_role_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(tmp_path, [{"messages": [*HI, {"role": "narrator", "content": "x"}]}, {"messages": LONG}])
    assert "a role that is not known: 'narrator' 1" in caplog.text


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        ({"messages": json.dumps(LONG)}, {}, "row 0, column 'messages' is a conversation written as text"),
        ({"messages": str(LONG)}, {}, "row 0, column 'messages' is a conversation written as text"),
        ({"messages": [1, 2]}, {}, "row 0, column 'messages' is list of int; it must hold text or a conversation"),
        ({"messages": [{"speaker": "a", "text": "b"}]}, {}, r"is list of dict \(keys speaker, text\); it must hold"),
        ({"messages": {"role": ["user"], "content": ["Hi"]}}, {}, "'messages' is dict; it must hold text or a conv"),
        ({"question": "Hi"}, {}, "no column prompt or messages or conversations or instruction; it has question;"),
        ({"messages": LONG}, {"prompt": "prompt"}, "no column 'prompt'; it has messages"),
        ({"messages": LONG}, {"prompt": "{{ messages }}"}, "row 0, the template of prompt fails: it writes a list as"),
        ({"messages": LONG}, {"prompt": "{{ messages[0] }}"}, "the template of prompt fails: it writes a dict as"),
        ({"messages": LONG}, {"prompt": "{{ messages | tojson }}"}, "the template of prompt is a conversation written"),
        ({"messages": LONG}, {"answer_as_reference": True}, r"1 rows have no answer, first at rows \[0\]"),
        (
            {"prompt": "Hi", "a": [1]},
            {"reference": "a"},
            r"column 'a' is list; .* by a template: \{\{ a \| tojson \}\}",
        ),
        ({"prompt": "Hi"}, {"reference": "a", "answer_as_reference": True}, r"answer_as_reference is true, and refe"),
    ],
)
def test_what_is_no_conversation_is_one_clear_line(
    row: dict[str, Any], fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        build(tmp_path, [row], **fields)
    assert "\n" not in str(raised.value)


def test_evaluation_sets_are_compared_with_every_turn(tmp_path: Path) -> None:
    question = "How many legs do three spiders and two horses have when they all stand in one field?"
    evaluation = [{"messages": [*BRIEF, *user_message("What is 1 + 1?"), *YES, *MORE]}, {"messages": HI}]
    (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, [*evaluation, {"messages": user_message(question)}])))
    rows = [
        [*BRIEF, *user_message("What is 1 + 1?")],
        [*user_message("Name a tree."), *assistant_message(f"You ask: {question}"), *user_message("Go on.")],
        [*BRIEF, *user_message("Another one.")],
        [*user_message("Name a bird."), *YES, *MORE],
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    sources = {"sources": [{"path": "p.jsonl"}], "decontaminate": [{"path": "e.jsonl"}], "num_parallel": None}
    table, counts = build_prompts(tmp_path, PromptSettings.parse(sources, "prompts"))
    assert counts["dropped"] == {"contaminated": 2}
    assert sorted(turns[-1]["content"] for turns in table["prompt"].to_list()) == ["Another one.", "Say more."]


def test_parquet_and_hub_hold_conversations_too(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    for path in ("p.parquet", "repository/train.parquet"):
        pl.DataFrame({"messages": [[*LONG, *YES]], "other": [1]}).write_parquet(tmp_path / path)
    hub = {"hub": str(tmp_path / "repository"), "revision": "0" * 40}
    for source in ({"path": "p.parquet"}, hub):
        settings = PromptSettings.parse({"sources": [source], "num_parallel": None}, "prompts")
        assert build_prompts(tmp_path, settings)[0]["prompt"].to_list() == [LONG]


def test_an_old_table_is_read_with_each_text_as_one_user_turn(tmp_path: Path) -> None:
    table = prompts_table(["one", "two"])
    old = table.with_columns(prompt=pl.Series(["one", "two"]))
    old.write_parquet(tmp_path / "prompts.parquet")
    assert read_table(tmp_path / "prompts.parquet", PROMPTS).equals(table)
    assert prompt_texts(old) == prompt_texts(table) == texts_of(old) == ["one", "two"]
    old[:0].write_parquet(tmp_path / "none.parquet")
    assert read_table(tmp_path / "none.parquet", PROMPTS).height == 0
    old.with_columns(prompt=pl.lit(None, pl.String)).write_parquet(tmp_path / "null.parquet")
    with pytest.raises(InputError, match="2 missing or non-finite values in prompt"):
        read_table(tmp_path / "null.parquet", PROMPTS)
    assert parse_table(tmp_path / "prompts.parquet", PROMPTS, "p").schema["prompt"] == MESSAGES


def test_a_user_turn_keeps_its_id_and_its_key() -> None:
    """Pinned when a prompt was a text: other values would ask, and pay for, everything again."""
    shown = TEACHER.changed(system="Be kind.", examples=[Example(prompt="Q", response="A")])
    text = "Name a colour."
    for prompt in (text, user_message(text)):
        assert prompt_id(prompt) == "4eef85d027f3c351"
        prompts = pl.DataFrame({"prompt_id": ["x"], "prompt": [prompt]})
        keys = [prepare_requests(prompts, teacher)[0].key for teacher in (TEACHER, shown)]
        assert keys == [
            "ccdeaec64006ee969767f037b8ca32e898e25b6605a971d987e4ea300bda1c1d",
            "3a9f3b45e0870cced201924cf5dfdbc4ed2b48ce87e78b9a9195f9eb353b56bb",
        ]


def test_ids_of_conversations_tell_them_apart() -> None:
    prompts = [
        LONG,
        LONG[1:],
        HI + MORE,
        user_message("Hi\n\nSay more."),
        BRIEF + HI,
        user_message(json.dumps(HI + MORE)),
    ]
    assert len({prompt_id(prompt) for prompt in prompts}) == len(prompts)
    swapped = [{"content": turn["content"], "role": turn["role"]} for turn in LONG]
    assert prompt_id(swapped) == prompt_id(LONG)


def test_a_teacher_gets_one_system_message() -> None:
    shown = TEACHER.changed(system="Be kind.", examples=[Example(prompt="Q", response="A")])
    example = user_message("Q") + assistant_message("A")
    both = [{"role": "system", "content": "Be kind.\n\nBe brief."}]
    assert shown.messages(LONG) == both + example + LONG[1:]
    assert TEACHER.messages(LONG) == LONG
    assert LONG[0]["content"] == "Be brief.", "the prompt itself is as it was"


def test_from_source_to_student(chat_model: str, tmp_path: Path) -> None:
    built, _ = build(tmp_path, [{"messages": [*LONG, *YES]}, {"messages": HI}])
    prompts = built.sort("prompt_id")
    requests = prepare_requests(prompts, TEACHER)
    assert sorted(len(request.conversation) for request in requests) == [1, 4]
    responses = responses_table(prompts, "t", ["Once."] * 2)
    dataset, _ = build_dataset(prompts, responses, Policies(), stub_teachers("t"), Licenses(), DatasetSettings())
    by_length = {len(row["prompt"]): row for row in dataset.to_dicts()}
    assert by_length[4]["prompt"] == LONG
    assert by_length[4]["completion"] == assistant_message("Once.")
    tokenizer = with_chat_template(load_tokenizer(chat_model))
    for row, encoded in zip(dataset.to_dicts(), encode_dataset(tokenizer, dataset), strict=True):
        seen = encode_prompt(tokenizer, row["prompt"])
        assert encoded["input_ids"][: len(seen)] == seen
        assert encoded["labels"][: len(seen)] == [-100] * len(seen)
        assert -100 not in encoded["labels"][len(seen) :]


@pytest.mark.parametrize("completion", [[], [*YES, *MORE], HI])
def test_a_completion_is_one_message_of_the_assistant(completion: list[dict[str, str]], chat_model: str) -> None:
    dataset = pl.DataFrame(
        {"prompt": [HI], "completion": [completion]}, schema={"prompt": MESSAGES, "completion": MESSAGES}
    )
    with pytest.raises(InputError, match=r"row 0 of the dataset .* has the turns .*; it must be one"):
        encode_dataset(with_chat_template(load_tokenizer(chat_model)), dataset)


def test_a_router_reads_the_last_turn_first() -> None:
    assert prompt_text(LONG) == "Say more.\n\nYes?\n\nHi\n\nBe brief."
    assert prompt_text("Hi") == prompt_text(HI) == "Hi"
    assert prompt_texts(prompts_table(["Hi", LONG])) == ["Hi", "Say more.\n\nYes?\n\nHi\n\nBe brief."]


def test_the_last_turn_decides_a_router_that_reads_few_tokens(base_model: str) -> None:
    from persyn.router.features import embed

    ends = [user_message("word " * 40 + end) + HI for end in ("one", "two")]
    features = embed([prompt_text(prompt) for prompt in ends], base_model, None, 8)
    assert np.allclose(*features)


def test_defects_look_at_all_turns() -> None:
    chinese = user_message("\u8bf7\u8bf4\u82f1\u8bed") * 3
    row = {"response": "Only English words here.", "finish_reason": "stop"}
    assert detect_defects(chinese, row)["other_script"]
    assert not detect_defects(chinese + user_message("In English."), row)["other_script"]


def test_the_size_of_a_prompt_counts_every_turn() -> None:
    assert size_of("Hi") == size_of(HI) == 2
    assert size_of(HI + MORE) == 2 + 9 + 32
    assert as_messages("Hi") == HI
