"""Terms: whether a teacher's terms let its outputs train other models, checked before it is asked for any."""

import logging
from collections.abc import Mapping

from pydantic import Field

from persyn.errors import InputError
from persyn.generation import Teacher, pool_of
from persyn.settings import Settings

logger = logging.getLogger(__name__)


class Licenses(Settings):
    """The section `licenses`."""

    allow_forbidden: list[str] = Field(default_factory=list)
    """Teachers to use although their terms forbid it: the user takes responsibility."""


def refused_teachers(teachers: Mapping[str, Teacher], licenses: Licenses) -> list[str]:
    """Teachers whose terms forbid training other models, and that the user did not allow nevertheless. Nothing is
    trained on what the student itself responds.
    """
    return [
        name
        for name, teacher in teachers.items()
        if teacher.training == "forbidden" and not teacher.is_student and name not in licenses.allow_forbidden
    ]


def check_terms(teachers: Mapping[str, Teacher], licenses: Licenses) -> None:
    """Refuse teachers whose terms forbid training other models; warn of those whose terms are unknown.

    Args:
        teachers: those whose responses are about to be requested or trained on.

    Raises:
        InputError: a teacher's terms forbid it, and licenses.allow_forbidden does not name it.
    """
    for name in refused_teachers(teachers, licenses):
        teacher = teachers[name]
        raise InputError(
            f"teachers.{name} ({teacher.model}): its terms forbid training other models on its outputs "
            f"({teacher.terms or f'licence {teacher.license}'}); remove it from teachers, or, if you have permission "
            f"to use it, name it in licenses.allow_forbidden"
        )
    unknown = [name for name, teacher in pool_of(teachers).items() if teacher.training == "unknown"]
    if unknown:
        logger.warning(
            "%s: whether the outputs may train other models is unknown; read the terms and set `training` of each",
            ", ".join(unknown),
        )
