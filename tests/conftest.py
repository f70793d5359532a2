"""Small programs are compiled often here and run briefly: compile them quickly, and once."""

import os

import jax
import jaxlib
from hypothesis import settings

from qam_jax.training.devices import keep_programs

# LLVM is most of the time of a compilation. Other versions may not know these flags, and end.
if jaxlib.__version__.startswith("0.10."):
    quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
    os.environ["XLA_FLAGS"] = quick + os.environ.get("XLA_FLAGS", "")

settings.register_profile("fast", deadline=None, max_examples=30)
settings.load_profile("fast")


def pytest_configure(config):
    jax.config.update("jax_disable_most_optimizations", True)
    if hasattr(config, "cache"):  # which `-p no:cacheprovider` switches off
        keep_programs(config.cache.mkdir("programs"))  # the next run of the tests finds them
    folder = jax.config.jax_compilation_cache_dir
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder or "")  # for what tests start
    # Files with the fewest tests have the longest: they are not to be left to the end.
    config.option.loadscopereorder = False
