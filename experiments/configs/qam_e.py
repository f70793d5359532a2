"""QAM-E with the paper's settings: QAM whose actions an edit policy corrects by `edit_scale`."""

from functools import partial

from qam_jax import agents

get_config = partial(agents.get_config, "qam_e")

__all__ = ["get_config"]
