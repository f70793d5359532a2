"""Times QAM's update beside the paper's: `python benchmarks/paper.py --paper=<checkout>`.

Both run in one process, in turn, in the same configurations and on the same batch of noise. Nothing
of the paper's code is part of this project, see agreement_paper.py.
"""

import argparse
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from agreement_paper import as_windows, load_paper, translate
from measure import interleave
from ml_collections import ConfigDict
from training import compile_update, make_batch, make_config

from qam_jax.types import Batch

_SIZES = {  # config, observation, action
    "paper": (make_config(), 28, 5),
    "humanoid": (make_config(action_chunking=False, horizon_length=1), 69, 21),
    "small": (make_config(128, 2, num_qs=2), 28, 5),
    "tiny": (make_config(8, num_qs=2), 28, 5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paper", required=True, type=Path, help="checkout of the paper's code")
    parser.add_argument("--updates", type=int, default=25, help="of each, timed")
    options = parser.parse_args()
    load_paper(options.paper.expanduser().resolve())
    for name, (config, observation, action) in _SIZES.items():
        batch = make_batch(config, observation, action)
        ours, facts = compile_update(config, observation, action)
        theirs = _theirs(config, batch)
        started = time.perf_counter()
        jax.block_until_ready(theirs())
        first = time.perf_counter() - started
        times = interleave({"ours": ours, "theirs": theirs}, options.updates)
        medians = {which: 1000 * np.median(spent.wall) for which, spent in times.items()}
        print(
            f"{name:9} ours {medians['ours']:7.2f} ms (compiled in {facts['compile_s']:.1f} s), "
            f"the paper's {medians['theirs']:7.2f} ms ({first:.1f} s), "
            f"ratio {medians['theirs'] / medians['ours']:.2f}",
            flush=True,
        )


def _theirs(config: ConfigDict, batch: Batch) -> Callable[[], Any]:
    module = importlib.import_module("agents.qam")
    own = module.get_config()
    own.update({name: value for name, value in translate(config).items() if name in own})
    examples = jnp.zeros(batch.observations.shape[1]), jnp.zeros(batch.actions.shape[2])
    agent, windows = module.QAMAgent.create(0, *examples, own), as_windows(batch)

    def update() -> Any:
        nonlocal agent
        agent, metrics = agent.update(windows)
        return agent, metrics

    return update


if __name__ == "__main__":
    main()
