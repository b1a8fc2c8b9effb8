"""Who may ask the local page: asked before every route, whatever answers it.

A page of another site that is open in the same browser can send requests to 127.0.0.1, and a name
that resolves to it (DNS rebinding) makes them look like the page's own; another account of the
machine can connect as well.  Hence, in this order:

*Host*
    A loopback name, with any port (of a tunnel, for instance), or one that was allowed by name.
    What proxies say in ``X-Forwarded-*`` counts for nothing, nor does an absolute address in the
    request line.
*Origin*
    Where it is sent, the page's own: the same name and port as Host, or an allowed name, which is
    what a tunnel that rewrites Host sends.  ``null`` is nobody's.
*Sec-Fetch-Site*
    Where it is sent, ``same-origin`` or ``none`` (typed, a bookmark, a terminal).  Another site
    (``cross-site``) or another port of this machine (``same-site``) may only lead to the page
    itself: ``GET /`` as a document, or from another port, where notebooks are, in a frame.
*Token*
    ``GET /?token=...`` sets a cookie and leads on to the address without the token; everything
    else needs the cookie.  The cookie is HttpOnly and SameSite=Strict: no other site's request
    brings it, not even a link to the page, which is why the answer to a token that comes from
    another site is a page that leads on by itself, and no redirect.  It is named after the port,
    so that two explorers do not disturb each other, and its value is no token.
"""

from __future__ import annotations

import hmac
import re
import secrets
import sys
import traceback
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_plus

from nrm_graph.errors import InputError
from nrm_graph.explorer.policy import answer_headers, cached, content_policy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
METHODS = ("GET", "HEAD", "POST", "OPTIONS")
LARGEST_BODY = 1_000_000
"""Bytes of a request."""

_PLACE = re.compile(
    r"(\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?)(?::([1-9][0-9]{0,4}))?",
    re.IGNORECASE | re.ASCII,
)
_ORIGIN = re.compile(r"https?://(.+)", re.IGNORECASE)


@dataclass(frozen=True)
class _Place:
    """What a Host header or an origin names."""

    name: str
    port: str


def _place(text: str) -> _Place | None:
    parts = _PLACE.fullmatch(text)
    if parts is None or int(parts[2] or 0) > 65535:
        return None
    return _Place(parts[1].lower(), parts[2] or "")


def allowed_names(hosts: Iterable[str]) -> tuple[str, ...]:
    """Return names of hosts as requests have them.

    Raises
    ------
    InputError
        If one is not a name or address alone.
    """
    names = []
    for host in hosts:
        place = _place(host)
        if place is None or place.port:
            raise InputError(
                "an allowed host is a name or address without scheme and port, such as "
                f"box.example.org or [fd00::1]; found {host!r}"
            )
        names.append(place.name)
    return tuple(names)


@dataclass(frozen=True)
class _Answer:
    """What the guard answers itself; ``link`` leads on, by itself where ``at_once``."""

    status: str
    text: str
    headers: tuple[tuple[str, str], ...] = ()
    link: str = ""
    at_once: bool = False

    def page(self) -> bytes:
        refresh = f'<meta http-equiv="refresh" content="0;url={escape(self.link)}">'
        link = f'<p><a href="{escape(self.link)}">Open the explorer</a></p>'
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f"{refresh if self.at_once else ''}<title>nrm-graph explore</title></head>"
            f"<body><p>{escape(self.text)}</p>{link if self.link else ''}</body></html>\n"
        ).encode()


class Guard:
    """WSGI application that lets another one answer those who may ask, under a strict policy.

    Parameters
    ----------
    app : WSGI application
        What answers.
    token : str
        What the link holds.
    hosts : collection of str
        Names that Host and Origin may have beside those of loopback.
    scripts : collection of str
        Hashes of the inline scripts of its pages, as content policies have them.

    Raises
    ------
    InputError
        If a host is not a name.
    """

    def __init__(
        self,
        app: WSGIApplication,
        token: str,
        hosts: Collection[str] = (),
        scripts: Collection[str] = (),
    ) -> None:
        self._app = app
        self._token = token
        self._session = secrets.token_urlsafe(32)
        self._named = allowed_names(hosts)
        self._policy = content_policy(self._named, scripts)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request, or refuse it."""
        answer = self._misplaced(environ) or self._unknown(environ) or _unfit(environ)
        if answer is None:
            return self._ask(environ, start_response)
        # A notebook on another port may see whether the page is there, before it shows it; it does
        # not see this answer.  "same-site" would do, but is never true of addresses.
        near = environ.get("HTTP_SEC_FETCH_SITE") == "same-site"
        headers = answer_headers(self._policy, "cross-origin" if near else "same-origin")
        body = answer.page()
        start_response(
            answer.status,
            [
                *answer.headers,
                ("Content-Type", "text/html; charset=utf-8"),
                ("Content-Length", str(len(body))),
                *headers.items(),
            ],
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _misplaced(self, environ: WSGIEnvironment) -> _Answer | None:
        """Refuse what was sent to another name, or by another page."""
        if not environ.get("REQUEST_URI", "/").startswith("/"):
            return _Answer("400 Bad Request", "400: this is no proxy; expected a path.")
        host = _place(environ.get("HTTP_HOST", ""))
        if host is None:
            return _Answer("400 Bad Request", "400: expected one Host, a name and a port.")
        if host.name not in (*LOOPBACK, *self._named):
            return _Answer(
                "421 Misdirected Request",
                f"421: this page is not at {host.name!r}; nrm-graph explore --allow-host "
                "says by which other names it may be reached.",
            )
        if "HTTP_ORIGIN" in environ:
            parts = _ORIGIN.fullmatch(environ["HTTP_ORIGIN"])
            origin = None if parts is None else _place(parts[1])
            if origin is None or (origin != host and origin.name not in self._named):
                return _Answer("403 Forbidden", "403: the request came from another page.")
        if environ.get("HTTP_SEC_FETCH_SITE", "none") in ("none", "same-origin"):
            return None
        return (
            None
            if _leads_here(environ)
            else _Answer("403 Forbidden", "403: another page may open this one, no more.")
        )

    def _unknown(self, environ: WSGIEnvironment) -> _Answer | None:
        """Take a token, or refuse who has no cookie."""
        front = environ.get("PATH_INFO", "/") == "/" and environ["REQUEST_METHOD"] in (
            "GET",
            "HEAD",
        )
        values = environ.get("QUERY_STRING", "").split("&")
        tokens = [v for v in values if unquote_plus(v.partition("=")[0]) == "token"]
        rest = [value for value in values if value and value not in tokens]
        # Quoted again, since it stands in a header; what is quoted already stays as it is.
        here = "/?" + quote("&".join(rest), safe="%&=+/:;,?@!$'()*~") if rest else "/"
        if front and tokens:
            text = unquote_plus(tokens[0].partition("=")[2])
            if len(tokens) != 1 or not _same(text, self._token):
                return _Answer(
                    "403 Forbidden",
                    "403: this is not the token of the explorer that runs now; it has the link "
                    "that was printed when it was started.",
                )
            cookie = f"{_cookie(environ)}={self._session}; Path=/; HttpOnly; SameSite=Strict"
            if environ.get("HTTP_SEC_FETCH_SITE") == "cross-site":
                return _Answer("200 OK", "", (("Set-Cookie", cookie),), here, at_once=True)
            headers = (("Set-Cookie", cookie), ("Location", here))
            return _Answer("303 See Other", "", headers, here)
        pairs = [text.strip().partition("=") for text in environ.get("HTTP_COOKIE", "").split(";")]
        name = _cookie(environ)
        # There may be several of the name: servers on other ports of this machine can set one, too.
        if any(key == name and _same(value, self._session) for key, _, value in pairs):
            return None
        return _Answer(
            "401 Unauthorized",
            "401: the explorer is opened by the link that was printed when it was started "
            "(http://127.0.0.1:.../?token=...). If it was opened in this browser before, go on:",
            link=here if front else "/",
        )

    def _ask(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Let the application answer, which never sees the cookie."""
        environ.pop("HTTP_COOKIE", None)
        own = answer_headers(self._policy)

        def start(status, headers, *error):  # type: ignore[no-untyped-def]
            if status.startswith(("200", "304")) and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
                own.update(cached(environ.get("PATH_INFO", "")))
            names = {name.lower() for name in own}
            others = [pair for pair in headers if pair[0].lower() not in names]
            return start_response(status, [*others, *own.items()], *error)

        try:
            return self._app(environ, start)
        except Exception:
            traceback.print_exc()
            text = b"500: the explorer failed; the terminal where it was started says more.\n"
            kind = ("Content-Type", "text/plain; charset=utf-8")
            start_response("500 Internal Server Error", [kind, *own.items()], sys.exc_info())
            return [text]


def _unfit(environ: WSGIEnvironment) -> _Answer | None:
    """Refuse methods that no route has, and bodies that are large or of unknown size."""
    if environ["REQUEST_METHOD"] not in METHODS:
        allow = (("Allow", ", ".join(METHODS)),)
        return _Answer("405 Method Not Allowed", "405: expected GET or POST.", allow)
    if "HTTP_TRANSFER_ENCODING" in environ:
        return _Answer("411 Length Required", "411: expected the length of the request.")
    length = environ.get("CONTENT_LENGTH") or "0"
    if not (length.isascii() and length.isdigit()):
        return _Answer("400 Bad Request", "400: expected a number as the request's length.")
    if len(length) > 9 or int(length) > LARGEST_BODY:
        return _Answer(
            "413 Content Too Large", f"413: expected at most {LARGEST_BODY:,} bytes in a request."
        )
    return None


def _leads_here(environ: WSGIEnvironment) -> bool:
    """Whether a request of another site or port only opens the page itself."""
    near = environ["HTTP_SEC_FETCH_SITE"] == "same-site"
    return (
        environ["REQUEST_METHOD"] == "GET"
        and environ.get("PATH_INFO") == "/"
        and environ.get("HTTP_SEC_FETCH_MODE") == "navigate"
        and environ.get("HTTP_SEC_FETCH_DEST")
        in (("document", "iframe") if near else ("document",))
    )


def _cookie(environ: WSGIEnvironment) -> str:
    """Name of the cookie: cookies know no port, and a tunnel may have another than the server."""
    place = _place(environ["HTTP_HOST"])
    return f"nrm_graph_{(place and place.port) or 80}"


def _same(first: str, second: str) -> bool:
    """Whether two texts are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(first.encode("utf-8", "replace"), second.encode())
