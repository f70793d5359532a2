"""The independent sources of randomness of a run."""

from typing import NamedTuple

import jax

from qam_jax.types import Array


class RunKeys(NamedTuple):
    """Keys for the agent's state (its networks and updates), for batches, for evaluation, for
    gathering experience, and for the stage of behaviour cloning."""

    agent: Array
    batches: Array
    evaluation: Array
    experience: Array
    cloning: Array


def split_seed(seed: int) -> RunKeys:
    """Makes a run's keys from its seed."""
    return RunKeys(*jax.random.split(jax.random.PRNGKey(seed), 5))
