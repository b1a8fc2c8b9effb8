"""Prompts in files: what a line, an object or a row is, and what is refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nrm_graph as ng
from nrm_graph.cli.text_files import prompts, read_texts

LINES = st.lists(
    st.text("ab \t\"',{}\\:#\u2028\u202e\x85\x00é漢🙂", max_size=12).filter(str.strip),
    min_size=1,
    max_size=6,
)


@given(LINES)
def test_every_form_gives_the_same_texts(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "a.txt").write_bytes("\n".join(lines).encode())
    rows = [{"text": line, "target": " 42", "n": i} for i, line in enumerate(lines)]
    (folder / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    assert [row["text"] for row in read_texts(folder / "a.txt")] == lines
    for name in ("a.jsonl", "a.parquet"):
        found = read_texts(folder / name)
        assert [{k: v for k, v in row.items() if k != "key"} for row in found] == rows
        assert len({row["key"] for row in found}) == len(rows)


def test_a_csv_keeps_targets_as_text_and_numbers_as_numbers(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text(
        'text,target,against,layer,key\n"The capital, of ""France"" is", Paris,42,3,f\n'
        '"two\nlines",007,,4,t\n'
    )
    assert read_texts(path) == [
        {
            "key": "f",
            "text": 'The capital, of "France" is',
            "target": " Paris",
            "against": "42",
            "layer": 3,
        },
        {"key": "t", "text": "two\nlines", "target": "007", "layer": 4},
    ]


def test_lines_are_called_after_their_numbers(tmp_path):
    path = tmp_path / "my prompts.TXT"
    path.write_bytes("\ufefffirst\r\n\n third \u2028line\n".encode())
    assert read_texts(path) == [
        {"key": "my prompts-00000", "text": "first"},
        {"key": "my prompts-00002", "text": " third \u2028line"},
    ]
    assert prompts(["a", "b"]) == [
        {"key": "prompt-0", "text": "a"},
        {"key": "prompt-1", "text": "b"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.docx", b"x", "expected .txt, .jsonl, .csv, .parquet, or --prompt"),
        ("a.txt", b"\n \n", "holds no text"),
        ("a.txt", b"\xff\xfe", "no text in UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', "line 2 of .* is no JSON"),
        ("a.jsonl", b'{"prompt": "a"}', "line 1 of .*expected an object with 'text'"),
        ("a.jsonl", b'{"text": 3}', "line 1 of .*expected an object with 'text'"),
        ("a.jsonl", b"[" * 100_000, "line 1 of .* is no JSON"),
        ("a.csv", b"prompt\nx\n", "has no column 'text': found prompt"),
        ("a.csv", b"text,text\nx,y\n", "two columns 'text'"),
        ("a.csv", b"text,b\nx\n", "cannot read"),
        ("a.csv", b"text,b\n,1\n", "row 1 of .* has no text"),
        ("a.parquet", b"PAR1", "cannot read"),
    ],
)
def test_what_holds_no_texts_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ng.InputError, match=message):
        read_texts(path)


def test_a_parquet_column_that_is_no_text_is_refused(tmp_path):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(ng.InputError, match="holds int64, expected text"):
        read_texts(tmp_path / "a.parquet")
    with pytest.raises(ng.InputError, match="cannot read"):
        read_texts(tmp_path / "missing.txt")
