"""Who may ask the page: every route and unknown ones, by whatever a request says of itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from helpers.tiny_stores import make, record, write
from werkzeug.datastructures import Headers
from werkzeug.test import EnvironBuilder

import nrm_graph as ng
from nrm_graph.errors import InputError
from nrm_graph.explorer import app as application
from nrm_graph.explorer.guard import LARGEST_BODY, Guard
from nrm_graph.explorer.jobs import Jobs
from nrm_graph.explorer.policy import STATIC

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.smoke

TOKEN = "t0ken-of-this_server"
HOST = "127.0.0.1:8050"
UNKNOWN = ["/nothing", "//evil.example/", "/..%2f..", "/export/none", "/favicon.ico", "/robots.txt"]
NAVIGATION = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@dataclass(frozen=True)
class Reply:
    code: int
    headers: Any
    text: str


def ask(guard: Any, path: str, method: str = "GET", /, **headers: str | None) -> Reply:
    """Ask it; a header None is not sent, names have _ for -."""
    given = {"Host": HOST, **{name.replace("_", "-"): v for name, v in headers.items()}}
    environ = EnvironBuilder(method=method).get_environ()
    environ.pop("HTTP_HOST")
    environ["REQUEST_URI"] = path
    environ["PATH_INFO"], _, environ["QUERY_STRING"] = path.partition("?")
    for name, value in given.items():
        if value is not None:
            environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
    if (length := environ.pop("HTTP_CONTENT_LENGTH", None)) is not None:
        environ["CONTENT_LENGTH"] = length
    return run(guard, environ)


def run(guard: Any, environ: dict[str, Any]) -> Reply:
    """Call it as a server does."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    body = guard(environ, lambda status, headers, *error: started.append((status, headers)))
    text = b"".join(body).decode("utf-8", "replace")
    (getattr(body, "close", None) or (lambda: None))()
    ((status, headers),) = started
    return Reply(int(status[:3]), Headers(headers), text)


def cookie_of(guard: Guard, host: str = HOST) -> str:
    """Exchange the token."""
    reply = ask(guard, f"/?token={TOKEN}", Host=host)
    assert reply.code == 303
    return str(reply.headers["Set-Cookie"]).partition(";")[0]


@pytest.fixture(scope="module")
def dash_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = write(make(tmp_path_factory.mktemp("guard") / "s.nrm"), [record(0)])
    with ng.open(path) as db:
        yield application.create((db,), Jobs())


@pytest.fixture(scope="module")
def guard(dash_app: Any) -> Guard:
    return Guard(dash_app.server, TOKEN, ("Box.example.org", "[fd00::1]"), dash_app.csp_hashes())


@pytest.fixture(scope="module")
def paths(dash_app: Any) -> list[str]:
    """Every route of the page, with something for its variables, and paths that have none."""
    rules = [re.sub(r"<[^>]*>", "x", rule.rule) for rule in dash_app.server.url_map.iter_rules()]
    assert {"/", "/_dash-layout", "/_dash-update-component", "/assets/x"} <= set(rules)
    assert any("_dash-component-suites" in rule for rule in rules)
    return [*rules, *UNKNOWN]


FOREIGN_HOSTS = ["evil.example", "evil.example:8050", "127.0.0.1.evil.example", "localhost.evil.io"]
FOREIGN_HOSTS += ["127.0.0.2", "0.0.0.0", "127.1", "2130706433", "0x7f000001", "[::]", "[::2]:8050"]
MALFORMED_HOSTS = [None, "", f"{HOST},{HOST}", f"{HOST},evil.example", "localhost.", "127.0.0.1:"]
MALFORMED_HOSTS += ["user@127.0.0.1", "127.0.0.1:8050@evil.example", "evil.example@127.0.0.1"]
MALFORMED_HOSTS += ["127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:8050:1", "127.0.0.1:80a"]
MALFORMED_HOSTS += [
    "127.0.0.1/",
    "127.0.0.1\\@x",
    "127.0.0.1 ",
    "::1",
    "[::1",
    "loca\u017fhost",
    "%31",
]
FOREIGN_ORIGINS = ["null", "", "http://evil.example", "https://evil.example:8050", "file://", "*"]
FOREIGN_ORIGINS += [f"ftp://{HOST}", f"http://{HOST}/", f"http://{HOST}, http://{HOST}", HOST]
FOREIGN_ORIGINS += ["http://127.0.0.1:8051", "http://localhost:8050", "http://127.0.0.1"]
FOREIGN_ORIGINS += [f"http://user@{HOST}", f"http://{HOST}.evil.example", "chrome-extension://x"]

REFUSED: dict[str, tuple[int, list[dict[str, str | None]]]] = {
    "a foreign Host": (421, [{"Host": host} for host in FOREIGN_HOSTS]),
    "no Host or a malformed one": (400, [{"Host": host} for host in MALFORMED_HOSTS]),
    "a foreign Origin": (403, [{"Origin": origin} for origin in FOREIGN_ORIGINS]),
    "another site": (
        403,
        [
            {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
            for site in ("cross-site", "same-site", "strange")
            for mode, dest in (
                ("no-cors", "script"),
                ("cors", "empty"),
                ("cors", "document"),
                ("navigate", "object"),
                ("websocket", "websocket"),
            )
        ]
        + [{**NAVIGATION, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "iframe"}],
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_foreign_requests_are_refused_on_every_route(guard, paths, what):
    """With the right cookie, and on the front page with the right token, too."""
    code, requests = REFUSED[what]
    session = cookie_of(guard)
    for headers in requests:
        for path in (*paths, f"/?token={TOKEN}"):
            for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
                reply = ask(guard, path, method, Cookie=session, **headers)
                assert reply.code == code, (headers, path, method)
                assert "Set-Cookie" not in reply.headers
                assert TOKEN not in reply.text


def test_another_site_leads_to_the_front_page_alone(guard, paths):
    session = cookie_of(guard)
    for site in ("cross-site", "same-site"):
        for path in paths:
            reply = ask(guard, path, Cookie=session, Sec_Fetch_Site=site, **NAVIGATION)
            assert reply.code == (200 if path == "/" else 403), path
    assert (
        ask(guard, "/", "POST", Cookie=session, Sec_Fetch_Site="cross-site", **NAVIGATION).code
        == 403
    )


@pytest.mark.parametrize("wrong", ["none", "empty", "another", "token", "name", "half", "longer"])
def test_a_cookie_is_needed_on_every_route(guard, paths, wrong):
    other = Guard(lambda environ, start: [], TOKEN)
    right = cookie_of(guard)
    cookie = {
        "none": None,
        "empty": "nrm_graph_8050=",
        "another": cookie_of(other),  # of the same port and token: another server, or an earlier
        "token": f"nrm_graph_8050={TOKEN}",
        "name": right.replace("8050", "8051"),
        "half": right[:-1],
        "longer": f"{right}\u00e9",
    }[wrong]
    for path in paths:
        for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "BREW"):
            for more in ({}, {"Upgrade": "websocket", "Connection": "Upgrade"}):
                reply = ask(guard, path, method, Cookie=cookie, **more)
                assert reply.code == 401, (path, method)
                assert "Set-Cookie" not in reply.headers


@pytest.mark.parametrize("path", ["/_dash-layout", "/assets/x", "/nothing", "//", "/index"])
def test_a_token_opens_the_front_page_alone(guard, path):
    assert ask(guard, f"{path}?token={TOKEN}").code == 401
    assert ask(guard, f"/?token={TOKEN}", "POST").code == 401


@pytest.mark.parametrize(
    "query",
    [
        "token=",
        "token",
        "token=wrong",
        f"token={TOKEN}x",
        f"token={TOKEN[:-1]}",
        f"token={TOKEN}&token=wrong",
        f"token=wrong&token={TOKEN}",
        f"token={TOKEN}&%74oken={TOKEN}",
        "token=%ff%00\u00e9",
    ],
)
def test_a_wrong_token_is_refused(guard, query):
    for cookie in (None, cookie_of(guard)):
        reply = ask(guard, f"/?{query}", Cookie=cookie)
        assert reply.code == 403
        assert "Set-Cookie" not in reply.headers


@pytest.mark.parametrize(
    ("query", "left"),
    [
        (f"token={TOKEN}", "/"),
        (f"token={TOKEN}&view=flow&event=a%5B1%5D+%26+~b", "/?view=flow&event=a%5B1%5D+%26+~b"),
        (f"view=sql&token={TOKEN}&query=", "/?view=sql&query="),
        (f"%74oken={TOKEN}&a=%0d%0aX:1&b=\r\nY:%201", "/?a=%0d%0aX:1&b=%0D%0AY:%201"),
    ],
)
def test_a_token_is_exchanged_for_a_cookie(guard, query, left):
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "QUERY_STRING": query, "HTTP_HOST": HOST}
    reply = run(guard, environ)
    assert (reply.code, reply.headers["Location"]) == (303, left)
    assert TOKEN not in f"{reply.text}{reply.headers}"
    name, *attributes = reply.headers["Set-Cookie"].split("; ")
    assert name.startswith("nrm_graph_8050=")
    assert attributes == ["Path=/", "HttpOnly", "SameSite=Strict"]
    reply = ask(guard, left, Cookie=f"other=1; nrm_graph_8050=tossed; {name}")
    assert reply.code == 200
    assert "_dash-config" in reply.text


def test_a_token_that_comes_from_another_site_leads_on_by_itself(guard):
    """A browser keeps SameSite=Strict cookies from what another site's link is redirected to."""
    path = f"/?token={TOKEN}&view=flow&x=%22%3E%3Cscript%3E"
    reply = ask(guard, path, Sec_Fetch_Site="cross-site", **NAVIGATION)
    assert reply.code == 200
    assert "Location" not in reply.headers
    assert 'content="0;url=/?view=flow&amp;x=%22%3E%3Cscript%3E"' in reply.text
    assert TOKEN not in reply.text
    assert ask(guard, "/?view=flow", Cookie=reply.headers["Set-Cookie"]).code == 200


def test_pages_and_data_are_there_with_the_cookie(guard, dash_app):
    session = cookie_of(guard)
    page = ask(guard, "/?view=gallery", Cookie=session)
    assert page.code == 200
    for source in re.findall(r'(?:src|href)="(/[^"]*)"', page.text):
        reply = ask(guard, source, Cookie=session)
        assert reply.code == 200, source
        static = source.startswith(STATIC)
        assert reply.headers["Cache-Control"] == ("private, max-age=3600" if static else "no-store")
    assert ask(guard, "/_dash-layout", Cookie=session).headers["Cache-Control"] == "no-store"
    assert ask(guard, "/_dash-dependencies", Cookie=session).code == 200
    assert ask(guard, "/assets/none.js", Cookie=session).headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost"},
        {"Host": "LOCALHOST:1"},
        {"Host": "127.0.0.1:65535"},
        {"Host": "[::1]:9000"},
        {"Host": "box.example.org"},
        {"Host": "BOX.example.org:443", "Origin": "https://box.example.org:443"},
        {"Host": "[fd00::1]:80"},
        {"Origin": f"http://{HOST}"},
        {"Host": "localhost:9000", "Origin": "http://localhost:9000"},
        {"Origin": "https://box.example.org"},  # of a tunnel that rewrites Host
        {"Sec-Fetch-Site": "none", **NAVIGATION},
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
        {"X-Forwarded-Host": "evil.example", "X-Forwarded-For": "1.2.3.4"},
    ],
)
def test_names_of_this_machine_and_allowed_ones_are_answered(guard, headers):
    session = cookie_of(guard, headers.get("Host", HOST))
    assert ask(guard, "/_dash-layout", Cookie=session, **headers).code == 200


def test_forwarded_names_count_for_nothing(guard):
    session = cookie_of(guard)
    for name in ("X-Forwarded-Host", "X-Host", "Forwarded", "X-Original-Host"):
        reply = ask(guard, "/", Cookie=session, Host="evil.example", **{name: HOST})
        assert reply.code == 421


@pytest.mark.parametrize(
    ("method", "headers", "code"),
    [
        ("PUT", {}, 405),
        ("TRACE", {}, 405),
        ("CONNECT", {}, 405),
        ("get", {}, 405),
        ("POST", {"Content-Length": str(LARGEST_BODY + 1)}, 413),
        ("POST", {"Content-Length": "9" * 5000}, 413),
        ("POST", {"Content-Length": "-1"}, 400),
        ("POST", {"Content-Length": "\u0663"}, 400),
        ("POST", {"Content-Length": "3,3"}, 400),
        ("POST", {"Transfer-Encoding": "chunked"}, 411),
        ("POST", {"Content-Length": "0"}, 405),
    ],
)
def test_methods_and_bodies_are_limited(guard, method, headers, code):
    reply = ask(guard, "/_dash-layout", method, Cookie=cookie_of(guard), **headers)
    assert reply.code == code


EXPECTED = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def test_every_answer_has_the_strict_policy(guard, paths):
    session = cookie_of(guard)
    replies = [ask(guard, path, m, Cookie=session) for path in paths for m in ("GET", "HEAD")]
    replies += [ask(guard, "/"), ask(guard, "/?token=x"), ask(guard, f"/?token={TOKEN}")]
    replies += [ask(guard, "/", Host="evil.example"), ask(guard, "/", Host=None)]
    assert {reply.code for reply in replies} >= {200, 303, 400, 401, 403, 404, 421}
    for reply in replies:
        for name, value in EXPECTED.items():
            assert reply.headers.getlist(name) == [value]
        (policy,) = reply.headers.getlist("Content-Security-Policy")
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
        assert re.fullmatch(r"'self'( 'sha256-[\w+/=]+')+", rules["script-src"])
        assert rules["connect-src"] == "'self'"
        assert rules["frame-ancestors"] == (
            "'self' http://127.0.0.1:* http://localhost:* "
            "http://box.example.org:* https://box.example.org:*"
        )
        assert not [name for name, _ in reply.headers if name.startswith("Access-Control")]
        if reply.code != 200:
            assert reply.headers["Cache-Control"] == "no-store"


def test_a_notebook_on_another_port_sees_that_the_page_is_there(guard):
    """It may load the refusal, which holds nothing, and no answer."""
    seen = {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "empty"}
    reply = ask(guard, "/", Cookie=cookie_of(guard), **seen)
    assert (reply.code, reply.headers["Cross-Origin-Resource-Policy"]) == (403, "cross-origin")


def test_an_error_of_the_page_is_a_sentence(capsys):
    def broken(environ: Any, start: Any) -> list[bytes]:
        assert "HTTP_COOKIE" not in environ  # nothing that answers knows the secret
        raise RuntimeError("secret detail")

    guard = Guard(broken, TOKEN)
    reply = ask(guard, "/", Cookie=cookie_of(guard))
    assert reply.code == 500
    assert reply.text.startswith("500: ")
    assert "secret" not in reply.text
    assert reply.headers["Content-Security-Policy"]
    assert "RuntimeError: secret detail" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["*", "", "http://x", "x:80", "x/y", "x y", "x;y", "x'y", "a@b"])
def test_hosts_to_allow_are_names(host):
    with pytest.raises(InputError, match="without scheme and port"):
        Guard(lambda environ, start: [], TOKEN, (host,))
