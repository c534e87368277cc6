"""`persyn show`: one prompt through the whole pipeline."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from persyn.project.snapshot import Snapshot


def show(
    prompt_id: Annotated[
        str | None, typer.Argument(help="A prompt's id, or enough of its beginning to be unique.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="List the prompts that contain this text.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many prompts --search lists.")] = 20,
    rev: Annotated[str | None, typer.Option(help="A commit, branch, tag or experiment.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as json.")] = False,
) -> None:
    """One prompt through the whole pipeline: every teacher's response and its scores, pairs, routes, datasets.

    `persyn show --search TEXT` finds the id; data/prompts.parquet has all ids.
    """
    import json

    from rich.console import Console

    from persyn.errors import InputError
    from persyn.inspection.trace import find_prompt, search_prompts
    from persyn.inspection.trace_text import search_text, trace_text
    from persyn.project.snapshot import open_snapshot

    if (prompt_id is None) == (search is None):
        got = "neither" if search is None else "both"
        raise InputError(f"got {got} of a prompt's id and --search, give one; `persyn show --search TEXT` lists ids")
    console, status = Console(), Console(stderr=True).status("reading")
    with status, open_snapshot(rev) as snapshot:
        prompts = snapshot.need("prompts")
        if search is not None:
            matching = search_prompts(prompts, search)
            found: Any = matching.head(limit).to_dicts()
            text = search_text(matching, limit)
        else:
            found = _trace(snapshot, find_prompt(prompts, prompt_id or ""))
            text = trace_text(found)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        console.print(text)


def _trace(snapshot: "Snapshot", prompt_id: str) -> dict[str, Any]:
    from persyn.dataset import DatasetSettings
    from persyn.defects import Policies
    from persyn.inspection.trace import router_role, trace_prompt
    from persyn.router.settings import RouterSettings

    router, role = snapshot.section("router"), None
    if "model" in router:
        role = router_role(snapshot, RouterSettings.parse(router, "router"), prompt_id)
    policies = Policies.parse(snapshot.section("defects"), "defects")
    settings = DatasetSettings.parse(snapshot.section("dataset"), "dataset")
    limits = [name for name in ("max_per_teacher", "max_per_source") if getattr(settings, name) is not None]
    required = settings.require
    return trace_prompt(snapshot, prompt_id, settings.over(policies), role=role, required=required, limits=limits)
