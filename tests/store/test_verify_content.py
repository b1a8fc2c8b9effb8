"""``verify`` names damage under valid checksums with its shard, input and layer."""

import itertools
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.damaged import (
    build,
    dense,
    edit_json,
    kinds,
    reseal,
    rewrite,
    scaled,
    set_value,
    strongest,
)

import nrm_graph as ng
from nrm_graph.store.format.files import sha256_of
from nrm_graph.store.format.schema import ORDER
from nrm_graph.store.verify import verify


def dropped(rows):
    at = strongest(rows)
    return {name: values[:at] + values[at + 1 :] for name, values in rows.items()}


def doubled(rows):
    at = strongest(rows)
    return {name: values[: at + 1] + values[at:] for name, values in rows.items()}


def reversed_(rows):
    return {name: values[::-1] for name, values in rows.items()}


def balanced(rows):
    """Move relevance along a rectangle of four edges: no sum changes, conditionals tell."""
    keys = zip(*(rows[name] for name in ORDER["edges"]), strict=True)
    at = {key: row for row, key in enumerate(keys)}
    for (dst, src, upper, lower), (_, _, other, low) in itertools.combinations(at, 2):
        ends = [(dst, src, *pair) for pair in itertools.product((upper, other), (lower, low))]
        if other != upper and low > lower >= 0 and all(end in at for end in ends):
            for sign, end in zip((1, -1, -1, 1), ends, strict=True):
                rows["relevance"][at[end]] += sign * 0.01
            return
    raise AssertionError


DAMAGE = {
    "changed node": ("nodes", scaled, "its relevance is"),
    "changed edge": ("edges", scaled, "sum to"),
    "moved relevance": ("edges", balanced, "its conditional relevance says"),
    "changed conditional": (
        "edges",
        lambda rows: set_value("conditional", strongest(rows), lambda q: q * 1.001)(rows),
        "the conditional relevances of unit",
    ),
    "dropped node": ("nodes", dropped, "its relevance is 0 "),
    "dropped edge": ("edges", dropped, "sum to"),
    "node twice": ("nodes", doubled, "is there twice"),
    "edge twice": ("edges", doubled, "is there twice"),
    "nodes not sorted": ("nodes", reversed_, "not sorted"),
    "edges not sorted": ("edges", reversed_, "not sorted"),
    "unit of a node": ("nodes", set_value("unit", 1, 9999), "a unit that its layer has not"),
    "layer of a node": ("nodes", set_value("layer_id", 1, 99), "a layer that the store has not"),
    "unit of an edge": ("edges", set_value("src_unit", -1, 99), "a unit that its layer has not"),
    "layer of an edge": ("edges", set_value("dst_layer", 0, -1), "a layer that the store has not"),
    "group of an edge": ("edges", set_value("dst_layer", 0, 0), "pseudo-unit of the same layer"),
    "pruned": ("edges", set_value("dst_unit", 0, -3), "pseudo-unit of the same layer|is pruned"),
    "other input": ("nodes", set_value("input_id", 0, 5), "of another input"),
    "NaN in an edge": ("edges", set_value("relevance", 3, float("nan")), "row 3 is nan"),
    "infinity in q": ("edges", set_value("conditional", 0, float("inf")), "is inf"),
    "NaN in a node": ("nodes", set_value("relevance", 0, float("nan")), "row 0 is nan"),
    "activation": ("nodes", set_value("activation", 0, None), "an activation is null"),
    "missing q": ("edges", set_value("conditional", 0, None), "relevance is missing"),
    "key": ("inputs", set_value("key", 0, "zz"), "the manifest lists it, the table does not"),
    "input twice": (
        "inputs",
        lambda rows: {k: v + v[:1] for k, v in rows.items()},
        "twice",
    ),
    "logit": ("inputs", set_value("logit", 0, float("nan")), "logit is nan"),
    "score": ("inputs", set_value("score", 0, float("-inf")), "score is -inf"),
    "prediction": ("inputs", set_value("predicted", 0, 3), "the network has 3 outputs"),
    "tensor": (
        "tensors",
        set_value("data", 0, lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        "is not the one that was explained",
    ),
    "shape": ("tensors", set_value("shape", 0, [2, 2]), "expected a tensor of shape"),
    "tensor of another": ("tensors", set_value("key", 0, "zz"), "that the shard does not hold"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A store of single neurons, one shard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        path = tmp_path_factory.mktemp("plain") / "s.nrm"
        return build(path, dense(), 2, (4,))


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_with_valid_checksums_is_named(plain, tmp_path, name):
    path = shutil.copytree(plain, tmp_path / "copy.nrm")
    table, change, text = DAMAGE[name]
    file = rewrite(path, table, change)
    report = verify(path, sample=0)
    hits = [e for e in report.errors if any(part in e.problem for part in text.split("|"))]
    assert hits, report.findings
    assert {e.key for e in report.errors if "twice" not in e.problem} <= {"k0", "k1", "zz"}
    assert hits[0].shard == file.name.split(".")[0]
    assert {e.file for e in report.errors} <= {file.name, None}
    if table in ORDER:
        assert len({e.key for e in report.errors}) == 1  # the other input is sound
        if "layer" not in name and "other" not in name and "NaN" not in name and "inf" not in name:
            assert hits[0].layer is not None


def test_the_same_damage_without_checksums_is_named_twice(plain, tmp_path):
    path = shutil.copytree(plain, tmp_path / "copy.nrm")
    file = rewrite(path, "edges", scaled, sealed=False)
    report = verify(path, sample=0)
    # Compressed, the changed rows may take as many bytes as before, or others.
    words = ("SHA-256", "truncated or changed")
    assert [e for e in report.errors if e.file == file.name and any(w in e.problem for w in words)]


@pytest.mark.parametrize("options", [{"resolution": "channel"}, {"coverage": 0.6}, {"top": 40}])
@pytest.mark.parametrize("table", ["nodes", "edges"])
@pytest.mark.parametrize("change", [scaled, dropped])
def test_damage_of_grouped_and_pruned_stores(tmp_path, options, table, change):
    path = build(tmp_path / "s.nrm", count=2, **options)
    rewrite(path, table, change)
    report = verify(path, sample=0)
    assert report.errors
    assert all("sum to" in e.problem or "sums to" in e.problem or "has relevance" in e.problem
               for e in report.errors)  # fmt: skip
    assert all(e.key and e.layer and e.shard for e in report.errors)


@pytest.mark.parametrize("table", ["nodes", "edges"])
def test_page_checksums_name_the_input(plain, tmp_path, table):
    """A bit that was flipped before the manifest was written: only the page's checksum tells."""
    path = shutil.copytree(plain, tmp_path / "copy.nrm")
    file = kinds(path)[f"{table}.parquet"]
    with pq.ParquetFile(file) as opened:
        column = opened.metadata.row_group(1).column(3)
        at = column.data_page_offset + column.total_compressed_size - 1
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    reseal(file)
    (error,) = verify(path, sample=0).errors
    second = json.loads(kinds(path)["json"].read_text())["inputs"][1]["key"]
    assert (error.file, error.key) == (file.name, second)
    assert "cannot be read" in error.problem


def test_pruned_rows_are_checked(tmp_path):
    path = build(tmp_path / "s.nrm", count=2, coverage=0.6)

    def corner(rows):
        pairs = zip(rows["dst_unit"], rows["src_unit"], strict=True)
        at = [i for i, pair in enumerate(pairs) if pair == (-3, -3)]
        row = max(at, key=lambda i: abs(rows["relevance"][i]))
        rows["relevance"][row] *= 1.01

    rewrite(path, "edges", corner)
    assert any("the corner says" in e.problem for e in verify(path, sample=0).errors)
    edit_json(path / "store.json", lambda raw: raw.update(pruned=[]))
    assert any("a pruned row where" in e.problem for e in verify(path, sample=0).errors)


def test_settings_that_the_rows_do_not_keep_to(tmp_path):
    path = build(tmp_path / "s.nrm", count=2, mantissa_bits=8)
    edit_json(path / "store.json", lambda raw: raw.update(mantissa_bits=5))
    assert any("more than 5 mantissa bits" in e.problem for e in verify(path, sample=0).errors)
    path = build(tmp_path / "t.nrm", count=2, top=40)

    def fewer(raw):
        for row in raw["pruned"]:
            row[3] = 5

    edit_json(path / "store.json", fewer)
    assert any("the store keeps 5" in e.problem for e in verify(path, sample=0).errors)


def test_columns_counts_and_row_groups(plain, tmp_path):
    path = shutil.copytree(plain, tmp_path / "copy.nrm")
    file = kinds(path)["nodes.parquet"]
    table = pq.read_table(file)

    def problem(*changed, **written):
        pq.write_table(*changed, file, **written)
        reseal(file)
        return " | ".join(e.problem for e in verify(path, sample=0).errors)

    assert "the columns are not those" in problem(table.drop_columns(["activation"]))
    wide = table.set_column(3, "relevance", table["relevance"].cast(pa.float64()))
    assert "relevance double" in problem(wide)
    assert "belong" in problem(table) or "but there are 1" in problem(table)
    assert "holds no input" not in problem(table)
    both = problem(table, row_group_size=3)
    assert "belongs to no input" in both
    assert "of another input" in both or "sum to" in both
    reseal(file, rows=3)
    assert any("expected 3 rows" in e.problem for e in verify(path, sample=0).errors)


def test_an_edited_program_is_found(plain, tmp_path):
    for name, change in (
        ("weights.safetensors", lambda data: data[:-4] + b"\0\0\0\0"),
        ("program.json", lambda data: data.replace(b"relu", b"tanh")),
    ):
        path = shutil.copytree(plain, tmp_path / f"{name}.nrm")
        file = path / name
        file.write_bytes(change(file.read_bytes()))
        assert [e.file for e in verify(path, sample=0).errors] == [name]

        def described(raw, file=file, name=name):
            raw["files"][name] = {"size": file.stat().st_size, "sha256": sha256_of(file)}

        edit_json(path / "store.json", described)
        assert verify(path, sample=0).sound  # nothing but the program itself can tell
        assert any("cannot be recomputed" in e.problem for e in verify(path).errors)


def test_edited_settings_are_found(plain, tmp_path):
    def composite(raw):
        raw["composite"] = ng.composites.get("excitation_backprop").to_json()

    foreign = "are not those of its program"
    for name, change, text in (
        (
            "kind",
            lambda raw: raw["layers"][1].update(kind="convolution"),
            "are not those of its program",
        ),
        (
            "alias",
            lambda raw: raw["layers"][1].update(aliases=["x9"]),
            "are not those of its program",
        ),
        ("composite", composite, "recomputed, the relevance of"),
        ("groups", lambda raw: raw["groups"].append([2, 0, 3]), foreign),
        ("hash", lambda raw: raw.update(program_hash="0" * 64), "is not the one it was made with"),
    ):
        path = shutil.copytree(plain, tmp_path / f"{name}.nrm")
        edit_json(path / "store.json", change)
        report = verify(path)
        assert any(text in e.problem for e in report.errors), (name, report.findings)
        path = shutil.copytree(plain, tmp_path / f"{name}-unsealed.nrm")
        raw = json.loads((path / "store.json").read_text())
        change(raw)
        (path / "store.json").write_text(json.dumps(raw))
        assert any("it was edited" in e.problem for e in verify(path, sample=0).errors)
    path = build(tmp_path / "channels.nrm", count=1, resolution="channel")
    edit_json(path / "store.json", lambda raw: raw["layers"][1].update(n_units=99))
    assert any("units, expected 99" in e.problem for e in verify(path).errors)
    path = shutil.copytree(plain, tmp_path / "version.nrm")
    edit_json(path / "store.json", lambda raw: raw.update(format_version=3))
    (error,) = verify(path).errors
    assert "format version 3" in error.problem


def test_other_facts_are_recomputed(plain, tmp_path):
    for name, table, change, text in (
        ("logit", "inputs", set_value("logit", 0, lambda v: v + 0.1), "the store says"),
        (
            "prediction",
            "inputs",
            set_value("predicted", 0, lambda v: (v + 1) % 3),
            "the stored prediction is",
        ),
        (
            "activation",
            "nodes",
            set_value("activation", 0, lambda v: v + 1.0),
            "the activation of unit 0",
        ),
    ):
        path = shutil.copytree(plain, tmp_path / f"{name}.nrm")
        rewrite(path, table, change)
        assert verify(path, sample=0).sound
        assert any(text in e.problem for e in verify(path, sample=2).errors), name


def test_flips_of_near_ties_are_notes(tmp_path):
    """Relevance that moves within a channel is noted; what leaves the channel is an error."""
    path = build(tmp_path / "s.nrm", count=1)
    with ng.open(path) as db:
        names = {row["name"]: row["layer_id"] for row in db.meta["layers"]}
        from nrm_graph.store.verify import recompute
        from nrm_graph.store.verify.report import Findings

        m = db.measure("k0")
        nodes = db.sql("SELECT layer_id, unit, relevance, activation FROM nodes").to_arrow_table()
    for other, severity in ((1, "note"), (36, "error")):
        columns = {name: nodes[name].to_numpy().copy() for name in nodes.column_names}
        mine = np.flatnonzero(columns["layer_id"] == names["first"])
        unit = {int(columns["unit"][row]): row for row in mine}
        start = next(u for u in unit if u >= 0 and u + 1 in unit and u % 36 < 35 and u + 36 in unit)
        for u, step in ((start, 0.05), (start + other, -0.05)):
            columns["relevance"][unit[u]] += step
        found = Findings()
        recompute._compare_nodes(m, columns, found, {"key": "k0"})
        assert {finding.severity for finding in found.sorted()} == {severity}
        if severity == "note":
            assert "near-tied max-pools chose other neurons" in found.sorted()[0].problem
            assert "2 of first" in found.sorted()[0].problem
