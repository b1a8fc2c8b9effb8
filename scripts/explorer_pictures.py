"""Make the pictures of the explorer that the README shows, from a store of the demo.

    nrm-graph demo DIR && python scripts/explorer_pictures.py DIR/STORE.nrm

Needs Debian's ``chromium`` and ``chromium-driver``.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

from PIL import Image

import nrm_graph as ng
from nrm_graph.explorer.address import Address

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers import browser  # noqa: E402
from helpers.explorer_pages import Looked  # noqa: E402

COLOURS = 256
PICTURES = {
    "flow": (
        Address(view="flow", input="test-00045", nodes=13, event="features.6[15]"),
        ".units",
    ),
    "gallery": (Address(outcome="wrong"), ".card"),
    "circuit": (
        Address(view="circuit", where="label = 'sneaker'", edges=40),
        ".circuit-edges",
    ),
}


def main(store: str) -> None:
    """Look at each view, and save what a window of 1280 x 800 shows."""
    with browser.chrome() as chrome, ng.explore(store, browser=False) as explorer:
        looked = Looked(chrome, explorer)
        for name, (address, selector) in PICTURES.items():
            looked.open(address, selector)
            looked.settled()
            time.sleep(1)  # figures are drawn
            path = ROOT / "docs" / f"explorer-{name}.png"
            with Image.open(io.BytesIO(chrome.get_screenshot_as_png())) as image:
                image.convert("RGB").quantize(COLOURS).save(path, optimize=True)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
