"""Data sets, streams and loaders: every item is one sample, none is dropped or guessed."""

import collections
import datetime
import enum
import pathlib

import numpy as np
import pytest
import torch
from helpers import small
from helpers.small import NET, X, extract, rows, values
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

import nrm_graph as ng
from nrm_graph.extraction import input_labels, loaders, samples
from nrm_graph.extraction.samples import items

PAIRS = [(X[i], i) for i in range(5)]


class Stream(IterableDataset):
    def __init__(self, count=5, fails=None):
        self.count, self.fails = count, fails

    def __iter__(self):
        for i in range(self.count):
            if i == self.fails:
                raise OSError("truncated\nfile")
            yield X[i], i


class Sized(Stream):
    def __len__(self):
        return self.count


class Broken(Dataset):
    def __init__(self, *fails, count=5):
        self.fails, self.count = fails, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i in self.fails:
            raise OSError("truncated\nfile")
        return X[i], i


def read(inputs):
    """Rows of X and labels, in order; failures by name."""
    found, failed = [], {}
    for name, item in items(inputs):
        if isinstance(item, Exception):
            failed[name] = item
            continue
        fields = samples.fields_of(item, name)
        number = int((fields["input"] == X).all(1).nonzero()[0])
        found.append((number, fields.get("label")))
    return found, failed


def plain(found):
    return [(n, None if label is None else int(label)) for n, label in found]


# --- forms ------------------------------------------------------------------------------------

Named = collections.namedtuple("Named", "input label")
Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "inputs",
    [
        PAIRS,
        (pair for pair in PAIRS),
        Stream(),
        Sized(),
        collections.deque(PAIRS),
        [Named(x, y) for x, y in PAIRS],
        [Point(x, y) for x, y in PAIRS],
        [(x.numpy(), np.int64(y)) for x, y in PAIRS],
        DataLoader(PAIRS, batch_size=None),
        DataLoader(PAIRS, batch_size=1),
        DataLoader(PAIRS, batch_size=2),
        DataLoader(PAIRS, batch_size=5),
        DataLoader(Stream(), batch_size=2),
        DataLoader(Sized(), batch_size=None),
        DataLoader([(x.numpy(), y) for x, y in PAIRS], batch_size=2),
        DataLoader([(x.numpy(), y) for x, y in PAIRS], batch_size=None),
        DataLoader([{"input": x, "label": y} for x, y in PAIRS], batch_size=2),
        DataLoader([Named(x, y) for x, y in PAIRS], batch_size=2),
        DataLoader([Point(x, y) for x, y in PAIRS], batch_size=2),
        DataLoader(PAIRS, batch_sampler=BatchSampler(SequentialSampler(PAIRS), 3, False)),
        # functions of the user's own
        DataLoader(PAIRS, batch_size=2, collate_fn=lambda b: b),
        DataLoader(PAIRS, batch_size=3, collate_fn=lambda b: [Named(*pair) for pair in b]),
        DataLoader(
            PAIRS, batch_size=2, collate_fn=lambda b: [{"input": x, "label": y} for x, y in b]
        ),
        DataLoader(PAIRS, batch_size=2, collate_fn=lambda b: tuple(zip(*b, strict=True))),
        DataLoader(
            PAIRS,
            batch_size=2,
            collate_fn=lambda b: (torch.stack([x for x, _ in b]), [y for _, y in b]),
        ),
        DataLoader(
            PAIRS,
            batch_size=2,
            collate_fn=lambda b: {"input": np.stack([x for x, _ in b]), "label": [y for _, y in b]},
        ),
    ],
    ids=lambda value: None,
)
def test_the_same_items_in_every_form(inputs):
    found, failed = read(inputs)
    assert not failed
    assert plain(found) == [(i, i) for i in range(5)]


@pytest.mark.parametrize(
    "inputs",
    [
        X[:5],
        X[:5].numpy(),
        X[:5].double().numpy().astype(">f4"),
        np.asfortranarray(X[:5].numpy()),
        list(X[:5].numpy()),
        DataLoader(X[:5], batch_size=2),
        DataLoader(X[:5], batch_size=2, collate_fn=np.stack),
        DataLoader(X[:5], batch_size=3, collate_fn=lambda b: b),
        DataLoader(list(X[:5]), batch_size=2, collate_fn=lambda b: (torch.stack(b), None)),
    ],
    ids=lambda value: None,
)
def test_the_same_inputs_without_labels(inputs):
    found, failed = read(inputs)
    assert not failed
    assert plain(found) == [(i, None) for i in range(5)]


def test_a_loader_takes_back_what_pytorch_collates():
    hot = torch.eye(4)
    rows_ = [
        {
            "input": X[i],
            "label": [i, 1],  # collated by columns: as many columns as items
            "tokens": ["a", f"b{i}"],
            "split": "train",
            "more": {"hot": hot[i], "pair": (i, "x")},
        }
        for i in range(2)
    ]
    found = [item for _, item in items(DataLoader(rows_, batch_size=2))]
    for i, item in enumerate(found):
        assert [int(v) for v in item["label"]] == [i, 1]
        assert item["tokens"] == ["a", f"b{i}"]
        assert item["split"] == "train"
        assert item["more"]["hot"].tolist() == hot[i].tolist()
        assert [int(item["more"]["pair"][0]), item["more"]["pair"][1]] == [i, "x"]
    several = DataLoader([(X[i], i, "name") for i in range(3)], batch_size=3)
    assert [(int(n), text) for _, (_, n, text) in items(several)] == [(i, "name") for i in range(3)]


def test_what_all_of_a_batch_share_is_not_taken_apart():
    def collate(batch):
        return {"input": torch.stack(batch), "split": "train", "fold": 3, "none": None}

    for _, item in items(DataLoader(list(X[:4]), batch_size=2, collate_fn=collate)):
        assert (item["split"], item["fold"], item["none"]) == ("train", 3, None)


@pytest.mark.parametrize(
    ("collate", "message"),
    [
        (
            lambda b: [x[:2] for x in b],
            "may be two inputs, or inputs and their labels: let collate_fn give",
        ),
        (lambda b: {"x": torch.stack(b)}, "is a mapping with x: expected the inputs as 'input'"),
        (lambda b: {"input": torch.stack(b), "label": [1]}, "'label' has 1 entries for 2 inputs"),
        (lambda b: {"input": "text"}, "holds str as 'input'"),
    ],
)
def test_batches_that_cannot_be_taken_apart(tmp_path, collate, message):
    with pytest.raises(ng.InputError, match=f"batch 0 of the loader.*{message}"):
        extract(tmp_path / "s", DataLoader(list(X[:4]), batch_size=2, collate_fn=collate))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "inputs must be a data set, a data loader or an iterable of inputs, found NoneType"),
        (3, "found int"),
        ("photos", "found str"),
        ({"input": X[0]}, "found dict"),
        (NET[0], "found Linear"),
        (X[0], r"inputs is of shape \(8,\): its first axis must count the inputs"),
        (np.float32(3), "found float32"),
        ([], "there are no inputs"),
        (iter([]), "there are no inputs"),
        (DataLoader([], batch_size=2), "there are no inputs"),
        ([None], "item 0: an input must be a tensor.*found NoneType"),
        (["a.png"], "item 0.*found str"),
        ([(X[0], 1, 2)], "item 0.*found tuple"),
        ([{"image": X[0], "y": 1}], "item 0.*found a mapping with image, y"),
        ([{"input": "a.png"}], "item 0.*found str"),
        ([np.array(["a"])], "item 0: expected numbers, found an array of <U1"),
        ([np.array([None])], "item 0: expected numbers, found an array of object"),
        ([X[0].to(torch.complex64)], "expected real numbers"),
        ([{"input": X[0], "key": X[0]}], "item 0: a key must be text or a number, found Tensor"),
        ([X[0], X[:3]], r"input 'item 1' has shape \(3, 8\): a batch of 3, expected one input of"),
        ([X[0], X[0, :4]], r"input 'item 1' has shape \(4,\), expected \(8,\)"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_what_are_no_inputs_is_told_in_a_line(tmp_path, inputs, message):
    with pytest.raises(ng.NrmError, match=message) as caught:
        extract(tmp_path / "s.nrm", inputs)
    assert "\n" not in str(caught.value)


def test_lengths_that_a_bar_shows():
    for inputs, count in (
        (PAIRS, 5),
        (Stream(), None),
        (Sized(), 5),
        (DataLoader(PAIRS, batch_size=2), 5),
        (DataLoader(PAIRS, batch_size=2, drop_last=True), 4),
        (DataLoader(PAIRS, batch_size=None), 5),
        (DataLoader(Stream(), batch_size=2), None),
        (DataLoader(Sized(), batch_size=2), 5),
        (DataLoader(PAIRS, batch_sampler=[[0, 1, 2], [3]]), None),
    ):
        assert samples.length(inputs) == count, inputs
    assert samples.indexed(PAIRS)
    assert samples.indexed(X)
    for inputs in (Sized(), DataLoader(PAIRS), iter(PAIRS), {"a": 1}, {1, 2}):
        assert not samples.indexed(inputs)


# --- items that fail --------------------------------------------------------------------------

ENDS = r"item 2 cannot be read: OSError: truncated; a stream ends with an item that fails, so it"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (Broken(2), "item 2 cannot be read: OSError: truncated"),
        (DataLoader(Broken(2), batch_size=1), r"item 2 \(batch 2\) cannot be read: OSError: trunc"),
        (DataLoader(Broken(2), batch_size=2), r"item 2 \(batch 1\) cannot be read: OSError: trunc"),
        (DataLoader(Broken(2), batch_size=None), "item 2 cannot be read: OSError: truncated"),
        (Stream(fails=2), ENDS),
        (iter(Stream(fails=2)), ENDS),
        (DataLoader(Stream(fails=2), batch_size=None), ENDS),
        (DataLoader(Stream(fails=3), batch_size=2), r"batch 1 \(from item 2 on\) cannot be read"),
        (Broken(0), "item 0 cannot be read: OSError: truncated"),
    ],
    ids=lambda value: None,
)
def test_an_item_that_fails_is_named_by_its_place(tmp_path, inputs, message):
    with pytest.raises(ng.InputError, match=message) as caught:
        extract(tmp_path / "s.nrm", inputs, batch_size=2)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("size", [None, 1, 2, 3, 5])
def test_in_a_loader_too_an_item_that_fails_is_skipped_alone(tmp_path, size):
    loader = DataLoader(Broken(1, 4), batch_size=size)
    with extract(tmp_path / "s.nrm", loader, on_error="skip") as db:
        assert rows(db) == [(0, "0"), (2, "2"), (3, "3")]
        names = [key for key, _ in db.sql("SELECT * FROM failures ORDER BY key").fetchall()]
        assert [name.split(" (")[0] for name in names] == ["item 1", "item 4"]


class NoLength(Dataset):
    def __getitem__(self, i):
        return X[range(3)[i]]


class Stuck:
    """A sampler that fails for ever."""

    def __iter__(self):
        return self

    def __next__(self):
        raise ValueError("no more")

    def __len__(self):
        return 2


def test_loaders_that_cannot_go_on_end(tmp_path):
    for n, (loader, what) in enumerate(
        (
            (DataLoader(NoLength(), batch_size=2), "TypeError: object of type 'NoLength' has no"),
            (DataLoader(PAIRS, batch_size=1, sampler=Stuck()), "ValueError: no more"),
            (DataLoader(PAIRS, batch_size=None, sampler=Stuck()), "ValueError: no more"),
        )
    ):
        for on_error in ("stop", "skip"):
            with pytest.raises(ng.InputError, match=f"cannot be read: {what}"):
                extract(tmp_path / f"{n}.nrm", loader, on_error=on_error)
    found, failed = read(NoLength())
    assert plain(found) == [(0, None), (1, None), (2, None)]
    assert not failed


def test_a_batch_that_cannot_be_stacked_is_read_one_by_one(tmp_path):
    data = [(X[0], None), (X[1], 1), (X[2, :5], 2), (X[3], "text")]
    loader = DataLoader(data, batch_size=2)
    with extract(tmp_path / "s.nrm", loader, on_error="skip") as db:
        assert rows(db) == [(0, None), (1, "1"), (3, "text")]
        ((name, error),) = db.sql("SELECT * FROM failures").fetchall()
        assert name == "item 2 (batch 1)"
        assert "has shape (5,), expected (8,)" in error


def test_the_users_own_function_collates_what_is_read_one_by_one(tmp_path):
    def collate(batch):
        return {"input": torch.stack([x for x, _ in batch]), "label": [f"c{y}" for _, y in batch]}

    loader = DataLoader(Broken(1), batch_size=2, collate_fn=collate)
    with extract(tmp_path / "s.nrm", loader, on_error="skip") as db:
        assert rows(db) == [(0, "c0"), (2, "c2"), (3, "c3"), (4, "c4")]


def test_what_cannot_be_skipped_is_said_and_what_is_committed_stays(tmp_path):
    for n, inputs in enumerate((Stream(fails=3), DataLoader(Stream(fails=4), batch_size=3))):
        path = tmp_path / f"{n}.nrm"
        with pytest.raises(
            ng.InputError, match="so it cannot be skipped, and what was stored before stays"
        ):
            extract(path, inputs, on_error="skip", batch_size=2)
        with ng.open(path) as db:
            assert rows(db) == [(0, "0"), (1, "1"), (2, "2")]
    torch.manual_seed(0)
    shuffled = DataLoader(Broken(3), batch_size=2, shuffle=True)
    with pytest.raises(ng.InputError, match="does not say which of its items failed, so it cannot"):
        extract(tmp_path / "x.nrm", shuffled, on_error="skip")
    alone = DataLoader(Broken(3), batch_size=1, shuffle=True)
    with extract(tmp_path / "y.nrm", alone, on_error="skip") as db:
        assert sorted(label for _, label in rows(db)) == ["0", "1", "2", "4"]


def test_where_nothing_can_be_read_the_first_reason_is_given(tmp_path):
    for inputs in (Broken(0, 1, 2, count=3), DataLoader(Broken(0, 1, 2, count=3), batch_size=2)):
        with pytest.raises(
            ng.InputError,
            match=r"no input could be read; the first of 3: item 0.* cannot be read: OSError",
        ):
            extract(tmp_path / "s.nrm", inputs, on_error="skip")
        assert not (tmp_path / "s.nrm").exists()
    with pytest.raises(ng.InputError, match=r"no input could be read; the first of 1: .*NaN"):
        extract(tmp_path / "s.nrm", [torch.full((8,), torch.nan)], on_error="skip")


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 2])
def test_loaders_with_processes(tmp_path, batch_size):
    options = {"batch_size": batch_size, "num_workers": 1}
    with extract(tmp_path / "a.nrm", DataLoader(Stream(), **options)) as db:
        assert rows(db) == [(i, str(i)) for i in range(5)]
    loader = DataLoader(Broken(1), **options)
    with extract(tmp_path / "b.nrm", loader, on_error="skip") as db:
        assert rows(db) == [(i, str(i)) for i in (0, 2, 3, 4)]
    with pytest.raises(ng.InputError, match=r"cannot be read: OSError: truncated|file") as caught:
        extract(tmp_path / "c.nrm", DataLoader(Stream(fails=1), **options))
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


# --- labels -----------------------------------------------------------------------------------


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


def test_reasons_in_one_line():
    assert loaders.reason(OSError()) == "OSError"
    assert loaders.reason(ValueError("a\nb")) == "ValueError: a"
    text = "Caught KeyError in DataLoader worker process 0.\nOriginal Traceback\nKeyError: 'x'\n"
    assert loaders.reason(RuntimeError(text)) == "KeyError: 'x'"
    own = ng.StoreError("full")
    assert loaders.refusal(own, "item 3") is own
    assert type(loaders.refusal(loaders.Ended("x"), "item 3")) is ng.InputError
    assert small.NET is NET
