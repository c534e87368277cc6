"""`persyn new`: a guided first project. It asks on a terminal; elsewhere options and guesses decide."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

if TYPE_CHECKING:
    from persyn.project.guesses import Checks, PromptFile
    from persyn.project.new import Project

Quality = Literal["math_verify", "checkers", "unit_tests", "form", "reward_model", "judge"]
SCORERS = ("reward_model", "judge")
FORM = (
    "no reward model or judge is named. form measures length and language, not whether a response is right or helpful; "
    "--reward-model or --judge does that"
)
METHODS = {
    "reward_model": "a hub id or a folder",
    "judge": "MODEL@https://host/v1 or MODEL@https://host/v1,KEY_VARIABLE",
}
DOMAINS = {"math_verify": "math", "unit_tests": "code"}
"""Quality method -> the domain that it is for."""
LISTED = {"domain": ["instruction", "math", "code"], "quality": list(get_args(Quality))}
"""Question -> its possible answers."""
LEAST = {"max_tokens": 1, "limit": 0, "items": 0}
"""Question -> the least number that answers it."""
FEWEST = 3
"""Prompts that every teacher answers at least: router.holdout of the template leaves one of these to be measured on."""


def new(
    name: Annotated[str, typer.Argument(help="Of the profile: the folder profiles/NAME.")],
    prompts: Annotated[Path | None, typer.Option(help="Your prompts: a jsonl or parquet file.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The column of the prompt, or a template over the row.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="The column or template of the final answer, or of the checks, of each prompt.")
    ] = None,
    domain: Annotated[Literal["instruction", "math", "code"] | None, typer.Option(help="What is asked for.")] = None,
    quality: Annotated[
        Quality | None,
        typer.Option(help="How good a response is. form: length and language alone, which needs no reference."),
    ] = None,
    reward_model: Annotated[str | None, typer.Option(help="A reward model: a hub id or a folder.")] = None,
    judge: Annotated[str | None, typer.Option(help="A judge behind a server: MODEL@https://host/v1,KEY_VARIABLE")] = (
        None
    ),
    license: Annotated[str | None, typer.Option(help="The licence of the prompts.")] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            help="smollm2-terse, smollm2-steps, gemma3-fewshot, qwen-coder (packaged), a hub id, or a server: "
            "MODEL@https://host/v1,KEY_VARIABLE (the name of the environment variable). May be repeated."
        ),
    ] = None,
    student: Annotated[str | None, typer.Option(help="Packaged (gemma3-270m), a hub id or a folder.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a response at most.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Only the first rows of the file; 0: all.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="Prompts that every teacher answers.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="An evaluation task of tasks/ or of lm-eval. May be repeated.")
    ] = None,
    items: Annotated[int | None, typer.Option(min=0, help="Items of each task; 0: all.")] = None,
    link: Annotated[bool, typer.Option("--link", help="Link to the file instead of copying it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: options and guesses decide.")] = False,
) -> None:
    """Make a first project of your own: a profile with your prompts and a params.yaml that runs as it is.

    It looks into the file, asks what it cannot know and proposes an answer to every question. With --yes, or without a
    terminal, it asks nothing and says what it guessed. What exists is never overwritten.
    """
    options = SimpleNamespace(**locals())
    from persyn.project.new import write_project

    root, file, project = _project(options, _Choices(options, ask=not yes and _is_terminal()))
    folder = write_project(project, root)
    how = "linked" if project.link else f"copied ({file.file.stat().st_size:,} bytes; git does not ignore it)"
    typer.echo(f"wrote profiles/{project.name}: params.yaml, and {file.file.name} {how} in data/raw")
    typer.echo("Next:")
    typer.echo(f"  cd {os.path.relpath(folder)}")
    for command in [*(["persyn pin"] if project.needs_pins else []), "persyn plan", "dvc repro"]:
        typer.echo(f"  {command}")


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


class _Choices:
    """Answers to questions: an option, else what the user says, else a guess, which is printed."""

    def __init__(self, options: SimpleNamespace, ask: bool) -> None:
        self.options, self.ask = options, ask
        self.mistakes: list[str] = []

    def take(self, name: str, question: str, guess: Any, why: str, read: Callable[[Any], Any] | None = None) -> Any:
        """The answer to a question. `name` is the option's; what `read` refuses is asked for again."""
        given = getattr(self.options, name)
        if given is not None and given != []:
            return given
        if not self.ask:
            typer.echo(f"guessed: --{name.replace('_', '-')} {_shown(guess)}  ({why})")
            return guess
        typer.echo(f"({why})")
        if name in LISTED:
            question, read = f"{question} ({', '.join(LISTED[name])})", _one_of(LISTED[name])
        if name in LEAST:
            read = _within(LEAST[name])
        while True:
            said = self._said(name, question, guess)
            mistakes = _mistakes(read, said)
            if not mistakes:
                return said
            typer.echo("\n".join(mistakes))

    def _said(self, name: str, question: str, guess: Any) -> Any:
        """What the user says to a question, in the form of the guess."""
        if not isinstance(guess, list):
            return typer.prompt(question, default=guess, type=type(guess))
        said = typer.prompt(question, default=" ".join(guess))
        return [part for part in said.split() if part]

    def check(self, read: Callable[[], Any]) -> Any:
        """What `read` gives, or None; its mistakes are told with all others."""
        from persyn.errors import InputError

        try:
            return read()
        except InputError as error:
            self.mistakes += error.args
            return None

    def stop(self) -> None:
        """Tell all mistakes.

        Raises:
            InputError: there are some.
        """
        from persyn.errors import InputError

        if self.mistakes:
            raise InputError(*self.mistakes)


def _mistakes(read: Callable[[Any], Any] | None, value: Any) -> list[str]:
    from persyn.errors import InputError

    try:
        if read is not None:
            read(value)
    except InputError as error:
        return [str(mistake) for mistake in error.args]
    return []


def _one_of(known: list[str]) -> Callable[[str], None]:
    def read(text: str) -> None:
        from persyn.errors import InputError, nearest

        if text not in known:
            raise InputError(f"{text!r} is none of them{nearest(text, known)}")

    return read


def _within(least: int, most: int | None = None) -> Callable[[int], None]:
    def read(number: int) -> None:
        from persyn.errors import InputError

        if number < least or (most is not None and number > most):
            raise InputError(
                f"{number} is too {'small' if number < least else 'large'}; it must be {least} "
                f"{'or more' if most is None else f'to {most}'}"
            )

    return read


def _shown(value: Any) -> str:
    """A guess as one line."""
    text = (" ".join(value) if isinstance(value, list) else str(value)).replace("\n", "\\n")
    return text if text and (isinstance(value, list) or " " not in text) else f"'{text}'"


def _project(options: SimpleNamespace, choices: _Choices) -> tuple[Path, "PromptFile", "Project"]:
    """What the user wants, with everything filled in."""
    from persyn.evaluation import check_tasks
    from persyn.project import new
    from persyn.project.guesses import PromptFile

    root = new.find_root()
    choices.check(lambda: new.check_name(root, options.name))
    path = options.prompts
    if path is None and choices.ask:
        path = _asked_file()
    if path is None:
        choices.mistakes.append("--prompts is missing; name the jsonl or parquet file of your prompts")
    given_path = (path or Path()).expanduser()
    file = choices.check(lambda: PromptFile(given_path)) if path else None
    choices.check(lambda: new.read_teachers(options.teacher or []))
    if options.student:
        choices.check(lambda: new.read_student(str(options.student)))
    for given in (options.prompt, options.reference):
        if file and given:
            choices.check(partial(file.values, given))
    if options.task:
        choices.check(lambda: check_tasks(root / "tasks", options.task))
    _check_scorer(options, choices)
    choices.stop()
    assert file is not None, "a file that cannot be read is a mistake"
    typer.echo(file.text)
    project = _asked(options, choices, file)
    _teach(project, choices)
    _measure(project, choices, root, file)
    return root, file, project


def _asked_file() -> Path:
    """The file that the user names; asked for again until it can be read."""
    from persyn.project.guesses import PromptFile

    while True:
        said = typer.prompt("The file of your prompts (jsonl or parquet)").strip().strip("'\"")  # as a file is dropped
        mistakes = _mistakes(lambda path: PromptFile(path.expanduser()), Path(said))
        if not mistakes:
            return Path(said)
        typer.echo("\n".join(mistakes))


def _check_scorer(options: SimpleNamespace, choices: _Choices) -> None:
    """Refuse a model that scores without its method, and a method without its model."""
    for method in SCORERS:
        model = getattr(options, method)
        option = f"--{method.replace('_', '-')}"
        if options.quality == method and model is None and not choices.ask:
            choices.mistakes.append(f"--quality is {method}, and {option} is missing; name the model")
        if model and options.quality not in (None, method):
            choices.mistakes.append(f"{option} is given, and --quality is {options.quality}; it needs {method}")
    if options.judge and options.reward_model:
        choices.mistakes.append("--judge and --reward-model are given; give one of them")
    if options.judge:
        choices.check(lambda: _scorer("judge", str(options.judge)))


def _asked(options: SimpleNamespace, choices: _Choices, file: "PromptFile") -> "Project":
    """What is asked, and how responses are checked."""
    from persyn.errors import InputError
    from persyn.project.new import Project

    found, given = file.prompt(), options.reference
    if found is None and options.prompt is None and not choices.ask:
        raise InputError(
            f"no column of {file.file.name} is known to ask in every row; name one by --prompt: "
            f"{', '.join(file.columns)}; "
            "or write a template, such as {{ row['a']['b'] }}; a conversation must be in a column of its own"
        )
    checks = file.checks_by(given, "--reference") if given else file.checks()
    unchecked = "--reference has no checks or final answer in every row" if given else file.unchecked()
    domain: Any = checks.domain if checks else "instruction"
    why = checks.why if checks else unchecked
    if options.quality in DOMAINS:
        domain, why = DOMAINS[options.quality], "for this --quality"
    domain = choices.take("domain", "What is asked for", domain, why)
    checks = checks if checks and checks.domain == domain else None
    method = next((name for name in SCORERS if getattr(options, name)), None)
    guess, why = (checks.method, checks.why) if checks else ("form", FORM)
    method = method or choices.take("quality", "How good a response is", guess, why)
    prompt, why = (found.value, found.why) if found else (file.columns[0], "no column is known to ask")
    prompt = file.asks_for_boxes(prompt) if method == "math_verify" else prompt
    prompt = choices.take("prompt", "The prompt: a column or a template", prompt, why, file.shapes)
    typer.echo(f"prompts: {file.shapes(prompt)}")
    for note in file.notes(prompt):
        typer.echo(f"note: {note}")
    reference = _reference(method, prompt, checks, choices, file)
    project = Project(options.name, file.file, prompt, domain, method, reference, {}, {}, link=options.link)
    if method in SCORERS:
        scorer = choices.take(method, METHODS[method], "", "needed", lambda text: _scorer(method, text))
        project.scorer, project.servers = _scorer(method, scorer)
    project.license = choices.take("license", "The licence of the prompts", "", "unknown; the data card repeats it")
    return project


def _reference(method: str, prompt: str, checks: "Checks | None", choices: _Choices, file: "PromptFile") -> str | None:
    """What responses are compared with; None if the method needs nothing."""
    from persyn.errors import InputError
    from persyn.verifiers import COMPARING

    if method not in COMPARING:
        if given := choices.options.reference:
            raise InputError(
                f"--reference is {given!r}, and --quality is {method}, which compares with nothing; name the --quality "
                f"that it is for ({', '.join(COMPARING)}), or leave --reference out"
            )
        return None
    guess, why = (checks.reference, checks.why) if checks and checks.method == method else ("", "no column fits")
    reference = str(choices.take("reference", "The reference: a column or a template", guess, why, file.values))
    if not reference:
        raise InputError(f"--quality is {method}, which needs --reference: the column of the answers, checks or tests")
    leak = file.leak(prompt, reference)
    if leak:
        raise InputError(f"{leak}; the answer must not be in the prompt: change --prompt or --reference")
    return reference


def _scorer(method: str, text: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The section of a method that uses a model, and where its server is.

    Raises:
        InputError: it names no such model.
    """
    from persyn.errors import InputError
    from persyn.project.new import HUB, SERVED, server

    match = SERVED.fullmatch(text)
    if method == "judge" and match:
        return {"model": match["model"]}, {"judge": server(match["url"], match["key"])}
    if method == "judge" or not text:
        raise InputError(f"--{method.replace('_', '-')} is {text!r}; it must be {METHODS[method]}")
    is_hub = HUB.fullmatch(text) and not Path(text).is_dir()
    return ({"model": text, "revision": None} if is_hub else {"model": str(Path(text).resolve())}), {}


def _teach(project: "Project", choices: _Choices) -> None:
    """Who teaches whom."""
    from persyn.project import new

    names = choices.take(
        "teacher",
        f"Teachers, with blanks between: {', '.join(new.TEACHERS)}, hub ids or servers",
        list(new.FIRST),
        "packaged: no hub, no server, a CPU is enough",
        new.read_teachers,
    )
    project.teachers, servers = new.read_teachers(names)
    project.servers |= servers
    student = choices.take(
        "student",
        f"The student: {', '.join(new.STUDENTS)}, a hub id or a folder",
        "packaged:gemma3-270m",
        "packaged",
        new.read_student,
    )
    project.student = new.read_student(student)
    is_small = all(str(one["model"]).startswith("packaged:") for one in project.teachers.values())
    project.max_tokens = choices.take(
        "max_tokens",
        "Tokens of a response at most",
        96 if is_small else 1024,
        "short, for a CPU" if is_small else "long enough for most answers",
    )


def _measure(project: "Project", choices: _Choices, root: Path, file: "PromptFile") -> None:
    """How many prompts, and on what the student is measured."""
    from persyn.evaluation import check_tasks
    from persyn.project import new
    from persyn.verifiers import check_references

    if project.method == "form":
        english = file.is_english(project.prompt)
        project.method, project.form = "checkers", True
        project.reference, says = new.form_checks(project.max_tokens, english)
        typer.echo(f"form: every response is checked for {says}; nothing checks whether it is right or helpful")
    project.limit = choices.take(
        "limit", "Only the first rows of the file (0: all)", 120, "a small first run; 0 takes all"
    )
    project.tasks = choices.take(
        "task",
        "Evaluation tasks, with blanks between",
        [new.TASKS[project.domain]],
        f"the project's own items of {project.domain}; no hub is needed",
        partial(check_tasks, root / "tasks"),
    )
    project.items = choices.take("items", "Items of each task (0: all)", 16, "few: they show that all works, no more")
    for task in project.tasks:
        if task not in new.SETS:
            typer.echo(
                f"note: prompts are not compared with the items of {task}; name its set in prompts.decontaminate"
            )
    prompts, counts = new.usable_prompts(project, root)
    kept = prompts.height
    dropped = ", ".join(f"{count} {reason}" for reason, count in counts["dropped"].items()) or "none"
    typer.echo(f"{counts['read']} prompts read, {kept} kept; dropped: {dropped}")
    choices.check(lambda: check_references(prompts, {project.domain: project.method}))
    if kept < FEWEST:
        choices.mistakes.append(
            f"--prompts has {kept} different prompts that can be used; it needs {FEWEST} or more, which "
            "the router learns from and is measured on: give more"
        )
        choices.stop()
    guess, why = _parallel(kept)
    project.parallel = choices.take("parallel", "Prompts that every teacher answers", guess, why, _within(FEWEST, kept))
    if not FEWEST <= project.parallel <= kept:
        choices.mistakes.append(f"--parallel is {project.parallel}; there are {kept} prompts: give {FEWEST} to {kept}")
    choices.stop()


def _parallel(kept: int) -> tuple[int, str]:
    """How many of the prompts every teacher answers, and why."""
    third, least, most = kept // 3, 8, 400
    if kept <= least:
        return kept, f"all {kept} prompts: fewer would tell little"
    if third < least:
        return least, f"of {kept} prompts: fewer would tell little"
    if third > most:
        return most, f"of {kept:,} prompts: enough for a first router"
    return third, f"a third of {kept} prompts"
