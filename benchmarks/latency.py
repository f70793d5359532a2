"""Measures one decision of a deployed policy on one core: `python benchmarks/latency.py`.

The policies have observation 28 and chunks of 5 actions of 5 numbers. Their parameters are those of
the start: the time does not depend on them. A flow acts as QAM and behaviour cloning do, and a
one-step actor as FQL does.
"""

import os

if hasattr(os, "sched_setaffinity"):  # before JAX counts the cores
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ["JAX_PLATFORMS"] = "cpu"

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from measure import Times, interleave
from ml_collections import ConfigDict

from qam_jax import get_config, load_policy, make_agent
from qam_jax.deploy.export import export_policy
from qam_jax.runs.checkpoints import Checkpoints
from qam_jax.runs.folder import record_start
from qam_jax.runs.saved import init_state
from qam_jax.runs.settings import RunSettings

_REPEATS = flags.DEFINE_integer("repeats", 1000, "Decisions of each policy.", lower_bound=1)

_OBSERVATION_DIM, _ACTION_DIM = 28, 5
_NETWORKS = {"2 x 128": (128,) * 2, "4 x 512": (512,) * 4}
_POLICIES = {
    **{f"flow of {steps} steps": ("bc", {"flow_steps": steps}) for steps in (1, 5, 10)},
    "one-step actor": ("fql", {"num_qs": 1, "critic_hidden_dims": ()}),  # which do not act
}


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    print("Milliseconds of a decision, 50th / 99th percentile: by the clock, and of processor time")
    for network, hidden_dims in _NETWORKS.items():
        for policy, (agent_name, fields) in _POLICIES.items():
            config = get_config(agent_name)
            config.update({"actor_hidden_dims": hidden_dims, **fields})
            with tempfile.TemporaryDirectory() as folder:
                for name, times in _measure(Path(folder), config).items():
                    spent = "  ".join(_percentiles(each) for each in times)
                    print(f"{network}  {policy:16} {name:10} {spent}", flush=True)


def _measure(folder: Path, config: ConfigDict) -> dict[str, Times]:
    _save(folder / "run", config)
    export_policy(folder / "run", folder / "export", ["stablehlo", "onnx"])
    exported = [folder / "export" / f"policy.{name}" for name in ("stablehlo", "onnx")]
    policies = [load_policy(path) for path in (folder / "run", *exported)]
    observation = np.random.default_rng(0).normal(size=_OBSERVATION_DIM)
    candidates = {
        name: lambda policy=policy: policy.act_chunk(observation)
        for name, policy in zip(("checkpoint", "stablehlo", "onnx"), policies, strict=True)
    }
    return interleave(candidates, _REPEATS.value)


def _save(folder: Path, config: ConfigDict) -> None:
    """Writes the folder of a run that has not been trained."""
    folder.mkdir()
    record_start(
        folder, RunSettings(env_name=""), config, dataset_source="", dataset_fingerprint="",
        observation_dim=_OBSERVATION_DIM, action_dim=_ACTION_DIM,
    )  # fmt: skip
    agent = make_agent(config)
    state = init_state(agent, jax.random.PRNGKey(0), _OBSERVATION_DIM, _ACTION_DIM)
    checkpoints = Checkpoints(folder)
    checkpoints.save(0, state, {"loss": jnp.zeros(())}, {"stage": "offline", "evaluation": None})
    checkpoints.close()


def _percentiles(seconds: np.ndarray) -> str:
    return "{:6.3f} / {:6.3f}".format(*np.percentile(1000 * seconds, (50, 99)))


if __name__ == "__main__":
    app.run(main)
