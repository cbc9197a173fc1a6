"""An HTTP proxy on loopback that wants a password, and forwards to whatever it is asked for."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self


class Proxy:
    """Forwards plain requests; `heads` are the heads that came."""

    def __enter__(self) -> Self:
        self.heads: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._forward, args=self._listener.accept()[:1], daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        head = b""
        with client, suppress(OSError):
            while b"\r\n\r\n" not in head:
                if not (data := client.recv(65536)):
                    return
                head += data
            self.heads.append(head.partition(b"\r\n\r\n")[0])
            host, _, port = head.split(b" ")[1].split(b"/")[2].partition(b":")
            with socket.create_connection((host.decode(), int(port))) as upstream:
                upstream.sendall(head)
                back = threading.Thread(target=_pump, args=(upstream, client), daemon=True)
                back.start()
                _pump(client, upstream)
                back.join(60)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
