"""The shards and SQL of circuits under Apache Spark: the comparison, and a run where it is."""

import importlib.util
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from helpers.processes import ROOT, environment

import nrm_graph as ng
from nrm_graph.circuits import edge_statistics
from nrm_graph.circuits.sums import edge_partials
from nrm_graph.store.input_group import group

sys.path += [str(ROOT / "benchmarks"), str(ROOT / "scripts")]
import generate
import spark_circuit

WHERE = "target < 2"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("spark") / "small.nrm"
    generate.generate(path, 500_000, "small", seed=1)
    return path


@pytest.fixture(scope="module")
def partials(path):
    with ng.open(path) as db:
        return edge_partials(db, group(db, WHERE, mixed_targets=True))


def changed(table, name, change):
    values = table[name].to_numpy().copy()
    values[7] = change(values[7])
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def test_partials_in_another_order_are_the_same(partials):
    order = np.random.default_rng(0).permutation(len(partials))
    assert spark_circuit.largest_difference(partials, partials.take(order)) == 0


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["total", "squares"])
def test_a_sum_that_is_off_in_its_tenth_digit_is_seen(partials, name):
    other = changed(partials, name, lambda value: value * (1 + 1e-10))
    assert spark_circuit.largest_difference(partials, other) > 2


@pytest.mark.parametrize("name", ["n", "positive", "negative", "dst_unit", "src_layer"])
def test_another_count_or_edge_is_seen(partials, name):
    other = changed(partials, name, lambda value: value + 1)
    assert spark_circuit.largest_difference(partials, other) == np.inf
    assert spark_circuit.largest_difference(partials, partials[1:]) == np.inf


def test_circuits_that_differ_in_any_attribute_are_told_apart(path):
    with ng.open(path) as db:
        graph = db.circuit(WHERE, top=20, mixed_targets=True)
    assert spark_circuit.differences(graph, graph.copy()) == []
    edge, node = next(iter(graph.edges)), next(iter(graph.nodes))
    for name, value in graph.edges[edge].items():
        other = graph.copy()
        other.edges[edge][name] = value + 1
        assert len(spark_circuit.differences(graph, other)) == 1
    other = graph.copy()
    other.nodes[node]["relevance"] += 1
    assert len(spark_circuit.differences(graph, other)) == 1
    other.remove_node(node)
    assert spark_circuit.differences(graph, other) == ["the nodes or edges are others"]


@pytest.mark.parametrize("top", [1, 200, 100_000])
def test_the_portable_query_of_limits_is_that_of_duckdb(path, top):
    names = {"edges": "edges", "filter": "", "top": top}
    with ng.open(path) as db:
        ours, theirs = (
            dict(db.sql(query.format(**names)).fetchall())
            for query in (edge_statistics.LIMITS, spark_circuit.LIMITS)
        )
    assert len(ours) > 1
    assert ours == theirs


@pytest.mark.slow
def test_spark_finds_what_duckdb_finds(path):
    if importlib.util.find_spec("pyspark") is None:
        pytest.skip("pyspark is not installed")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("there is no Java")
    command = [sys.executable, str(ROOT / "scripts" / "spark_circuit.py"), str(path)]
    done = subprocess.run(
        [*command, "--where", WHERE, "--top", "50"],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "Spark and DuckDB agree"
    assert lines[-2].endswith(" nodes, 50 edges")
