"""The link, the policy and frames of notebooks as a real browser has them."""

from __future__ import annotations

import functools
import http.server
import os
import threading
import warnings
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from helpers.browser import ALIAS, console
from helpers.processes import PACKAGES
from helpers.tiny_stores import make, record, write
from nbclient import NotebookClient
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import nrm_graph as ng

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

    from nrm_graph.explorer.serve import Explorer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(make(tmp_path_factory.mktemp("browsers") / "s.nrm"), [record(0)])


@pytest.fixture(scope="module")
def explorer(path: Path) -> Iterator[Explorer]:
    with ng.explore(path, browser=False) as running:
        yield running


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A folder, and the port on which another server of this machine shows it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "favicon.ico").touch()
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, server.server_port
        server.shutdown()


@pytest.fixture(autouse=True)
def _no_cookies(chrome: Chrome) -> None:
    chrome.execute_cdp_cmd("Network.clearBrowserCookies", {})
    console(chrome)


def wait(chrome: Chrome, condition: Any) -> Any:
    return WebDriverWait(chrome, 20).until(lambda _: condition())


def drawn(chrome: Chrome) -> Any:
    """Whether Dash has drawn a page, in this document."""
    return wait(chrome, lambda: chrome.find_elements(By.CSS_SELECTOR, "#react-entry-point main"))


def test_the_link_opens_the_page_and_drops_its_token(chrome, explorer):
    chrome.get(f"{explorer.url}&view=sql&query=SELECT+1")
    assert drawn(chrome)
    assert chrome.current_url == f"http://127.0.0.1:{explorer.port}/?view=sql&query=SELECT+1"
    (cookie,) = chrome.get_cookies()
    assert (cookie["name"], cookie["httpOnly"]) == (f"nrm_graph_{explorer.port}", True)
    assert (cookie["sameSite"], cookie["path"], "expiry" in cookie) == ("Strict", "/", False)
    assert chrome.execute_script("return document.cookie") == ""
    chrome.refresh()
    assert drawn(chrome)
    names = chrome.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert names
    assert [
        name for name in names if not name.startswith(f"http://127.0.0.1:{explorer.port}/")
    ] == []
    assert console(chrome) == []  # what the policy keeps from the page stands there


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_links_in_other_pages_open_it(chrome, explorer, elsewhere, name):
    """One page is of the same site, the other of another; without the token it takes a click."""
    folder, port = elsewhere
    address = f"http://127.0.0.1:{explorer.port}/?view=sql"
    links = f'<a id="link" href="{explorer.url}&amp;view=sql">1</a> <a href="{address}">2</a>'
    (folder / "links.html").write_text(f"<!doctype html>{links}")
    chrome.get(f"http://{name}:{port}/links.html")
    chrome.find_element(By.ID, "link").click()
    wait(chrome, lambda: chrome.current_url == address)
    assert drawn(chrome)
    chrome.back()
    wait(chrome, lambda: chrome.current_url.endswith("links.html"))
    chrome.find_element(By.LINK_TEXT, "2").click()
    wait(chrome, lambda: chrome.current_url == address)
    if name == "localhost":
        wait(chrome, lambda: "401" in chrome.find_element(By.TAG_NAME, "body").text)
        chrome.find_element(By.LINK_TEXT, "Open the explorer").click()
    assert drawn(chrome)
    assert chrome.current_url == address


@pytest.fixture(scope="module")
def notebook(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Outputs of a notebook whose kernel still runs."""
    cell = nbformat.v4.new_code_cell(f"import nrm_graph as ng\nng.explore({str(path)!r})")
    book = nbformat.v4.new_notebook(cells=[cell])
    folder = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("PYTHONPATH", os.pathsep.join(PACKAGES))
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        warnings.simplefilter("ignore", DeprecationWarning)  # what Jupyter's own packages do
        client = NotebookClient(book, timeout=60, kernel_name="python3", resources=folder)
        with client.setup_kernel():
            client.execute_cell(cell, 0)
            (output,) = cell.outputs
            yield output.data


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_notebook_shows_link_and_page(chrome, notebook, elsewhere, name):
    assert notebook["text/plain"].startswith("Explorer(url='http://127.0.0.1:")
    url = notebook["text/plain"].split("'")[1]
    folder, port = elsewhere
    (folder / "notebook.html").write_text(f"<!doctype html>{notebook['text/html']}")
    chrome.get(f"http://{name}:{port}/notebook.html")
    assert chrome.find_element(By.TAG_NAME, "a").get_attribute("href") == url
    (frame,) = wait(chrome, lambda: chrome.find_elements(By.TAG_NAME, "iframe"))
    assert "ssh -L" not in chrome.find_element(By.TAG_NAME, "body").text
    chrome.switch_to.frame(frame)
    assert drawn(chrome)
    there = chrome.execute_script("return location.href")
    assert there == url.partition("?")[0].replace("127.0.0.1", name)
    chrome.switch_to.default_content()


@pytest.mark.parametrize("shown", ["behind another name", "without the port", "as a file"])
def test_where_a_frame_cannot_work_the_link_stays(chrome, explorer, elsewhere, shown):
    folder, port = elsewhere
    html = f"<!doctype html>{explorer._repr_html_()}"
    if shown == "without the port":  # the notebook's port comes through a tunnel, this one does not
        html = html.replace(f'"http://" + host + ":" + {explorer.port}', '"http://" + host + ":1"')
    (folder / "notebook.html").write_text(html)
    chrome.get(
        {
            "behind another name": f"http://{ALIAS}:{port}/notebook.html",
            "without the port": f"http://127.0.0.1:{port}/notebook.html",
            "as a file": (folder / "notebook.html").as_uri(),
        }[shown]
    )
    chrome.execute_async_script("setTimeout(arguments[0], 500)")
    assert chrome.find_elements(By.TAG_NAME, "iframe") == []
    text = chrome.find_element(By.TAG_NAME, "body").text
    assert explorer.url in text
    assert f"ssh -L {explorer.port}:127.0.0.1:{explorer.port} HOST" in text


def test_another_name_of_this_machine_is_refused_unless_it_is_allowed(chrome, path, explorer):
    """As a name of the attacker that resolves to 127.0.0.1 would be."""
    address = explorer.url.replace("127.0.0.1", ALIAS)
    chrome.get(address)
    assert "421: this page is not at" in chrome.find_element(By.TAG_NAME, "body").text
    assert chrome.get_cookies() == []
    with ng.explore(path, browser=False, allow_host=[ALIAS]) as tunnelled:
        chrome.get(tunnelled.url.replace("127.0.0.1", ALIAS))
        assert drawn(chrome)
        assert "token" not in chrome.current_url


ATTEMPTS = """
var page = arguments[0], done = arguments[1], json = {"Content-Type": "application/json"};
function element(kind, path) {
  return new Promise(function (yes, no) {
    var made = document.createElement(kind);
    made.onload = yes; made.onerror = no; made.src = page + path;
    document.body.append(made);
  });
}
Promise.allSettled([
  fetch(page + "/_dash-layout", {credentials: "include"}),
  fetch(page + "/_dash-layout", {credentials: "include", mode: "no-cors"})
    .then(function (answer) { if (answer.type === "opaque") throw "not to be read"; }),
  fetch(page + "/_dash-update-component",
    {method: "POST", credentials: "include", headers: json, body: "{}"}),
  element("script", "/_dash-layout"),
  element("img", "/_favicon.ico"),
  new Promise(function (yes, no) {
    var made = new WebSocket(page.replace("http", "ws") + "/");
    made.onopen = yes; made.onerror = no;
  })
]).then(function (all) { done(all.map(function (one) { return one.status; })); });"""


def test_other_pages_get_nothing_of_it(chrome, explorer, elsewhere):
    """With the cookie in the same browser: as data, a script, a picture, a socket."""
    folder, port = elsewhere
    (folder / "evil.html").write_text("<!doctype html>")
    page = f"http://127.0.0.1:{explorer.port}"
    chrome.get(explorer.url)
    assert drawn(chrome)
    for name in ("127.0.0.1", "localhost"):
        chrome.get(f"http://{name}:{port}/evil.html")
        asked = chrome.execute_async_script(ATTEMPTS, page)
        assert asked == ["rejected"] * 6, name
