"""What browsers may do with an answer: nothing from outside, nothing for other pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

STATIC = ("/_dash-component-suites/", "/assets/")
"""Paths of what is the same for every store; their addresses change with their content."""


def content_policy(hosts: Collection[str], scripts: Collection[str]) -> str:
    """Return the Content-Security-Policy of every answer.

    Parameters
    ----------
    hosts : collection of str
        Names, beside those of loopback, whose pages may show this one in a frame.
    scripts : collection of str
        Hashes of inline scripts, as policies have them: Dash has one that starts it.
    """
    # Policies have no way to write IPv6 addresses: there a notebook shows the link alone.
    frames = ["'self'", "http://127.0.0.1:*", "http://localhost:*"]
    frames += [f"{scheme}://{h}:*" for h in hosts if h[0] != "[" for scheme in ("http", "https")]
    rules = {
        "default-src": ["'none'"],
        "script-src": ["'self'", *scripts],
        "style-src": ["'self'", "'unsafe-inline'"],  # Plotly and Dash write style attributes
        "img-src": ["'self'", "data:", "blob:"],
        "font-src": ["'self'", "data:"],
        "connect-src": ["'self'"],
        "form-action": ["'none'"],
        "base-uri": ["'none'"],
        "object-src": ["'none'"],
        "frame-ancestors": frames,
    }
    return "; ".join(f"{name} {' '.join(values)}" for name, values in rules.items())


def answer_headers(policy: str, resources: str = "same-origin") -> dict[str, str]:
    """Return the headers of an answer under this content policy.

    Parameters
    ----------
    policy : str
        As :func:`content_policy` returns it.
    resources : str
        Whose pages may load the answer: ``same-origin`` or ``cross-origin``.
    """
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": resources,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def cached(path: str) -> dict[str, str]:
    """Return the headers that let a browser keep what holds nothing of a store."""
    return {"Cache-Control": "private, max-age=3600"} if path.startswith(STATIC) else {}
