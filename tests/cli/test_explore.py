"""``nrm-graph explore``: the line that it prints, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING

import pytest
from helpers.processes import PACKAGES
from helpers.tiny_stores import make, record, write

from nrm_graph.cli import main
from nrm_graph.explorer.server import listening

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(make(tmp_path_factory.mktemp("explore") / "s.nrm"), [record(0)])


@contextlib.contextmanager
def running(*argv: object) -> Iterator[subprocess.Popen[str]]:
    """Run the command as a shell does; whatever comes, it is ended."""
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(PACKAGES)}
    with subprocess.Popen(
        [sys.executable, "-m", "nrm_graph", "explore", *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=paths,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str], number: int) -> tuple[int, str, str]:
    """Send a signal; return the exit code and what was printed until then."""
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def test_one_line_opens_the_page_until_ctrl_c(store):
    with running(store, store, "--no-browser") as process:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(url.partition("?")[0], timeout=20)
        refused.value.close()
        session = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        with session.open(url, timeout=20) as page:
            assert page.url == url.partition("?")[0]
            assert b"_dash-config" in page.read()
        code, out, err = ended(process, signal.SIGINT)
    assert (code, out) == (0, "")
    assert err == "Ctrl-C ends it\n"
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=20)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_as_soon_as_the_line_is_there(store, number):
    with running(store, "--no-browser") as process:
        assert process.stdout.readline()
        code, out, err = ended(process, number)
    said = "nrm-graph: ended by SIGTERM; what is in the store stays valid\n"
    code_and_text = (0, "") if number == signal.SIGINT else (143, said)
    assert (code, out, err) == (code_and_text[0], "", f"Ctrl-C ends it\n{code_and_text[1]}")


@pytest.mark.slow
def test_a_browser_is_opened_with_the_link(store, tmp_path, monkeypatch):
    browser = tmp_path / "browser"
    browser.write_text(
        f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/part && mv {tmp_path}/part {tmp_path}/asked\n'
    )
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    with running(store) as process:
        url = process.stdout.readline().strip()
        for _ in range(200):
            if (tmp_path / "asked").exists():
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        assert (tmp_path / "asked").read_text() == url
        assert ended(process, signal.SIGINT)[0] == 0


def test_what_cannot_be_shown_is_one_line(store, tmp_path, capsys):
    with contextlib.closing(listening(0)) as taken:
        port = taken.getsockname()[1]
        for argv, code, message in (
            ([store, "--port", port], 3, f"port {port} is taken by another program"),
            ([store, "--port", "70000"], 3, "from 0 (any free one) to 65535, found 70000"),
            ([store, "--port", "one"], 2, "'one' is not a valid integer"),
            ([store, "--allow-host", "http://box"], 3, "a name or address without scheme and port"),
            ([tmp_path / "none.nrm"], 6, "none.nrm"),
            ([store, tmp_path / "none.nrm"], 6, "none.nrm"),
            ([], 2, "Missing argument 'STORE'"),
            ([store, store, store], 2, "unexpected extra argument"),
        ):
            assert main.main(["explore", *map(str, argv)]) == code
            printed = capsys.readouterr()
            assert printed.out == ""
            assert message in printed.err
            assert printed.err.count("\n") == 1
