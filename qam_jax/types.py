"""Types and shape checks that every layer shares."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import chex
import jax

if TYPE_CHECKING:  # the types of chex do not describe the result of its decorator
    from dataclasses import dataclass as pytree_dataclass
else:
    pytree_dataclass = chex.dataclass

Array = jax.Array
Key = chex.PRNGKey
Params = dict[str, chex.ArrayTree]
Metrics = dict[str, Array]

VelocityFn = Callable[[Array, Array], Array]
"""Velocity of a flow: `(x [..., D], t [..., 1]) -> [..., D]`, observations closed over."""

QFn = Callable[[Array], Array]
"""Value of actions: `(actions [..., D]) -> [...]`, observations closed over."""


def check_shape(name: str, array: Array, expected: tuple[int, ...]) -> None:
    """Raises ValueError with the argument's name if `array` does not have the shape `expected`."""
    if array.shape != expected:
        raise ValueError(f"{name} must have shape {expected}, got {array.shape}.")


def check_positive(name: str, value: float) -> None:
    """Raises ValueError with the argument's name if `value` is not above zero."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}.")


@pytree_dataclass(frozen=True)
class Batch:
    """Windows of `H` consecutive transitions, B of them.

    Attributes:
      observations: [B, O] at the window's first row.
      actions: [B, H, A] in [-1, 1].
      rewards: [B] discounted sum over the rows that belong to the window's episode.
      masks: [B] 0 once the task was completed inside the window (no bootstrapping), else 1.
      weights: [B] 1 if the window lies within one episode, else 0.
      next_observations: [B, O] after the last row that belongs to the window's episode.
    """

    observations: Array
    actions: Array
    rewards: Array
    masks: Array
    weights: Array
    next_observations: Array


@pytree_dataclass(frozen=True)
class Transitions:
    """Single transitions, N of them.

    Attributes:
      observations: [N, O].
      actions: [N, A] in [-1, 1].
      rewards: [N].
      masks: [N] 0 where the episode terminated, so that no value is bootstrapped, else 1: also
        where it was truncated.
      next_observations: [N, O].
    """

    observations: chex.Array
    actions: chex.Array
    rewards: chex.Array
    masks: chex.Array
    next_observations: chex.Array


@pytree_dataclass(frozen=True)
class TransitionDataset:
    """Episodes laid end to end, each observation stored once (OGBench's compact layout).

    An episode of L transitions takes L + 1 rows: the last row holds only the final observation.
    Row i is followed by row i + 1 for every row named in `start_rows`.

    Attributes:
      observations: [N, O].
      actions: [N, A] in [-1, 1].
      rewards: [N].
      masks: [N] 0 where the task is completed, else 1.
      last_rows: [N] int32, the last row with a transition in the episode of each row.
      start_rows: [M] int32, the rows that hold a transition, in order; the entries after the first
        `num_starts` are padding.
      num_starts: [] int32, how many entries of `start_rows` are in use. A number on the device, so
        that datasets padded to one shape share one compiled program.
    """

    observations: chex.Array
    actions: chex.Array
    rewards: chex.Array
    masks: chex.Array
    last_rows: chex.Array
    start_rows: chex.Array
    num_starts: chex.Array
