"""Snapshot: everything in a project at one revision, read on demand."""

import copy
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl

from persyn import schemas
from persyn.errors import InputError
from persyn.project.revision import Project, open_project

METRICS = {
    **dict.fromkeys(("prompts", "defects", "rewards", "router", "beside", "comparison", "cost"), ""),
    **dict.fromkeys(("allocation", "dataset", "evaluation"), "strategies"),
}
"""The files of metrics/; for a folder, whether its files are named after teachers or strategies."""
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Table:
    """A table of a Snapshot; None if it is not made yet. Without a schema it is a csv file."""

    def __init__(self, path: str, schema: pl.Schema | None = None) -> None:
        self.path, self.schema = path, schema

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, snapshot: "Snapshot", owner: type) -> pl.DataFrame | None:
        return snapshot.keep(self.name, snapshot.read_table(self.path, self.schema))


class Tables(Table):
    """The tables of all teachers (`asked`: and of the student itself) or strategies, by name, without those that are
    not made yet.
    """

    def __init__(self, names: str, path: str, schema: pl.Schema | None = None) -> None:
        super().__init__(path, schema)
        self.names = names

    def __get__(self, snapshot: "Snapshot", owner: type) -> Mapping[str, pl.DataFrame]:  # type: ignore[override]
        found = (
            (name, snapshot.read_table(self.path.format(name), self.schema)) for name in getattr(snapshot, self.names)
        )
        return snapshot.keep(self.name, {name: table for name, table in found if table is not None})


class Taken(Table):
    """A table of Samples' kind for all teachers."""

    def __get__(self, snapshot: "Snapshot", owner: type) -> pl.DataFrame | None:
        table = snapshot.read_table(self.path, self.schema)
        return snapshot.keep(self.name, None if table is None else snapshot.taken(table))


class Samples(Tables):
    """Tables that may hold several samples of a response: only those that were taken (Snapshot.taken)."""

    def __get__(self, snapshot: "Snapshot", owner: type) -> Mapping[str, pl.DataFrame]:  # type: ignore[override]
        strategies = self.names == "strategies"
        every = snapshot.every(self.name).items()
        return snapshot.keep(
            self.name, {name: snapshot.taken(table, name if strategies else None) for name, table in every}
        )


class Snapshot:
    """Everything in a project at one revision. What is not made yet is None, or left out.

    Args:
        params: params.yaml, whole.
        project: where to read parameters and whatever is not given here; None if everything is given.
        name: used in messages and titles.
        only: read this strategy alone.
        lenient: whether what exists but cannot be read counts as not made (see `lacking`) instead of being an error.
        metrics: as `metric` returns them.
        made: the tables, `teachers`, `strategies`, `experiments` and `experiments_note`, by their names below.
    """

    prompts = Table("data/prompts.parquet", schemas.PROMPTS)
    responses = Samples("asked", "data/responses/{}.parquet", schemas.RESPONSES)
    quality = Samples("asked", "data/quality/{}.parquet", schemas.QUALITY)
    learnability = Samples("teachers", "data/learnability/{}.parquet", schemas.LEARNABILITY)
    defects = Taken("data/defects.parquet", schemas.DEFECTS)
    rewards = Table("data/rewards.parquet", schemas.REWARDS)
    pairs = Table("data/pairs.parquet", schemas.PAIRS)
    routes = Tables("strategies", "data/routes/{}.parquet", schemas.ROUTES)
    routed = Samples("strategies", "data/routed/{}.parquet", schemas.RESPONSES)
    dataset = Tables("strategies", "data/dataset/{}.parquet", schemas.DATASET)
    samples = Tables("strategies", "data/evaluation/{}.parquet", schemas.SAMPLES)
    training = Tables("strategies", "metrics/reports/training/{}.csv")
    """Strategy -> the log of its student's training: step, loss and more."""
    reliability = Table("metrics/reports/reliability.csv")

    def __init__(
        self,
        params: Mapping[str, Any] | None = None,
        *,
        project: Project | None = None,
        name: str = "demo",
        only: str | None = None,
        lenient: bool = False,
        metrics: Mapping[str, Any] = NOTHING,
        **made: Any,
    ) -> None:
        self.project, self.only, self.lenient = project, only, lenient
        self._every: dict[str, Mapping[str, pl.DataFrame]] = {}
        self.name = project.name if project else name
        self.commit = project.commit if project else None
        self.metrics = dict(metrics)
        self.lacking: dict[str, list[str]] = {}
        """Why something is missing -> its files."""
        self.experiments: Sequence[Snapshot] = ()
        """DVC's experiments with other parameters; only their parameters, allocation and evaluation."""
        self.experiments_note = ""
        """Why experiments are missing, if some could not be read."""
        self._fill(made if params is None and project else {"params": params or {}, **made})

    def _fill(self, made: Mapping[str, Any]) -> None:
        for name in made:
            if name not in vars(self) and not isinstance(vars(Snapshot).get(name), Table | cached_property):
                raise TypeError(f"a Snapshot has no {name}")
        if "params" in made:  # whoever they named before
            for name in ("teachers", "student"):
                vars(self).pop(name, None)
        vars(self).update(made)
        self._every = {name: tables for name, tables in self._every.items() if name not in made}

    def replace(self, **made: Any) -> "Snapshot":
        """A copy with these parts replaced."""
        other = copy.copy(self)
        other._fill(made)
        return other

    @cached_property
    def params(self) -> Mapping[str, Any]:
        """params.yaml, whole.

        Raises:
            InputError: as Project.params.
        """
        return self.project.params() if self.project else NOTHING

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of params.yaml; empty where there is none.

        Raises:
            InputError: it has no keys and values.
        """
        found = self.params.get(name) or NOTHING
        if not isinstance(found, Mapping):
            raise InputError(f"{name} in params.yaml of {self.name} is {found!r}; it must be keys and their values")
        return found

    @cached_property
    def teachers(self) -> Sequence[str]:
        """Their names, in the order of params.yaml, without the one that is the student itself."""
        return [name for name in self.asked if name != self.student]

    @property
    def asked(self) -> Sequence[str]:
        """All that respond to the parallel set: the teachers, and the student itself where params.yaml says so."""
        return list(self.section("teachers"))

    @cached_property
    def student(self) -> str:
        """The teacher of params.yaml that is the student itself; empty if there is none."""
        return next((name for name, entry in self.section("teachers").items() if (entry or {}).get("is_student")), "")

    @cached_property
    def strategies(self) -> Sequence[str]:
        """Their names, in the order of params.yaml; only `only` if it is set."""
        return [name for name in self.section("strategies") if self.only in (None, name)]

    @property
    def anchored(self) -> list[str]:
        """Teachers that respond to a few parallel prompts only."""
        return [name for name, entry in self.section("teachers").items() if (entry or {}).get("anchors") is not None]

    @property
    def title(self) -> str:
        """The title of its page: its profile and its revision."""
        if self.project is None:
            return self.name
        profile = Path.cwd().name if Path.cwd().parent.name == "profiles" else "demo"
        return profile if self.name == "workspace" else f"{profile} at {self.name}"

    def metric(self, name: str, missing: Any = NOTHING) -> Any:
        """A file of metrics/; allocation, dataset and evaluation: strategy -> its file. `missing` if not made yet."""
        if name not in self.metrics:
            names = getattr(self, METRICS[name]) if METRICS[name] else ()
            found = {each: self._read_json(f"metrics/{name}/{each}.json") for each in names}
            present = {each: content for each, content in found.items() if content is not None}
            self.metrics[name] = present if METRICS[name] else self._read_json(f"metrics/{name}.json")
        found = self.metrics[name]
        return missing if found is None else found

    def every(self, part: str) -> Mapping[str, pl.DataFrame]:
        """`responses`, `quality`, `learnability` or `routed` with all samples."""
        if part not in self._every:
            found: Mapping[str, pl.DataFrame] | None = vars(self).get(part)
            self._every[part] = Tables.__get__(vars(Snapshot)[part], self, Snapshot) if found is None else found
        return self._every[part]

    def taken(self, table: pl.DataFrame, strategy: str | None = None) -> pl.DataFrame:
        """The rows of the samples that were taken, without the column `sample`: of a strategy's routed responses those
        in its dataset, of the parallel set those with the scores in the rewards. Where neither tells, the first.
        """
        if "sample" not in table.columns:
            return table
        key = ["prompt_id", "teacher"]
        if strategy is None:
            taken = self._rewarded
        else:
            text = pl.col("completion").list.first().struct.field("content")
            dataset = self.dataset.get(strategy, schemas.DATASET.to_frame()).select(*key, response=text)
            trained_on = table.join(dataset, on=[*key, "response"], how="semi")
            taken = trained_on.group_by(key).agg(taken=pl.col("sample").min())
        rows = table.join(taken, on=key, how="left", validate="m:1")
        rows = rows.sort(*key, pl.col("sample") != pl.col("taken").fill_null(0), "sample")
        return rows.unique(key, keep="first", maintain_order=True).drop("sample", "taken")

    @cached_property
    def _rewarded(self) -> pl.DataFrame:
        """prompt_id, teacher and the sample `taken` of the responses whose scores are in the rewards."""
        parts = [list(self.every(part).values()) for part in ("quality", "learnability")]
        if self.rewards is None or not all(parts):
            return pl.DataFrame(schema={"prompt_id": pl.String, "teacher": pl.String, "taken": pl.Int64})
        quality, learnability = schemas.alike([pl.concat(schemas.alike(part)) for part in parts])
        both = quality.join(learnability, on=schemas.row_key(quality), how="inner", validate="1:1")
        both = both.join(self.rewards, on=["prompt_id", "teacher"], how="inner", suffix="_taken", validate="m:1")
        same = both.filter(pl.all_horizontal(pl.col(of) == pl.col(f"{of}_taken") for of in ("quality", "learnability")))
        return same.group_by("prompt_id", "teacher").agg(taken=pl.col("sample").min())

    def need(self, part: str, name: str | None = None) -> pl.DataFrame:
        """A table; if there is one for each teacher or strategy, that of `name`.

        Raises:
            InputError: it is not made yet.
        """
        found = getattr(self, part)
        path: str = vars(type(self))[part].path
        return self._there(found if name is None else found.get(name), path.format(name))

    def need_metric(self, part: str, name: str | None = None) -> Any:
        """A file of metrics/, likewise."""
        found = self.metric(part, None)
        path = f"metrics/{part}.json" if name is None else f"metrics/{part}/{name}.json"
        return self._there(found if name is None else found.get(name), path)

    def _there(self, found: Any, path: str) -> Any:
        if found is None:
            raise InputError(f"{path} of {self.name} does not exist; run `dvc repro` (or `dvc pull`) to make it")
        return found

    def read_table(self, path: str, schema: pl.Schema | None) -> pl.DataFrame | None:
        """A table, checked; a csv file if there is no schema; None if it is not made yet."""
        if schema is not None:
            table: pl.DataFrame | None = self._read(path, lambda project: project.table(path, schema))
            return table
        content = self._read(path, lambda project: project.read(path))
        try:
            return None if content is None else pl.read_csv(io.BytesIO(content))
        except pl.exceptions.PolarsError as error:
            raise InputError(f"{path} of {self.name} is no csv ({error}); run `dvc repro` to make it again") from error

    def keep(self, name: str, found: Any) -> Any:
        """Remember this as the value of `name`."""
        vars(self)[name] = found
        return found

    def _read_json(self, path: str) -> Any:
        found = self._read(path, lambda project: project.json(path))
        if not isinstance(found, Mapping | None):
            raise InputError(f"{path} of {self.name} holds no keys and values; run `dvc repro` to make it again")
        return found

    def _read(self, path: str, read: Callable[[Project], Any]) -> Any:
        if self.project is None:
            return None
        reason = "not made yet"
        try:
            found = read(self.project)
        except InputError as error:
            if not self.lenient:
                raise
            found, reason = None, str(error).removeprefix(f"{path} of {self.name} ").removeprefix("is ")
        if found is None:
            self.lacking.setdefault(reason, []).append(path)
        return found

    @property
    def missing(self) -> list[str]:
        """What was requested but is missing, a line for each reason."""
        return [f"{', '.join(paths)}: {reason}" for reason, paths in self.lacking.items()]


@contextmanager
def open_snapshot(revision: str | None = None, *, only: str | None = None, lenient: bool = False) -> Iterator[Snapshot]:
    """The project of the working directory, or a revision of it, readable until the context ends.

    Args:
        revision: as open_project takes it.
        only, lenient: as Snapshot takes them.

    Raises:
        InputError: as open_project.
    """
    with open_project(revision) as project:
        yield Snapshot(project=project, only=only, lenient=lenient)


def changed_values(a: Any, b: Any) -> dict[str, dict[str, Any]]:
    """The leaves that differ: dotted path -> {a, b}, without the side that lacks the leaf."""
    flat = _flat(a), _flat(b)
    return {
        path: {side: values[path] for side, values in zip("ab", flat, strict=True) if path in values}
        for path in sorted(flat[0].keys() | flat[1].keys())
        if path not in flat[0] or path not in flat[1] or _unequal(flat[0][path], flat[1][path])
    }


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Leaves by their path; a list of scalars is one leaf."""
    deeper: list[tuple[Any, Any]] = []
    if isinstance(node, Mapping):
        deeper = list(node.items())
    elif isinstance(node, list) and any(isinstance(inner, Mapping) for inner in node):
        deeper = list(enumerate(node))
    if not deeper:
        return {path: node} if path else {}
    below = f"{path}." if path else ""
    return {name: leaf for key, inner in deeper for name, leaf in _flat(inner, f"{below}{key}").items()}


def _unequal(a: Any, b: Any) -> bool:
    return a != b or isinstance(a, bool) != isinstance(b, bool)
