"""Starting and ending the local page."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import sys
import threading
import webbrowser
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nrm_graph import database
from nrm_graph.errors import InputError
from nrm_graph.explorer import notebook
from nrm_graph.explorer.guard import Guard, allowed_names
from nrm_graph.explorer.jobs import Jobs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from nrm_graph.database import Database
    from nrm_graph.explorer.server import Server

PATIENCE = 30.0
"""Seconds that the end waits for requests: a process that ends in the midst of torch is aborted."""


@dataclass(frozen=True)
class Explorer:
    """A running explorer; a context manager.  A notebook shows its link, and the page itself.

    Attributes
    ----------
    url : str
        The link that opens it, with the token, which is valid until it is stopped.
    port : int
        Where it listens on 127.0.0.1.
    """

    url: str
    port: int
    _server: Server = field(repr=False, compare=False)
    _jobs: Jobs = field(repr=False, compare=False)
    _opened: tuple[Database, ...] = field(repr=False, compare=False)

    def stop(self) -> None:
        """End it, and close the stores that it opened itself."""
        self._jobs.end()
        self._server.stop(PATIENCE)
        for db in self._opened:
            db.close()

    def wait(self) -> None:
        """Return when it was stopped: in a script, which would end before anybody looks."""
        self._server.wait()

    def __enter__(self) -> Explorer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _repr_html_(self) -> str:
        return notebook.output(self.url, self.port)


def explore(
    db: Database | str | os.PathLike[str],
    other: Database | str | os.PathLike[str] | None = None,
    *,
    port: int = 0,
    browser: bool | None = None,
    allow_host: Sequence[str] = (),
) -> Explorer:
    """Show a store in a web browser, where a click conditions the measure.

    The page is served to this machine alone, and to who has its link.  It reads the store and
    never writes it.  It is served by threads of this process until :meth:`Explorer.stop`.

    Parameters
    ----------
    db : Database or path
        The store.
    other : Database or path, optional
        A second one, to compare with.
    port : int
        Port on 127.0.0.1; 0 is any that is free.
    browser : bool, optional
        Open the page in the web browser.  By default it is opened, but in a notebook, which shows
        the page itself.
    allow_host : sequence of str
        Names, beside those of loopback, by which browsers may reach the page: those of tunnels.

    Returns
    -------
    Explorer
        Its ``url`` is the link.

    Raises
    ------
    InputError
        If Dash is not installed, the port is taken or there is none of this number, or a host is
        not a name.
    StoreError
        If there is no store, or it is damaged.

    Examples
    --------
    >>> with ng.explore("relevance.nrm") as explorer:  # doctest: +SKIP
    ...     explorer.wait()
    """
    missing = [name for name in ("dash", "plotly") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"the explorer needs {' and '.join(missing)}, which is not installed: "
            "pip install 'nrm-graph[explorer]'"
        )
    from nrm_graph.explorer import app
    from nrm_graph.explorer.server import Server, listening

    names = allowed_names([allow_host] if isinstance(allow_host, str) else allow_host)
    taken = listening(port)
    opened: list[Database] = []
    try:
        stores = []
        for store in (db,) if other is None else (db, other):
            if not isinstance(store, database.Database):
                store = database.open(store)
                opened.append(store)
            stores.append(store)
        jobs = Jobs()
        dash = app.create(tuple(stores), jobs)
        token = secrets.token_urlsafe(32)
        # Hashes are of the callbacks that there are by now.
        guard = Guard(dash.server.wsgi_app, token, names, dash.csp_hashes())
        server = Server(guard, taken)
    except BaseException:
        taken.close()
        for store in opened:
            store.close()
        raise
    url = f"http://127.0.0.1:{server.port}/?token={token}"
    server.start()
    if browser or (browser is None and not _in_notebook()):
        open_browser(url)
    return Explorer(url, server.port, server, jobs, tuple(opened))


def open_browser(url: str) -> None:
    """Open an address where there is a screen; that it fails is no error."""
    # Without a screen Python would start a browser of the terminal, in this terminal.
    screens = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in screens):
        return

    def open_it() -> None:
        with contextlib.suppress(Exception):
            webbrowser.open(url)

    # Some browsers are waited for until they are closed.
    threading.Thread(target=open_it, daemon=True).start()


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")
