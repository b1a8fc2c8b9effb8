"""Where the relevance of every promised family of language models ends: the table of the docs.

Run in the repository: ``python scripts/where_relevance_ends.py``.  Each family is a seeded model of
one layer; shares of the measure are medians over five seeds, under ``attn_lrp`` in float64.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import torch

import nrm_graph as ng

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers import language_models

ENDS = ("tokens", "positions", "types", "biases", "rest")
SEEDS = range(5)


def ends(m: ng.Measure) -> dict[str, float]:
    """Shares of the measure by where its walks end."""
    sums = dict.fromkeys(ENDS, 0.0)
    sums["tokens"] = sum(float(m.marginal(layer.name).sum()) for layer in m.topology.inputs)
    for row in m.constants().to_pylist():
        name = row["constant"]
        positions = "position_embeddings" in name or ".wpe." in name
        kind = "positions" if positions else "types" if "token_type" in name else "biases"
        sums[kind] += row["relevance"]
    sums["rest"] = 1.0 - sum(sums.values())
    return sums


def main() -> None:
    """Print the table."""
    print(f"| family | {' | '.join(ENDS)} |")
    print(f"| --- |{' --- |' * len(ENDS)}")
    for family in language_models.FAMILIES:
        rows = []
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                language_models.save(Path(folder), family, torch.float64, seed=seed)
                lm = ng.load_model(f"hf:{folder}")
                rows.append(ends(ng.measure(lm, language_models.text(family))))
        shares = (statistics.median(row[end] for row in rows) for end in ENDS)
        print(f"| {family} | {' | '.join(f'{share:.2f}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()
