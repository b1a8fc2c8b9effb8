"""What does a class circuit cost?  Ratios in one run, on stores that generate.py makes.

``db.circuit("label = 'c3'", top=200)`` and its first query, the sum of every edge, against DuckDB's
bare scan-and-group of the same files and inputs (to Arrow, as many threads), in turn and warm; and
peak memory of fresh processes that aggregate every input of a store, with DuckDB limited to
1 GB and not limited (Linux only).

    python benchmarks/circuits.py [--edges 10e6] [--rounds 5] [--folder FOLDER]

A circuit remembers the size of the inputs' strongest edges, so that each round opens the store
anew; ``again`` is a circuit of the same inputs in the same database.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
from generate import SHAPES, generate

import nrm_graph as ng
from nrm_graph.circuits.sums import edge_partials
from nrm_graph.store.input_group import group

if TYPE_CHECKING:
    from collections.abc import Callable

WHERE = "label = 'c3'"
KEYS = "dst_layer, dst_unit, src_layer, src_unit"


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bare_query(db: ng.Database, ids: list[int]) -> str:
    """Scan and group the files that hold the inputs; the cheapest way DuckDB has."""
    files = {str(db._snapshot.path(db._snapshot.shard_of[i], "edges")) for i in ids}
    listed = ", ".join(f"'{file}'" for file in sorted(files))
    chosen = "" if len(ids) == len(db) else f"WHERE input_id IN ({', '.join(map(str, ids))})"
    return (
        f"SELECT {KEYS}, sum(relevance) AS total FROM read_parquet([{listed}]) {chosen} "
        f"GROUP BY {KEYS}"
    )


def times(path: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of every candidate in every round; the first, which warms up, is left out."""
    found: dict[str, list[float]] = {}
    bare = duckdb.connect()
    for _ in range(rounds + 1):
        with ng.open(path) as db:
            chosen = group(db, WHERE)
            query = bare_query(db, chosen.ids.tolist())
            candidates = {
                "bare scan-and-group": lambda q=query: bare.sql(q).to_arrow_table(),
                "sum of every edge": lambda d=db, g=chosen: edge_partials(d, g, sums=("total",)),
                "all five sums": lambda d=db, g=chosen: edge_partials(d, g),
                "class circuit": lambda d=db: d.circuit(WHERE, top=200),
                "class circuit, again": lambda d=db: d.circuit(WHERE, top=200),
            }
            for name, call in candidates.items():
                found.setdefault(name, []).append(seconds(call))
    bare.close()
    return {name: values[1:] for name, values in found.items()}


def circuits(name: str, path: Path, rounds: int) -> None:
    found = times(path, rounds)
    for candidate in list(found)[1:]:
        pairs = zip(found[candidate], found["bare scan-and-group"], strict=True)
        ratios = sorted(a / b for a, b in pairs)
        print(
            f"{name}, {candidate}: {statistics.median(ratios):.2f} of a bare scan-and-group "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


def peak(path: str, limit: str) -> None:
    """In a process of its own: aggregate all inputs, and print the peak memory in MiB (Linux)."""
    if limit != "none":
        connect = duckdb.connect
        duckdb.connect = lambda *args, **options: connect(
            *args, **{**options, "config": {**options.get("config", {}), "memory_limit": limit}}
        )
    with ng.open(path) as db:
        db.circuit(top=200, mixed_targets=True)
        ((set_to,),) = (
            db._reader._con.cursor().execute("SELECT current_setting('memory_limit')").fetchall()
        )
    # Not ru_maxrss, which starts at the size of the process that this one was forked from.
    status = Path("/proc/self/status").read_text()
    used = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(used, set_to)


def memory(shape: str, paths: dict[str, Path]) -> None:
    for limit in ("1GB", "none"):
        peaks = {}
        for name, path in paths.items():
            command = [sys.executable, __file__, "peak", str(path), limit]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            used, *set_to = done.stdout.split()
            peaks[name] = float(used)
        small, large = paths
        print(
            f"{shape}, circuit of all inputs, DuckDB limited to {' '.join(set_to)}: peak memory "
            f"{peaks[large]:.0f} MiB at {large}, {peaks[large] / peaks[small]:.2f} of that at "
            f"{small}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edges", type=float, default=10e6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to make the stores: about 8 bytes/edge")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for shape in SHAPES:
            paths = {}
            for scale in (1, 10):
                path = Path(folder) / f"{shape}{scale}"
                inputs, rows = generate(path, scale * args.edges, shape)
                name = f"{rows / 1e6:.0f} M edges ({inputs:,} inputs)"
                paths[name] = path
                circuits(f"{shape}, {name}", path, args.rounds)
            memory(shape, paths)


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        peak(*sys.argv[2:])
    else:
        main()
