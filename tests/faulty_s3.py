"""An S3 server on this machine (moto) that fails on demand."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any, Literal

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Fault = Literal["403", "500", "503", "409", "412", "lost", "late"]
"""A status instead of an answer, before anything is done; or the request is done and its answer is `lost` (the
connection breaks) or comes `late` (after `LATE` seconds)."""

LATE = 3.0

Decide = Callable[[str, str], Fault | None]


class FaultyS3:
    """Serves the protocol; `decide` is asked about every request (method and path) whether it fails, and how."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.decide: Decide = lambda method, path: None
        self.ignores_conditions = False
        self.faults: list[tuple[Fault, str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    def environment(self) -> dict[str, str]:
        """What a client needs to find the server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_REGION": "us-east-1",
        }

    def make_bucket(self, name: str) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/{name}", method="PUT")).close()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        fault = self.decide(method, path)
        if self.ignores_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if fault is None:
            return self._app(environ, start_response)
        self.faults.append((fault, method, path))
        if fault == "lost":
            b"".join(self._app(environ, lambda *_: None))
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionError("the answer is lost")
        if fault == "late":
            answer = list(self._app(environ, start_response))
            time.sleep(LATE)
            return answer
        start_response(f"{fault} Fault", [("Content-Type", "application/xml")])
        return [b"<Error><Code>Fault</Code></Error>"]
