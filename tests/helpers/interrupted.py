"""Extractions in processes of their own, which their data sets kill or interrupt on the way.

Run as ``python -m helpers.interrupted STORE COUNT BATCH WHAT AT [FIRST]``.  ``WHAT`` is

* ``none``: an extraction that nothing disturbs;
* ``kill`` or ``sigint``: item AT of the data set sends SIGKILL or SIGINT to its own process;
* ``step``: the process is killed before the AT-th change of the disk;
* ``wait``: it says ``ready`` and waits for a line before it starts;
* ``flush``: as ``kill``, after everything before item AT has been committed.
"""

import functools
import os
import signal
import sys
from unittest import mock

COUNT = 7
TARGETS = ["predicted", 1]


def network():
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(27, 4),
    ).eval()


class Images:
    """Seeded images; one of them may signal its own process."""

    def __init__(self, count, first=0, sent=None, at=None):
        import torch

        torch.manual_seed(1)
        self.images = torch.rand(count + first, 1, 6, 6)[first:]
        self.first, self.sent, self.at = first, sent, at

    def __len__(self):
        return len(self.images)

    def __getitem__(self, n):
        if n == self.at:
            os.kill(os.getpid(), self.sent)
        return {"input": self.images[n], "key": f"k{n + self.first}", "n": n + self.first}


@functools.cache
def program():
    """The traced network: tracing it takes ten times as long as all the rest."""
    import torch

    from nrm_graph.network.tracing.trace import trace

    return trace(network(), torch.zeros(1, 6, 6))


def extract(path, count, batch, data=None):
    import nrm_graph as ng
    from nrm_graph.network.tracing import trace_as_given

    with mock.patch.object(trace_as_given, "trace", return_value=program()):
        return ng.extract(
            network(),
            Images(count) if data is None else data,
            path,
            composite="epsilon",
            target=TARGETS,
            batch_size=batch,
            progress=False,
        )


def small_shards(inputs=2):
    """Commit after so few inputs, so that shards of a short extraction are several."""
    from functools import partial

    from nrm_graph.extraction import extract as extraction
    from nrm_graph.store.write.writer import Writer

    extraction.Writer = partial(Writer, shard_inputs=inputs)


def commit_every_item(data):
    """Let a data set wait, at every item, until all before it is committed."""
    from nrm_graph.extraction import extract as extraction
    from nrm_graph.store.write.writer import Writer

    class Held(Writer):
        def __enter__(self):
            data.writer = self
            return super().__enter__()

    extraction.Writer = Held
    plain = type(data).__getitem__

    class Flushing(type(data)):
        def __getitem__(self, n):
            if getattr(self, "writer", None) is not None:
                self.writer.flush()
            return plain(self, n)

    data.__class__ = Flushing


def main():
    path, count, batch, what, at = sys.argv[1:6]
    first = int(sys.argv[6]) if len(sys.argv) > 6 else 0
    count, batch, at = int(count), int(batch), int(at)
    sent = {"kill": signal.SIGKILL, "flush": signal.SIGKILL, "sigint": signal.SIGINT}.get(what)
    data = Images(count, first, sent, at)
    small_shards()
    if what == "flush":
        commit_every_item(data)
    if what == "wait":
        import nrm_graph.extraction.extract  # noqa: F401

        print("ready", flush=True)
        sys.stdin.readline()
    try:
        extract(path, count, batch, data)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
