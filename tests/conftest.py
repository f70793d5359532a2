"""Small programs are compiled often here and run briefly: compile them quickly."""

import jax

jax.config.update("jax_disable_most_optimizations", True)
