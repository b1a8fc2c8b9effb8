"""What the topology of well-known networks should be: ``python -m helpers.make_snapshots``.

Read the difference before committing it: a name that changes breaks the queries of every user.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torchvision

from nrm_graph.network.layout import layout
from nrm_graph.network.tracing.trace import trace

FOLDER = Path(__file__).parents[1] / "network" / "snapshots"
NETWORKS = ("vgg16", "resnet18", "densenet121", "vit_b_16", "swin_t")


def program(name: str, size: int = 224) -> Any:
    """Trace a torchvision network with random weights."""
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None)
    return trace(net, torch.randn(1, 3, size, size))


def describe(traced: Any) -> list[str]:
    """One line per layer: name, kind, shape, what it reads with how many edges, aliases."""
    topology = layout(traced).topology
    lines = []
    for layer in topology.layers:
        reads = ", ".join(
            f"{topology.layers[group.src].name} ({group.dense_edges})"
            for group in topology.groups
            if group.dst == layer.layer_id
        )
        also = f" = {', '.join(layer.aliases)}" if layer.aliases else ""
        lines.append(f"{layer.name}: {layer.kind} {list(layer.shape)} <- {reads or '-'}{also}")
    return lines


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in NETWORKS:
        text = json.dumps(describe(program(name)), indent=1)
        (FOLDER / f"{name}.json").write_text(text + "\n")
