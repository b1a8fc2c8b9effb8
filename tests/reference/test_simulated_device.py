"""What would run on an accelerator runs on one that is made of the host's memory.

It is the code that is tested so, not an accelerator: that no tensor is left on the other side, that
the pass does not wait, that programs are traced with the settings that numbers need.  torch then
has an accelerator, so that a process of its own does it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = [str(TESTS / "reference" / name) for name in ("test_devices.py", "simulated_runs.py")]


@pytest.mark.slow
def test_all_that_runs_on_an_accelerator():
    from torch.utils import backend_registration

    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices that are written in Python")
    places = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    environment = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "helpers.simulated_device"]
    done = subprocess.run(
        [*command, "-k", "not cpu", *FILES],
        cwd=TESTS.parent,
        env=environment | {"PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
