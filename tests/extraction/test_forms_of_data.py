"""Data sets, streams and loaders: every item is one sample, none is dropped or guessed."""

import collections

import numpy as np
import pytest
import torch
from helpers.data_sets import PAIRS, Sized, Stream, plain, read
from helpers.small import NET, X, extract
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

import nrm_graph as ng
from nrm_graph.extraction import samples
from nrm_graph.extraction.samples import items

pytestmark = pytest.mark.smoke

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
