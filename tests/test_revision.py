"""The reader of a project: its folder, a commit, an experiment, a profile whose pipeline is links."""

import subprocess
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest

from persyn.errors import InputError
from persyn.project.revision import Project, open_project
from persyn.schemas import PAIRS

PIPELINE = """
stages:
  pairs: {cmd: cp made.parquet data/pairs.parquet, deps: [made.parquet], outs: [data/pairs.parquet]}
"""


def call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def pairs(winner: str) -> pl.DataFrame:
    return pl.DataFrame([("p", winner, "c", 0.5)], schema=PAIRS, orient="row")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a profile `one` in it, whose pipeline is a link, in which winner `a` is committed."""
    root = tmp_path / "repository"
    profile = root / "profiles" / "one"
    profile.mkdir(parents=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@localhost")
    call("git", "init")
    call("dvc", "init")
    call("dvc", "config", "core.analytics", "false")
    (root / "dvc.yaml").write_text(PIPELINE)
    (profile / "dvc.yaml").symlink_to("../../dvc.yaml")
    (profile / "params.yaml").write_text("rewards: {alpha: 0.4}\n")
    (profile / ".gitignore").write_text("*.parquet\n")
    (profile / "data").mkdir()
    monkeypatch.chdir(profile)
    call("dvc", "init", "--subdir")
    call("dvc", "cache", "dir", "../../.dvc/cache")
    made(profile, "a")
    call("git", "add", ":/")
    call("git", "commit", "-m", "a")
    return profile


def made(profile: Path, winner: str) -> None:
    pairs(winner).write_parquet(profile / "made.parquet")
    call("dvc", "repro")


def test_a_revision_is_read_as_it_was_and_the_folder_as_it_is(repository: Path) -> None:
    made(repository, "b")
    with open_project() as now, open_project("HEAD") as then:
        winners = [each.table("data/pairs.parquet", PAIRS)["winner"].item() for each in (now, then)]  # type: ignore[index]
        assert winners == ["b", "a"]
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        assert (now.commit, then.commit) == (f"{head} and changes that are not committed", head)
        assert then.params() == {"rewards": {"alpha": 0.4}}
        assert then.table("other.parquet", PAIRS) is None
        assert then.json("metrics.json") is None
    assert not Path(then.files.repo.root_dir).exists()


def test_a_link_out_of_the_repository_is_no_trouble(repository: Path) -> None:
    (repository / "away").symlink_to("/nowhere")
    (repository / "up").symlink_to("../../../../nowhere")
    call("git", "add", ":/")
    call("git", "commit", "-m", "links")
    with open_project("HEAD") as then:
        assert then.params() == {"rewards": {"alpha": 0.4}}
        assert then.read("away") is None


@pytest.mark.skipif(find_spec("dvc_s3") is not None, reason="the extra s3 is installed")
def test_a_remote_whose_package_is_missing_is_said(repository: Path) -> None:
    call("dvc", "remote", "add", "-d", "far", "s3://bucket/persyn")
    call("git", "add", ":/")
    call("git", "commit", "-m", "remote")
    with open_project("HEAD") as then, pytest.raises(InputError, match=r"cannot read .* of HEAD: .*dvc-s3"):
        then.table("data/pairs.parquet", PAIRS)


def test_a_key_in_params_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    secret = "hf_" + "x" * 26
    Path("params.yaml").write_text(f"speed: {{openai: {{key: {secret}}}}}")
    with pytest.raises(InputError, match="looks like a key") as raised:
        Project().params()
    assert secret not in str(raised.value)


def test_what_the_cache_lacks_is_said(repository: Path) -> None:
    made(repository, "b")
    call("dvc", "gc", "--workspace", "--force")
    lacking = r"data/pairs.parquet of HEAD is not in DVC's cache"
    with open_project("HEAD") as then, pytest.raises(InputError, match=lacking):
        then.table("data/pairs.parquet", PAIRS)


def test_a_revision_or_a_project_that_is_not_there_is_one_clear_line(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"cannot read 'nonsense'.* an experiment's name"), open_project("nonsense"):
        pass
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match="cannot read 'HEAD'"), open_project("HEAD"):
        pass
    with pytest.raises(InputError, match=r"no params\.yaml here"):
        Project().params()
