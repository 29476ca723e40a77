"""A proxy in front of Postgres that can stop forwarding: connections half open, as a network does.

Nobody is told: packets are taken and go nowhere, no end is closed.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.engine import make_url

from ledger.home import libpq

PIECE = 65_536


class Proxy:
    """Forwards TCP connections to the server of a URL until told to freeze them.

    Attributes:
        url: What to connect to instead.
    """

    def __init__(self, url: str) -> None:
        self._target = conninfo_to_dict(libpq(url))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._waker, self._wake = socket.socketpair()
        self._selector.register(self._waker, selectors.EVENT_READ)
        self._links: dict[socket.socket, socket.socket] = {}
        self._frozen: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._closed = False
        port = self._listener.getsockname()[1]
        self.url = (
            make_url(url)
            .set(host="127.0.0.1", port=port, query={})
            .render_as_string(hide_password=False)
        )
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def freeze(self) -> int:
        """Forward nothing more on the connections there are; how many. New ones work."""
        with self._lock:
            count = len(self._links) // 2
            for end in self._links:
                self._selector.unregister(end)
            self._frozen |= self._links
            self._links.clear()
        return count

    def drop(self) -> None:
        """Close what was frozen."""
        with self._lock:
            for end in self._frozen:
                end.close()
            self._frozen.clear()

    def close(self) -> None:
        """End it, with every connection."""
        self.freeze()
        self.drop()
        self._closed = True
        self._wake.send(b"x")
        self._thread.join(10)
        for one in (self._listener, self._waker, self._wake):
            one.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select():
                if key.fileobj is self._waker:
                    self._waker.recv(1)
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    self._forward(key.fileobj)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        host, port = str(self._target.get("host")), self._target.get("port", 5432)
        try:
            if host.startswith("/"):
                far = socket.socket(socket.AF_UNIX)
                far.connect(f"{host}/.s.PGSQL.{port}")
            else:
                far = socket.create_connection((host, int(port)))
        except OSError:  # the server is down
            near.close()
            return
        with self._lock:
            self._links |= {near: far, far: near}
            for end in (near, far):
                self._selector.register(end, selectors.EVENT_READ)

    def _forward(self, end: socket.socket) -> None:
        with self._lock:
            other = self._links.get(end)
            if other is None:  # frozen since
                return
            piece = b""
            with contextlib.suppress(OSError):
                piece = end.recv(PIECE)
                if piece:
                    other.sendall(piece)
                    return
            for one in (end, other):
                del self._links[one]
                self._selector.unregister(one)
                one.close()
