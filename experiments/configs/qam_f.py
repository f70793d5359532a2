"""QAM-F with the paper's settings: QAM acting by a one-step actor, distilled by `fql_alpha`."""

from functools import partial

from qam_jax import agents

get_config = partial(agents.get_config, "qam_f")

__all__ = ["get_config"]
