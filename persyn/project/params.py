"""Params: the one reader of params.yaml, for stages and commands. It reports all mistakes of a file at once."""

import difflib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, create_model, model_validator
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from persyn.cost import JUDGE, Prices
from persyn.dataset import DatasetSettings
from persyn.defects import Policies
from persyn.errors import InputError, nearest
from persyn.evaluation import EvaluationSettings, EvaluationSpeed, Finished
from persyn.generation import BACKENDS, BackendSpeed, Teacher, anchored_teachers, backend_class, pool_of, untaken
from persyn.generation.budget import Budget
from persyn.generation.terms import Licenses
from persyn.learnability import LearnabilitySettings, LearnabilitySpeed
from persyn.models import Student
from persyn.pairs import PairSettings
from persyn.prompts import PromptSettings
from persyn.quality import QualitySettings
from persyn.quality.reward_model import RewardModelSpeed
from persyn.responses import ResponseSettings
from persyn.rewards import RewardSettings
from persyn.router.settings import RouterSettings
from persyn.routes import Car, Persyn, Scas, Strategy
from persyn.settings import UNTUNED, Misfit, Name, Settings, shown
from persyn.student import SftSettings
from persyn.training import TrainingSpeed

PARAMS = Path("params.yaml")
SECRET = re.compile(
    r"\b(?:sk-[\w-]{16,}|hf_\w{20,}|gh[a-z]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}"
    r"|xox[a-z]-[\w-]{10,}|Bearer\s+\S{16,})|-----BEGIN [A-Z ]*PRIVATE KEY"
)


class Speed(Settings):
    """The section `speed`: it changes how fast results come, not the results; no stage tracks it, so a change reruns
    nothing. It also has a section for each backend, with the knobs of all teachers that the backend runs.
    """

    teachers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Teacher (or `judge`) -> its own knobs, which override those of its backend's section."""
    learnability: LearnabilitySpeed = LearnabilitySpeed()
    """Of the stage learnability."""
    reward_model: RewardModelSpeed = RewardModelSpeed()
    """Of the method reward_model of the stage quality."""
    router: TrainingSpeed = TrainingSpeed()
    """Of the router's training."""
    student: TrainingSpeed = TrainingSpeed()
    """Of the students' training."""
    evaluation: EvaluationSpeed = EvaluationSpeed()
    """Of the stages evaluation and beside."""


class Params(Settings):
    """params.yaml: one section for each noun of the pipeline."""

    prompts: PromptSettings
    teachers: Annotated[dict[Name, Teacher], Field(min_length=1)]
    """Name -> teacher. Its files have this name."""
    licenses: Licenses
    learnability: LearnabilitySettings
    responses: ResponseSettings
    quality: QualitySettings
    student: Student
    defects: Policies
    rewards: RewardSettings
    pairs: PairSettings
    router: RouterSettings
    strategies: Annotated[dict[Name, Strategy], Field(min_length=1)]
    """Name -> strategy: a rule, and what it takes."""
    dataset: DatasetSettings
    sft: SftSettings
    evaluation: EvaluationSettings
    budget: Budget
    prices: Prices
    speed: Speed

    @property
    def pool(self) -> dict[str, Teacher]:
        """As pool_of."""
        return pool_of(self.teachers)

    @property
    def asked_student(self) -> str:
        """The teacher that is the student itself; empty if there is none."""
        return next((name for name in self.teachers if name not in self.pool), "")

    @property
    def told(self) -> list[str]:
        """What is allowed, but surely not meant, a line each."""
        if not self.asked_student or self.rewards.unsolved:
            return []
        return [
            f"teachers.{self.asked_student} is the student, and rewards.unsolved is 0: its responses are paid for and "
            f"change no reward; set rewards.unsolved, or remove it"
        ]

    @property
    def anchored(self) -> list[str]:
        """As anchored_teachers."""
        return anchored_teachers(self.teachers)

    @property
    def finished(self) -> dict[str, Finished]:
        """What stands beside the trained students: the student before any tuning, and evaluation.beside."""
        student = {name: getattr(self.student, name) for name in Finished.model_fields}
        return {UNTUNED: Finished(**student), **self.evaluation.beside}

    def speed_of(self, name: str) -> Any:
        """The knobs of a teacher's (or the judge's) backend: those of the backend's section, overridden by its own."""
        return _knobs(self.speed, "openai" if name == JUDGE else self.teachers[name].backend, name)

    @property
    def in_batches(self) -> list[str]:
        """The teachers, and the judge, that are asked in batches."""
        return [name for name in (*self.teachers, JUDGE) if getattr(self.speed_of(name), "batch", None)]

    def named(self, section: Literal["teachers", "strategies"], name: str) -> Any:
        """A teacher or a strategy.

        Raises:
            InputError: the name is unknown.
        """
        entries = getattr(self, section)
        if name not in entries:
            raise InputError(f"{name!r} is not in {section} of params.yaml{nearest(name, entries)}")
        return entries[name]

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {key: {} if value is None and key in cls.model_fields else value for key, value in data.items()}

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        """Refuse unknown names of teachers and domains."""
        named: list[tuple[tuple[Any, ...], str]] = [
            (("licenses", "allow_forbidden", number), name) for number, name in enumerate(self.licenses.allow_forbidden)
        ]
        named += [(("prices", "sizes"), name) for name in self.prices.sizes]
        named += [(("prices", "teachers"), name) for name in self.prices.teachers if name != JUDGE]
        named += [(("speed", "teachers"), name) for name in self.speed.teachers if name != JUDGE]
        for strategy, rule in self.strategies.items():
            at: tuple[Any, ...] = ("strategies", strategy)
            if isinstance(rule, Persyn):
                named += [((*at, "exclude", number), name) for number, name in enumerate(rule.exclude)]
            for field in ("teacher", "strong", "weak"):
                if name := getattr(rule, field, None):
                    named.append(((*at, field), name))
        wrong = [
            (at, f"names {name!r}, which is no teacher{nearest(name, self.teachers)}")
            for at, name in named
            if name not in self.teachers
        ]
        without = sorted({source.domain for source in self.prompts.sources} - set(self.quality.methods))
        wrong += [(("quality", "methods"), f"has no method for {domain}, the domain of a source") for domain in without]
        wrong += self._least_qualities()
        wrong += self._untrained_routers()
        wrong += self._without_scores()
        wrong += self._student_as_teacher([(at, name) for at, name in named if at[0] in ("licenses", "strategies")])
        wrong += [
            (("teachers", name, *place), text)
            for name, teacher in self.teachers.items()
            for place, text in untaken(teacher)
        ]
        wrong += self._contradictions()
        if JUDGE in self.teachers:
            kept = "has the name that speed.teachers and prices.teachers keep for the judge; choose another"
            wrong.append((("teachers", JUDGE), kept))
        _refuse(type(self).__name__, wrong)
        for name in self.speed.teachers:
            try:
                self.speed_of(name)
            except ValidationError as error:
                place = ("speed", "teachers", name)
                _refuse(type(self).__name__, [((*place, *one["loc"]), one["msg"]) for one in error.errors()])
        return self

    def _least_qualities(self) -> list[tuple[tuple[Any, ...], str]]:
        """What is wrong with the least quality of a domain: it has no method, or scas does not know what is right."""
        scas: dict[tuple[Any, ...], Mapping[Any, float]] = {
            ("strategies", name, "require"): rule.require
            for name, rule in self.strategies.items()
            if isinstance(rule, Scas)
        }
        places = {("dataset", "require"): self.dataset.require, ("rewards", "gate"): self.rewards.gate, **scas}
        methods, scales = self.quality.methods, self.quality.scales
        wrong = [
            (place, f"names {domain}, for which quality.methods has no method; it must be a domain of it")
            for place, domains in places.items()
            for domain in domains
            if domain not in methods
        ]
        scored = sorted({source.domain for source in self.prompts.sources} & methods.keys())
        unlike = [domain for domain in scored if scales.get(domain, (0.0, 0.0))[1] != 1]
        return wrong + [
            (
                place,
                f"names no least quality for {domain}; where the method is {methods[domain]}, 1 does not mean right: "
                f"say from which quality on a response is",
            )
            for place, domains in scas.items()
            for domain in unlike
            if domain not in domains
        ]

    def _contradictions(self) -> list[tuple[tuple[Any, ...], str]]:
        """Sections that say one thing in two ways, rules that cannot read the learnability, and names used twice."""
        method = self.learnability.method
        wrong: list[tuple[tuple[Any, ...], str]] = [
            (
                ("strategies", name, "rule"),
                f"is car, which needs the student's loss, which is minus the learnability of method mean_logprob, but "
                f"learnability.method is {method}; set that, or leave this strategy out",
            )
            for name, rule in self.strategies.items()
            if isinstance(rule, Car) and method != "mean_logprob"
        ]
        kept = "has the name of the student before any tuning; choose another"
        if UNTUNED in self.strategies:
            wrong.append((("strategies", UNTUNED), kept))
        for name in self.evaluation.beside:
            if name == UNTUNED or name in self.strategies:
                taken = kept if name == UNTUNED else "has the name of a strategy; choose another"
                wrong.append((("evaluation", "beside", name), taken))
        try:
            self.dataset.over(self.defects)
        except Misfit as error:
            wrong.append((("dataset", error.field), str(error)))
        return wrong

    def _untrained_routers(self) -> list[tuple[tuple[Any, ...], str]]:
        """The strategies that route by a method of which there will be no router."""
        trained = [self.router.method, *self.router.beside]
        return [
            (
                ("strategies", name, "router"),
                f"is {rule.router}; it must be router.method or one of router.beside{nearest(rule.router, trained)}",
            )
            for name, rule in self.strategies.items()
            if isinstance(rule, Persyn) and rule.router not in (None, *trained)
        ]

    def _without_scores(self) -> list[tuple[tuple[Any, ...], str]]:
        """The teachers without the scores that the quality method given needs."""
        domains = {source.domain for source in self.prompts.sources}
        given = sorted(domain for domain in domains if self.quality.methods.get(domain) == "given")
        return [
            (
                ("teachers", name, "precomputed", *(["score"] if teacher.precomputed else [])),
                f"is null; quality.methods.{given[0]} is given, which needs the column of the responses' scores",
            )
            for name, teacher in self.teachers.items()
            if given and (teacher.precomputed is None or teacher.precomputed.score is None)
        ]

    def _student_as_teacher(self, routed: list[tuple[tuple[Any, ...], str]]) -> list[tuple[tuple[Any, ...], str]]:
        """What is wrong with the teacher that is the student, and with rewards.unsolved, which needs it.

        Args:
            routed: places that name a teacher to route to or to train on, and the names.
        """
        unsolved, name = self.rewards.unsolved, self.asked_student
        wrong: list[tuple[tuple[Any, ...], str]] = [
            (at, f"names {named!r}, which is the student itself: no prompt is routed to it and it trains nothing")
            for at, named in routed
            if named == name
        ]
        if unsolved and not name:
            text = f"is {unsolved:g}, but no teacher is the student; add one with student.model and is_student: true"
            wrong.append((("rewards", "unsolved"), text))
        acts = self.quality.scales.keys() - self.rewards.gate.keys()
        if unsolved and not acts & {source.domain for source in self.prompts.sources}:
            text = f"is {unsolved:g}, but every domain has a gate, or a quality without a scale (reward_model, given)"
            wrong.append((("rewards", "unsolved"), f"{text}; set it to 0"))
        if not name:
            return wrong
        student, what = self.teachers[name], ["model", "revision"]
        if not self.pool:
            wrong.append((("teachers",), f"has only {name}, which is the student; add one that it can learn from"))
        if student.backend == "openai" and student.revision is None:
            what.remove("revision")  # a server knows none
        wrong += [
            (
                ("teachers", name, field),
                f"is {shown(getattr(student, field))}, but is_student is true: it must be student.{field}, "
                f"{shown(getattr(self.student, field))}",
            )
            for field in what
            if getattr(student, field) != getattr(self.student, field)
        ]
        others = [other for other in self.teachers if other != name and other not in self.pool]
        text = f"is true, and teachers.{name} is the student already; one is enough"
        return wrong + [(("teachers", other, "is_student"), text) for other in others]


def read_params(path: Path | str | None = None) -> Params:
    """Read and check params.yaml.

    It is parsed as by DVC (YAML 1.2, safe, duplicate keys refused), so that DVC tracks exactly what is read.

    Raises:
        InputError: it cannot be read, holds a secret, or is wrong: a line for every mistake.
    """
    path = path or PARAMS
    return check_params(load_yaml(path), str(path))


def load_yaml(path: Path | str) -> Any:
    """The content of a params.yaml, unchecked.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return YAML(typ="safe", pure=True).load(Path(path))
    except FileNotFoundError:
        raise InputError(f"there is no {path} here; run the command in the folder of a project") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; it must be a YAML file") from error
    except (YAMLError, ValueError, RecursionError) as error:
        reason = SECRET.sub("(a key)", " ".join(str(error).split()))
        raise InputError(f"cannot read {path}: {reason}; it must be YAML text") from error


def check_params(data: Any, name: str = str(PARAMS)) -> Params:
    """The parameters in `data`, the content of a params.yaml called `name`.

    Raises:
        InputError: it holds a secret, or is wrong: a line for every mistake.
    """
    check_secrets(data, name)
    if not isinstance(data, Mapping):
        kind = "nothing" if data is None else shown(data)
        raise InputError(f"{name} holds {kind}; it must hold the sections {', '.join(Params.model_fields)}")
    lines, sections = [], {}
    for section, content in data.items():  # sections that are not ours may hold YAML anchors
        if section in Params.model_fields:
            sections[section] = content
        elif near := difflib.get_close_matches(str(section).lower(), Params.model_fields, n=1, cutoff=0.75):
            lines.append(f"{section} is no section that is read; did you mean {near[0]}?")
    try:
        params = params_model().parse(sections)
    except InputError as error:
        lines += error.args
    if lines:
        raise InputError(*(f"{name}: {line}" for line in lines))
    return params


def params_model() -> type[Params]:
    """Params, with a section of speed for each registered backend."""
    return _params_model(tuple(BACKENDS.items()))


@cache
def _params_model(backends: tuple[tuple[str, str], ...]) -> type[Params]:
    sections: dict[str, Any] = {name: (backend_class(name).Speed, backend_class(name).Speed()) for name, _ in backends}
    speed = create_model("Speed", __base__=Speed, __doc__=Speed.__doc__, **sections)
    for name, _ in backends:
        speed.model_fields[name].description = f"Of all teachers whose backend is {name}."
    speed.model_rebuild(force=True)
    return create_model("Params", __base__=Params, __doc__=Params.__doc__, speed=(speed, ...))


def _knobs(speed: Speed, backend: str, name: str) -> BackendSpeed:
    common: BackendSpeed = getattr(speed, backend)
    own = speed.teachers.get(name, {})
    return type(common).model_validate({**common.model_dump(exclude_unset=True), **own}) if own else common


def _refuse(title: str, wrong: list[tuple[tuple[Any, ...], str]]) -> None:
    if wrong:
        details: Any = [
            {"type": PydanticCustomError("plain", text), "loc": place, "input": None} for place, text in wrong
        ]
        raise ValidationError.from_exception_data(title, details)


def check_secrets(params: Any, name: str = str(PARAMS)) -> None:
    """Refuse what looks like a secret key: params.yaml is shared, and dvc.lock repeats it.

    Raises:
        InputError: there is one; the message shows its beginning.
    """
    seen: set[int] = set()  # aliases put a node in many places: look at each once
    nodes = [params]
    while nodes:
        node = nodes.pop()
        if isinstance(node, str) and SECRET.search(node):
            raise InputError(
                f"{name} holds what looks like a key ({node[:4]}...); remove it, revoke it, and name the "
                f"environment variable that holds it in speed.openai.api_key_env"
            )
        if isinstance(node, dict | list) and id(node) not in seen:
            seen.add(id(node))
            nodes += [*node, *node.values()] if isinstance(node, dict) else node
