"""Licenses: whether a teacher's terms let its outputs train other models, asked before anything is taken from it."""

import logging
from collections.abc import Mapping

from pydantic import Field

from persyn.errors import InputError
from persyn.generation import Teacher
from persyn.settings import Settings

logger = logging.getLogger(__name__)


class Licenses(Settings):
    """The section `licenses`."""

    allow_forbidden: list[str] = Field(default_factory=list)
    """Teachers that are used although their terms forbid it: the user answers for that."""


def refused_teachers(teachers: Mapping[str, Teacher], licenses: Licenses) -> list[str]:
    """Those whose terms forbid training other models, and that the user did not allow all the same."""
    return [
        name
        for name, teacher in teachers.items()
        if teacher.training == "forbidden" and name not in licenses.allow_forbidden
    ]


def check_terms(teachers: Mapping[str, Teacher], licenses: Licenses) -> None:
    """The gate: let pass only teachers whose outputs may train other models, or may as far as anyone said.

    Args:
        teachers: those whose answers are about to be asked for or trained on.

    Raises:
        InputError: a teacher's terms forbid it, and licenses.allow_forbidden does not name it.
    """
    for name in refused_teachers(teachers, licenses):
        teacher = teachers[name]
        raise InputError(
            f"teachers.{name} ({teacher.model}): its terms forbid training other models on its outputs "
            f"({teacher.terms or f'licence {teacher.license}'}); take it out of teachers, or, where you have leave to "
            f"use it, name it in licenses.allow_forbidden"
        )
    unknown = [name for name, teacher in teachers.items() if teacher.training == "unknown"]
    if unknown:
        logger.warning(
            "%s: whether the outputs may train other models is unknown; read the terms and set `training` of each",
            ", ".join(unknown),
        )
