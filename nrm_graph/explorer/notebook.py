"""What a notebook shows of a running explorer: the link, and the page where a frame can work."""

from __future__ import annotations

import json
import secrets
from html import escape

_SCRIPT = """\
(function () {
  var place = document.getElementById(%(place)s), host = location.hostname;
  if (!place || location.protocol !== "http:") return;
  if (host !== "127.0.0.1" && host !== "localhost") return;
  var page = "http://" + host + ":" + %(port)s + "/";
  fetch(page, {mode: "no-cors", credentials: "omit", cache: "no-store"}).then(function () {
    var frame = document.createElement("iframe");
    frame.src = page + %(query)s;
    frame.title = "nrm-graph explorer";
    frame.allow = "clipboard-write; fullscreen";
    frame.style.cssText = "width: 100%%; height: 760px; border: 1px solid #bbb";
    place.replaceChildren(frame);
  }, function () {});
})();"""
"""Puts the page in the place of the hint if the notebook is seen at a loopback name and the port is
there: cookies tell ``localhost`` from ``127.0.0.1``, so the frame has the notebook's own name.
Behind another name, or where the notebook alone comes through a tunnel, the hint stays."""


def output(url: str, port: int) -> str:
    """Return HTML that shows the link, and below it the page or how to reach it.

    Parameters
    ----------
    url : str
        With the token.
    port : int
        Where the server listens.
    """
    place = f"nrm-graph-{secrets.token_hex(8)}"
    values = {"place": place, "port": port, "query": "?" + url.partition("?")[2]}
    script = _SCRIPT % {name: _in_script(value) for name, value in values.items()}
    return (
        f'<p><a href="{escape(url)}" target="_blank" rel="noopener noreferrer">{escape(url)}</a>'
        f'</p><div id="{place}"><p>Open the link in a browser on the machine where this notebook '
        "computes. From another machine, first run there "
        f"<code>ssh -L {port}:127.0.0.1:{port} HOST</code>, where HOST is the one that computes."
        f"</p></div><script>{script}</script>"
    )


def _in_script(value: object) -> str:
    """Write a value into a script: ``</script>`` would end it within a text, too."""
    return json.dumps(value).replace("<", "\\u003c")
