"""benchmarks/real_servers.py on a server of a few lines in place of a real one."""

import sys
from pathlib import Path

import pytest

from benchmarks import real_servers
from benchmarks.real_servers import Program, Server, client_killed, server_killed, undisturbed

STUB = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send({})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.3)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "four o'clock"}}
        self.send({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}})

    def send(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""


def test_nothing_is_lost_or_doubled_when_either_side_is_killed(tmp_path: Path) -> None:
    server = Server(Program("vllm", [sys.executable, "-c", STUB]), tmp_path)
    server.start()
    try:
        parts = (undisturbed, client_killed, server_killed)
        outcomes = [row for part in parts for row in part(server, tmp_path / part.__name__)]
    finally:
        server.kill()
    assert [row.faults for row in outcomes] == [(), (), ()]
    assert [row.rows for row in outcomes] == [24, 24, 24]
    assert outcomes[0].billed == outcomes[0].counted == 24 * 13


def test_a_server_that_does_not_come_up_ends_with_its_words(tmp_path: Path) -> None:
    server = Server(Program("vllm", [sys.executable, "-c", "raise SystemExit('no such model')"]), tmp_path)
    with pytest.raises(SystemExit, match="no such model"):
        server.start()


def test_what_is_not_installed_is_left_out_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert real_servers.llama_program("false") is None
    assert "llama is left out" in capsys.readouterr().out
