"""A thought is apart from its answer: in every form, from every engine, and in stores of earlier versions."""

import json
import logging
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tokenizers import AddedToken

from persyn.chat import encode_prompt, with_chat_template
from persyn.defects import DETECTORS, count_defects, find_defects
from persyn.errors import InputError
from persyn.generation import Precomputed, Sampling, Teacher, load_backend
from persyn.generation.openai import OpenAISpeed
from persyn.generation.reading import encode_conversations, read_generation
from persyn.generation.requests import open_store, prepare_requests
from persyn.generation.row_sampler import row_sampler
from persyn.generation.transformers import TransformersSpeed
from persyn.messages import user_message
from persyn.quality import QualitySettings, score_quality
from persyn.responses import generate_responses
from persyn.schemas import RESPONSES, read_table
from persyn.thinking import Thought, opening_tag, split_thought
from tests.support.stub import stub_teacher
from tests.support.tables import prompts_table, responses_table
from tests.support.tiny import CHATML, build_model, build_tokenizer

HARMONY = (
    "<|channel|>analysis<|message|>We need 2+2.<|end|><|start|>assistant<|channel|>commentary<|message|>Nothing."
    "<|end|><|start|>assistant<|channel|>final<|message|>It is 4."
)
OPENED = CHATML + (
    "{% if add_generation_prompt %}{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% else %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
PROMPTS = prompts_table([f"Tell story number {number}." for number in range(3)])


def teacher(**changes: Any) -> Teacher:
    fields: Mapping[str, Any] = {"model": "stub", "license": "x", "backend": "openai", "sampling": {"max_tokens": 40}}
    return Teacher.parse({**fields, **changes}, "teachers.t")


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\nTwo and two.\n</think>\n\nIt is 4.", "Two and two.", "It is 4."),
        (" \n<thinking>a</thinking>b", "a", "b"),
        ("<thought>a</thought>b", "a", "b"),
        ("<reasoning>\na\n</reasoning>\n<answer>b</answer>", "a", "<answer>b</answer>"),
        ("[THINK]a[/THINK]b", "a", "b"),
        ("<seed:think>a</seed:think>b", "a", "b"),
        ("<mm:think>a</mm:think>b", "a", "b"),
        ("◁think▷a◁/think▷b", "a", "b"),
        ("<|channel>thought\na\n<channel|>b", "a", "b"),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>", "a", "b"),
        ("<|begin_of_thought|>a<|end_of_thought|>\n<|begin_of_solution|>\nb\n<|end_of_solution|>", "a", "b"),
        ("Here is my thought process:\na\nHere is my response:\nb", "a", "b"),
        ("<think>a</think>\n<think>b</think>c", "a\n\nb", "c"),
        ("<think>\n\n</think>\n\nc", None, "c"),
        ("<think>The tag <think> opens.</think>c", "The tag <think> opens.", "c"),
        ("<think>a</think>Then `</think>` closes it.", "a", "Then `</think>` closes it."),
        (HARMONY, "We need 2+2.\n\nNothing.", "It is 4."),
        ("<|start|>assistant" + HARMONY + "<|return|>", "We need 2+2.\n\nNothing.", "It is 4."),
        ("<|channel|>final<|message|>It is", None, "It is"),
        (" to=self<|message|>a<|eom|><|start|>assistant to=user<|message|>b<|eot|>", "a", "b"),
        ("analysisWe need 2+2.assistantfinalIt is 4.", "We need 2+2.", "It is 4."),
        ("analysisa assistantcommentaryb assistantfinalc", "a assistantcommentaryb", "c"),
    ],
)
def test_a_thought_is_found_in_every_form(text: str, reasoning: str | None, answer: str) -> None:
    assert split_thought(text) == Thought(reasoning, answer)
    assert split_thought(text, opened=None) == Thought(reasoning, answer)


@pytest.mark.parametrize(
    "text",
    [
        "A model writes <think>...</think> first.",
        "Use `</think>` to close it.",
        "```\nsome thought\n</think>\n```",
        "Write it so:\n<think>\nthought\n</think>\nanswer",
        "analysis of the poem: it ends well",
        "Here is my thought process: I add.",
        "finalThe end",
        "",
    ],
)
def test_an_answer_that_talks_of_thoughts_stays(text: str) -> None:
    assert split_thought(text) == split_thought(text, opened=None) == Thought(None, text)


def test_a_prompt_may_have_opened_the_thought() -> None:
    assert split_thought("a\n</think>\n\nb", opened=True) == Thought("a", "b")
    assert split_thought("<think>\na\n</think>\n\nb", opened=True) == Thought("a", "b")
    assert split_thought("a\n</think>\n\nb </think>", opened=True) == Thought("a", "b </think>")
    assert split_thought("", opened=True) == Thought(None, "")
    assert [opening_tag(text) for text in ("x<think>\n", "x[THINK]", "x<think>\n\n</think>\n\n", "<think> x")] == [
        *("<think>", "[THINK]"),
        *("", ""),
    ]


def test_a_text_of_unknown_origin_may_begin_inside_its_thought() -> None:
    assert split_thought("a\n</think>\n\nb", opened=None) == Thought("a", "b")
    assert split_thought("a </think>\nof it\n</think>\n\nb", opened=None) == Thought("a </think>\nof it", "b")
    assert split_thought("a\n</think>\n\nb", opened=False) == Thought(None, "a\n</think>\n\nb")


@pytest.mark.parametrize(
    ("text", "opened"), [("<think>\na b", False), ("a b", True), ("<|channel|>analysis<|message|>a b", False)]
)
def test_a_thought_that_never_closed_takes_the_whole_text(text: str, opened: bool) -> None:
    assert split_thought(text, opened) == Thought("a b", "", closed=False)


def tokenizer_with(special: list[str], plain: list[str], template: str) -> Any:
    tokenizer = build_tokenizer(template)
    for texts, flag in ((special, True), (plain, False)):
        tokenizer.add_tokens([AddedToken(text, special=flag, normalized=False) for text in texts])
    return with_chat_template(tokenizer)


CHANNEL_TOKENS = ["<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|return|>"]


@pytest.mark.parametrize(
    ("special", "plain", "template", "text", "expected"),
    [
        ([], ["<think>", "</think>"], CHATML, "<think>\na\n</think>\n\nb", ("a", "b", "stop")),
        (["[THINK]", "[/THINK]"], [], CHATML, "[THINK]a[/THINK]b", ("a", "b", "stop")),
        (["<|channel>", "<channel|>"], [], CHATML, "<|channel>thought\na<channel|>b", ("a", "b", "stop")),
        (CHANNEL_TOKENS, [], CHATML, HARMONY, ("We need 2+2.\n\nNothing.", "It is 4.", "stop")),
        (CHANNEL_TOKENS, [], CHATML, HARMONY.partition("<|end|>")[0], ("We need 2+2.", "", "length")),
        ([], [], OPENED, "a\n</think>\n\nb", ("a", "b", "stop")),
        ([], ["<think>", "</think>"], OPENED, "a\n</think>\n\nb", ("a", "b", "stop")),
        (["<think>", "</think>"], [], OPENED, "a\n", ("a", "", "length")),
        (["<|end|>"], [], CHATML, "b<|end|>", (None, "b", "stop")),
    ],
)
def test_tokens_that_mark_a_thought_are_read(
    special: list[str], plain: list[str], template: str, text: str, expected: tuple[str | None, str, str]
) -> None:
    tokenizer = tokenizer_with(special, plain, template)
    prompt = encode_prompt(tokenizer, user_message("Add 2 and 2."))
    ids = tokenizer.encode(text, add_special_tokens=False)
    found = read_generation(tokenizer, prompt, ids, "stop", len(ids) + 1)
    assert (found.reasoning, found.response, found.finish_reason) == expected
    assert (found.num_prompt_tokens, found.num_response_tokens) == (len(prompt), len(ids) + 1), "all that was paid for"


def test_a_template_that_opens_the_thought_and_its_switch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A random model never closes a thought. Without one, its text is an answer; it is another entry of the store."""
    model = build_model(tmp_path / "model", chat_template=OPENED)
    fields: dict[str, Any] = {"model": model, "backend": "transformers", "sampling": {"max_tokens": 8}}
    with caplog.at_level(logging.INFO, "persyn"):
        thinks = generate_responses(PROMPTS, "t", teacher(**fields), tmp_path / "store", TransformersSpeed())
    assert thinks.select("response", "finish_reason").unique().rows() == [("", "length")]
    assert thinks["reasoning"].null_count() == 0
    assert thinks["num_response_tokens"].to_list() == [8] * 3
    assert "t: 3 of 3 responses have a thought; 3 never closed it" in caplog.messages
    assert "t: 3 of 3 responses (100 %) ended inside their thought" in caplog.text
    assert "raise its sampling.max_tokens" in caplog.text
    assert "enable_thinking: false" in caplog.text
    quiet = teacher(**fields, template={"enable_thinking": False})
    answers = generate_responses(PROMPTS, "t", quiet, tmp_path / "store", TransformersSpeed())
    assert answers["reasoning"].null_count() == 3
    assert "" not in answers["response"].to_list()


def test_stored_rows_of_before_are_split_where_they_are_read(tmp_path: Path) -> None:
    who, store = teacher(), tmp_path / "store"
    texts = ["<think>a</think>b", "a\n</think>\n\nb", "<think>a"]
    old = [
        {"response": text, "finish_reason": "stop", "num_prompt_tokens": 5, "num_response_tokens": 9, "error": ""}
        for text in texts
    ]
    keys = [request.key for request in prepare_requests(PROMPTS, who)]
    open_store(store, who).put(dict(zip(keys, old, strict=True)))
    before = {file: file.read_bytes() for file in store.rglob("*.log")}
    table = generate_responses(PROMPTS, "t", who, store, OpenAISpeed(base_url="http://127.0.0.1:9/v1"))
    assert table.select("response", "reasoning", "finish_reason", "num_response_tokens").rows() == [
        *[("b", "a", "stop", 9)] * 2,
        ("", "a", "length", 9),
    ]
    assert {file: file.read_bytes() for file in store.rglob("*.log")} == before


def test_keys_of_before_are_as_they_were() -> None:
    """The keys that version 2 of the store gave these requests; a change would pay for every response again."""
    prompts = prompts_table(["Name a colour."])
    drawn = {"max_tokens": 8, "temperature": 0.7, "top_p": 0.9, "seed": 3}
    shown = {"system": "Be brief.", "examples": [{"prompt": "Q", "response": "A"}]}
    old = {
        "8abd4d4d588cf9be2b2f6f966cc48a2d56f3a42d5ef1ce86e3270d0b631ea6d6": teacher(sampling={"max_tokens": 8}),
        "5ea28a6b5545d2eb1c332ce61ea704d9d46c9fde666eb564fb337c48e4d505b8": teacher(sampling=drawn, **shown),
    }
    assert {prepare_requests(prompts, who)[0].key: who for who in old.values()} == old
    changes: list[dict[str, Any]] = [
        {},
        {"template": {"enable_thinking": False}},
        {"date": "2026-01-31"},
        {"sampling": {"max_tokens": 40, "extra": {"min_p": 0.1}}},
    ]
    assert len({prepare_requests(prompts, teacher(**change))[0].key for change in changes}) == len(changes)
    same = teacher(template={}, date=date(2025, 1, 1), sampling={"max_tokens": 40, "extra": {}})
    assert prepare_requests(prompts, same)[0].key == prepare_requests(prompts, teacher())[0].key


@pytest.mark.parametrize(
    ("message", "finish", "expected"),
    [
        ({"content": "b", "reasoning_content": "a"}, "stop", ("b", "a", "stop")),
        ({"content": "b", "reasoning": " a\n"}, "stop", ("b", "a", "stop")),
        (
            {"content": "b", "reasoning_details": [{"type": "reasoning.text", "text": "a"}, {"data": "secret"}]},
            "stop",
            ("b", "a", "stop"),
        ),
        ({"content": "<think>a</think>b"}, "stop", ("b", "a", "stop")),
        ({"content": "<think>a</think>b", "reasoning": "a"}, "stop", ("b", "a", "stop")),
        ({"content": "a\n</think>\n\nb"}, "stop", ("b", "a", "stop")),
        ({"content": "analysisa.assistantfinalb"}, "stop", ("b", "a.", "stop")),
        ({"content": None, "reasoning_content": "a"}, "length", ("", "a", "length")),
        ({"content": "", "reasoning": "a"}, "stop", ("", "a", "length")),
        ({"content": "b", "reasoning_content": None, "reasoning_details": None}, "stop", ("b", None, "stop")),
    ],
)
def test_a_server_sends_the_thought_apart_or_inside(
    message: dict[str, Any], finish: str, expected: tuple[str, str | None, str], tmp_path: Path
) -> None:
    choice = {"finish_reason": finish, "message": {"role": "assistant", **message}}
    with stub_teacher(choice=choice) as server:
        table = generate_responses(PROMPTS[:1], "t", teacher(), tmp_path, server.speed())
        assert table.select("response", "reasoning", "finish_reason").row(0) == expected
        assert len(server.bodies_seen) == 1, "it is not asked again"
        generate_responses(PROMPTS[:1], "t", teacher(), tmp_path, server.speed())
        assert len(server.bodies_seen) == 1


def test_a_server_gets_the_arguments(tmp_path: Path) -> None:
    who = teacher(template={"enable_thinking": False}, sampling={"max_tokens": 40, "extra": {"min_p": 0.1}})
    with stub_teacher() as server:
        generate_responses(PROMPTS[:1], "t", teacher(), tmp_path, server.speed())
        generate_responses(PROMPTS[:1], "t", who, tmp_path, server.speed())
        plain, given = server.bodies_seen
    added = {"min_p": 0.1, "chat_template_kwargs": {"enable_thinking": False}}
    assert given == plain | added


def test_what_cannot_be_set_is_refused(base_model: str) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"template": {"tokenize": False}}, r"teachers.t.template holds tokenize, which cannot be set here; remove it"),
        ({"sampling": {"max_tokens": 1, "extra": {"seed": 1}}}, r"sampling.extra holds seed.*it must be sampling.seed"),
        ({"template": {"a": {1, 2}}}, r"teachers.t.template is \{'a': \{1, 2\}\}; its values must be text, numbers"),
        ({"date": "2025-13-01"}, r"teachers.t.date is '2025-13-01'; it must be an ISO date, such as 2025-01-01"),
        ({"date": "20250101"}, r"teachers.t.date is '20250101'; it must be an ISO date"),
    ]
    for changes, message in refused:
        with pytest.raises(InputError, match=message):
            teacher(**changes)
    extra = {"repetition_penalty": 1.1, "top_k": 2}
    who = teacher(model=base_model, backend="transformers", sampling={"max_tokens": 1, "extra": extra})
    with pytest.raises(InputError, match=r"sampling.extra.repetition_penalty is 1.1, which the backend transformers"):
        load_backend(who, TransformersSpeed())
    drawn = Sampling(max_tokens=1, temperature=1.0, extra={"top_k": 2, "min_p": 0.1})
    assert len(row_sampler(drawn, ["key"])) == 5
    with pytest.raises(InputError, match=r"sampling.extra is \{'min_p': 7\}: .*; correct it"):
        row_sampler(Sampling(max_tokens=1, temperature=1.0, extra={"min_p": 7}), ["key"])


def test_a_template_that_refuses_the_system_prompt_is_one_line() -> None:
    who, tokenizer = teacher(system="Be brief."), build_tokenizer(NO_SYSTEM)
    with pytest.raises(InputError, match=r"its chat template refuses .*System role not supported") as raised:
        encode_conversations(tokenizer, [who.messages("Hi")], who)
    assert "system" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert encode_conversations(tokenizer, [teacher().messages("Hi")], teacher())


MATHS = prompts_table(["What is 2+2?"], "math", ["4"])
CHECKED = prompts_table(
    ["Say hello without a comma in lower case."],
    references=[
        json.dumps(
            [
                {"instruction_id": name, "kwargs": {}}
                for name in ("punctuation:no_comma", "change_case:english_lowercase")
            ]
        )
    ],
)
METHODS: Any = {"math": "math_verify", "instruction": "checkers"}


@pytest.mark.parametrize("thought", ["", "<think>\nHm, MAYBE \\boxed{3}, or \\boxed{5}.\n</think>\n\n"])
@pytest.mark.parametrize(("prompts", "answer"), [(MATHS, "It is \\boxed{4}."), (CHECKED, "hello to you")])
def test_scores_see_the_answer_only(prompts: pl.DataFrame, answer: str, thought: str, tmp_path: Path) -> None:
    with stub_teacher(say=lambda _: thought + answer) as server:
        table = generate_responses(prompts, "t", teacher(), tmp_path, server.speed())
    assert table["response"].item() == answer
    assert score_quality(prompts, table, tmp_path, QualitySettings(methods=METHODS))["quality"].item() == 1.0


def test_a_thought_with_an_answer_in_it_earns_nothing(tmp_path: Path) -> None:
    with stub_teacher(say=lambda _: "<think>\nmaybe \\boxed{4} or") as server:
        table = generate_responses(MATHS, "t", teacher(), tmp_path, server.speed())
    assert score_quality(MATHS, table, tmp_path, QualitySettings(methods=METHODS))["quality"].item() == 0.0


def test_a_thought_that_never_closed_is_one_defect() -> None:
    texts = ["", "", "b", "<think>old form"]
    prompts = prompts_table(["one", "two", "three", "four"])
    table = pl.concat(
        [
            responses_table(prompts[:1], "t", [""], "length", ["a"]),
            responses_table(prompts[1:2], "t", [""], "stop"),
            responses_table(prompts[2:], "t", texts[2:], "stop", ["<think> and I cannot help with that", "a"]),
        ]
    )
    counts = count_defects(find_defects(prompts, table), table)["t"]
    expected = {"responses": 4, "error": 0, "length": 1, **dict.fromkeys(DETECTORS, 0)}
    assert counts == expected | {"empty": 1, "unclosed_think": 2}
    assert not find_defects(prompts[:1], table.drop("reasoning")[:1])["unclosed_think"].item()


def test_data_sets_are_split_too(base_model: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": PROMPTS["prompt"].to_list()[0], "response": "<think>a</think>b", "score": 1, "thought": None},
        {"prompt": PROMPTS["prompt"].to_list()[1], "response": "b", "score": 2, "thought": "a"},
        {"prompt": PROMPTS["prompt"].to_list()[2], "response": "<think>a", "score": 3, "thought": None},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Precomputed(path=str(tmp_path / "rows.jsonl"), score="score", reasoning="thought", keep_empty=True)
    who = teacher(model=base_model, backend="transformers", precomputed=source.model_dump(exclude_none=True))
    table = generate_responses(PROMPTS, "t", who, tmp_path / "store", TransformersSpeed())
    assert table.select("response", "reasoning", "finish_reason").rows() == [
        *[("b", "a", "stop")] * 2,
        ("", "a", "length"),
    ]
    settings = QualitySettings(methods={"instruction": "given"})
    assert sorted(score_quality(PROMPTS, table, tmp_path, settings, teachers={"t": who})["quality"]) == [1, 2, 3]


def test_tables_of_before_are_read(tmp_path: Path) -> None:
    table = responses_table(PROMPTS, "t", ["a", "b", "c"])
    table.drop("reasoning").write_parquet(tmp_path / "old.parquet")
    assert read_table(tmp_path / "old.parquet", RESPONSES).equals(table)
    table.drop("response").write_parquet(tmp_path / "wrong.parquet")
    with pytest.raises(InputError, match="needs columns response"):
        read_table(tmp_path / "wrong.parquet", RESPONSES)
