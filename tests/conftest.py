"""Small programs are compiled often here and run briefly: compile them quickly, and once."""

import os

import jax

from qam_jax.training.programs import keep_programs


def pytest_configure(config):
    jax.config.update("jax_disable_most_optimizations", True)
    keep_programs(config.cache.mkdir("programs"))  # the next run of the tests finds them there
    os.environ.setdefault(  # for the processes that tests start
        "JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir)
    )
    # Files with the fewest tests have the longest: they are not to be left to the end.
    config.option.loadscopereorder = False
