"""The server of the local page: one socket on loopback, a thread a request."""

from __future__ import annotations

import errno
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

ADDRESS = "127.0.0.1"


class _Handler(WSGIRequestHandler):
    """Answers one request; says nothing of it, since request lines may hold the token."""

    timeout = 60  # seconds: a connection that sends nothing holds no thread for ever

    def version_string(self) -> str:
        return "nrm-graph"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass

    def log_error(self, format: str, *args: Any) -> None:
        """Keep what clients do wrong to themselves: they are told."""


class Server(ThreadedWSGIServer):
    """A WSGI server in a thread of its own.

    Parameters
    ----------
    app : WSGI application
        What answers.
    taken : socket
        Listens already, see :func:`listening`; closed with the server.

    Attributes
    ----------
    requests : int
        Those that are being answered; ``at_work`` guards it and tells of its changes.
    """

    def __init__(self, app: WSGIApplication, taken: socket.socket) -> None:
        self._answer = app
        with taken:  # the server has a copy of the descriptor
            super().__init__(ADDRESS, 0, self._counted, _Handler, fd=taken.fileno())
        self.requests = 0
        self.at_work = threading.Condition()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True)

    def _counted(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        with self.at_work:
            self.requests += 1
        try:
            return self._answer(environ, start)
        finally:
            with self.at_work:
                self.requests -= 1
                self.at_work.notify_all()

    def log(self, type: str, message: str, *args: Any) -> None:
        """Show what went wrong here, tracebacks, whatever the process logs otherwise."""
        if sys.stderr is not None:
            print(message % args if args else message, file=sys.stderr)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def wait(self) -> None:
        """Return when the server was stopped."""
        self._thread.join()

    def stop(self, patience: float) -> None:
        """Take no more requests; wait so many seconds for those that are being answered."""
        self.shutdown()
        self.wait()
        with self.at_work:
            self.at_work.wait_for(lambda: self.requests == 0, patience)


def listening(port: int) -> socket.socket:
    """Return a socket that listens on a port of loopback; 0 is any that is free.

    Raises
    ------
    InputError
        If there is no such port, or it is taken.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"a port is a number from 0 (any free one) to 65535, found {port}")
    taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((ADDRESS, port))
        taken.listen(128)
    except OSError as error:
        taken.close()
        reason = {
            errno.EADDRINUSE: "is taken by another program",
            errno.EACCES: "is not for this account",
        }.get(error.errno or 0, f"cannot be used ({error.strerror})")
        raise InputError(f"port {port} {reason}: choose another, or 0 for any free one") from None
    return taken
