"""Labels of items: a text of any kind, stored, and equal inputs with other labels."""

import datetime
import enum
import pathlib

import numpy as np
import pytest
import torch
from helpers.small import X, extract, rows, values

import nrm_graph as ng
from nrm_graph.extraction import input_labels

pytestmark = pytest.mark.smoke


class Colour(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    TWO = 2


class Silent:
    pass


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (None, None),
        (3, "3"),
        (True, "True"),
        (np.bool_(True), "True"),
        (np.str_("cat"), "cat"),
        (np.float32(0.5), "0.5"),
        (b"cat", "cat"),
        (np.bytes_(b"cat"), "cat"),
        (torch.tensor(3), "3"),
        (torch.tensor([3]), "3"),
        (np.array([3]), "3"),
        (torch.tensor(0.5, requires_grad=True), "0.5"),
        (torch.tensor([1.0, 0.0, 1.0, 0.0]), "[1, 0, 1, 0]"),
        (torch.tensor([1.0, 0.0], requires_grad=True), "[1, 0]"),
        (torch.tensor([True, False]), "[1, 0]"),
        (np.array([1, 0], np.uint8), "[1, 0]"),
        ([1.0, 0, True], "[1, 0, 1]"),
        ((0.25, 0.75), "[0.25, 0.75]"),
        (torch.eye(2), "[[1, 0], [0, 1]]"),
        (torch.eye(2).to_sparse(), "[[1, 0], [0, 1]]"),
        (["cat", "dog"], '["cat", "dog"]'),
        ([], "[]"),
        ({"boxes": torch.ones(1, 2), "name": "cat"}, '{"boxes": [[1, 1]], "name": "cat"}'),
        (Number.TWO, "2"),
        (Colour.RED, "Colour.RED"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (pathlib.PurePosixPath("a/b"), "a/b"),
        (float("nan"), "nan"),
        ([float("nan"), 1e300], "[NaN, 1e+300]"),
    ],
)
def test_labels_of_any_kind_have_a_text(label, text):
    assert input_labels.text(input_labels.plain(label)) == text


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"\xff", "expected UTF-8"),
        (Silent(), "the label of input 'item 0' is a Silent, which has no text of its own"),
        (torch.zeros(512, 512), "too long to be stored"),
    ],
    ids=range(3),
)
def test_labels_without_a_text_are_refused(tmp_path, label, message):
    with pytest.raises(ng.InputError, match=message):
        extract(tmp_path / "s.nrm", [(X[0], label)])
    nested = []
    nested.append(nested)
    with pytest.raises(ng.InputError, match="nested more than"):
        input_labels.plain(nested)


def test_labels_are_stored_and_name_targets(tmp_path):
    data = [(X[0], None), (X[1], torch.tensor([0.0, 1.0])), (X[2], "dog"), (X[3], torch.tensor(2))]
    with extract(tmp_path / "s.nrm", data) as db:
        assert rows(db) == [(0, None), (1, "[0, 1]"), (2, "dog"), (3, "2")]
    classes = ["cat", "dog", "owl", "fox"]
    named = [(X[0], "dog"), (X[1], b"fox"), (X[2], np.str_("cat")), (X[3], np.int64(3))]
    with extract(tmp_path / "t.nrm", named, target="label", classes=classes) as db:
        assert [t for (t,) in rows(db, "target")] == [1, 3, 0, 3]
    for label, message in (
        (torch.tensor([1.0, 0, 1, 0]), r"the label of input '.*' is \[1, 0, 1, 0\]: expected one"),
        (["dog"], r"is \[\"dog\"\]: expected one class"),
        (None, "has no label"),
        (np.bool_(True), "True of input .* is not a class name"),
        ("cow", "'cow' of input .* is not a class name"),
        (0.5, "0.5 of input .* is not a class name"),
        (9, "out of range"),
    ):
        with pytest.raises(ng.InputError, match=message):
            extract(tmp_path / "x.nrm", [(X[0], label)], target="label", classes=classes)


# --- equal inputs -----------------------------------------------------------------------------

TWO = r"item {} and {} hold the same input.* with different labels, '2' and {}: .*key="


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_equal_inputs_with_other_labels_are_refused(tmp_path, batch_size):
    def refused(name, data, message, **options):
        with pytest.raises(ng.InputError, match=message):
            extract(tmp_path / name, data, batch_size=batch_size, **options)

    data = [(X[0], 1), (X[1], 3), (X[0], 2)]
    refused("a.nrm", data, TWO.format(2, "item 0", "'1'"))
    refused("b.nrm", [X[0], (X[0], 2)], TWO.format(1, "item 0", "none"))
    keyed = [{"input": X[0], "key": "k", "label": y} for y in (1, 2)]
    refused("c.nrm", keyed, "hold the same input under the key 'k' with different labels")
    path = tmp_path / "d.nrm"
    extract(path, data[:2]).close()
    refused("d.nrm", data[2:], TWO.format(0, r"one that is stored \(item 0\)", "'1'"))
    refused("d.nrm", data[2:], TWO.format(0, r"one that is stored \(item 0\)", "'1'"), target=2)
    with extract(path, data, on_error="skip", batch_size=batch_size) as db:
        assert rows(db) == [(0, "1"), (1, "3")]
        ((name, error),) = db.sql("SELECT * FROM failures").fetchall()
        assert name == "item 2"
        assert "with different labels" in error


def test_equal_inputs_with_one_label_or_keys_of_their_own(tmp_path):
    data = [(X[0], 1), (X[0], torch.tensor(1)), X[0], (X[1], 2)]
    with extract(tmp_path / "s.nrm", data, target=0) as db:
        assert rows(db) == [(0, "1"), (3, "2")]
    with extract(tmp_path / "s.nrm", data, target=1) as db:
        assert rows(db) == [(0, "1"), (0, "1"), (3, "2"), (3, "2")]
    own = [{"input": X[0], "key": f"k{y}", "label": y} for y in (1, 2)]
    with extract(tmp_path / "t.nrm", own) as db:
        assert rows(db) == [(0, "1"), (1, "2")]
    extract(tmp_path / "u.nrm", [X[0]], target=0).close()
    with pytest.raises(ng.InputError, match="'2' and none"):  # it would be lost
        extract(tmp_path / "u.nrm", [(X[0], 2)], target=0)
    with extract(tmp_path / "u.nrm", [(X[0], 2)], target=1) as db:
        assert rows(db, "target, label", "target") == [(0, None), (1, "2")]
        assert values(db) == {0: 0}


def test_verify_tells_of_keys_with_two_labels(tmp_path):
    from helpers import tiny_stores

    path = tiny_stores.make(tmp_path / "s.nrm")
    tiny_stores.write(path, [tiny_stores.record(0, 0, label="cat")])
    tiny_stores.write(path, [tiny_stores.record(0, 1, label="dog")])
    with ng.open(path) as db:
        notes = [n.problem for n in db.verify(sample=0).notes]
    assert any(note.startswith("its label is 'dog', in the shard") for note in notes)
