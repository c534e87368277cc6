"""Routed: the responses of the chosen teachers. Those on the parallel set exist already; the rest is generated. Where
they fall short of what the dataset requires, the next teachers are asked.

Prompts come in parts, with the responses that exist already; all parts of one teacher are asked for before the next
teacher. Of the whole, only prompt_id and teachers are in memory.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from persyn.defects import Policies, drop_reason, falls_short, find_defects
from persyn.errors import InputError
from persyn.generation import BackendSpeed, Teacher
from persyn.generation.budget import Overspent
from persyn.generation.terms import Licenses
from persyn.responses import check_asking, generate_parts, with_responses
from persyn.schemas import (
    RESPONSES,
    ROUTES,
    alike,
    check_folder,
    fill_table,
    read_batches,
    read_columns,
    read_parts,
    row_key,
    sink_parts,
)

logger = logging.getLogger(__name__)
KEYS = ["prompt_id", "teacher"]
Parts = Callable[[], Iterable[tuple[pl.DataFrame, pl.DataFrame]]]
"""Begins anew each time: PROMPTS, and the RESPONSES to them that exist already."""


def read_asked(prompts: str, folder: str, names: list[str], rows: int | None = None) -> Parts:
    """The prompts with the responses to the parallel set of all teachers, from their files.

    Args:
        folder: of <teacher>.parquet, for each of `names`.
        rows: of a part, as read_parts takes them.

    Raises:
        InputError: as check_folder and, when it is read, read_parts.
    """
    check_folder(folder, names)
    files = [(Path(folder) / f"{name}.parquet", RESPONSES) for name in names]

    def parts() -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        for asked, *written in read_parts(prompts, *files, rows=rows):
            yield asked, pl.concat(alike(written))

    return parts


def sink_routed(asking: "Asking", routes: str, out: str, retries: "Retries") -> None:
    """Write the RESPONSES for the ROUTES in a file, and those of retries.

    Raises:
        InputError: as Asking.ask; there are no routes, or `next` is missing where it is needed.
    """
    pairs = read_columns(routes, *KEYS)
    if pairs.is_empty():
        raise InputError(f"{routes} has no rows; run `dvc repro` to make it again")
    if retries.limit and "next" not in pl.read_parquet_schema(routes):
        raise InputError(
            f"dataset.retries is {retries.limit}, and {routes} does not say which teachers to ask next; "
            f"run `dvc repro` to make it again"
        )
    rounds = [asking.ask(pairs, "routed")]
    if retries.limit:
        rounds = retry_failed(asking, lambda: read_batches(routes, ROUTES), rounds[0], retries)
    sink_parts(collect_rounds(rounds), out, RESPONSES)


def build_routed(
    prompts: pl.DataFrame,
    routes: pl.DataFrame,
    responses: pl.DataFrame,
    teachers: Mapping[str, Teacher],
    licenses: Licenses,
    folder: Path,
    speed: Mapping[str, BackendSpeed],
    **limits: Any,
) -> pl.DataFrame:
    """Collect a response for each route, from its teacher: all samples, if it gives several. Everything is in memory.

    Args:
        prompts: PROMPTS.
        routes: ROUTES, or its first two columns.
        responses: RESPONSES of all teachers to the parallel set, reused here.
        teachers, licenses, folder, speed, limits: as Asking has them.

    Returns:
        RESPONSES, one row for each route and sample.

    Raises:
        InputError: as Asking.ask.
    """
    with TemporaryDirectory() as scratch:
        parts = [(prompts, fill_table(responses, RESPONSES))]
        asking = Asking(lambda: parts, teachers, licenses, folder, speed, limits, Path(scratch))
        return pl.concat(collect_rounds([asking.ask(routes.select(KEYS), "routed")]))


@dataclass(frozen=True)
class Asking:
    """Asks teachers for what does not exist yet."""

    parts: Parts
    teachers: Mapping[str, Teacher]
    """By name."""
    licenses: Licenses
    """Checked only for teachers that still have prompts to respond to."""
    folder: Path
    """The response store."""
    speed: Mapping[str, BackendSpeed]
    """Teacher -> the speed knobs of its backend."""
    limits: Mapping[str, Any]
    """The keyword arguments of generate_parts."""
    scratch: Path
    """An empty folder for the parts."""

    def ask(self, pairs: pl.DataFrame, label: str) -> list[Path]:
        """Collect a response (all samples) for each pair of a prompt and a teacher.

        Args:
            pairs: prompt_id and teacher.
            label: begins the names of the files.

        Returns:
            A file of RESPONSES for each part.

        Raises:
            InputError: as check_asking and generate_parts; a prompt is in none of the parts.
        """
        pairs = pairs.sort(KEYS)
        lacking = self._lacking(pairs)
        shares = {name: _Share(self.parts, lacking, name) for name in _names(lacking)}
        check_asking(shares, self.teachers, self.licenses, self.folder)
        for name, share in shares.items():
            asked = name, self.teachers[name], self.folder, self.speed[name]
            for number, table in enumerate(generate_parts(share, *asked, **self.limits)):
                table.write_parquet(self._file(label, number, name), compression="lz4", statistics=False)
        files, found = list[Path](), 0
        for number, (prompts, responses) in enumerate(self.parts()):
            wanted = _of_prompts(pairs, prompts)
            tables = [responses.join(wanted, on=KEYS, how="semi", maintain_order="left")]
            made = [self._file(label, number, name) for name in shares]
            tables += [pl.read_parquet(file) for file in made]
            files.append(self._file(label, number))
            routed = pl.concat(_with_columns(tables))
            routed.write_parquet(files[-1], compression="lz4", statistics=False)
            found += routed.select(KEYS).n_unique()
            for file in made:
                file.unlink()
        assert found == pairs.height, f"{found} responses for {pairs.height} routes"
        return files

    def having(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """The rows of `pairs` (prompt_id and teacher) for which ask() pays nothing."""
        pairs = pairs.sort(KEYS)
        lacking = self._lacking(pairs)
        tables = [pairs.join(lacking, on=KEYS, how="anti")]
        for name in _names(lacking):
            share = _Share(self.parts, lacking, name)
            stored = with_responses(share, name, self.teachers[name], self.folder)
            tables += [part.select("prompt_id", teacher=pl.lit(name)) for part in stored]
        return pl.concat(tables)

    def _lacking(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """The pairs without a response that exists already."""
        asked, existing = list[pl.DataFrame](), list[pl.DataFrame]()
        for prompts, responses in self.parts():
            asked.append(prompts.select("prompt_id"))
            existing.append(responses.select(KEYS))
        unknown = pairs.join(pl.concat(asked), on="prompt_id", how="anti", maintain_order="left")
        if unknown.height:
            raise InputError(
                f"{unknown.height} of {pairs.height} routes are of prompts that are not in the table of prompts, first "
                f"{unknown['prompt_id'][0]}; run `dvc repro` to make both again"
            )
        return pairs.join(pl.concat(existing), on=KEYS, how="anti", maintain_order="left")

    def _file(self, label: str, number: int, *name: str) -> Path:
        return self.scratch / ".".join([label, f"{number:06}", *name, "parquet"])


@dataclass(frozen=True)
class _Share:
    """A teacher's prompts, part by part, in the order of prompt_id."""

    parts: Parts
    pairs: pl.DataFrame
    name: str

    def __iter__(self) -> Iterator[pl.DataFrame]:
        mine = self.pairs.filter(teacher=self.name)
        for prompts, _ in self.parts():
            share = _of_prompts(mine, prompts).select("prompt_id")
            yield prompts.join(share, on="prompt_id", how="semi").sort("prompt_id")


def _names(pairs: pl.DataFrame) -> list[str]:
    return [str(name) for name in pairs["teacher"].unique().sort()]


def _of_prompts(pairs: pl.DataFrame, prompts: pl.DataFrame) -> pl.DataFrame:
    """The pairs of these prompts.

    Args:
        pairs: in the order of prompt_id.
    """
    asked = prompts["prompt_id"].sort()
    first = pairs["prompt_id"].search_sorted(asked[0], "left")
    end = pairs["prompt_id"].search_sorted(asked[-1], "right")
    return pairs[first:end].join(prompts.select("prompt_id"), on="prompt_id", how="semi", maintain_order="left")


def _with_columns(tables: Iterable[pl.DataFrame]) -> list[pl.DataFrame]:
    """The tables with the columns of RESPONSES, and `sample` in all if one has it."""
    return [table.select(*RESPONSES.names(), pl.col("^sample$")) for table in alike(list(tables))]


def collect_rounds(rounds: Iterable[list[Path]]) -> Iterator[pl.DataFrame]:
    """RESPONSES of each part: the files of ask(), round by round."""
    for files in zip(*rounds, strict=True):
        yield pl.concat(_with_columns(map(pl.read_parquet, files)))


@dataclass(frozen=True)
class Retries:
    """When and how a prompt is given to another teacher."""

    limit: int
    """More teachers a prompt, at most."""
    require: Mapping[Any, float]
    """Domain -> least quality."""
    policies: Policies
    """Which defects make a response unfit to train on."""
    score: Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]
    """PROMPTS and RESPONSES -> QUALITY."""

    def required(self, prompts: pl.DataFrame) -> pl.DataFrame:
        """The prompts in a domain with a required quality."""
        return prompts.filter(pl.col("domain").cast(pl.String).is_in(list(self.require)))

    def passing(self, prompts: pl.DataFrame, responses: pl.DataFrame) -> pl.DataFrame:
        """prompt_id of the prompts with a response that is fit and has the quality that its domain requires."""
        key = row_key(responses)
        rows = responses.join(find_defects(prompts, responses), on=key, how="left", validate="1:1")
        fit = rows.with_columns(dropped=drop_reason(self.policies)).filter(pl.col("dropped").is_null())
        if fit.is_empty():
            return prompts[:0].select("prompt_id")
        scored = fit.join(self.score(prompts, fit.select(responses.columns)), on=key, how="left", validate="1:1")
        scored = scored.join(prompts.select("prompt_id", "domain"), on="prompt_id", how="left", validate="m:1")
        return scored.filter(~falls_short(self.require)).select("prompt_id").unique()

    def failing(self, parts: Parts, files: list[Path]) -> pl.DataFrame:
        """prompt_id of the prompts that must pass and do not, though they have responses in `files`, one for each part.

        Raises:
            Overspent: the budget does not reach for a verdict.
        """
        tables = []
        for (prompts, _), file in zip(parts(), files, strict=True):
            required = self.required(prompts)
            asked = pl.read_parquet(file).join(required, on="prompt_id", how="semi", maintain_order="left")
            passing = self.passing(required, asked)
            tables.append(asked.select("prompt_id").unique().join(passing, on="prompt_id", how="anti"))
        return pl.concat(tables).sort("prompt_id")


def retry_failed(
    asking: Asking, routes: Callable[[], Iterable[pl.DataFrame]], routed: list[Path], retries: Retries
) -> list[list[Path]]:
    """Ask the next teachers for the prompts none of whose responses passes, round by round.

    Once the budget is spent, only responses that exist are still taken; the prompts that are left are counted.

    Args:
        routes: gives ROUTES with `next`, in any number of tables.
        routed: the files of their responses, as asking.ask makes them.

    Returns:
        `routed`, and the files of every further round.
    """
    required = pl.concat(retries.required(prompts).select("prompt_id") for prompts, _ in asking.parts())
    left = _next_teachers(routes(), required, with_next=False)
    total, rounds, overspent, unreached = left.height, [routed], False, 0
    for turn in range(retries.limit):
        try:
            failing = retries.failing(asking.parts, rounds[-1])
        except Overspent as error:
            logger.warning("no further verdict is paid for: %s", error)
            unreached += left.height
            break
        left = left.join(failing, on="prompt_id", how="semi") if turn else _next_teachers(routes(), failing)
        if left.is_empty():
            break
        teacher = pl.col("next").list.get(turn, null_on_oob=True)
        pairs = left.select("prompt_id", teacher=teacher).filter(pl.col("teacher").is_not_null()).sort(KEYS)
        logger.info(
            "%d of %d prompts fall short of dataset.require; %d are given to another teacher, round %d of %d",
            *(left.height, total, pairs.height, turn + 1, retries.limit),
        )
        if pairs.is_empty():
            break
        label = f"round {turn + 1}"
        asked = asking.having(pairs) if overspent else pairs
        try:
            rounds.append(asking.ask(asked, label))
        except Overspent as error:
            logger.warning("no further teacher is paid for: %s", error)
            overspent, asked = True, asking.having(pairs)
            rounds.append(asking.ask(asked, label))
        unreached += pairs.join(asked, on=KEYS, how="anti").height
        left = left.join(asked, on="prompt_id", how="semi")  # another try of the others would be out of turn
    if unreached:
        logger.warning("%d of %d prompts are left without a further try: the budget is spent", unreached, total)
    return rounds


def _next_teachers(routes: Iterable[pl.DataFrame], prompts: pl.DataFrame, *, with_next: bool = True) -> pl.DataFrame:
    """prompt_id, and the teachers to ask next, of those of the prompts that have routes."""
    columns = ["prompt_id", "next"] if with_next else ["prompt_id"]
    found = (table.select(columns).join(prompts, on="prompt_id", how="semi") for table in routes)
    return pl.concat(found).unique("prompt_id")


def asked_routes(routes: pl.DataFrame, routed: pl.DataFrame) -> pl.DataFrame:
    """ROUTES of all teachers that were asked: the chosen ones, then those that were asked after them, which have no
    strength or margin.

    Args:
        routed: RESPONSES of `routes`, and of further attempts.
    """
    chosen = routes.select(ROUTES.names())
    if "next" not in routes.columns:
        return chosen
    later = routes.unique("prompt_id", maintain_order=True).select("prompt_id", teacher="next").explode("teacher")
    others = later.join(routed, on=KEYS, how="semi", maintain_order="left")
    empty = [pl.lit(None, ROUTES[name]).alias(name) for name in ROUTES.names()[2:]]
    return pl.concat([chosen, others.with_columns(empty)])
