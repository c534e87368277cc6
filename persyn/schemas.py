"""The columns and types of every table. `read_table` and `write_table` check them and never change a value."""

import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl

from persyn.errors import InputError

Domain = Literal["instruction", "math", "code"]
DOMAINS: Any = pl.Enum(get_args(Domain))
FINISH_REASONS: Any = pl.Enum(["stop", "length", "error"])
MESSAGES: Any = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))

PROMPTS = pl.Schema(
    {
        "prompt_id": pl.String,  # content hash of the normalised prompt
        "prompt": MESSAGES,  # ends in a user turn
        "domain": DOMAINS,
        "reference": pl.String,  # nullable; math: the final answer; instruction: the constraints as json
        "source": pl.String,
        "license": pl.String,
        "parallel": pl.Boolean,  # every teacher responds to this prompt
    }
)
RESPONSES = pl.Schema(
    {
        "prompt_id": pl.String,
        "teacher": pl.String,
        "response": pl.String,  # the answer alone
        "reasoning": pl.String,  # nullable: the thought before it
        "finish_reason": FINISH_REASONS,
        "num_prompt_tokens": pl.Int64,
        "num_response_tokens": pl.Int64,
    }
)
QUALITY = pl.Schema({"prompt_id": pl.String, "teacher": pl.String, "quality": pl.Float64})
LEARNABILITY = pl.Schema(
    {
        "prompt_id": pl.String,
        "teacher": pl.String,
        "learnability": pl.Float64,  # mean log-probability per response token, nats
        "num_tokens": pl.Int64,
        "truncated": pl.Boolean,
    }
)
DEFECTS = pl.Schema(
    {
        "prompt_id": pl.String,
        "teacher": pl.String,
        **dict.fromkeys(["empty", "refusal", "repetition", "unclosed_think", "tool_call", "other_script"], pl.Boolean),
        "length": pl.Boolean,  # cut at max_tokens
    }
)
REWARDS = pl.Schema(
    {
        "prompt_id": pl.String,
        "teacher": pl.String,
        "quality": pl.Float64,  # raw, as scored
        "learnability": pl.Float64,  # raw, as scored
        "reward": pl.Float64,
    }
)
PAIRS = pl.Schema({"prompt_id": pl.String, "winner": pl.String, "loser": pl.String, "margin": pl.Float64})
ROUTES = pl.Schema(
    {
        "prompt_id": pl.String,
        "teacher": pl.String,
        "strength": pl.Float64,  # nullable: only a router gives strengths
        "margin": pl.Float64,  # nullable: strength minus that of the best other teacher
    }
)
NEXT = pl.List(pl.String)
"""Of a last column `next` of ROUTES, where dataset.retries is set: the teachers to ask, in this order, for a prompt
whose chosen teachers fall short of dataset.require."""
DATASET = pl.Schema(
    {
        "prompt_id": pl.String,
        "teacher": pl.String,
        "prompt": MESSAGES,
        "completion": MESSAGES,
        "reasoning": pl.String,  # nullable: the thought before the completion
        "finish_reason": pl.String,  # stop, or length: the completion was cut, so no end of turn belongs to it
        "license": pl.String,  # of the prompt
        "teacher_license": pl.String,
        "training": pl.String,  # whether the teacher's outputs may train other models
    }
)
SAMPLES = pl.Schema(
    {
        "task": pl.String,
        "sample_id": pl.String,  # content hash of the evaluation item: pairs the same item across students
        "metric": pl.String,
        "value": pl.Float64,
        "response": pl.String,
        "cut": pl.Boolean,  # whether the response reached the token limit before its end; null: nothing was generated
    }
)
SAMPLED = (RESPONSES, QUALITY, LEARNABILITY, DEFECTS)
"""Tables with a last column `sample`, counted from 0, if a teacher was asked a prompt more than once."""
PART = 50_000
"""Rows of a part of a table that is read, or of prompts with all that belongs to them, and of a row group of a table
that is written in parts."""
PARALLEL = pl.col("parallel")
"""The prompts that every teacher responds to, for read_table."""
NULLABLE = {"reference", "reasoning", "strength", "margin", "cut"}
NEW: dict[str, Any] = {"reference": None, "reasoning": None, "cut": None}
"""Columns that earlier versions did not write -> what holds for their rows."""


def read_table(path: str | Path, schema: pl.Schema, where: pl.Expr | None = None) -> pl.DataFrame:
    """Read a parquet table, or its rows for which `where` holds, and check them against `schema`.

    Raises:
        InputError: the file is missing or damaged, or a column, a type, a null or a NaN is not what the schema says.
    """
    _check_there(path)
    return parse_table(Path(path), schema, str(path), where)


def read_columns(path: str | Path, *columns: str) -> pl.DataFrame:
    """Some columns of a table, which are not checked.

    Raises:
        InputError: the file is missing or damaged.
    """
    _check_there(path)
    try:
        return pl.scan_parquet(path).select(columns).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _damaged(str(path), error) from error


def read_batches(path: str | Path, schema: pl.Schema, rows: int | None = None) -> Iterator[pl.DataFrame]:
    """The table of read_table in parts of about so many rows (None: PART), in its order, never whole in memory.

    Raises:
        InputError: as read_table; of a part, when it is its turn.
    """
    _check_there(path)
    try:
        # collect_batches would read up to 128 row groups ahead of a slow reader.
        table, step = pl.scan_parquet(path), rows or PART
        for start in range(0, table.select(pl.len()).collect().item(), step):
            yield check_table(_with_messages(table.slice(start, step).collect(), schema), schema, str(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _damaged(str(path), error) from error


def read_parts(
    prompts: str | Path, *others: tuple[str | Path, pl.Schema], rows: int | None = None
) -> Iterator[list[pl.DataFrame]]:
    """PROMPTS in parts as read_batches gives them, and after each part the rows of the same prompts of other tables.
    All are in the order of prompt_id, as write_table leaves them.

    Raises:
        InputError: as read_batches; PROMPTS has no rows or one prompt_id twice; a table is not in that order, or has
            prompts that PROMPTS lacks.
    """
    follow = [_Following(path, schema) for path, schema in others]
    last = ""
    for part in read_batches(prompts, PROMPTS, rows):
        before, last = last, _last_of(part, last, prompts)
        twice = part.filter((pl.col("prompt_id") == before) | pl.col("prompt_id").is_duplicated())
        if twice.height:
            raise InputError(
                f"{prompts} has the prompt_id {twice['prompt_id'][0]} twice; run `dvc repro` to make it again"
            )
        yield [part, *(table.rows_of(part, prompts) for table in follow)]
    if not last:
        raise InputError(f"{prompts} has no rows; it needs at least one prompt: see metrics/prompts.json")
    for table in follow:
        table.check_end(prompts)


class _Following:
    """A table that is read along with PROMPTS."""

    def __init__(self, path: str | Path, schema: pl.Schema) -> None:
        self._path, self._last, self._batches = path, "", read_batches(path, schema)
        first = next(self._batches, None)
        self._rest = read_table(path, schema) if first is None else first
        self._last = _last_of(self._rest, "", path)

    def rows_of(self, part: pl.DataFrame, prompts: str | Path) -> pl.DataFrame:
        """The rows of the next part of PROMPTS."""
        tables, last = [self._rest], str(part["prompt_id"][-1])
        while self._last <= last and (batch := next(self._batches, None)) is not None:
            self._last = _last_of(batch, self._last, self._path)
            tables.append(batch)
        table = pl.concat(tables)
        place = table["prompt_id"].search_sorted(last, side="right")
        self._rest = table[place:]
        self._check_known(table[:place].join(part, on="prompt_id", how="anti"), prompts)
        return table[:place]

    def check_end(self, prompts: str | Path) -> None:
        """Nothing is left behind."""
        self._check_known(pl.concat([self._rest, *self._batches]), prompts)

    def _check_known(self, unknown: pl.DataFrame, prompts: str | Path) -> None:
        if unknown.height:
            raise InputError(
                f"{self._path} has rows of prompts that {prompts} lacks, first {unknown['prompt_id'][0]}; "
                f"run `dvc repro` to make it again"
            )


def _last_of(part: pl.DataFrame, before: str, path: str | Path) -> str:
    """The last prompt_id of a part, which comes after `before`."""
    identities = part["prompt_id"]
    if identities.is_empty():
        return before
    if identities[0] < before or not identities.is_sorted():
        raise InputError(f"{path} is not in the order of prompt_id; run `dvc repro` to make it again")
    return str(identities[-1])


def parse_table(source: Path | bytes, schema: pl.Schema, name: str, where: pl.Expr | None = None) -> pl.DataFrame:
    """The parquet table in a file or in bytes, called `name`, or its rows for which `where` holds, checked against
    `schema`.

    Raises:
        InputError: it is damaged, or as check_table.
    """
    try:
        table = pl.read_parquet(source) if where is None else pl.scan_parquet(source).filter(where).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _damaged(name, error) from error
    return check_table(_with_messages(table, schema), schema, name)


def _check_there(path: str | Path) -> None:
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist; run `dvc repro` (or `dvc pull`) to make it")


def _damaged(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(f"{name} is damaged ({reason}); delete it, then `dvc checkout` or `dvc repro`")


def _with_messages(table: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    """`table`; prompts that are text, as in older tables, become one user turn each."""
    if schema.get("prompt") != MESSAGES or table.schema.get("prompt") != pl.String:
        return table
    turn = pl.concat_list(pl.struct(role=pl.lit("user"), content=pl.col("prompt")))
    return table.with_columns(prompt=pl.when(pl.col("prompt").is_not_null()).then(turn))


def read_folder(
    folder: str | Path, names: Sequence[str], schema: pl.Schema, known: Collection[str] = ()
) -> dict[str, pl.DataFrame]:
    """Read `<folder>/<name>.parquet` for every name, as name -> table; refuse files of other names.

    Args:
        known: further names, whose files may be there and are not read.

    Raises:
        InputError: as check_folder and read_table.
    """
    check_folder(folder, [*names, *known])
    return dict(
        zip(names, alike([read_table(Path(folder) / f"{name}.parquet", schema) for name in names]), strict=True)
    )


def check_folder(folder: str | Path, names: Sequence[str]) -> None:
    """Refuse tables in a folder that have other names.

    The names come from params.yaml, never from a glob, which would also read the left-over file of a removed teacher.
    """
    left_over = sorted({file.stem for file in Path(folder).glob("*.parquet")} - set(names))
    if left_over:
        raise InputError(
            f"{folder} holds {', '.join(left_over)}, which params.yaml does not name; "
            f"delete {', '.join(f'{folder}/{name}.parquet' for name in left_over)} and run again"
        )


def alike(tables: Sequence[pl.DataFrame]) -> list[pl.DataFrame]:
    """The tables with a column `sample` in all, if one has it."""
    if not any("sample" in table.columns for table in tables):
        return list(tables)
    first = pl.lit(0, pl.Int64).alias("sample")
    return [table if "sample" in table.columns else table.with_columns(first) for table in tables]


def row_key(*tables: pl.DataFrame) -> list[str]:
    """The columns that name a row of the tables of SAMPLED, if they are alike."""
    return ["prompt_id", "teacher", *(["sample"] if any("sample" in table.columns for table in tables) else [])]


def write_table(table: pl.DataFrame, path: str | Path, schema: pl.Schema) -> None:
    """Check `table`, sort it by its key and write it: the file appears complete or not at all.

    The key is every leading String column that names a row (prompt_id, teacher, ...). Equal content thus gives equal
    bytes, and DVC does not rerun the stages after an unchanged output.
    """
    table = check_table(table, schema, str(path))
    if "sample" in table.columns and not _sampled(table):  # an earlier version's file stays the same to the byte
        table = table.drop("sample")
    table = _in_order(table, str(path))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{path}.partial")
    table.write_parquet(partial, compression="zstd", statistics=False)
    partial.replace(path)


def _in_order(table: pl.DataFrame, name: str) -> pl.DataFrame:
    """`table` sorted by its key.

    Raises:
        InputError: two rows share a key.
    """
    known = ("task", "sample_id", "metric", "prompt_id", "teacher", "sample", "winner", "loser")
    keys = [name for name in known if name in table.columns]
    duplicated = table.filter(table.select(keys).is_duplicated())
    if duplicated.height:
        raise InputError(f"{name}: {duplicated.height} rows share a key {keys}; first: {duplicated.row(0, named=True)}")
    return table.sort(keys)


def _sampled(table: pl.DataFrame) -> bool:
    """Whether a column `sample` says something."""
    return bool((table["sample"] != 0).any())


def sink_table(table: pl.LazyFrame, path: str | Path) -> None:
    """Write a table that is checked and sorted already, as write_table does, but without holding it in memory. Tables
    of up to PART rows are the same to the byte.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{path}.partial")
    table.sink_parquet(partial, compression="zstd", statistics=False, row_group_size=PART)
    partial.replace(path)


@contextmanager
def parts_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder beside a table that is made in parts, for these. It is deleted at the end."""
    folder = Path(f"{path}.parts")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def sink_parts(parts: Iterable[pl.DataFrame], path: str | Path, schema: pl.Schema) -> None:
    """As write_table, of a table that comes in parts of which each has prompts after those of the part before. Only one
    is in memory.

    Raises:
        InputError: as write_table, of a part.
    """
    with parts_folder(f"{path}.sink") as folder:
        files, sampled, last = list[Path](), False, ""
        for number, part in enumerate(parts):
            files.append(folder / f"{number:06}.parquet")
            part = _in_order(check_table(part, schema, str(path)), str(path))
            assert part.is_empty() or part["prompt_id"][0] > last, f"part {number} begins before the end of another"
            last = last if part.is_empty() else str(part["prompt_id"][-1])
            sampled |= "sample" in part.columns and _sampled(part)
            part.write_parquet(files[-1], compression="lz4", statistics=False)
        for file in files:  # all with `sample`, or none
            if ("sample" in pl.read_parquet_schema(file)) != sampled:
                part = pl.read_parquet(file)
                part = part.with_columns(sample=pl.lit(0, pl.Int64)) if sampled else part.drop("sample")
                part.write_parquet(file, compression="lz4", statistics=False)
        sink_table(pl.scan_parquet(files), path)


def fill_table(table: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    """`table` with the columns of `schema` that earlier versions did not write: nullable texts are null, every row of
    a dataset ended by itself, and no response is known to be cut. A table that is wrong otherwise is returned as it is.
    """
    known = {
        **NEW,
        **({"finish_reason": "stop"} if schema == DATASET else {"length": False} if schema == DEFECTS else {}),
    }
    new = {name: known[name] for name in schema if name in known and name not in table.columns}
    if not new or [name for name in table.columns if name != "sample"] != [name for name in schema if name not in new]:
        return table
    return table.with_columns(pl.lit(value, dtype=schema[name]).alias(name) for name, value in new.items()).select(
        *schema.names(), pl.col("^sample$")
    )


def check_table(table: pl.DataFrame, schema: pl.Schema, name: str) -> pl.DataFrame:
    """Return `table` if its columns, types and values obey `schema`, filled as fill_table does; else raise
    InputError.
    """
    table = fill_table(table, schema)
    if "sample" in table.columns and schema in SAMPLED:
        schema = pl.Schema([*schema.items(), ("sample", pl.Int64())])
    if "next" in table.columns and schema == ROUTES:
        schema = pl.Schema([*schema.items(), ("next", NEXT)])
    if table.schema != schema:
        wrong = [f"{column}: {kind}" for column, kind in schema.items() if table.schema.get(column) != kind]
        extra = [column for column in table.columns if column not in schema]
        raise InputError(
            f"{name}: needs columns {', '.join(wrong) or 'in the order ' + ', '.join(schema)}"
            f"{'; has unknown ' + ', '.join(extra) if extra else ''}; got {dict(table.schema)}"
        )
    for column, kind in schema.items():
        series = table[column]
        bad = pl.Series([False] * table.height, dtype=pl.Boolean) if column in NULLABLE else series.is_null()
        if kind.is_float():
            bad = bad | ~series.fill_null(0.0).is_finite()
        if bad.any():
            rows = table.filter(bad).select(schema.names()[:2]).rows()
            raise InputError(f"{name}: {len(rows)} missing or non-finite values in {column}, at {rows[:5]}")
    return table
