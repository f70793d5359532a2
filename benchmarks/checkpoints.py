"""Measures the cost of a checkpoint: `python benchmarks/checkpoints.py`.

The agent has the paper's networks for cube-double (observation 40, action 5, chunks of 5). The
replay buffer grows by 50,000 transitions between two checkpoints.
"""

import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging

from qam_jax.agents import get_config, make_agent, parameter_count
from qam_jax.data.replay import Replay
from qam_jax.runs.checkpoints import Checkpoints
from qam_jax.runs.saved import init_state
from qam_jax.training.update import empty_sums
from qam_jax.types import Transitions

_TRANSITIONS = flags.DEFINE_integer("transitions", 50_000, "Added between two checkpoints.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Checkpoints that are written.")

_OBSERVATION_DIM, _ACTION_DIM = 40, 5


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    agent = make_agent(get_config("qam"))
    state = init_state(agent, jax.random.PRNGKey(0), _OBSERVATION_DIM, _ACTION_DIM)
    sums = empty_sums(["loss"])
    rng = np.random.default_rng(0)
    state = jax.tree.map(  # as after training: zeros would be compressed
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype) if leaf.ndim else leaf, state
    )
    rows = {"blocking": [], "until on disk": [], "experience": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = _TRANSITIONS.value
        replay = Replay(_REPEATS.value * count, _OBSERVATION_DIM, _ACTION_DIM, folder / "replay")
        checkpoints = Checkpoints(folder)
        for step in range(_REPEATS.value):
            replay.add(_transitions(rng, count), np.full(count, step), pad_to=count)
            started = time.perf_counter()
            log_bytes = replay.save()
            rows["experience"].append(time.perf_counter() - started)
            started = time.perf_counter()
            checkpoints.save(step, state, sums, {})
            rows["blocking"].append(time.perf_counter() - started)
            checkpoints.wait()
            rows["until on disk"].append(time.perf_counter() - started)
        files = [path for path in (checkpoints.folder / str(step)).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        started = time.perf_counter()
        checkpoints.restore(step, state, sums)
        restored = time.perf_counter() - started
        started = time.perf_counter()
        Replay(_REPEATS.value * count, _OBSERVATION_DIM, _ACTION_DIM, folder / "replay").load(
            replay.num_added, []
        )
        loaded = time.perf_counter() - started
        checkpoints.close()
    median = {name: float(np.median(times)) for name, times in rows.items()}
    print(
        f"agent: {parameter_count(state):,} parameters, {size / 1e6:.0f} MB on disk; training "
        f"waits {median['blocking']:.2f} s, on disk after {median['until on disk']:.2f} s, read "
        f"back in {restored:.2f} s"
    )
    print(
        f"experience: {count:,} transitions, {log_bytes / 1e6:.1f} MB, written in "
        f"{median['experience']:.2f} s; {replay.num_added:,} read back in {loaded:.2f} s"
    )


def _transitions(rng: np.random.Generator, count: int) -> Transitions:
    states = rng.normal(size=(count + 1, _OBSERVATION_DIM)).astype(np.float32)
    return Transitions(
        observations=states[:-1],
        actions=rng.uniform(-1, 1, size=(count, _ACTION_DIM)).astype(np.float32),
        rewards=-np.ones(count, np.float32),
        masks=np.ones(count, np.float32),
        next_observations=states[1:],
    )


if __name__ == "__main__":
    app.run(main)
