"""What a process that a test starts must find: the package under test, and these helpers."""

import os
from pathlib import Path

import nrm_graph

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
PACKAGES = [str(Path(nrm_graph.__file__).parents[1]), str(TESTS)]


def environment(**changes):
    """Variables for a process of one thread."""
    found = os.pathsep.join(PACKAGES)
    return {**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": "1", **changes}
