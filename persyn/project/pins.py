"""Pins: the commit of every hub model and hub data set of params.yaml, asked from the hub and written into the file."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from persyn.errors import InputError
from persyn.files import write_text
from persyn.project.params import load_yaml
from persyn.settings import shown

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
LIKE_A_NUMBER = re.compile(r"[0-9]+(e[0-9]+)?")
"""A commit that YAML would read as a number."""
SECONDS = 30
"""How long the hub may take to answer a question."""
TO_GET_ACCESS = "accept its terms on its page, then set HF_TOKEN or run `hf auth login`"
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class HubEntry:
    """A mapping of params.yaml that names something on the hub."""

    place: Place
    kind: Literal["model", "dataset"]
    name: str
    revision: Any

    @property
    def label(self) -> str:
        return ".".join(map(str, (*self.place, "revision")))

    @property
    def key(self) -> str:
        """The field that holds the name."""
        return "model" if self.kind == "model" else "hub"

    @property
    def branch(self) -> str | None:
        """The branch or tag that stands where the commit should; None for the hub's default."""
        named = self.revision is not None and not self.is_pinned
        return str(self.revision) if named else None

    @property
    def is_pinned(self) -> bool:
        return isinstance(self.revision, str) and COMMIT.fullmatch(self.revision) is not None


@dataclass
class Pinned:
    """What became of the hub entries of a params.yaml."""

    changes: list[str] = field(default_factory=list)
    """A line for each revision that is another one now."""
    kept: int = 0
    """Entries whose revision stays."""
    mistakes: list[str] = field(default_factory=list)
    """A line for each entry whose commit could not be found; one line for all of them without a network."""


class _Unreachable(Exception):
    """The hub did not answer."""


def pin_revisions(path: Path, update: bool = False, dry_run: bool = False) -> Pinned:
    """Write the commits of hub models and hub data sets into a params.yaml, and change nothing else in it.

    What was found is written even if other entries fail, so that the next call asks for these alone.

    Args:
        update: whether to replace commits that are there by the newest.
        dry_run: whether to leave the file as it is.

    Raises:
        InputError: the file cannot be read, or its layout leaves no place to write a revision.
    """
    data = load_yaml(path)
    entries = list(hub_entries(data))
    asked = [entry for entry in entries if update or not entry.is_pinned]
    commits, notes, mistakes = _ask_hub(asked)
    pinned = Pinned(kept=len(entries) - len(asked), mistakes=mistakes)
    changed: dict[Place, str] = {}
    for entry in asked:
        commit = commits.get(_question(entry))
        if commit and commit == entry.revision:
            pinned.kept += 1
        elif commit:
            changed[entry.place] = commit
            note = notes.get(_question(entry), "")
            pinned.changes.append(f"{entry.label}: {_plain(entry.revision)} -> {commit}{note}")
    if changed:
        text = _read_exactly(path)
        after = _edited(text, [entry for entry in asked if entry.place in changed], changed)
        _check_edit(data, after, changed, path)
        if not dry_run:
            write_text(after, path.resolve())
    return pinned


def hub_entries(data: Any) -> Iterator[HubEntry]:
    """The entries of params.yaml that are loaded from the hub. Packaged models, local folders and models behind servers
    (backend openai) are not.
    """
    teachers, prompts = _mapping(data, "teachers"), _mapping(data, "prompts")
    models: list[Place] = [
        ("teachers", name) for name in teachers if _mapping(teachers, name).get("backend") != "openai"
    ]
    models += [("evaluation", "beside", name) for name in _mapping(_mapping(data, "evaluation"), "beside")]
    models += [("student",), ("router",), ("quality", "reward_model")]
    datasets: list[Place] = [("teachers", name, "precomputed") for name in teachers]
    for part in ("sources", "decontaminate"):
        listed = prompts.get(part)
        datasets += [("prompts", part, number) for number in range(len(listed) if isinstance(listed, list) else 0)]
    mixed = _mapping(data, "dataset").get("mix")
    datasets += [("dataset", "mix", number) for number in range(len(mixed) if isinstance(mixed, list) else 0)]
    for place in (*models, *datasets):
        node, key = _at(data, place), "model" if place in models else "hub"
        name = node.get(key) if isinstance(node, Mapping) else None
        if isinstance(name, str) and (key == "hub" or HUB_ID.fullmatch(name)) and not Path(name).is_dir():
            yield HubEntry(place, "model" if key == "model" else "dataset", name, node.get("revision"))


def _mapping(data: Any, key: Any) -> Mapping[Any, Any]:
    found = data.get(key) if isinstance(data, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _at(data: Any, place: Place) -> Any:
    """What stands at a place; None if nothing does."""
    for part in place:
        try:
            data = data[part]
        except (LookupError, TypeError):
            return None
    return data


def _plain(revision: Any) -> str:
    return revision if isinstance(revision, str) else shown(revision)


def _question(entry: HubEntry) -> tuple[str, str, str | None]:
    return entry.kind, entry.name, entry.branch


def _ask_hub(entries: Sequence[HubEntry]) -> tuple[dict[Any, str], dict[Any, str], list[str]]:
    """What the hub says: question -> commit, question -> a note, and a line for each entry that has no commit."""
    commits, notes, mistakes = dict[Any, str](), dict[Any, str](), list[str]()
    failed: dict[Any, str] = {}
    if not entries:
        return commits, notes, mistakes
    from huggingface_hub import HfApi

    api = HfApi()
    for entry in entries:
        question = _question(entry)
        if question not in commits and question not in failed:
            try:
                commits[question], notes[question] = _commit(api, entry)
            except InputError as error:
                failed[question] = str(error)
            except _Unreachable as error:
                missing = sum(_question(other) not in commits and _question(other) not in failed for other in entries)
                mistakes.append(
                    f"the hub ({api.endpoint}) cannot be reached: {error}; revisions still to fill in: {missing}; run "
                    f"`persyn pin` again with a network, or write the commits of the models' pages by hand"
                )
                break
        if question in failed:
            mistakes.append(f"{entry.label}: {failed[question]}")
    return commits, notes, mistakes


def _commit(api: Any, entry: HubEntry) -> tuple[str, str]:
    """The newest commit of an entry, and a note for the user or nothing.

    Raises:
        InputError: the hub does not give it.
        _Unreachable: nobody answered as a hub does.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import httpx

    ask = api.model_info if entry.kind == "model" else api.dataset_info
    what = f"the {'model' if entry.kind == 'model' else 'data set'} {entry.name}"
    try:
        info = ask(entry.name, revision=entry.branch, timeout=SECONDS)
    except GatedRepoError as error:
        raise InputError(f"{what} is gated; {TO_GET_ACCESS}") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{what} has no branch or tag {entry.branch!r}; write null for its newest commit") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{what} is not on the hub, or not for everybody; check its name, or if it is gated or private, "
            f"{TO_GET_ACCESS}"
        ) from error
    except HfHubHTTPError as error:
        raise InputError(f"{what}: the hub refused: {_one_line(error)}; try again later, or check HF_TOKEN") from error
    except HFValidationError as error:
        raise InputError(f"{what} is no name that the hub allows; it must be owner/name") from error
    except (OSError, httpx.HTTPError, ValueError) as error:  # ValueError: no json, as from a network's login page
        raise _Unreachable(_one_line(error)) from error
    if not COMMIT.fullmatch(info.sha or ""):
        raise InputError(f"{what}: the hub names the commit {info.sha!r}, which is not 40 hex digits; write it by hand")
    locked = getattr(info, "gated", None) and get_token() is None
    return str(info.sha), f" (gated: before it is loaded, {TO_GET_ACCESS})" if locked else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def _read_exactly(path: Path) -> str:
    """The text of a file with its own ends of lines."""
    with path.open(newline="", encoding="utf-8") as file:
        return file.read()


def _edited(text: str, entries: Sequence[HubEntry], commits: Mapping[Place, str]) -> str:
    """`text` with these commits: the scalars of revisions are replaced, missing ones written after the name. A round
    trip through a YAML library would lay out the whole file anew.
    """
    root, edits = YAML(typ="safe", pure=True).compose(text), dict[tuple[int, int], str]()
    for entry in entries:
        node = root
        for part in entry.place:
            node = node.value[part] if isinstance(part, int) else _lookup(node, part)[2]
        start, end, written = _edit(text, node, entry.key, commits[entry.place])
        edits[start, end] = written  # entries that share one node have one edit
    for (start, end), written in sorted(edits.items(), reverse=True):
        text = text[:start] + written + text[end:]
    return text


def _edit(text: str, node: MappingNode, key: str, commit: str) -> tuple[int, int, str]:
    """Where to write the commit into this mapping (from, to), and what."""
    commit = f'"{commit}"' if LIKE_A_NUMBER.fullmatch(commit) else commit
    named, holder = _lookup(node, key), _lookup(node, "revision")
    if holder and (holder[0] is node or named[0] is not node):
        start, end = holder[2].start_mark.index, holder[2].end_mark.index
        if start == end:  # nothing stands there: an empty value has the place of what comes next
            start = end = text.index(":", holder[1].end_mark.index) + 1
            commit = f" {commit}"
        return start, end, commit
    mapping, name, value = named
    if mapping.flow_style:
        if value.start_mark.index > name.end_mark.index:
            return value.end_mark.index, value.end_mark.index, f", revision: {commit}"
        return name.start_mark.index, name.start_mark.index, f"revision: {commit}, "  # its value is an alias
    end = text.find("\n", name.end_mark.index)
    end = len(text) if end < 0 else end - (text[end - 1] == "\r")
    line_end = "\r\n" if "\r\n" in text else "\n"
    return end, end, f"{line_end}{' ' * name.start_mark.column}revision: {commit}"


def _lookup(node: MappingNode, key: str) -> Any:
    """(the mapping that holds it, key, value) of a key, also of one that `<<` merges in; None if there is none."""
    merged: list[Node] = []
    for name, value in node.value:
        if isinstance(name, ScalarNode) and name.value == key:
            return node, name, value
        if isinstance(name, ScalarNode) and name.value == "<<":
            merged += [value] if isinstance(value, MappingNode) else value.value
    return next((found for part in merged if (found := _lookup(part, key))), None)  # type: ignore[arg-type]


def _check_edit(before: Any, text: str, commits: Mapping[Place, str], path: Path) -> None:
    """Raise InputError unless `text` reads as `before` with these commits."""
    wanted = copy.deepcopy(before)
    for place, commit in commits.items():
        _at(wanted, place)["revision"] = commit
    try:
        is_right = YAML(typ="safe", pure=True).load(text) == wanted
    except Exception:  # noqa: BLE001  whatever the parser raises on a text that an edit broke
        is_right = False
    if not is_right:
        lines = (f"{'.'.join(map(str, place))}: revision: {commit}" for place, commit in commits.items())
        raise InputError(
            f"{path}: nothing was written, because its layout leaves no place for a revision alone; write them by hand",
            *lines,
        )
