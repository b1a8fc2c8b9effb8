"""Items that cannot be read: named by their place, skipped alone, or told why they cannot be."""

import pytest
import torch
from helpers import small
from helpers.data_sets import PAIRS, Broken, Stream, plain, read
from helpers.small import NET, X, extract, rows
from torch.utils.data import DataLoader, Dataset

import nrm_graph as ng
from nrm_graph.extraction import loaders

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


def test_reasons_in_one_line():
    assert loaders.reason(OSError()) == "OSError"
    assert loaders.reason(ValueError("a\nb")) == "ValueError: a"
    text = "Caught KeyError in DataLoader worker process 0.\nOriginal Traceback\nKeyError: 'x'\n"
    assert loaders.reason(RuntimeError(text)) == "KeyError: 'x'"
    own = ng.StoreError("full")
    assert loaders.refusal(own, "item 3") is own
    assert type(loaders.refusal(loaders.Ended("x"), "item 3")) is ng.InputError
    assert small.NET is NET
