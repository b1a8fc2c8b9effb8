"""Starting and ending the page, and what its server makes of requests as they come."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
import threading
import time
import types
import webbrowser
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from helpers.tiny_stores import make, record, write

import nrm_graph as ng
from nrm_graph.errors import InputError, StoreError
from nrm_graph.explorer import app as application
from nrm_graph.explorer import serve
from nrm_graph.explorer.guard import Guard
from nrm_graph.explorer.server import Server, listening
from nrm_graph.progress import look

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(make(tmp_path_factory.mktemp("serve") / "s.nrm"), [record(0)])


@pytest.fixture(scope="module")
def explorer(path: Path) -> Iterator[serve.Explorer]:
    with ng.explore(path, browser=False) as running:
        yield running


def raw(port: int, text: str) -> str:
    """Send a request as it is; return the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(text.encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts).decode("latin-1")


def get(port: int, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    response.text = response.read().decode()  # type: ignore[attr-defined]
    connection.close()
    return response


def cookie_of(url: str) -> str:
    parts = urlsplit(url)
    answer = get(parts.port or 0, f"/?{parts.query}")
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    return str(answer.headers["Set-Cookie"]).partition(";")[0]


@pytest.mark.smoke
def test_the_link_opens_the_page(explorer):
    assert explorer.url.startswith(f"http://127.0.0.1:{explorer.port}/?token=")
    assert len(explorer.url.partition("token=")[2]) == 43  # 256 bits
    cookie = cookie_of(explorer.url)
    page = get(explorer.port, "/?view=sql", Cookie=cookie)
    assert page.status == 200
    assert "Werkzeug" not in str(page.headers)
    assert json.loads(get(explorer.port, "/_dash-layout", Cookie=cookie).text)["props"]
    assert get(explorer.port, "/_dash-layout").status == 401


def test_it_listens_on_loopback_alone(explorer):
    assert explorer._server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["GET / HTTP/1.1", "Host: 127.0.0.1", "Host: 127.0.0.1"], 400),
        (["GET / HTTP/1.1", "Host: 127.0.0.1", "Host: evil.example"], 400),
        (["GET / HTTP/1.1"], 400),
        (["GET / HTTP/1.0"], 400),
        (["GET http://127.0.0.1/ HTTP/1.1", "Host: evil.example"], 400),
        (["GET http://127.0.0.1/ HTTP/1.1", "Host: 127.0.0.1"], 400),
        (["GET http://evil.example/ HTTP/1.1", "Host: 127.0.0.1"], 400),
        (["CONNECT evil.example:443 HTTP/1.1", "Host: 127.0.0.1"], 400),
        (["OPTIONS * HTTP/1.1", "Host: 127.0.0.1"], 400),
        (["GET / HTTP/1.1", "Host: evil.example", "X-Forwarded-Host: 127.0.0.1"], 421),
        (["GET / HTTP/1.1", "Host: evil.example", "HTTP_HOST: 127.0.0.1"], 421),
        (["GET / HTTP/1.1", "Host: evil.example:{port}"], 421),
        (["GET / HTTP/1.1", "Host: localhost:{port}"], 401),
        (["GET / HTTP/1.1", "Host: localhost", "Origin: http://localhost:{port}"], 403),
        (["GET /_dash-update-component HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket"], 401),
    ],
)
def test_requests_as_they_come(explorer, lines, code, capfd):
    text = "\r\n".join(lines).replace("{port}", str(explorer.port))
    answer = raw(explorer.port, f"{text}\r\nCookie: x=1\r\n\r\n")
    assert answer.startswith(f"HTTP/1.1 {code} ")
    assert "Content-Security-Policy: default-src 'none'" in answer
    assert capfd.readouterr() == ("", "")


def test_a_body_of_unknown_size_is_not_read(explorer):
    cookie = cookie_of(explorer.url)
    head = f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{explorer.port}\r\nCookie: {cookie}\r\n"
    answer = raw(explorer.port, head + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    assert answer.startswith("HTTP/1.1 411 ")
    answer = raw(explorer.port, head + "Content-Length: 2000000\r\n\r\n" + "x" * 2_000_000)
    assert answer.startswith("HTTP/1.1 413 ")


def test_nothing_is_logged_of_requests(explorer, capfd):
    """A line that no server understands would be shown whole, with the token in it."""
    query = urlsplit(explorer.url).query
    raw(explorer.port, f"GET /?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert " 400 " in raw(explorer.port, f"GET /?{query} one word more HTTP/1.1\r\n\r\n")
    assert " 414 " in raw(explorer.port, f"GET /?{query}&{'x' * 70000} HTTP/1.1\r\n\r\n")
    assert capfd.readouterr() == ("", "")


def test_two_explorers_do_not_disturb_each_other(path, explorer):
    with ng.explore(path, browser=False) as second:
        cookies = cookie_of(explorer.url), cookie_of(second.url)
        assert cookies[0].partition("=")[0] != cookies[1].partition("=")[0]
        for running, other in ((explorer, second), (second, explorer)):
            assert get(running.port, "/", Cookie="; ".join(cookies)).status == 200
            query = urlsplit(other.url).query
            assert get(running.port, f"/?{query}").status == 403
        assert get(second.port, "/", Cookie=cookies[0]).status == 401


def test_the_token_ends_with_the_server(path):
    first = ng.explore(path, browser=False)
    cookie = cookie_of(first.url)
    first.stop()
    with ng.explore(path, browser=False, port=first.port) as second:  # its port is free at once
        assert second.port == first.port
        assert get(second.port, "/", Cookie=cookie).status == 401
        assert get(second.port, f"/?{urlsplit(first.url).query}").status == 403


def test_stores_of_the_caller_stay_open(path, monkeypatch):
    shown = []
    create = application.create
    monkeypatch.setattr(
        application, "create", lambda stores, jobs: shown.append(stores) or create(stores, jobs)
    )
    with ng.open(path) as db:
        running = ng.explore(db, path, browser=False)
        ((own, opened),) = shown
        assert own is db
        for store in (own, opened):
            store.sql("SELECT key FROM inputs").fetchall()
        readers = [store._reader for store in (own, opened)]
        assert None not in readers
        running.stop()
        running.stop()
        running.wait()
        assert (own._reader, opened._reader) == (readers[0], None)
    with pytest.raises(ConnectionRefusedError):
        get(running.port, "/")


def test_the_end_waits_for_what_is_being_answered():
    begun, ended = threading.Event(), []

    def slow(environ: Any, start: Any) -> list[bytes]:
        begun.set()
        time.sleep(0.3)
        ended.append(True)
        start("200 OK", [])
        return [b"done"]

    server = Server(slow, listening(0))
    server.start()
    asking = threading.Thread(target=get, args=(server.port, "/"))
    asking.start()
    assert begun.wait(5)
    server.stop(patience=5)
    assert ended == [True]
    asking.join()


def test_the_end_ends_what_is_computed(path, monkeypatch):
    begun, create = threading.Event(), application.create

    def endless() -> None:
        begun.set()
        while look():
            time.sleep(0.001)

    def with_an_endless_one(stores: Any, jobs: Any) -> Any:
        dash = create(stores, jobs)
        dash.server.add_url_rule("/endless", "endless", lambda: jobs.run("tab", endless))
        return dash

    monkeypatch.setattr(application, "create", with_an_endless_one)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # the page's own routes catch it
    running = ng.explore(path, browser=False)
    cookie = cookie_of(running.url)

    def ask() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            get(running.port, "/endless", Cookie=cookie)

    asking = threading.Thread(target=ask)
    asking.start()
    assert begun.wait(10)
    before = time.monotonic()
    running.stop()
    assert time.monotonic() - before < serve.PATIENCE / 3
    asking.join()


def test_an_error_while_answering_is_no_traceback_for_the_browser(capfd):
    def broken(environ: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", [])
        raise RuntimeError("secret detail")
        yield b""

    server = Server(Guard(broken, "t"), listening(0))
    server.start()
    cookie = cookie_of(f"http://127.0.0.1:{server.port}/?token=t")
    answer = get(server.port, "/", Cookie=cookie)
    assert answer.status == 500
    assert "secret" not in answer.text
    server.stop(1)
    assert "secret detail" in capfd.readouterr().err


@pytest.mark.parametrize("port", [-1, 65536, 10**9])
def test_ports_that_there_are_not(path, port):
    with pytest.raises(InputError, match=f"from 0 .any free one. to 65535, found {port}"):
        ng.explore(path, port=port, browser=False)


def test_a_port_that_is_taken(path, explorer, capfd):
    with pytest.raises(InputError, match=f"port {explorer.port} is taken.*choose another"):
        ng.explore(path, port=explorer.port, browser=False)
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_shown(path, tmp_path):
    free = listening(0)
    port = free.getsockname()[1]
    free.close()
    with pytest.raises(StoreError, match=r"none\.nrm"):
        ng.explore(path, tmp_path / "none.nrm", port=port, browser=False)
    listening(port).close()  # the socket was let go
    with pytest.raises(InputError, match="without scheme and port, such as"):
        ng.explore(path, browser=False, allow_host=["box:80"])
    with ng.explore(path, browser=False, allow_host="box") as running:
        assert get(running.port, "/", Host="box").status == 401


@pytest.mark.parametrize("lacking", ["dash", "plotly"])
def test_without_dash_the_extra_is_named(path, monkeypatch, lacking):
    find = serve.importlib.util.find_spec
    spec = lambda name: None if name == lacking else find(name)  # noqa: E731
    monkeypatch.setattr(serve.importlib.util, "find_spec", spec)
    with pytest.raises(InputError, match=rf"{lacking}.*pip install 'nrm-graph\[explorer\]'"):
        ng.explore(path, browser=False)


@pytest.mark.parametrize(
    ("browser", "screen", "kernel", "opened"),
    [
        (None, True, False, True),
        (None, True, True, False),  # a notebook shows the page itself
        (True, True, True, True),
        (False, True, False, False),
        (None, False, False, False),  # a browser of the terminal would take the terminal
    ],
)
def test_the_browser_opens(path, monkeypatch, browser, screen, kernel, opened):
    asked, called = [], threading.Event()

    def open_it(url: str) -> None:
        asked.append(url)
        called.set()
        raise webbrowser.Error("no browser")  # is no error of the explorer

    monkeypatch.setattr(webbrowser, "open", open_it)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    if screen:
        monkeypatch.setenv("DISPLAY", ":0")
    shell = types.SimpleNamespace(kernel=1) if kernel else None
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    with ng.explore(path, browser=browser) as running:
        assert called.wait(5 if opened else 0.05) == opened
    assert asked == ([running.url] if opened else [])


def test_a_notebook_shows_the_link_whatever_runs_there(explorer):
    html = explorer._repr_html_()
    assert f'<a href="{explorer.url}" target="_blank" rel="noopener noreferrer">' in html
    assert f"ssh -L {explorer.port}:127.0.0.1:{explorer.port} HOST" in html
    assert html.count("<script>") == html.count("</script>") == 1
    assert explorer.url in repr(explorer)
    hostile = serve.notebook.output('http://h/?</script><img src=x onerror="x">', 1)
    assert hostile.count("</script>") == 1
    assert "<img" not in hostile
