"""Responses that exist already are taken into the store, and not asked for."""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from persyn.chat import encode_prompt, with_chat_template
from persyn.errors import InputError
from persyn.generation import Precomputed, Sampling, Teacher
from persyn.generation.budget import Budget
from persyn.generation.precomputed import precomputed_suffix
from persyn.generation.requests import open_store, prepare_requests, stored_response
from persyn.generation.terms import Licenses
from persyn.generation.transformers import TransformersSpeed
from persyn.models import load_tokenizer
from persyn.project.params import check_params
from persyn.quality import QualitySettings, score_quality
from persyn.responses import generate_parts, generate_responses
from persyn.routed import build_routed
from persyn.schemas import QUALITY, RESPONSES, ROUTES, check_table
from persyn.store import count_rows, shelves
from tests.support.stub import stub_teacher
from tests.support.tables import prompts_table, responses_table
from tests.support.tiny import tiny_params

TEXTS = [f"Tell story number {number}." for number in range(6)]
PROMPTS = prompts_table(TEXTS)
SPEED = TransformersSpeed()


@pytest.fixture
def tokenizer_only(chat_model: str, tmp_path: Path) -> str:
    """A model of which only the tokenizer is here, no weights: nothing can be generated."""
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"):
        shutil.copy(Path(chat_model) / name, tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def write(folder: Path, rows: list[dict[str, Any]]) -> Precomputed:
    """Write rows and return the field `precomputed` that names them."""
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Precomputed(path=str(folder / "answers.jsonl"))


def told(texts: list[str]) -> list[dict[str, Any]]:
    return [{"prompt": text, "response": f"Once: {text}"} for text in texts]


def teacher(model: str, precomputed: Precomputed | None, **changes: Any) -> Teacher:
    fields = {"license": "x", "backend": "transformers", "sampling": Sampling(max_tokens=200), "system": "Be brief."}
    return Teacher(model=model, precomputed=precomputed, **{**fields, **changes})


def test_where_all_is_there_no_model_is_loaded(tokenizer_only: str, tmp_path: Path) -> None:
    who = teacher(tokenizer_only, write(tmp_path, told(TEXTS)))
    table = generate_responses(PROMPTS, "t", who, tmp_path / "store", SPEED, budget=Budget(max_tokens=0))
    check_table(table, RESPONSES, "responses")
    assert table["response"].to_list() == [f"Once: {text}" for text in TEXTS]
    assert set(table["finish_reason"]) == {"stop"}
    tokenizer = with_chat_template(load_tokenizer(tokenizer_only))
    shown = [len(encode_prompt(tokenizer, who.messages(text))) for text in TEXTS]
    said = [len(tokenizer.encode(f"Once: {text}", add_special_tokens=False)) + 1 for text in TEXTS]
    assert table.select("num_prompt_tokens", "num_response_tokens").rows() == list(zip(shown, said, strict=True))


def test_rows_are_marked_and_cost_nothing(tokenizer_only: str, tmp_path: Path) -> None:
    who = teacher(tokenizer_only, write(tmp_path, told(TEXTS)))
    generate_responses(PROMPTS, "t", who, tmp_path / "store", SPEED)
    assert Budget().spent(tmp_path / "store") == 0
    [shelf] = shelves(tmp_path / "store")
    counts = count_rows(shelf)
    assert (counts["taken from elsewhere"], counts["answers"], counts["response tokens"]) == (6, 0, 0)
    [request, *_] = prepare_requests(PROMPTS, who)
    row = stored_response(open_store(tmp_path / "store", who), request, who.sampling)
    assert row
    assert row["origin"].startswith(f"{tmp_path}/answers.jsonl@")
    assert len(row["origin"].rpartition("@")[2]) == 64


def test_only_what_fits_is_taken_and_the_rest_is_said(
    tokenizer_only: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"  {TEXTS[0]} \r\n", "response": " a "},
        {"prompt": TEXTS[0], "response": "a second one"},
        {"prompt": TEXTS[1], "response": " \n"},
        {"prompt": TEXTS[1], "response": "b"},
        {"prompt": TEXTS[2], "response": "word " * 300},
        {"prompt": TEXTS[3], "response": None},
        {"prompt": TEXTS[4].lower(), "response": "d"},
    ]
    who = teacher(tokenizer_only, write(tmp_path, rows))
    with caplog.at_level(logging.INFO, "persyn"), pytest.raises(InputError, match="cannot be loaded"):
        generate_responses(PROMPTS, "t", who, tmp_path / "store", SPEED)
    [line] = [message for message in caplog.messages if "taken" in message]
    assert line.startswith("t: 2 responses read from ")
    assert line.endswith("other rows: 2 match no open prompt, 2 are empty, 1 exceed max_tokens 200")
    table = generate_responses(PROMPTS[:2], "t", who, tmp_path / "store", SPEED)
    assert table["response"].to_list() == ["a", "b"]
    longer = teacher(tokenizer_only, who.precomputed, sampling=Sampling(max_tokens=2000))
    table = generate_responses(PROMPTS[2:3], "t", longer, tmp_path / "store", SPEED)
    assert table["response"][0] == ("word " * 300).strip()


def test_another_tokenizer_counts_where_the_teachers_own_is_not_here(
    tokenizer_only: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, store = write(tmp_path, told(TEXTS)), tmp_path / "store"
    closed = teacher("closed-model", source, backend="openai")
    with pytest.raises(InputError, match=r"^teachers.t.precomputed: a tokenizer is needed .* precomputed\.tokenizer"):
        generate_responses(PROMPTS, "t", closed, store, SPEED)
    counted = teacher("closed-model", source.changed(tokenizer=tokenizer_only), backend="openai")
    with caplog.at_level(logging.INFO, "persyn"):
        table = generate_responses(PROMPTS, "t", counted, store, SPEED)
    assert f"t: its tokens are estimates, counted by the tokenizer of {tokenizer_only}" in caplog.messages
    own = generate_responses(PROMPTS, "t", teacher(tokenizer_only, source), store, SPEED)
    assert table.equals(own)


def test_an_empty_response_is_one_only_where_it_is_said(
    tokenizer_only: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": TEXTS[0], "response": " "}, {"prompt": TEXTS[0], "response": "late"}, told(TEXTS)[1]]
    skipped = teacher(tokenizer_only, write(tmp_path, rows))
    said = generate_responses(PROMPTS[:2], "t", skipped, tmp_path / "store", SPEED)
    assert said["response"].to_list() == ["late", f"Once: {TEXTS[1]}"]
    kept = teacher(tokenizer_only, write(tmp_path, rows).changed(keep_empty=True))
    with caplog.at_level(logging.INFO, "persyn"):
        table = generate_responses(PROMPTS[:2], "t", kept, tmp_path / "store", SPEED)
    assert table["response"].to_list() == ["", f"Once: {TEXTS[1]}"]
    assert table["num_response_tokens"][0] == 1
    assert "t: 1 of these responses are empty, and kept" in caplog.messages


def test_stores_of_before_are_read_as_before(tokenizer_only: str, tmp_path: Path) -> None:
    """The hash of a `precomputed` that sets no later field."""
    who = teacher(tokenizer_only, write(tmp_path, told(TEXTS)))
    assert who.precomputed
    old = ("path", "hub", "revision", "config", "split", "where", "limit", "prompt", "response")
    fields = {field: getattr(who.precomputed, field) for field in old}
    whole = json.dumps([fields, who.precomputed.origin(Path())], sort_keys=True)
    assert precomputed_suffix(who) == hashlib.sha256(whole.encode()).hexdigest()[:16]


def test_templates_and_where(tokenizer_only: str, tmp_path: Path) -> None:
    rows = [
        {"by": by, "chat": [{"value": text}, {"value": f"{by} says {number}"}]}
        for by in ("other", "me")
        for number, text in enumerate(TEXTS)
    ]
    fields = {"prompt": "{{ chat[0].value }}", "response": "{{ chat[1].value }}", "where": "{{ by == 'me' }}"}
    who = teacher(tokenizer_only, write(tmp_path, rows).changed(**fields))
    table = generate_responses(PROMPTS, "t", who, tmp_path / "store", SPEED)
    assert table["response"].to_list() == [f"me says {number}" for number in range(6)]


def test_a_conversation_is_matched_as_the_sources_read_it(tokenizer_only: str, tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    said = [{"role": "assistant", "content": "Hello."}]
    rows = [{"chat": chat, "said": "x"} for chat in (talk[1:], [*talk, {"role": "tool", "content": "3"}], None)]
    rows += [{"chat": [*talk, *said], "said": "Hello."}]
    who = teacher(tokenizer_only, write(tmp_path, rows).changed(prompt="chat", response="said"))
    table = generate_responses(prompts_table([talk]), "t", who, tmp_path / "store", SPEED)
    assert table["response"].to_list() == ["Hello."]
    tokenizer = with_chat_template(load_tokenizer(tokenizer_only))
    seen = [{"role": "system", "content": "Be brief.\n\nBe kind."}, *talk[1:]]
    assert table["num_prompt_tokens"].to_list() == [len(encode_prompt(tokenizer, seen))]


def test_only_what_is_missing_is_asked_and_what_was_paid_for_stays(chat_model: str, tmp_path: Path) -> None:
    """Also by a server, which is asked by the model's name: what it answered before there was `precomputed` is kept."""
    store = tmp_path / "store"
    with stub_teacher() as server:
        knobs = server.speed()
        asked = teacher(chat_model, None, backend="openai")
        before = generate_responses(PROMPTS[:1], "t", asked, store, knobs)
        who = teacher(chat_model, write(tmp_path, told(TEXTS[:4])), backend="openai")
        table = generate_responses(PROMPTS, "t", who, store, knobs)
        assert server.counts["ok"] == 1 + 2
        assert table[:1].equals(before)
        assert table["response"].to_list()[1:4] == [f"Once: {text}" for text in TEXTS[1:4]]
        paid = pl.concat([table[:1], table[4:]]).select("num_prompt_tokens", "num_response_tokens").sum()
        assert Budget().spent(store) == sum(paid.row(0))
        # An entry without `precomputed`, or with others, is not served what was taken for this one.
        generate_responses(PROMPTS[1:2], "t", asked, store, knobs)
        assert server.counts["ok"] == 4


def test_corrected_answers_are_taken_anew(tokenizer_only: str, tmp_path: Path) -> None:
    source = write(tmp_path, [{**row, "thoughts": "hm"} for row in told(TEXTS)])
    for response, text in (("thoughts", "hm"), ("response", f"Once: {TEXTS[0]}")):
        who = teacher(tokenizer_only, source.changed(response=response))
        assert generate_responses(PROMPTS, "t", who, tmp_path / "store", SPEED)["response"][0] == text
    write(tmp_path, [{"prompt": text, "response": "new"} for text in TEXTS])
    assert set(generate_responses(PROMPTS, "t", who, tmp_path / "store", SPEED)["response"]) == {"new"}


def test_parts_of_the_prompts_find_them_in_one_reading(
    tokenizer_only: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "persyn")
    who = teacher(tokenizer_only, write(tmp_path, told(TEXTS)))
    parts = [PROMPTS[:1], PROMPTS[1:1], PROMPTS[1:]]
    tables = list(generate_parts(parts, "t", who, tmp_path / "parts", SPEED))
    assert [table.height for table in tables] == [1, 0, 5]
    assert caplog.text.count("6 responses read from") == caplog.text.count("t: 6 prompts = 6 stop") == 1
    assert pl.concat(tables).equals(generate_responses(PROMPTS, "t", who, tmp_path / "whole", SPEED))


def test_every_strategy_finds_them(tokenizer_only: str, tmp_path: Path) -> None:
    who = teacher(tokenizer_only, write(tmp_path, told(TEXTS)))
    parallel = generate_responses(PROMPTS[:2], "t", who, tmp_path / "store", SPEED)
    fields = {"teacher": pl.lit("t"), "strength": pl.lit(None, pl.Float64), "margin": pl.lit(None, pl.Float64)}
    routes = PROMPTS.select("prompt_id", **fields)
    check_table(routes, ROUTES, "routes")
    for _ in range(2):
        routed = build_routed(PROMPTS, routes, parallel, {"t": who}, Licenses(), tmp_path / "store", {"t": SPEED})
        assert set(routed["response"]) == {f"Once: {text}" for text in TEXTS}


@pytest.mark.parametrize(
    ("precomputed", "message"),
    [
        ({"hub": "owner/data"}, "source owner/data: revision is None; a hub dataset needs its 40-hex commit"),
        ({"path": "none.jsonl"}, "'none.jsonl': none.jsonl does not exist"),
        ({"path": "a.jsonl", "hub": "owner/data"}, r"^teachers\.t\.precomputed.* path .*it needs one of them"),
        ({"path": "a.jsonl", "promt": "x"}, r"^teachers\.t\.precomputed\.promt is not .*did you mean prompt\?"),
    ],
)
def test_wrong_answers_are_one_clear_line(
    tokenizer_only: str, tmp_path: Path, precomputed: Mapping[str, str], message: str
) -> None:
    def generate() -> None:
        source = Precomputed.parse(precomputed, "teachers.t.precomputed")
        generate_responses(PROMPTS, "t", teacher(tokenizer_only, source), tmp_path / "store", SPEED)

    with pytest.raises(InputError, match=message):
        generate()


def test_a_teacher_without_a_tokenizer_cannot_take_any(tmp_path: Path) -> None:
    who = teacher("gpt", write(tmp_path, told(TEXTS)), backend="openai")
    with pytest.raises(InputError, match=r"teachers.t.precomputed: .*tokenizer.* model 'gpt' is nei"):
        generate_responses(PROMPTS, "t", who, tmp_path / "store", SPEED)


@pytest.mark.parametrize(
    ("sampling", "key"),
    [
        ({}, "de36dcef7f12f555a7cf8051c813cecb4f7c48b98cf5e0b67f88875e59411814"),
        ({"temperature": 1, "seed": 7}, "c1e6bc275fc6c7da44fb3ea2eb8bfbe5eddece727644a6d3d3ff653d1abfdb79"),
        ({"temperature": 1.0, "seed": 7}, "a70db782b141dbeeffe2447407e2854328f132c6c5c39be98b6f8b036ecac852"),
        ({"temperature": 0.7, "top_p": 0.9}, "271f88d349340657a4b98d72a9c657db9ad4c3dd104bfa0195f101217d5ba5f1"),
    ],
)
def test_a_store_that_was_filled_before_is_read(
    sampling: Mapping[str, Any], key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The literals are those of the stores that users have. A change of code that changes one makes them pay again."""
    monkeypatch.chdir(tmp_path)
    Path("answers.jsonl").write_text('{"prompt": "Tell story number 0.", "response": "Once."}\n')
    entry = {
        "model": "owner/name",
        "revision": "0" * 40,
        "license": "MIT",
        "backend": "transformers",
        "system": "Be brief.",
        "examples": [{"prompt": "Name a colour.", "response": "Red."}],
        "sampling": {"max_tokens": 200, **sampling},
    }
    who = Teacher.parse(entry, "teachers.t")
    [request] = prepare_requests(PROMPTS[:1], who)
    assert (request.key, request.precomputed) == (key, "")
    taken = Teacher.parse({**entry, "precomputed": {"path": "answers.jsonl"}}, "teachers.t")
    [request] = prepare_requests(PROMPTS[:1], taken)
    assert (request.key, request.precomputed) == (key, f"{key}:90a47e6d64fa98e6")
    assert open_store(tmp_path, who).folder == tmp_path / "name-c69e6411"


def given(responses: pl.DataFrame, who: Teacher, folder: Path) -> dict[str, float]:
    """The quality of the teacher's responses by the method given, by the text of the response."""
    settings = QualitySettings(methods={"instruction": "given"})
    table = score_quality(PROMPTS, responses, folder, settings, teachers={"t": who})
    check_table(table, QUALITY, "quality")
    by_prompt = dict(responses.select("prompt_id", "response").rows())
    return {by_prompt[identity]: quality for identity, quality in table.select("prompt_id", "quality").rows()}


def scored(texts: list[str], scores: list[Any]) -> list[dict[str, Any]]:
    return [{**row, "rating": score} for row, score in zip(told(texts), scores, strict=True)]


def test_a_score_that_responses_have_is_their_quality(tokenizer_only: str, tmp_path: Path) -> None:
    """Numbers and their text; of repeated judgements the mean; other responses to the prompt do not count."""
    rows = scored(TEXTS, [4, 4.5, "3.25", " -1e2 ", 0.1, 0])
    rows += [{"prompt": f" {TEXTS[0]}\r\n", "response": f"Once: {TEXTS[0]} ", "rating": 1}]
    rows += [{"prompt": TEXTS[1], "response": "another one", "rating": 0}]
    source = write(tmp_path, rows).changed(score="rating")
    who = teacher(tokenizer_only, source)
    table = generate_responses(PROMPTS, "t", who, tmp_path / "store", SPEED)
    expected = dict(zip(table["response"], [2.5, 4.5, 3.25, -100.0, 0.1, 0.0], strict=True))
    assert given(table, who, tmp_path) == expected


def test_scores_by_template_as_in_a_rating_set(tokenizer_only: str, tmp_path: Path) -> None:
    """One row a prompt, all models in it, each with its rating; a model that has not answered is left out."""
    rows = [
        {"instruction": text, "completions": [{"model": by, "text": f"{by} says", "rating": rating} for by in names]}
        for rating, (text, names) in enumerate(zip(TEXTS, [("x", "me"), ("me", "x"), ("x",)] * 2, strict=True))
    ]
    mine = "(completions | selectattr('model', 'eq', 'me') | first)"
    fields = {"prompt": "{{ instruction }}", "response": f"{{{{ {mine}.text }}}}", "score": f"{{{{ {mine}.rating }}}}"}
    where = "{{ completions | selectattr('model', 'eq', 'me') | list | length }}"
    who = teacher(tokenizer_only, write(tmp_path, rows).changed(**fields, where=where))
    few = PROMPTS[[0, 1, 3, 4]]
    table = generate_responses(few, "t", who, tmp_path / "store", SPEED)
    settings = QualitySettings(methods={"instruction": "given"})
    found = score_quality(PROMPTS, table, tmp_path, settings, teachers={"t": who})
    by_prompt = dict(found.select("prompt_id", "quality").rows())
    assert [by_prompt[identity] for identity in few["prompt_id"]] == [0.0, 1.0, 3.0, 4.0]


def test_responses_without_a_score_are_left_out_and_counted(
    tokenizer_only: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = scored(TEXTS[:5], [1, None, "good", "1_0", "1e999"])
    who = teacher(tokenizer_only, write(tmp_path, rows).changed(score="rating"))
    made = generate_responses(PROMPTS[:5], "t", who, tmp_path / "store", SPEED)
    generated = responses_table(PROMPTS[5:], "t", ["not in the data set"])
    with caplog.at_level(logging.WARNING, "persyn"):
        assert given(made.vstack(generated), who, tmp_path) == {f"Once: {TEXTS[0]}": 1.0}
    [line] = [message for message in caplog.messages if "no score" in message]
    assert line.startswith("t: 5 of 6 responses have no score in ")
    assert "(with an empty one: 1; generated responses have none)" in line
    assert "3 scores are no finite number (row 2: 'good', row 3: '1_0', row 4: '1e999'); 1 scores were read" in line


def test_where_no_score_is_left_it_is_one_clear_line(tokenizer_only: str, tmp_path: Path) -> None:
    rows = scored(TEXTS, ["good"] * 6)
    source = write(tmp_path, rows)
    who = teacher(tokenizer_only, source.changed(score="rating"))
    table = generate_responses(PROMPTS, "t", who, tmp_path / "store", SPEED)
    with pytest.raises(InputError, match=r"^teachers\.t\.precomputed\.score: 6 of 6 .* 6 scores are no finite number"):
        given(table, who, tmp_path)
    with pytest.raises(InputError, match=r"^teachers\.t\.precomputed\.score: 1 of 1 .*generated responses have none"):
        given(responses_table(PROMPTS[:1], "t", ["generated"]), who, tmp_path)
    with pytest.raises(InputError, match=r"^teachers\.t\.precomputed\.score is null, .* given needs"):
        given(table, teacher(tokenizer_only, source), tmp_path)
    with pytest.raises(InputError, match=r"^teachers\.t\.precomputed is null, .* given needs"):
        given(table, teacher(tokenizer_only, None), tmp_path)
    write(tmp_path, scored(TEXTS, [True] * 6))
    with pytest.raises(InputError, match=r"row 0, column 'rating' is bool; it must hold numbers .* 1 if rating else 0"):
        given(table, who, tmp_path)


def test_a_score_added_later_asks_for_nothing_again(tokenizer_only: str, tmp_path: Path) -> None:
    source = write(tmp_path, scored(TEXTS, [1] * 6))
    keys = {precomputed_suffix(teacher(tokenizer_only, each)) for each in (source, source.changed(score="rating"))}
    assert len(keys) == 1


def test_every_teacher_without_a_score_is_named_before_anything_runs() -> None:
    params = tiny_params("model")
    first, second, *_ = params["teachers"]
    params["quality"]["methods"]["math"] = "given"
    params["teachers"][first]["precomputed"] = {"path": "a.jsonl"}
    params["teachers"][second]["precomputed"] = {"path": "a.jsonl", "score": "rating"}
    with pytest.raises(InputError) as raised:
        check_params(params)
    lines = list(raised.value.args)
    assert len(lines) == len(params["teachers"]) - 1
    assert lines[0].startswith(
        f"params.yaml: teachers.{first}.precomputed.score is null; quality.methods.math is given"
    )
    assert not any(f"teachers.{second}." in line for line in lines)
