"""An S3 API under test: moto over HTTP on a free port of the loopback interface, with faults and a log of requests."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from werkzeug.serving import WSGIRequestHandler, make_server

Environ = dict[str, Any]
KEY_ID, SECRET = "AKIATESTTESTTESTTEST", "planted-s3-secret-4711"


@dataclass(kw_only=True)
class S3:
    """A running server.

    Attributes:
        url: its endpoint.
        requests: method and path with query of each request, in order.
        before: called with the environment of each request before it is answered; its answer, if any, is sent instead.
    """

    url: str = ""
    requests: list[str] = field(default_factory=list)
    before: Callable[[Environ], tuple[str, bytes] | None] | None = None
    client: Any = None

    def connection(self) -> dict[str, Any]:
        """Return the Airflow connection that leads here."""
        extra = {"endpoint_url": self.url, "region_name": "us-east-1"}
        return {"conn_type": "aws", "login": KEY_ID, "password": SECRET, "extra": extra}

    def put(self, bucket: str, objects: dict[str, bytes | str]) -> None:
        """Write objects by key."""
        for key, body in objects.items():
            self.client.put_object(Bucket=bucket, Key=key, Body=body)

    def get(self, bucket: str, key: str) -> bytes:
        """Return an object."""
        return bytes(self.client.get_object(Bucket=bucket, Key=key)["Body"].read())

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Return the keys that begin with `prefix`, up to a thousand."""
        found = self.client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())
        return [each["Key"] for each in found]

    def reset(self) -> None:
        """Forget all buckets, objects, faults and requests."""
        self.before = None
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/moto-api/reset", method="POST")).close()
        self.requests.clear()

    def refuse(self, when: Callable[[Environ], bool], *, times: int) -> None:
        """Answer 503 Slow Down to the next `times` requests of a kind."""
        left = iter(range(times))

        def slow_down(environ: Environ) -> tuple[str, bytes] | None:
            if when(environ) and next(left, None) is not None:
                return "503 Slow Down", b"<Error><Code>SlowDown</Code><Message>Slow down.</Message></Error>"
            return None

        self.before = slow_down


class _Seen:
    """The WSGI application around moto's: notes each request, and lets a test answer it."""

    def __init__(self, server: S3, app: Any) -> None:
        self.server = server
        self.app = app

    def __call__(self, environ: Environ, start: Any) -> Iterable[bytes]:
        query = environ.get("QUERY_STRING", "")
        self.server.requests.append(
            f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{'?' + query if query else ''}"
        )
        answer = self.server.before(environ) if self.server.before else None
        if answer is None:
            found: Iterable[bytes] = self.app(environ, start)
            return found
        status, body = answer
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


class _Quiet(WSGIRequestHandler):
    """Logs no request."""

    def log_request(self, *_: object) -> None:
        pass


@contextmanager
def s3_server() -> Iterator[S3]:
    """Run a server until the end of the block."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app

    server = S3()
    app = _Seen(server, DomainDispatcherApplication(create_backend_app))
    http = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    server.client = boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
    )
    try:
        yield server
    finally:
        server.client.close()
        http.shutdown()
        thread.join()
        http.server_close()
