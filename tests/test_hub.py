"""The upload, by the real client, to a stub of the hub on loopback."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from huggingface_hub import constants

from persyn.errors import InputError
from persyn.export import EXPORT
from persyn.export.hub import push_export, write_export

TOKEN = "hf_" + "x" * 30


class Hub(ThreadingHTTPServer):
    """Has the dataset owner/name, if `private` says which kind, with one old shard in it; keeps what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.private: bool | None = None
        self.refuse = ""
        self.asked = list[str]()
        self.created = dict[str, Any]()
        self.added, self.deleted = dict[str, bytes](), list[str]()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.answer("")

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

    def answer(self, body: str) -> None:
        hub, path = self.server, self.path.split("?")[0]
        hub.asked.append(path)
        assert self.headers["Authorization"] == f"Bearer {TOKEN}"
        if hub.refuse:
            self.say({"error": hub.refuse}, 403)
        elif path == "/api/repos/create":
            hub.created = json.loads(body)
            if hub.private is None:
                hub.private = hub.created["visibility"] == "private"
            self.say({"url": f"{constants.ENDPOINT}/datasets/owner/name"})
        elif path == "/api/datasets/owner/name":
            self.say({"id": "owner/name", "private": hub.private, "tags": []})
        elif "/tree/" in path:
            paths = ["README.md", "data/train-00001-of-00002.parquet", "notes.md"]
            self.say([{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in paths])
        elif "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            self.say({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in files]})
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.added[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    hub.deleted.append(line["value"]["path"])
            self.say({"commitUrl": f"{constants.ENDPOINT}/datasets/owner/name/commit/1", "commitOid": "1"})
        else:
            self.say({"errors": [], "warnings": []})

    def say(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        server.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export of one row."""
    values = {name: None if kind.is_float() else [] if kind.is_nested() else "1" for name, kind in EXPORT.items()}
    row = pl.DataFrame({name: [value] for name, value in values.items()}, schema=EXPORT, strict=False)
    write_export(
        row, lambda entry: f"---\ntags:\n- persyn\n---\n{entry['description']}\n", tmp_path / "made", replace=False
    )
    return tmp_path / "made"


def test_exactly_the_folder_is_uploaded_and_old_shards_are_deleted(hub: Hub, folder: Path) -> None:
    assert push_export(folder, "owner/name", private=True) == f"{constants.ENDPOINT}/datasets/owner/name/commit/1"
    assert (hub.created["organization"], hub.created["name"]) == ("owner", "name")
    assert (hub.created["type"], hub.created["visibility"]) == ("dataset", "private")
    files = ["README.md", "data/train-00000-of-00001.parquet"]
    assert hub.added == {name: (folder / name).read_bytes() for name in files}
    assert hub.deleted == ["data/train-00001-of-00002.parquet"], "what others put there stays"
    assert TOKEN not in "".join(hub.asked)


@pytest.mark.parametrize("private", [True, False])
def test_nothing_is_uploaded_to_a_dataset_that_others_see_otherwise(hub: Hub, folder: Path, private: bool) -> None:
    hub.private = not private
    kind = "public" if private else "private"
    with pytest.raises(InputError, match=f"owner/name exists and is {kind}; nothing was uploaded; give --{kind}"):
        push_export(folder, "owner/name", private)
    assert not any("preupload" in path or "commit" in path for path in hub.asked)


def test_a_refusal_is_one_line_without_the_token(hub: Hub, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hub.refuse = "You have no right\nto create owner/name"
    with pytest.raises(InputError, match=r"the hub did not accept owner/name: .*403 Forbidden.*try again") as raised:
        push_export(folder, "owner/name", private=True)
    assert "\n" not in str(raised.value)
    printed = "".join(capfd.readouterr())
    assert TOKEN not in str(raised.value) + printed


def test_a_hub_that_is_not_there_is_one_line(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"the hub did not accept owner/name: .*refused"):
        push_export(folder, "owner/name", private=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="offline mode is enabled"):
        push_export(folder, "owner/name", private=True)
