"""The gallery in a real browser: what its filters leave is what SQL says, and two are chosen."""

from __future__ import annotations

import pytest

from nrm_graph.cli.demo.fashion_cnn import CLASSES
from nrm_graph.explorer.address import Address
from nrm_graph.explorer.parts import number

pytestmark = pytest.mark.slow

NAMES = f"list_extract({list(CLASSES)!r}, predicted + 1)"


def keys(db, where="true"):
    return [
        key for (key,) in db.sql(f"SELECT key FROM inputs WHERE {where} ORDER BY item").fetchall()
    ]


def shows(looked, expected):
    looked.until(lambda: looked.texts(".gallery .card strong") == expected)


def test_filters_leave_what_sql_says(looked, db):
    looked.open(Address(), ".card")
    shows(looked, keys(db))
    (key, label, logit), *_ = db.sql(
        "SELECT key, label, logit FROM inputs ORDER BY item"
    ).fetchall()
    card = looked.texts(".card")[0]
    for text in (key, f"label: {label}", f"predicted: {label}", f"logit {number(logit)}"):
        assert text in card
    looked.pick("label", "trouser")
    shows(looked, keys(db, "label = 'trouser'"))
    looked.follow("without filters")
    shows(looked, keys(db))
    looked.pick("outcome", "predicted wrong")
    wrong = keys(db, f"label <> {NAMES}")
    assert 0 < len(wrong) < len(keys(db)) / 2
    shows(looked, wrong)
    looked.pick("outcome", "any")
    shows(looked, keys(db))
    looked.fill("text", "0001")
    shows(looked, keys(db, "key LIKE '%0001%'"))
    looked.fill("where", "logit < 6")
    shows(looked, keys(db, "key LIKE '%0001%' AND logit < 6"))


def test_a_wrong_condition_is_told_and_mended(looked, db):
    looked.open(Address(), ".card")
    looked.fill("where", "lagel = 3")
    looked.see(".problem")
    assert '"lagel" not found' in looked.texts(".problem")[0]
    assert looked.texts(".card") == []
    looked.fill("where", "label = 'coat'")
    shows(looked, keys(db, "label = 'coat'"))


def test_two_are_chosen_and_compared(looked, db):
    first, _, third, *_ = keys(db)
    looked.open(Address(), ".card")
    looked.one(".card:nth-child(1) .choosing").click()
    looked.until(lambda: first in "".join(looked.texts(".chosen")))
    looked.one(".card:nth-child(3) .choosing").click()
    looked.follow("look at both")
    looked.see(".side")
    heads = looked.until(lambda: looked.texts(".side > h2"))
    assert [head.partition(":")[0] for head in heads] == [first, third]


def test_one_is_picked_by_its_picture(looked, db):
    looked.open(Address(label="bag"), ".card")
    looked.one(".card:nth-child(1) .thumbnail").click()
    looked.until(lambda: looked.texts(".totals dt"))
    (key,) = keys(db, "label = 'bag'")
    assert float(looked.facts()["logit"]) == db.measure(key).logit
