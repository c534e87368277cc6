"""A project's parameters, tables and metrics, read from the workspace or from a DVC revision."""

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from persyn.errors import InputError, printable
from persyn.schemas import parse_table

if TYPE_CHECKING:
    import polars as pl


class Project:
    """Reads a project. What is not made yet is None.

    Args:
        files: any file system of fsspec.
        folder: of the project in it, "" for its root.
        name: used in messages.
        commit: its git commit, None if unknown.
    """

    def __init__(self, files: Any = None, folder: str = "", name: str = "workspace", commit: str | None = None) -> None:
        self.files, self.folder, self.name, self.commit = files or fsspec.filesystem("file"), folder, name, commit

    def read(self, path: str) -> bytes | None:
        """The bytes of a file.

        Raises:
            InputError: DVC tracks it, but neither its cache nor a remote has it.
        """
        where = f"{self.folder}/{path}" if self.folder else path
        try:
            if self.files.info(where)["type"] != "file":
                return None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ImportError as error:  # a package that the DVC remote needs is missing
            raise InputError(f"cannot read {path} of {self.name}: {error}") from error
        try:
            return self.files.cat_file(where)
        except FileNotFoundError as error:
            raise InputError(
                f"{path} of {self.name} is not in DVC's cache; fetch it (`dvc fetch --all-commits`, `dvc exp pull`) "
                f"or make it there again (`git checkout`, `dvc repro`)"
            ) from error

    def params(self) -> dict[str, Any]:
        """params.yaml, whole.

        Raises:
            InputError: it is missing, is not legal, or holds a secret key.
        """
        from persyn.project.params import check_secrets

        found = self.yaml("params.yaml")
        if found is None:
            raise InputError(f"{self.name} has no params.yaml here; run the command in the folder of a project")
        if not isinstance(found, dict):
            raise InputError(f"params.yaml of {self.name} holds no sections; see the README for what it must hold")
        check_secrets(found)
        return found

    def yaml(self, path: str) -> Any:
        """A YAML file; None if it is missing or empty.

        Raises:
            InputError: it is not legal.
        """
        try:
            return YAML(typ="safe", pure=True).load(self.read(path) or b"")
        except (YAMLError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read {path} of {self.name}: {' '.join(str(error).split())}") from error

    def json(self, path: str) -> Any:
        """A metrics file; None if it is missing.

        Raises:
            InputError: it is not legal.
        """
        import json

        text = self.read(path)
        try:
            return None if text is None else json.loads(text)
        except ValueError as error:
            raise InputError(f"{path} of {self.name} is no json ({error}); run `dvc repro` to make it again") from error

    def table(self, path: str, schema: "pl.Schema") -> "pl.DataFrame | None":
        """A table, checked; None if it is missing.

        Raises:
            InputError: as check_table, or it is damaged.
        """
        content = self.read(path)
        return None if content is None else parse_table(content, schema, f"{path} of {self.name}")


@contextmanager
def open_project(revision: str | None = None) -> Iterator[Project]:
    """The project of the working directory, or a revision of it.

    The commit is unpacked into a temporary folder, where DVC reads it: inside git, DVC cannot follow the links of a
    profile.

    Args:
        revision: a commit, a branch, a tag or an experiment's name; None or "workspace" for the workspace.

    Raises:
        InputError: this is no DVC project in a git repository, or it has no such revision.
    """
    if revision in (None, "workspace"):
        yield Project(commit=_head())
        return
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import resolve_rev

    try:
        here = Repo()
        commit = resolve_rev(here.scm, revision)
    except DvcException as error:
        raise InputError(
            f"cannot read {printable(str(revision))!r}: {error}; give a commit, a branch, a tag, an experiment's name "
            f"(`dvc exp show`), or workspace"
        ) from error
    root = here.scm.root_dir
    archive = subprocess.run(["git", "-C", root, "archive", commit], stdout=subprocess.PIPE, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="persyn-") as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter=_inside)
        settings = {"cache": {"dir": here.cache.local_cache_dir}, "core": {"no_scm": True}}
        then = Repo(str(Path(folder) / Path(here.root_dir).relative_to(root)), config=settings)
        yield Project(DVCFileSystem(repo=then), name=str(revision), commit=commit)


def _inside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Skip a link that points out of the repository."""
    try:
        return tarfile.data_filter(member, folder)
    except (tarfile.AbsoluteLinkError, tarfile.LinkOutsideDestinationError):
        return None


def _head() -> str | None:
    """The commit that is checked out, with a note if tracked files have changed."""
    try:
        commit, changed = (
            subprocess.run(["git", *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit} and changes that are not committed" if changed else commit
