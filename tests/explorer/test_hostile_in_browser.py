"""Hostile texts in a real browser: as keys, labels, classes, tokens, names and in the address."""

from __future__ import annotations

import pytest
import torch
from helpers.explorer_pages import Looked
from torch import nn

import nrm_graph as ng
from nrm_graph.explorer.address import Address
from nrm_graph.explorer.stored_texts import tame

pytestmark = pytest.mark.slow

TEXTS = [
    "<script>window.ran = 1</script>",
    "</script><b onload='window.ran = 1'>\"",
    "'; DROP TABLE inputs; --",
    '" onmouseover="window.ran = 1',
    "x" * 4096,
    "\u202egnp.txe",
    "line\none\r\n\ttwo",
    "&amp;&lt;b&gt; {{7*7}} %s",
    "<img src=x onerror='window.ran = 1'>",
]
INJECTED = (
    "main script, main b, main i, main iframe, main [onload], main [onerror], main [onmouseover], "
    "main img[src='x'], main a[href^='javascript']"
)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.up, self.head = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, ids):
        return self.head(torch.relu(self.up(self.words(ids))).mean(1))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    torch.manual_seed(1)
    rows = [
        {
            "input": torch.tensor([[(i + j) % 20 for j in range(6)]]),
            "key": key,
            "label": ("x" * 5000 if i == 2 else TEXTS[(i + 3) % len(TEXTS)]),
            "tokens": [TEXTS[(i + 2 * j) % len(TEXTS)] for j in range(6)],
            "<b>field</b>": f"<i>{key[:20]}",
        }
        for i, key in enumerate(TEXTS)
    ]
    classes = [TEXTS[0], TEXTS[5], "long " * 1000, TEXTS[1]]
    path = tmp_path_factory.mktemp("hostile") / "hostile.nrm"
    options = {"composite": "attn_lrp", "classes": classes, "target": [0, 1], "progress": False}
    ng.extract(Words().eval(), rows, path, **options).close()
    ng.name_units(path, "up", {0: TEXTS[0], 1: TEXTS[1], 2: TEXTS[4][:100], 3: TEXTS[7]})
    return path


@pytest.fixture(scope="module")
def looked(chrome, store):
    with ng.explore(store, browser=False) as explorer:
        looked = Looked(chrome, explorer)
        yield looked
        assert looked.serious() == []


def pages():
    group = "target = 1"
    yield "gallery", Address()
    for key in TEXTS[1:6:2]:
        yield "flow", Address(view="flow", input=key, target="1")
    yield (
        "two",
        Address(view="flow", input=TEXTS[0], second=TEXTS[1], target="0", second_target="1"),
    )
    yield "unit", Address(view="unit", unit="up[..., 0]", input=TEXTS[1], target="1")
    yield "circuit", Address(view="circuit", where=group)
    yield "contrast", Address(view="circuit", where=group, against="target = 0")
    yield "sql", Address(view="sql", query="SELECT * FROM inputs", chart="bar")
    for text in (TEXTS[1], TEXTS[5], TEXTS[8], "y" * 5000, "\u05d0\u05d1\u05d2 \u0627\u0644"):
        yield "event", Address(view="flow", input=TEXTS[0], target="1", event=text)
    for text in TEXTS[1:2]:
        yield "where", Address(where=text)
        yield "filters", Address(label=text, prediction=text, text=text)
        yield "unit", Address(view="unit", unit=text)
        yield "circuit", Address(view="circuit", where=group, edge=text, by=text)
        yield "against", Address(view="circuit", where=group, against=text)
        yield "sql", Address(view="sql", query=text)
        yield "input", Address(view="flow", input=text + "?", target=text, watch=text)


def test_texts_stay_texts_on_every_page(looked):
    wrong = []
    for name, address in pages():
        looked.open(address, "main .controls, main .asked, main .problem")
        looked.settled()
        seen = looked.chrome.execute_script(
            "const main = document.querySelector('main').cloneNode(true);"
            "main.querySelectorAll('.copied').forEach((e) => e.remove());"  # code, to be exact
            "const text = main.textContent;"
            "const page = document.documentElement;"
            "return [Array.from(document.querySelectorAll(arguments[0]), (e) => e.outerHTML),"
            " window.ran || null, page.scrollWidth > innerWidth ? [page.scrollWidth] : [],"
            " text.includes('an error of its own'), text.match(/.{0,30}\\u202e/g) || []]",
            INJECTED,
        )
        if seen != [[], None, [], False, []]:
            wrong.append((name, address.query_text()[:300], seen))
    assert wrong == []


def test_they_are_there_to_be_read(looked):
    looked.open(Address(), ".card")
    cards = looked.texts(".card")
    for text in TEXTS:
        assert any(tame(text, 40) in card for card in cards)
    assert looked.texts(".card strong")[0] == TEXTS[0]
    looked.open(Address(view="flow", input=TEXTS[1], target="1"), ".units")
    (head,) = looked.texts(".side > h2")
    assert TEXTS[1] in head
    looked.drawn_units()
    figure = looked.texts(".js-plotly-plot")[0]
    assert "<script>" in figure  # the name of a unit, as letters
    looked.open(Address(view="flow", input=TEXTS[0], target="1", event=TEXTS[1]), ".problem")
    assert looked.event() == TEXTS[1]
    looked.open(Address(view="sql", query="SELECT key FROM inputs"), ".result td")
    assert {row[0] for row in looked.cells(".result")} == {tame(text, 161) for text in TEXTS}
