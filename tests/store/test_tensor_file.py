"""Tensors are written as the library of the format writes them, byte by byte."""

import numpy as np
import pytest
import safetensors.numpy

from nrm_graph.store.format.tensor_file import tensor_file

RNG = np.random.default_rng(0)
TYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
FILES = {
    "none": {},
    "of every type": {
        f"{name}.{i}": (10 * RNG.standard_normal((2, i))).astype(name)
        for i in (3, 1, 2)
        for name in TYPES
    },
    "numbers and nothing": {"b": np.float32(1).reshape(()), "a": np.zeros((0, 2), np.float32)},
    "names": {n: np.ones(1, "int64") for n in ('"', "\\", "\n\t\x01\x7f", "é", "", "😀", "b", "a")},
    "turned": {"t": RNG.standard_normal((3, 4)).T, "s": np.arange(12, dtype="int32")[::3]},
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", FILES)
def test_bytes_are_those_of_the_library(name):
    tensors = FILES[name]
    expected = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in tensors.items()})
    # NumPy's ascontiguousarray gives a number without axes an axis, which the file must not have.
    alike = {k: v.reshape(tensors[k].shape) for k, v in safetensors.numpy.load(expected).items()}
    assert b"".join(map(bytes, tensor_file(tensors))) == safetensors.numpy.save(alike)


def test_texts_beside_tensors():
    tensors, texts = FILES["turned"], {"a": "b"}
    expected = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    parts = tensor_file(tensors, texts)
    assert b"".join(map(bytes, parts)) == safetensors.numpy.save(expected, texts)


def test_memory_is_shared():
    tensor = np.arange(6, dtype=np.float32)
    assert np.shares_memory(np.asarray(tensor_file({"x": tensor})[1]), tensor)
