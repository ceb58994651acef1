"""Settings of the whole suite."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# jaxlib 0.10 can deadlock where a program has two batched factorisations at once and few threads; processes are enough.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("JAX_DEBUG_KEY_REUSE", "1")  # a key that is used twice is an error, in every test


@pytest.fixture(scope="module", autouse=True)
def programs_of_this_module_alone():
    """Each compiled program holds maps of memory, of which Linux gives a process 65,530: those of old modules go."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture(scope="module")
def compiled_in_a_moment():
    """For tests that take longer to compile than to run: programs are not optimised."""
    from helpers import jax_settings  # imports JAX, for which the settings above are

    with jax_settings(jax_disable_most_optimizations=True):
        yield
