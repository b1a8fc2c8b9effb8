"""Is peak memory independent of the number of inputs?  Ratios of fresh processes in one run.

Each count of inputs is extracted by a process of its own, from a generator, into a new store:
the demo network at neuron resolution, and a seeded VGG11 at channel resolution.

    python benchmarks/memory.py
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNTS = {"demo": (8, 64, 10_000), "vgg11": (8, 64)}


def network(name: str) -> tuple[torch.nn.Module, tuple[int, ...]]:
    if name == "demo":
        from nrm_graph.cli.demo.fashion_cnn import load_demo

        return load_demo()[0], (1, 28, 28)
    from torchvision.models import vgg11

    torch.manual_seed(0)
    model = vgg11(weights=None)
    model.classifier = torch.nn.Linear(25088, 10)
    return model, (3, 96, 96)


def extract(name: str, count: int) -> None:
    """Extract random inputs and print the peak resident memory of this process in MiB."""
    import nrm_graph as ng

    model, shape = network(name)
    generator = torch.Generator().manual_seed(0)

    def inputs() -> Iterator[dict[str, object]]:
        for i in range(count):
            yield {"input": torch.rand(shape, generator=generator), "key": str(i)}

    batch = 16 if name == "demo" else 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.nrm"
        ng.extract(model, inputs(), path, batch_size=batch, progress=False).close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10))


def main() -> None:
    for name, counts in COUNTS.items():
        peaks = {}
        for count in counts:
            command = [sys.executable, __file__, name, str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[count] = float(done.stdout)
        few = peaks[counts[0]]
        for count, peak in peaks.items():
            print(f"{name}: peak memory at {count:>6,} inputs: {peak / few:.3f} of that at 8")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        extract(sys.argv[1], int(sys.argv[2]))
    else:
        main()
