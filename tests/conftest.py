"""Small programs are compiled often here and run briefly: compile them quickly, and once."""

import os
import tempfile

import jax

_CACHE = tempfile.TemporaryDirectory(prefix="qam_jax_test_programs_")  # goes with the process

os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name  # of the processes that tests start
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_configure(config):
    """Files with the fewest tests have the longest: they are not to be left to the end."""
    config.option.loadscopereorder = False
