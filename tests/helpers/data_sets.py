"""Data sets of a few rows, some of which cannot be read, and what is read of them."""

from torch.utils.data import Dataset, IterableDataset

from helpers.small import X
from nrm_graph.extraction import samples
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
