"""Fields by template, rows by `where`. How files and hub datasets are read is in test_prompts.py."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from persyn.errors import InputError
from persyn.prompts import PromptSettings, Source, build_prompts
from persyn.prompts.sources import Rows
from tests.support.tables import texts_of

NESTED = {
    "instruction": "Translate.",
    "instances": [{"input": "Hallo", "output": "Hello"}],
    "answer": "So 1,200.\n#### 1,234",
    "test_list": ["assert f(1) == 1", "assert f(2) == 2"],
    "level": 5,
    "nothing": None,
    "two words": "both",
    "items": "three",
}


def write(folder: Path, rows: list[dict[str, Any]]) -> Rows:
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Rows(path="r.jsonl")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "{{ instruction }}{% if instances[0].input %}\n\n{{ instances[0].input }}{% endif %}",
            "Translate.\n\nHallo",
        ),
        ("{{ answer.split('####')[1] | replace(',', '') | trim }}", "1234"),
        ("{{ test_list | join('\n') }}", "assert f(1) == 1\nassert f(2) == 2"),
        ("{{ level }}", "5"),
        ("{{ nothing }}", ""),
        ("{{ row['two words'] }}", "both"),
        ("{{ row['items'] }} of {{ row['instances'][0].items() | length }}", "three of 2"),
        ("instruction", "Translate."),
    ],
)
def test_a_field_is_a_column_or_a_template_over_the_row(tmp_path: Path, template: str, text: str) -> None:
    assert dict(write(tmp_path, [NESTED]).read(tmp_path, field=template)) == {0: {"field": text}}


def test_prompts_of_a_data_set_as_it_is(tmp_path: Path) -> None:
    rows = [{"q": f"{n} + {n}?", "a": {"text": f"It is\n#### {2 * n}"}, "hard": n % 2 == 0} for n in range(1, 9)]
    write(tmp_path, rows)
    source = Source(
        path="r.jsonl",
        domain="math",
        prompt="What is {{ q }}",
        reference="{{ a.text.split('####')[1] | trim }}",
        where="{{ hard }}",
        limit=3,
    )
    table, counts = build_prompts(tmp_path, PromptSettings(sources=[source], num_parallel=1))
    assert set(zip(texts_of(table), table["reference"], strict=True)) == {
        ("What is 2 + 2?", "4"),
        ("What is 4 + 4?", "8"),
        ("What is 6 + 6?", "12"),
    }
    assert counts["read"] == 3, "rows that `where` leaves out are none of the source's"


def test_where_leaves_rows_out_before_the_limit_and_keeps_their_numbers(tmp_path: Path) -> None:
    kinds = ["", "False", " 0 ", "None", "yes", None, "no"]
    write(tmp_path, [{"text": str(n), "kind": kind} for n, kind in enumerate(kinds)])
    found = dict(Rows(path="r.jsonl", where="{{ kind }}", limit=2).read(tmp_path, field="text"))
    assert found == {4: {"field": "4"}, 6: {"field": "6"}}


@pytest.mark.parametrize("false", [0, 0.0, -0.0, False, None, [], {}, "0.0", "00", "[]", "{}", "null", '""', math.nan])
def test_where_leaves_out_every_form_of_zero_and_of_nothing(tmp_path: Path, false: object) -> None:
    rows = write(tmp_path, [{"a": "no", "kind": false}, *({"a": "yes", "kind": true} for true in (0.5, [0], {"b": 0}))])
    written = () if isinstance(false, str) or false != false else ("{{ kind | tojson }}",)
    for where in ("{{ kind }}", *written):
        assert list(dict(rows.changed(where=where).read(tmp_path, field="a"))) == [1, 2, 3]


def test_the_text_of_a_row_is_never_a_template(tmp_path: Path) -> None:
    assert dict(write(tmp_path, [{"a": "{{ 7 * 7 }}"}]).read(tmp_path, x="a", y="{{ a }}")) == {
        0: {"x": "{{ 7 * 7 }}", "y": "{{ 7 * 7 }}"}
    }


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            "{{ b }}",
            r"source r.jsonl: row 1, the template of field fails: 'b' is undefined; the columns are a, b, order, huge",
        ),
        ("{{ a.split('####')[1] | trim }}", "row 1, the template of field fails: list object has no element 1"),
        ("{{ a + 1 }}", "row 0, the template of field fails: can only concatenate"),
        ("{{ a.__class__.__mro__ }}", "row 0, the template of field fails: access to attribute '__class__'"),
        ("{{ a", "source r.jsonl: the template of field is wrong: unexpected end of template"),
        ("{%\nif a }}", "source r.jsonl: the template of field is wrong"),
        ("{{ a | nofilter }}", "source r.jsonl: the template of field is wrong: No filter named 'nofilter'"),
        ("{{ order.items }}", r"row 0, .* items is a key, but also a method of every mapping; write \['items'\] for"),
        ("{% if order.items %}x{% endif %}", "row 0, .* items is a key, but also a method of every mapping"),
        ("{{ order.values }}", "row 0, .* it writes a builtin_function_or_method and not what that returns"),
        ("{{ range }}", "row 0, .* it writes a function and not what that returns"),
        ("{{ [a] | map('upper') }}", "row 0, .* it writes a generator as Python does"),
        ("{{ (1, 2) }}", "row 0, .* it writes a tuple as Python does"),
        ("{{ cycler('a') }}", "row 0, .* it writes a Cycler as Python does"),
        ("{{ a * 10**12 }}", "row 0, the template of field fails: MemoryError"),
        ("{{ huge }}", "row 0, .* it writes inf, which is no number"),
    ],
)
def test_a_template_that_is_wrong_or_fails_is_one_clear_line(tmp_path: Path, field: str, message: str) -> None:
    more = {"order": {"items": 3}, "huge": math.inf}
    rows = write(tmp_path, [{"a": "1 #### 2", "b": "x"} | more, {"a": "1"} | more])
    with pytest.raises(InputError, match=message) as raised:
        dict(rows.read(tmp_path, field=field))
    assert "\n" not in str(raised.value)


def test_where_must_be_a_template(tmp_path: Path) -> None:
    write(tmp_path, [{"a": "x"}])
    with pytest.raises(InputError, match=r"where is 'a'; it must be a template, such as \{\{ level == 'hard' \}\}"):
        dict(Rows(path="r.jsonl", where="a").read(tmp_path, field="a"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"a": "x", "n": ' + "1" * 5000 + "}",
            r"row 1 cannot be read: Exceeds the limit \(4300 digits\).*; correct the row",
        ),
        (
            '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
            "row 1 cannot be read: its lists or objects are nested too deep",
        ),
        ('{"a": ' * 100_000 + "1" + "}" * 100_000, "row 1 cannot be read: its lists or objects are nested too deep"),
        ('{"a": "x", "a": "y"}', "row 1 cannot be read: it has the key 'a' twice, and only one value can count"),
        ('{"b": {"a": 1, "a": 2}}', "row 1 cannot be read: it has the key 'a' twice"),
        ('{"a": NaN}', "row 1, column 'a' is float; it must hold text"),
        ("\0\0", "row 1 is not json: .*; save the file as UTF-8"),
        ('{"a": "x"} {"a": "y"}', "row 1 is not json: Extra data, column 12"),
    ],
)
def test_a_row_that_cannot_be_read_is_one_line_with_file_and_row(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "r.jsonl").write_text('{"a": "first"}\n' + line + "\n")
    with pytest.raises(InputError, match=message) as raised:
        dict(Rows(path="r.jsonl").read(tmp_path, field="a"))
    assert "r.jsonl" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\ufeff", "\n\n \n"])
def test_rows_end_as_any_system_ends_lines(tmp_path: Path, end: str) -> None:
    (tmp_path / "r.jsonl").write_bytes(end.join(['{"a": "x\u2028"}', '{"a": "y"}', ""]).removesuffix("\ufeff").encode())
    assert dict(Rows(path="r.jsonl").read(tmp_path, field="a")) == {0: {"field": "x\u2028"}, 1: {"field": "y"}}


def test_a_huge_line_is_a_prompt_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"prompt": "' + "ab " * 3_000_000 + '"}\n{"prompt": "x"}\n')
    settings = PromptSettings(sources=[Source(path="r.jsonl")], num_parallel=None)
    assert build_prompts(tmp_path, settings)[1]["dropped"] == {"too long": 1}
