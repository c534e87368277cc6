"""`persyn generate`: fill the store with what teachers still owe."""

import functools
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import polars as pl

    from persyn.errors import InputError
    from persyn.generation.budget import Budget
    from persyn.project.params import Params

PROMPTS, ROUTES = Path("data/prompts.parquet"), Path("data/routes")


def generate(
    teacher: Annotated[str | None, typer.Option(help="Its name in params.yaml; without it, all are asked.")] = None,
    shard: Annotated[str, typer.Option(help="i/n: the i-th of n shares, counted from 0.")] = "0/1",
    prompts: Annotated[Path, typer.Option(help="The table of prompts.")] = PROMPTS,
    routes: Annotated[Path, typer.Option(help="The folder of routes; missing ones are skipped.")] = ROUTES,
) -> None:
    """Generate the responses that teachers still owe; `dvc repro` then finds them in the store.

    A teacher's prompts are the parallel set (or its anchors) and those that any strategy's routes, where they are made,
    give it. Teachers behind servers (backend openai) are asked side by side; then the others, one after the other,
    since they share this machine. All share one budget. One that fails stops no other: all errors are told at the end.

    Shares may run at the same time, on any machines that see the store.
    """
    _log()
    from persyn.errors import InputError, nearest
    from persyn.project.params import read_params
    from persyn.responses import check_asking
    from persyn.store import key_range, store_folder

    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise InputError(f"--shard is {shard!r}; it must be i/n, such as 0/8 to 7/8")
    part = int(index), int(count)
    key_range(*part)
    params = read_params()
    if teacher is not None and teacher not in params.teachers:
        raise InputError(f"--teacher {teacher!r} is not in params.yaml{nearest(teacher, params.teachers)}")
    for line in params.told if teacher in (None, params.asked_student) else ():
        typer.echo(line, err=True)
    wanted = _wanted([teacher] if teacher else list(params.teachers), params, prompts, routes)
    check_asking({name: [table] for name, table in wanted.items()}, params.teachers, params.licenses, store_folder())
    budget = params.budget.divided(store_folder(), part[1])
    if teacher:
        _ask(teacher, wanted[teacher], params, budget, part)
    else:
        _ask_all(wanted, params, budget, part)


def _log() -> None:
    """Log to the terminal; a line without its teacher's name gets it, if it comes from that teacher's thread."""
    import logging
    import os
    import sys
    import threading

    class Named(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            text, name = super().format(record), record.threadName
            own = name in (None, threading.main_thread().name) or text.startswith(f"{name}:")
            return text if own else f"{name}: {text}"

    handler = logging.StreamHandler()
    handler.setFormatter(Named("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("persyn").setLevel(logging.INFO)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # seconds: a log keeps every state of a progress line


def _wanted(names: list[str], params: "Params", prompts: Path, routes: Path) -> "dict[str, pl.DataFrame]":
    """Teacher -> its prompts."""
    from persyn import schemas
    from persyn.errors import InputError
    from persyn.prompts import wanted_prompts

    if prompts == PROMPTS and not prompts.is_file():
        raise InputError(f"{prompts} does not exist; run `dvc repro prompts` to make it, then this command again")
    table = schemas.read_table(prompts, schemas.PROMPTS)
    files = [routes / f"{strategy}.parquet" for strategy in params.strategies]
    made = [schemas.read_table(file, schemas.ROUTES) for file in files if file.is_file()]
    return {name: wanted_prompts(table, name, params.teachers[name].anchors, made) for name in names}


def _ask(name: str, wanted: "pl.DataFrame", params: "Params", budget: "Budget", part: tuple[int, int]) -> None:
    from tqdm import tqdm

    from persyn.responses import generate_parts
    from persyn.schemas import PART
    from persyn.store import store_folder

    asked = name, params.teachers[name], store_folder(), params.speed_of(name), budget, part
    parts = [wanted[start : start + PART] for start in range(0, wanted.height, PART)]
    responses = generate_parts(parts, *asked, max_error_share=params.responses.max_error_share)
    count, whole = sum(table.height for table in responses), wanted.height * params.teachers[name].samples
    text = f"shard {part[0]}/{part[1]} has {count} of {whole} responses; all are stored"
    tqdm.write(f"{name}: {text}")  # above the lines of progress


def _ask_all(wanted: "Mapping[str, pl.DataFrame]", params: "Params", budget: "Budget", part: tuple[int, int]) -> None:
    """Ask the teachers behind servers side by side, then the others in turn.

    Raises:
        InputError: the mistakes of all teachers.
    """
    from contextlib import closing

    from persyn.errors import InputError
    from persyn.generation.budget import SharedBudget
    from persyn.generation.threads import side_by_side

    whole, mistakes = SharedBudget.model_validate(dict(budget)), list[str]()
    asked = [name for name in params.teachers if wanted[name].height]
    served = [name for name in asked if params.teachers[name].backend == "openai" and not params.speed_of(name).ray]
    shares = {name: whole.part() for name in served}  # before any is asked, so that all are equal

    def ask(name: str) -> None:
        with closing(shares[name] if name in shares else whole.part()) as share:
            _ask(name, wanted[name], params, share, part)

    with _lines(served):
        ended = side_by_side({name: functools.partial(ask, name) for name in served})
    for name, error in ended.items():
        if isinstance(error, InputError | OSError):
            mistakes += mistakes_of(name, error)
        elif error:
            raise error
    for name in asked:
        if name not in served:
            try:
                ask(name)
            except (InputError, OSError) as error:
                mistakes += mistakes_of(name, error)
    if mistakes:
        raise InputError(*mistakes)


def mistakes_of(name: str, error: "InputError | OSError") -> list[str]:
    """The lines of a teacher's error, each with its name."""
    from persyn.errors import InputError

    mistakes = error.args if isinstance(error, InputError) else [error]
    return [f"{name}: {mistake}" for mistake in mistakes]


@contextmanager
def _lines(served: list[str]) -> Iterator[None]:
    """Keep a line of progress for each teacher below what is logged, while threads ask them."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    if served:
        # Not in threads: they could get modules that others have not yet loaded to the end.
        for module in ("persyn.generation.concurrency", "openai.resources.chat.completions.completions"):
            with suppress(ModuleNotFoundError):  # told by the backend
                importlib.import_module(module)
    with logging_redirect_tqdm():
        yield
