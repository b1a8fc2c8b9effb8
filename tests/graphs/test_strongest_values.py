"""The strongest of many values, against a stable sort of all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrm_graph.graphs.largest import largest

pytestmark = pytest.mark.smoke


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.one_of(st.integers(0, 300), st.integers(12_000, 14_000)),
    top=st.sampled_from([1, 2, 63, 64, 65, 200, 1000]),
    distinct=st.sampled_from([1, 3, 50, 10**6]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_it_is_the_head_of_a_stable_sort(seed, count, top, distinct, dtype):
    rng = np.random.default_rng(seed)
    sizes = (rng.integers(0, distinct, count) / distinct).astype(dtype)
    expected = np.argsort(-sizes, kind="stable")[:top]
    np.testing.assert_array_equal(largest(sizes, top), expected)
    ties = rng.permutation(count)
    expected = np.lexsort([ties, -sizes])[:top]
    np.testing.assert_array_equal(largest(sizes, top, [ties]), expected)


@pytest.mark.parametrize("step", [1, 64, 12_800 // 64])
def test_strong_values_that_share_a_block(step):
    """Blocks whose maxima hide all but one of the strongest values."""
    sizes = np.zeros(12_800 + 7)
    places = np.arange(150) * step % 12_800
    sizes[places] = np.arange(150, 0, -1) + 1.0
    expected = np.argsort(-sizes, kind="stable")[:100]
    np.testing.assert_array_equal(largest(sizes, 100), expected)
