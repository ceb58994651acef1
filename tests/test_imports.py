"""What importing the library loads, and what it says."""

from __future__ import annotations

import subprocess
import sys

import pytest

# each takes a second or more, or is optional: imported by what needs it, when it is called
LATE = ["brax", "mujoco", "distrax", "tensorflow_probability", "orbax", "gymnax", "gymnasium", "matplotlib", "scipy"]

PROGRAM = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[2:])), end="")
"""


@pytest.mark.parametrize("module", ["jaxrl", "jaxrl.types", "jaxrl.train", "jaxrl.envs", "jaxrl.agents.ppo"])
def test_an_import_is_light_and_silent(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, module, *LATE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
