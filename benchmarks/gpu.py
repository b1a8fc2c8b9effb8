"""What does an input of a network of real size cost on an accelerator, and where does time go?

The networks of ``networks.py``, each in a process of its own; one line of times and one of memory.
The network's own training step on the accelerator (forward and full backward of a batch, by input)
is 1; beside it an input's extraction at the default bound, with everything written, and its parts:
``forward``; ``pass``, the relevance pass; ``selection`` of the strongest edges; ``rows``, what is
left of the tables: copies to the host and rows; ``rest``, inputs, set-up of batches and waiting for
the writer.  ``writing`` goes on beside them, in a thread.  Parts are of a run of their own in which
the host waits for the accelerator before and after each, which ``whole`` does not.

    python benchmarks/gpu.py [--rounds 5] [--batch-size 8] [--max-edges auto] [names ...]

Nothing has been measured with it yet: no accelerator was at hand.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import networks

import nrm_graph as ng
from nrm_graph.extraction import batches
from nrm_graph.propagation import relevance_pass
from nrm_graph.store.write.shard import OpenShard
from nrm_graph.tables.bounded import Budget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PARTS = {
    "forward": ((batches, "forward"),),
    "rows": ((batches, "sample_tables"),),
    "pass": ((relevance_pass, "relevance_pass"),),
    "selection": ((Budget, "add"), (Budget, "keep")),
    "writing": ((OpenShard, "add"), (OpenShard, "commit")),
}
"""Functions that are timed; of one within another the outer has what is left."""


def seconds(call: Callable[[], object]) -> float:
    """Seconds until the accelerator has done what a call asked of it."""
    torch.accelerator.synchronize()
    start = time.perf_counter()
    call()
    torch.accelerator.synchronize()
    return time.perf_counter() - start


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Time the parts of what runs inside."""
    spent: dict[str, float] = defaultdict(float)
    own = threading.local()
    before = []

    def timing(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if part == "writing":  # in its thread the host waits for nothing
                start = time.perf_counter()
                try:
                    return function(*args, **options)
                finally:
                    spent[part] += time.perf_counter() - start
            outer, own.inside = getattr(own, "inside", 0.0), 0.0
            torch.accelerator.synchronize()
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                torch.accelerator.synchronize()
                taken = time.perf_counter() - start
                spent[part] += taken - own.inside
                own.inside = outer + taken

        return call

    for part, places in PARTS.items():
        for place, name in places:
            function = getattr(place, name)
            before.append((place, name, function))
            setattr(place, name, timing(part, function))
    try:
        yield spent
    finally:
        for place, name, function in before:
            setattr(place, name, function)


def measured(name: str, rounds: int, batch_size: int, max_edges: str) -> str:
    """Lines of one network."""
    network, x, composite, _ = networks.NETWORKS[name]()
    program = ng.trace(network, x)
    device = torch.accelerator.current_accelerator()
    network = network.to(device)
    size = batch_size
    batch = x.to(device).expand(size, *x.shape[1:]).contiguous()
    folder = Path(tempfile.mkdtemp())
    options: dict[str, Any] = {
        "composite": composite,
        "max_edges": networks.bound(max_edges),
        "batch_size": size,
        "device": device,
        "progress": False,
    }

    def training_step() -> None:
        networks.training_step(network, batch)

    def extract(number: int, store: str) -> None:
        networks.extract(program, x, number, folder / store, options)

    short, long = size, 4 * size
    extract(short, "first")
    training_step()
    torch.accelerator.reset_peak_memory_stats()
    extract(short, "peak")
    peak = torch.accelerator.max_memory_allocated() / (1 << 30)
    ratios: dict[str, list[float]] = defaultdict(list)
    steps = []
    for k in range(rounds):
        # One input's own cost: what is done once is done in both.
        one, many = (seconds(lambda n=n, k=k: extract(n, f"{k} {n}")) for n in (short, long))
        with timed() as of_short:
            watched_short = seconds(lambda k=k: extract(short, f"{k} short"))
        with timed() as of_long:
            watched_long = seconds(lambda k=k: extract(long, f"{k} long"))
        steps.append(seconds(training_step) / size)
        parts = {part: of_long[part] - of_short[part] for part in PARTS}
        rest = watched_long - watched_short - sum(parts.values()) + parts["writing"]
        for part, value in {"whole": many - one, **parts, "rest": rest}.items():
            ratios[part].append(value / (long - short) / steps[-1])
    shown = ", ".join(f"{part} {statistics.median(values):.2f}" for part, values in ratios.items())
    step = statistics.median(steps) * 1e3
    return (
        f"{name:<20} batches of {size}: {shown} (step {step:.1f} ms an input)\n"
        f"{'':<20} peak {peak:.2f} GB of the accelerator's memory, weights of the step among it"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="networks to measure; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-edges", default="auto")
    parser.add_argument("--here", action="store_true", help="in this process")
    args = parser.parse_args()
    if not torch.accelerator.is_available():
        print("there is no accelerator here that torch can use: nothing is measured")
        return
    options = {"rounds": args.rounds, "batch_size": args.batch_size, "max_edges": args.max_edges}
    networks.in_processes(__file__, args, measured, **options)


if __name__ == "__main__":
    main()
