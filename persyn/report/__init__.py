"""The report: one html file that shows a project, made only from its tables and metrics."""

import base64
import hashlib
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from persyn.errors import printable
from persyn.inspection.diagnostics import find_signatures, worst_first
from persyn.project.snapshot import Snapshot
from persyn.report.experiments import alpha_section
from persyn.report.overview import asides, facts, flow, lanes, verdict
from persyn.report.results import comparison_section, ledger_section, training_section
from persyn.report.routing import allocation_section, landscape_section, router_section
from persyn.report.sample import build_sample
from persyn.router.worth import worth_text

SECTIONS = (
    allocation_section,
    landscape_section,
    router_section,
    alpha_section,
    comparison_section,
    training_section,
    ledger_section,
)


def build_report(run: Snapshot, *, sample: int = 5000) -> str:
    """The page: self-contained, works offline, under 5 MB; equal runs give equal pages.

    The page names what a run lacks, with the command that makes it.

    Args:
        sample: at most so many prompts can be browsed on the page; 0 leaves them out.
    """
    signatures = worst_first(find_signatures(run))
    script = _text("browser.js")
    browsed = build_sample(run, limit=sample) if sample and run.prompts is not None else None
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            name=run.title,
            facts=facts(run),
            worth=worth_text(run.metric("router"))[:1],
            verdict=verdict(run.metric("comparison", None)),
            asides=asides(run),
            steps=flow(run),
            lanes=lanes(run),
            sections=[build(run) for build in SECTIONS],
            signatures=signatures,
            css=_text("page.css"),
            sample=browsed,
            browser_css=_text("browser.css"),
            browser_js=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("persyn", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    return environment


def _text(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]
