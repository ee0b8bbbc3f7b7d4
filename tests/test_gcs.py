"""`gs://`: addresses, exclusive creation and messages, before a server that speaks the part of the protocol we use."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from gbcd.errors import BadInput
from gbcd.run.store import Store

OBJECTS: dict[str, bytes] = {}
DATE = "Sun, 22 Nov 2026 10:00:00 GMT"


class Bucket(BaseHTTPRequestHandler):
    """Google's XML interface: objects, and the one precondition that exclusive creation rests on."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("x-goog-if-generation-match") == "0" and self.key in OBJECTS:
            return self.answer(412)
        OBJECTS[self.key] = content
        return self.answer(200)

    def do_GET(self) -> None:
        if self.path.startswith("/bucket?"):
            rows = [
                f"<Contents><Key>{key}</Key><Size>{len(content)}</Size><ETag>1</ETag>"
                "<LastModified>2026-11-22T10:00:00.000Z</LastModified></Contents>"
                for key, content in sorted(OBJECTS.items())
            ]
            return self.answer(200, f"<ListBucketResult>{''.join(rows)}</ListBucketResult>".encode())
        return self.answer(200, OBJECTS[self.key]) if self.key in OBJECTS else self.answer(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.answer(204 if OBJECTS.pop(self.key, None) is not None else 404)

    @property
    def key(self) -> str:
        return unquote(self.path.split("?")[0]).removeprefix("/bucket/")

    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (("Content-Length", str(len(body))), ("Last-Modified", DATE), ("ETag", "1")):
            self.send_header(name, value)
        self.send_header("x-goog-generation", "1")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """A service account's key, in the form in which Google hands them out, for a server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    file = tmp_path / "key.json"
    account = {"client_email": "", "private_key": "not-a-secret", "private_key_id": "", "disable_oauth": True}
    file.write_text(json.dumps({**account, "gcs_base_url": f"http://127.0.0.1:{server.server_port}"}))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(file))
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    OBJECTS.clear()
    yield file
    server.shutdown()
    thread.join()
    server.server_close()


def test_objects_are_created_once_and_found_under_their_prefix(credentials: Path) -> None:
    store = Store("gs://bucket/study")
    assert not store.exists("commits/00001.json")
    assert store.create("commits/00001.json", b"one")
    assert not store.create("commits/00001.json", b"two")
    assert store.read("commits/00001.json") == b"one"
    assert [(entry.path, entry.size) for entry in store.list("commits")] == [("commits/00001.json", 3)]
    assert list(OBJECTS) == ["study/commits/00001.json"]
    store.delete("commits/00001.json")
    assert store.size("commits/00001.json") is None
    assert store.url("x") == "gs://bucket/study/x"


def test_a_bucket_that_does_not_answer_is_said_without_secrets(
    credentials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gbcd.run.store.BACKOFF", (0.0,))
    monkeypatch.setattr(Bucket, "do_HEAD", lambda request: request.answer(403))
    with pytest.raises(BadInput, match=r"gs://bucket/study: access is refused") as refused:
        Store("gs://bucket/study").exists("plan.json")
    assert "not-a-secret" not in str(refused.value)


def test_a_key_that_is_not_there_is_bad_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(BadInput, match=r"(?s)'gs://bucket/study' cannot be used.*none\.json"):
        Store("gs://bucket/study")
