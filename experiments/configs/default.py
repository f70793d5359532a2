"""Any method with the paper's settings: `--config=experiments/configs/default.py:<method>`.

`--config=experiments/configs/<method>.py` says the same; no method needs a file of its own.
"""

from qam_jax.agents import get_config

__all__ = ["get_config"]
