"""Formats: the rows of an export in the forms that trainers other than TRL read, and how each loads them."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from persyn.errors import InputError
from persyn.export.folder import Card, write_card, write_folder
from persyn.export.thoughts import tagged, with_thoughts
from persyn.messages import Message
from persyn.settings import Thinking

Row = dict[str, Any]
DATA = "train.jsonl"
SIDE = "rows.jsonl"
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}
"""The role of a message -> its name in the ShareGPT form."""
EXTRA = (
    "prompt_id",
    "teacher_id",
    "teacher_model",
    "domain",
    "source",
    "license",
    "teacher_license",
    "training",
    "finish_reason",
)
"""Columns that stand beside a format's own: whose the row is, and its terms."""
MIN_OPENAI = 10
"""OpenAI takes no training file with fewer rows."""


@dataclass
class Converted:
    """The rows of a format."""

    rows: list[Row] = field(default_factory=list)
    side: list[Row] = field(default_factory=list)
    """Of a format that allows no further columns: those columns, in the order of `rows`."""
    features: list[Row] | None = None
    """Types of the columns, where one may be null in all of the first rows, by which readers guess its type."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Why a row of the dataset is not among them -> how many are not."""


@dataclass(frozen=True)
class Format:
    """A form of the rows."""

    says: str
    """What it is, in a sentence of the card."""
    load: str
    """How its consumers load it, in markdown."""
    columns: Mapping[str, str]
    """Its own columns -> their meaning."""
    thoughts: str | None
    """Where the messages hold a thought; None: nowhere."""
    convert: Callable[[pl.DataFrame, Thinking], Converted] | None = None
    """From EXPORT; None: the columns of EXPORT are its own."""
    dataset_info: Mapping[str, Any] | None = None
    """Its entry in LLaMA-Factory's dataset_info.json."""


def write_records(made: Converted, form: Format, card: Card, folder: Path, replace: bool) -> int:
    """Write train.jsonl and what belongs to it, as write_folder does; returns the number of rows."""

    def fill(place: Path) -> int:
        _write_lines(made.rows, place / DATA)
        if made.side:
            _write_lines(made.side, place / SIDE)
        if form.dataset_info:
            info = {"persyn": {"file_name": DATA, **form.dataset_info}}
            (place / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")
        write_card(card, place, DATA, made.features)
        return len(made.rows)

    return write_folder(fill, folder, replace)


def write_parquet(rows: pl.DataFrame, card: Card, folder: Path, replace: bool) -> int:
    """Write train.parquet and its card, as write_folder does; returns the number of rows."""

    def fill(place: Path) -> int:
        rows.write_parquet(place / "train.parquet", compression="zstd", statistics=False)
        write_card(card, place, "train.parquet")
        return rows.height

    return write_folder(fill, folder, replace)


def convert_rows(export: pl.DataFrame, thinking: Thinking) -> Converted:
    """The columns of EXPORT as they are; with `keep`, a thought is in its message too."""
    rows = with_thoughts(export) if thinking == "keep" else export
    return Converted(rows.to_dicts(), features=[_feature(name, kind) for name, kind in rows.schema.items()])


def convert_sharegpt(export: pl.DataFrame, thinking: Thinking) -> Converted:
    """Conversations of {from, value}; with `keep`, a thought stands in tags before the answer."""
    made = Converted()
    for row in export.iter_rows(named=True):
        turns = _turns(row, thinking)
        said = [{"from": SPEAKERS[turn["role"]], "value": turn["content"]} for turn in turns]
        made.rows.append({"conversations": said, **_extra(row)})
    return made


def convert_alpaca(export: pl.DataFrame, thinking: Thinking) -> Converted:
    """The last question as `instruction`, the turns before it as `history`. Rows with a history come first: who infers
    the column's type from the first rows then sees what is in it.
    """
    made = Converted()
    for row in export.iter_rows(named=True):
        turns = _turns(row, thinking)
        system = turns.pop(0)["content"] if turns[0]["role"] == "system" else ""
        if not _alternate(turns):
            made.left_out["turns that do not alternate"] += 1
            continue
        texts = [turn["content"] for turn in turns]
        *history, last = [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
        own = {"instruction": last[0], "input": "", "output": last[1], "system": system, "history": history}
        made.rows.append({**own, **_extra(row)})
    made.rows.sort(key=lambda row: not row["history"])
    return made


def convert_openai(export: pl.DataFrame, thinking: Thinking) -> Converted:
    """`messages` alone, which is all that OpenAI documents; the rest is in the side file. Earlier assistant turns get
    `weight` 0, so that the model is trained on the last one only. Rows with such turns come first, as those with a
    history do in convert_alpaca.
    """
    made = Converted()
    earlier = pl.col("prompt").list.eval(pl.element().struct.field("role") == "assistant").list.any()
    for row in export.sort(~earlier, maintain_order=True).iter_rows(named=True):
        if not all(turn["content"] for turn in row["messages"]):
            made.left_out["an empty message"] += 1
            continue
        before = [turn | ({"weight": 0} if turn["role"] == "assistant" else {}) for turn in row["prompt"]]
        made.rows.append({"messages": before + row["completion"]})
        made.side.append(_extra(row))
    return made


def converted(export: pl.DataFrame, name: str, thinking: Thinking) -> Converted:
    """The rows in the format of this name; none where it is a table.

    Raises:
        InputError: it can say none of them.
    """
    form = FORMATS[name]
    made = form.convert(export, thinking) if form.convert else Converted()
    if made.left_out.total() == export.height:
        why = ", ".join(f"{reason} {count}" for reason, count in sorted(made.left_out.items()))
        raise InputError(f"--format {name} can hold none of {export.height} rows ({why}); choose another format")
    return made


def notes(export: pl.DataFrame, made: Converted, name: str, thinking: Thinking) -> list[str]:
    """What a user must know of these rows: what was left out, and what the format cannot say."""
    form, told = FORMATS[name], [f"{count} rows left out: {why}" for why, count in sorted(made.left_out.items())]
    if thoughts := export["reasoning"].count():
        into = form.thoughts if thinking == "keep" else None
        apart = f"`reasoning` of {SIDE if made.side else 'each row'}"
        where = f"{into}, and in {apart}" if into else f"in {apart} only, so that no model learns it"
        told.append(f"{thoughts} of {export.height} answers have a thought; it is {where}")
    if cut := export.filter(finish_reason="length").height:
        told.append(
            f"{cut} answers were cut (finish_reason length); trainers add an end of turn, so that a model learns to "
            f"stop there"
        )
    if name == "sharegpt" and (odd := sum(not _alternate(_spoken(row["messages"])) for row in export.to_dicts())):
        told.append(f"LLaMA-Factory will skip {odd} rows: their turns do not alternate")
    if name == "openai" and len(made.rows) < MIN_OPENAI:
        told.append(f"OpenAI takes no file with fewer than {MIN_OPENAI} rows; this one has {len(made.rows)}")
    return told


def _feature(name: str, kind: Any) -> Row:
    """A column and its type, as `dataset_info` has it."""
    if isinstance(kind, pl.List):
        inner: Any = kind.inner
        return {"name": name, "list": [{"name": field.name, "dtype": "string"} for field in inner.fields]}
    return {"name": name, "dtype": {pl.String: "string", pl.Float64: "float64", pl.Int64: "int64"}[kind.base_type()]}


def _turns(row: Row, thinking: Thinking) -> list[Message]:
    """The conversation of a row, its thought in tags if it is kept."""
    [answer] = row["completion"]
    thought = row["reasoning"] if thinking == "keep" else None
    return [*row["prompt"], answer | {"content": tagged(answer["content"], thought)}]


def _spoken(turns: list[Message]) -> list[Message]:
    """The turns after a system message at the beginning."""
    return turns[1:] if turns[0]["role"] == "system" else turns


def _alternate(turns: Sequence[Message]) -> bool:
    """Whether user and assistant take turns, the user first."""
    return all(turn["role"] == ("user", "assistant")[place % 2] for place, turn in enumerate(turns))


def _extra(row: Row) -> Row:
    """The columns of EXTRA and the thought: texts that are never null, so that no reader guesses a wrong type."""
    return {name: row[name] for name in EXTRA} | {"reasoning": row["reasoning"] or ""}


def _write_lines(rows: Iterable[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


LLAMA_FACTORY = """LLaMA-Factory (`dataset_info.json` lies beside the data):

```yaml
dataset_dir: path/to/this/folder
dataset: persyn
mask_history: true  # the loss is on the last answer only
```
"""
SHAREGPT = (
    LLAMA_FACTORY
    + """
Axolotl:

```yaml
datasets:
  - path: path/to/this/folder/train.jsonl
    ds_type: json
    type: chat_template
    field_messages: conversations
    message_property_mappings:
      role: from
      content: value
    roles_to_train:  # empty, as train_on_eos: the loss is on the last answer only
    train_on_eos:
    split_thinking: true  # hands a thought in tags to the chat template
```

A reasoning template of LLaMA-Factory keeps `<think>` in the text, and adds an empty thought to answers without one."""
)
ALPACA = (
    LLAMA_FACTORY
    + """
Axolotl reads `instruction`, `input` and `output` of this form by `type: alpaca`, and `system` too by
`type: alpaca_w_system.load`; it never reads `history`. Give it conversations (`--format sharegpt`) where prompts have
several turns.

```yaml
datasets:
  - path: path/to/this/folder/train.jsonl
    ds_type: json
    type: alpaca_w_system.load
```"""
)
OPENAI = f"""Upload `train.jsonl` as a file whose purpose is `fine-tune`. It holds `messages` and nothing else, since no
other key is documented; line n of `{SIDE}` says whose line n of `train.jsonl` is, and under which terms. Read the terms
of the teachers and of the service before you upload.

LLaMA-Factory reads it too (`dataset_info.json` lies beside it), and Axolotl:

```yaml
datasets:
  - path: path/to/this/folder/train.jsonl
    ds_type: json
    type: chat_template
    roles_to_train:  # empty, as train_on_eos: the loss is on the last answer only
    train_on_eos:
```"""
LOADED = """```python
from datasets import load_dataset

dataset = load_dataset("path/to/this/folder", split="train")
```

TRL's SFTTrainer takes it as it is and uses `prompt` and `completion`."""
JSONL = (
    LOADED
    + """ The card holds the types of the columns, because a reader of
`train.jsonl` alone guesses them from its first rows, which may be null. polars needs
`polars.read_ndjson("path/to/this/folder/train.jsonl", infer_schema_length=None)`; for Axolotl, export parquet."""
)
PARQUET = (
    LOADED
    + """ Axolotl, which hands a thought in
`reasoning_content` of the message to the chat template:

```yaml
datasets:
  - path: path/to/this/folder/train.parquet
    ds_type: parquet
    type: chat_template
    field_messages: messages
    roles_to_train:  # empty, as train_on_eos: the loss is on the last answer only
    train_on_eos:
```"""
)
IN_TAGS = "in `<think>` tags before the answer"
IN_KEY = "in `reasoning_content` of the assistant's message, which a chat template that knows no thoughts ignores"
FORMATS: dict[str, Format] = {
    "sharegpt": Format(
        "Conversations in the ShareGPT form, for LLaMA-Factory and Axolotl",
        SHAREGPT,
        {"conversations": "messages of {from: system, human or gpt; value}; the last is the answer"},
        IN_TAGS,
        convert_sharegpt,
        {"formatting": "sharegpt", "columns": {"messages": "conversations"}},
    ),
    "alpaca": Format(
        "Instructions in the Alpaca form, for LLaMA-Factory",
        ALPACA,
        {
            "instruction": "the last question",
            "input": "always empty",
            "output": "the answer",
            "system": "the system message; empty where there is none",
            "history": "pairs of earlier questions and answers",
        },
        IN_TAGS,
        convert_alpaca,
        {
            "formatting": "alpaca",
            "columns": {
                "prompt": "instruction",
                "query": "input",
                "response": "output",
                "system": "system",
                "history": "history",
            },
        },
    ),
    "openai": Format(
        "Messages as OpenAI's fine-tuning and services like it read them",
        OPENAI,
        {"messages": "{role, content}; assistant turns before the last have weight 0"},
        None,
        convert_openai,
        {
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        },
    ),
    "hub": Format("All columns as a Hugging Face dataset", "", {}, IN_KEY),
    "jsonl": Format("All columns, one row a line", JSONL, {}, IN_KEY, convert_rows),
    "parquet": Format("All columns in one file", PARQUET, {}, IN_KEY),
}
