"""What does a store of many edges cost?  Ratios in one run, on stores that generate.py makes.

For both shapes of ``generate.py``, at ``--edges`` and ten times as many: bytes per edge against
DuckDB's default COPY of the same rows; and the strongest 200 edges of one input, as a graph
(``db.subgraph``), through ``db.sql(..., inputs=[key])`` and through plain SQL, whose unit is a bare
read of the input's row groups by pyarrow.  Warm figures are medians over inputs in turn, small and
large store alternating; a cold one is a fresh process whose files the system has been told to drop
from its cache, against the same process with files cached.

    python benchmarks/scale.py [--edges 10e6] [--rounds 20] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow.parquet as pq
from generate import SHAPES, generate

import nrm_graph as ng

if TYPE_CHECKING:
    from collections.abc import Callable

STRONGEST = "SELECT * FROM edges ORDER BY abs(relevance) DESC LIMIT 200"


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def drop_from_cache(path: Path) -> None:
    """Have the system forget the content of a store's files."""
    for file in path.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def fresh(path: str, key: str) -> None:
    """In a process of its own: seconds of importing, opening, and of the first subgraph."""
    start = time.perf_counter()
    import nrm_graph.graphs.subgraph  # noqa: F401 (networkx too, so that it is not counted below)

    imported = time.perf_counter()
    db = ng.open(path)
    opened = time.perf_counter()
    db.subgraph(key, top=200)
    print(imported - start, opened - imported, time.perf_counter() - opened)


def in_fresh_process(path: Path, key: str) -> list[float]:
    """Seconds of the whole process, of opening, and of the first subgraph."""
    command = [sys.executable, __file__, "fresh", str(path), key]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    whole = time.perf_counter() - start
    return [whole, *map(float, done.stdout.split()[1:])]


def bytes_per_edge(shape: str, path: Path) -> None:
    files = sorted((path / "shards").glob("*.edges.parquet"))
    with ng.open(path) as db:
        ((rows,),) = db.sql("SELECT count(*) FROM edges").fetchall()
    stored = sum(file.stat().st_size for file in files) / rows
    # DuckDB's own files of the same rows, in the same order.
    copied = path.with_suffix(".copy.parquet")
    listed = [str(file) for file in files[:4]]
    with duckdb.connect() as con:
        con.execute(f"COPY (SELECT * FROM read_parquet($1)) TO '{copied}'", [listed])
        ((some,),) = con.execute("SELECT count(*) FROM read_parquet($1)", [listed]).fetchall()
    theirs = copied.stat().st_size / some
    copied.unlink()
    print(
        f"{shape}, {rows:,} edges: {stored / theirs:.2f} of DuckDB's default COPY in bytes "
        f"({stored:.2f} against {theirs:.2f} per edge)"
    )


def reading(db: ng.Database, key: str, plain: bool) -> dict[str, float]:
    """Seconds of reading one input's strongest edges, each way once."""
    (identity,) = db._matching(key)
    snapshot = db._snapshot
    first, count = snapshot.entries[identity].edges

    def bare() -> Any:
        with pq.ParquetFile(snapshot.path(snapshot.shard_of[identity], "edges")) as file:
            return file.read_row_groups(list(range(first, first + count)))

    found = {
        "bare read": seconds(bare),
        "db.subgraph": seconds(lambda: db.subgraph(key, top=200)),
        "db.sql, inputs": seconds(lambda: db.sql(STRONGEST, inputs=[key]).fetchall()),
    }
    if plain:
        query = STRONGEST.replace("edges", "edges WHERE input_id = ?")
        found["db.sql, plain"] = seconds(lambda: db.sql(query, params=[identity]).fetchall())
    return found


def one_input(shape: str, paths: dict[str, Path], rounds: int) -> None:
    stores = {size: ng.open(path) for size, path in paths.items()}
    found: dict[tuple[str, str], list[float]] = {}
    for i in range(rounds + 1):
        for size, db in stores.items():
            keys = list(db._snapshot.by_key)
            for name, value in reading(db, keys[(7 * i + 3) % len(keys)], True).items():
                found.setdefault((size, name), []).append(value)
    middle = {place: statistics.median(values[1:]) for place, values in found.items()}
    small, large = paths
    for name in ("db.subgraph", "db.sql, inputs", "db.sql, plain"):
        ratios = [
            a / b
            for a, b in zip(found[large, name][1:], found[large, "bare read"][1:], strict=True)
        ]
        low, _, high = statistics.quantiles(ratios, n=4)
        print(
            f"{shape}, one input's strongest edges at {large}, {name}, warm: "
            f"{statistics.median(ratios):.1f} bare reads (quartiles {low:.1f} to {high:.1f}; "
            f"{1e3 * middle[large, name]:.0f} ms), "
            f"{middle[large, name] / middle[small, name]:.2f} of that at {small}"
        )
    for db in stores.values():
        db.close()


def first_input(shape: str, paths: dict[str, Path], rounds: int) -> None:
    key = "input000000"
    found: dict[tuple[str, str], list[list[float]]] = {}
    for _ in range(max(3, rounds // 4)):
        for size, path in paths.items():
            for state in ("cold", "cached"):
                if state == "cold":
                    drop_from_cache(path)
                found.setdefault((size, state), []).append(in_fresh_process(path, key))
    middle = {
        place: [statistics.median(column) for column in zip(*rows, strict=True)]
        for place, rows in found.items()
    }
    small, large = paths
    for i, name in enumerate(("process with first subgraph", "opening", "first subgraph")):
        cold, cached = middle[large, "cold"][i], middle[large, "cached"][i]
        print(
            f"{shape}, fresh process at {large}, {name}: cold {cold / cached:.2f} of cached "
            f"({1e3 * cold:.0f} ms); cold {cold / middle[small, 'cold'][i]:.2f} of that at {small}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edges", type=float, default=10e6)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="where to make the stores: about 8 bytes/edge")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for shape in SHAPES:
            paths = {}
            for times in (1, 10):
                path = Path(folder) / f"{shape}{times}"
                inputs, rows = generate(path, times * args.edges, shape)
                paths[f"{rows / 1e6:.0f} M edges ({inputs:,} inputs)"] = path
            for path in paths.values():
                bytes_per_edge(shape, path)
            one_input(shape, paths, args.rounds)
            first_input(shape, paths, args.rounds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["fresh"]:
        fresh(*sys.argv[2:])
    else:
        main()
