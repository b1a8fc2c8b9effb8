"""The gallery: what its cards and counts say is what SQL says, and nothing else is read."""

import io
import json
import re
import urllib.request

import numpy as np
import pytest
from helpers import tiny_stores
from helpers.explored import kinds, links, of_class, problems, texts, walk
from PIL import Image

import nrm_graph as ng
from nrm_graph.explorer import as_sql, gallery
from nrm_graph.explorer.address import Address, from_query
from nrm_graph.explorer.answers import Answers
from nrm_graph.explorer.page import Page
from nrm_graph.explorer.stored_texts import strip, tame
from nrm_graph.store.read.snapshot import Snapshot

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><b>",
    "'; DROP TABLE inputs; --",
    "k" * 4096,
    "\u202egnp.exe",
    "two\nlines",
    '\U0001f9e8 & "quotes" $text ?',
]
ANSWERS = Answers()  # of all tests: what the filters list stays the same
WORDS = ["a", "very", "dull", "film", "but", "the", "cast", "is", "good"]


def page(*stores, **values):
    return Page(Address(view="gallery", **values), stores, ANSWERS)


def cards(tree):
    return of_class(tree, "card")


def keys(tree):
    return [from_query(of_class(card, "look")[0].href).input for card in cards(tree)]


def layers(shape):
    rows = [dict(row) for row in tiny_stores.LAYERS]
    rows[0] |= {"shape": list(shape), "n_units": int(np.prod(shape))}
    return rows


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """120 inputs of 3 x 5 pixels, a third of them predicted wrong."""
    path = tiny_stores.make(tmp_path_factory.mktemp("images") / "s.nrm", layers=layers((1, 3, 5)))
    rng = np.random.default_rng(0)
    records = [
        tiny_stores.record(
            i,
            target=i % 2,
            key=f"{i:03d}",
            label=["cat", "dog", "dog"][i % 3] if i % 10 else None,
            content=None,
            tensor=rng.random((1, 3, 5)).astype(np.float32),
            metadata={"name": "of a column", "words": "too"},
            item=i,
            flags=("small_logit",) if i == 4 else (),
        )
        for i in range(120)
    ]
    for record in records:
        object.__setattr__(record, "content", tiny_stores.content_hash(record.tensor))
    with ng.open(tiny_stores.write(path, records)) as db:
        yield db


@pytest.fixture(scope="module")
def texts_store(tmp_path_factory):
    """Token texts and several targets of a key; no tensors."""
    path = tiny_stores.make(tmp_path_factory.mktemp("texts") / "s.nrm")
    records = [
        tiny_stores.record(
            i,
            target=target,
            key=key,
            label=HOSTILE[-1 - i],
            tensor=False,
            metadata={"tokens": [*WORDS, key[:300]], "<b>field": "1"},
        )
        for i, key in enumerate(HOSTILE)
        for target in (0, 1)
    ]
    with ng.open(tiny_stores.write(path, records)) as db:
        yield db


def test_cards_say_what_the_table_says(images):
    tree = gallery.render(page(images))
    table = images.inputs.df().set_index("key").sort_index()
    assert keys(tree) == table.index[: gallery.SHOWN].tolist()
    for key, card in zip(keys(tree), cards(tree), strict=True):
        row, text = table.loc[key], texts(card)
        predicted = images.classes[row.predicted]
        assert f"predicted: {predicted}" in text
        assert f"logit {row.logit:.4g}" in text
        assert ("explained" in text) == (row.predicted != row.target)
        if not isinstance(row.label, str):
            assert "label" not in text
            assert not of_class(card, "outcome")
        else:
            assert f"label: {row.label}" in text
            word = "right" if row.label == predicted else "wrong"
            assert of_class(card, word)
    assert [key for key, c in zip(keys(tree), cards(tree), strict=True) if of_class(c, "chip")] == [
        "004"
    ]
    assert "small logit" in texts(cards(tree)[4])


@pytest.mark.parametrize(
    ("filters", "condition"),
    [
        ({"label": "cat"}, "label = 'cat'"),
        ({"prediction": "dog"}, "predicted = 1"),
        ({"outcome": "right"}, "label = ['cat', 'dog'][predicted + 1]"),
        ({"outcome": "wrong"}, "label <> ['cat', 'dog'][predicted + 1]"),
        ({"text": "11"}, "contains(key, '11')"),
        ({"text": "DO"}, "label = 'dog'"),
        ({"where": "logit > 30 OR key = '002'"}, "logit > 30 OR key = '002'"),
        (
            {"where": "logit > 30 -- all", "label": "dog", "outcome": "wrong", "text": "1"},
            "logit > 30 AND label = 'dog' AND predicted = 0 AND contains(key, '1')",
        ),
        ({"text": "nowhere' OR true --"}, "false"),
    ],
)
def test_filters_choose_what_sql_does(images, filters, condition):
    expected = images.sql(f"SELECT key FROM inputs WHERE {condition} ORDER BY key").fetchall()
    tree = gallery.render(page(images, **filters))
    assert keys(tree) == [key for (key,) in expected][: gallery.SHOWN]
    said = texts(of_class(tree, "matching"))
    assert (f"of {len(expected)} inputs that match" in said) == bool(expected)
    assert f"120{'' if expected else ' matches'}" in said
    blank = links(tree)["without filters"]
    assert blank == Address()
    options = {c.id["control"]: c for c in walk(tree) if isinstance(getattr(c, "id", None), dict)}
    assert set(options) == {"label", "prediction", "outcome", "text", "where"}
    assert options["label"].options[1] == {"value": "dog", "label": "dog (72)"}


def test_pages(images):
    tree = gallery.render(page(images, label="dog"))
    shown, count = keys(tree), images.sql("SELECT count(*) FROM inputs WHERE label = 'dog'")
    while "next" in links(tree):
        assert len(keys(tree)) == gallery.SHOWN
        tree = gallery.render(Page(links(tree)["next"], (images,), Answers()))
        shown += keys(tree)
    assert len(shown) == len(set(shown)) == count.fetchall()[0][0]
    assert links(tree)["previous"].first == links(tree)["first"].first == 0
    behind = gallery.render(page(images, label="dog", first=10_000))
    assert keys(behind) == keys(tree)  # the last page


def test_only_the_tensors_of_a_page_are_read(images, monkeypatch):
    read, plain = [], Snapshot.tensors
    monkeypatch.setattr(Snapshot, "tensors", lambda s, i: read.append(i) or plain(s, i))
    answers = Answers()
    for _ in range(2):
        tree = gallery.render(Page(Address(first=48), (images,), answers))
    assert len(read) == gallery.SHOWN  # and once
    thumbnail = of_class(cards(tree)[0], "thumbnail")[0].src
    png = io.BytesIO(urllib.request.urlopen(thumbnail).read())  # a data URI
    stored = plain(images._snapshot, images._matching("048")[0])[""][0]
    expected = (255 * (stored - stored.min()) / (stored.max() - stored.min())).round()
    np.testing.assert_array_equal(np.asarray(Image.open(png)), expected)


def test_one_or_two_are_chosen(images):
    def card_links(state, key):
        tree = gallery.render(Page(state, (images,), Answers()))
        return links(cards(tree)[keys(tree).index(key)]), links(tree), tree

    start = Address(label="dog", text="1")
    mine, _, tree = card_links(start, "011")
    assert not of_class(tree, "chosen")
    flow = next(a for a in mine.values() if a.view == "flow")
    assert (flow.input, flow.second, flow.target, flow.label) == ("011", "", "", "dog")
    one = mine["choose"]
    assert one == start.changed(input="011")
    mine, everything, tree = card_links(one, "001")
    assert everything["look at it"] == one.changed(view="flow")
    assert [keys(tree)[i] for i, c in enumerate(cards(tree)) if "chosen-card" in c.className] == [
        "011"
    ]
    two = mine["compare"]
    assert (two.input, two.second) == ("011", "001")
    mine, everything, _ = card_links(two, "011")
    assert everything["look at both"] == two.changed(view="flow")
    assert everything["take away"] == one
    assert mine["chosen: take away"] == start.changed(input="001")
    assert card_links(two, "001")[0]["to compare: take away"] == one


def test_a_key_stands_once_for_each_target(texts_store):
    tree = gallery.render(page(texts_store))
    assert "14 inputs that match, of 7 keys" in texts(of_class(tree, "matching"))
    chosen = [from_query(of_class(card, "look")[0].href) for card in cards(tree)]
    assert {(a.input, a.target) for a in chosen} == {(k, t) for k in HOSTILE for t in "01"}
    for address in chosen:
        (identity,) = set(texts_store._matching(address.input)) & {
            i for i, e in texts_store._snapshot.entries.items() if str(e.aim) == address.target
        }
        assert texts_store._snapshot.entries[identity].aim == int(address.target)
    both = Address(input=HOSTILE[0], target="1", second=HOSTILE[0], second_target="0")
    tree = gallery.render(Page(both, (texts_store,), Answers()))
    assert len(of_class(tree, "chosen-card")) == 2


def test_texts_of_strangers_are_text(texts_store, images):
    tree = gallery.render(page(texts_store))
    shown = texts(tree)
    assert "<script>alert(1)</script>" in shown
    assert "\u202e" not in shown
    assert "\n" not in shown
    assert not kinds(tree) & {"Markdown", "Iframe", "Script", "DangerouslySetInnerHTML"}
    assert not any("dangerously_allow_html" in getattr(c, "_prop_names", ()) for c in walk(tree))
    assert max(len(c) for c in walk(tree) if isinstance(c, str)) < 200
    assert list(map(texts, of_class(cards(tree)[0], "token")))[:4] == WORDS[:4]
    found = gallery.render(page(texts_store, text="Dull FILM"))  # over the tokens
    assert len(cards(found)) == 14
    for key in HOSTILE:
        tree = gallery.render(page(texts_store, text=key, label=key, prediction=key, input=key))
        assert not cards(tree)
        assert {texts(c) for c in cards(gallery.render(page(texts_store, label=key)))}


def test_a_page_of_long_keys_stays_small(tmp_path):
    path = tiny_stores.make(tmp_path / "s.nrm")
    records = [
        tiny_stores.record(i, key=chr(0x4E00 + i) * 1365, tensor=False, label=None)
        for i in range(60)
    ]
    with ng.open(tiny_stores.write(path, records)) as db:
        seen, state = [], Address(input=records[0].key)
        while True:
            tree = gallery.render(Page(state, (db,), Answers()))
            seen += keys(tree)
            assert len(json.dumps([c.to_plotly_json() for c in tree], default=_plain)) < 1_000_000
            if "next" not in links(tree):
                break
            state = links(tree)["next"]
        assert sorted(seen) == sorted(record.key for record in records)


def _plain(component):
    return component.to_plotly_json()


def test_stores_without_tensors_or_images_say_so(tmp_path):
    path = tiny_stores.make(tmp_path / "s.nrm", classes=None)
    rows = [tiny_stores.record(0, tensor=False, label="1", predicted=1), tiny_stores.record(1)]
    with ng.open(tiny_stores.write(path, rows)) as db:
        tree = gallery.render(page(db))
        assert "without tensors" in texts(cards(tree)[0])
        assert "is no image" in texts(cards(tree)[1])
        # Without names a label that is a number is a class, and text is none.
        assert [bool(of_class(c, "right")) for c in cards(tree)] == [True, False]
        assert not of_class(tree, "wrong")
        assert keys(gallery.render(page(db, prediction="1"))) == ["input0"]
        (file,) = (path / "shards").glob("*.tensors.parquet")
        file.write_bytes(b"damaged")
        tree = gallery.render(Page(Address(), (db,), Answers()))
        assert "no picture: " in texts(cards(tree)[1])


def test_outputs_of_several_axes_or_without_a_name(tmp_path):
    rows = layers((3,))
    rows[2] |= {"shape": [2, 2], "n_units": 4}
    path = tiny_stores.make(tmp_path / "places.nrm", layers=rows, groups=[[1, 0, 12], [2, 1, 16]])
    records = [tiny_stores.record(0, predicted=3, label="dog"), tiny_stores.record(1, target=2)]
    with ng.open(tiny_stores.write(path, records)) as db:
        tree = gallery.render(page(db))
        assert "predicted: (1, 1) (dog)" in texts(cards(tree)[0])
        assert "predicted: (1, 0) (cat)" in texts(cards(tree)[1])
        assert not of_class(tree, "outcome")  # of which place is not known
        exported = db.sql(as_sql.gallery(page(db), words=True)).to_arrow_table()
        assert exported["is_right"].to_pylist() == [None, None]
        assert exported["words"].to_pylist() == ["dog", "cat"]
        assert keys(gallery.render(page(db, prediction="dog"))) == ["input0"]
    path = tiny_stores.make(tmp_path / "fewer.nrm", classes=["cat"])
    with ng.open(tiny_stores.write(path, [tiny_stores.record(0, predicted=1)])) as db:
        tree = gallery.render(page(db, prediction="1", outcome="wrong"))
        assert "predicted: 1" in texts(cards(tree)[0])


def test_two_stores(images, texts_store):
    tree = gallery.render(page(images, texts_store, store=1))
    (choice,) = [c for c in walk(tree) if getattr(c, "id", None) == {"control": "store"}]
    assert choice.value == 1
    assert [o["value"] for o in choice.options] == [0, 1]
    assert set(keys(tree)) == set(HOSTILE)
    assert all(from_query(of_class(c, "look")[0].href).store == 1 for c in cards(tree))
    elsewhere = gallery.render(page(images, texts_store, input=HOSTILE[0]))
    assert "not in this store" in texts(of_class(elsewhere, "chosen"))
    assert not [
        c for c in walk(gallery.render(page(images))) if getattr(c, "id", None) == choice.id
    ]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("true) OR (true", "one SQL condition"),
        ("1; DROP TABLE inputs", "only a single SELECT"),
        ("key = 'a' UNION SELECT 1", "one SQL condition|parsed"),
        ("nonsense = 1", "nonsense"),
        ("key = ?", "."),
        ("key = $nothing", "."),
        ("key IN (SELECT content FROM read_text('/etc/passwd'))", "read_text"),
    ],
)
def test_conditions_that_are_none_are_refused(images, where, message):
    tree = gallery.render(page(images, where=where))
    (said,) = problems(tree)
    assert re.search(message, said)
    assert of_class(tree, "controls")  # to mend it


def test_texts_are_cut_and_tamed():
    assert tame("a\u202eb\r\nc\u0000d") == "a␣b␣␣c␣d"
    assert tame("x" * 100, 10) == "x" * 9 + "…"
    assert tame("\U0001f469\u200d\U0001f467") == "\U0001f469\u200d\U0001f467"
    coloured = strip(["good", "bad", "so"], [0.5, -1.0, 0.0])
    shades = [token.style["backgroundColor"] for token in of_class(coloured, "token")]
    assert shades[1] == "#0072b2"  # the end of the scale
    assert int(shades[0][1:3], 16) > int(shades[0][5:7], 16)
    assert "R = -1" in of_class(coloured, "token")[1].title
    assert "and 60 more" in texts(strip(["t"] * 100))
