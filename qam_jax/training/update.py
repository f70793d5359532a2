"""Blocks of updates in one compiled program, and the metrics that they leave behind."""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from qam_jax.agents import Agent, AgentState
from qam_jax.training.devices import Lanes
from qam_jax.types import Array, Batch, Metrics

SampleFn = Callable[[Any, Array], Batch]
"""`(data, keys) -> batches`, both joined; pure."""

_EMPTY = {"_min": float("inf"), "_max": -float("inf")}


class Tally(NamedTuple):
    """Metrics of the updates since the last row of metrics.

    Attributes:
      sums: of each metric; of those named `*_min` and `*_max`, the extreme.
      count: [] int32, updates.
      bad_update: [] int32, the first update with a metric that is not finite; -1 if all are.
      bad_metric: [] int32, which metric that was, by its place among the sorted names.
    """

    sums: Metrics
    count: Array
    bad_update: Array
    bad_metric: Array


class NotFiniteError(ValueError):
    """Training went wrong: a loss or a parameter is not finite."""


class UpdateBlock:
    """Any number of updates in one compiled program, batches drawn inside.

    The batch of an update depends on the key and the update's number alone, so that a run does
    not depend on how it was cut into blocks, nor on the runs beside it.

    Args:
      agent: the algorithm.
      keys: sources of the batches, those of all runs joined.
      sample_fn: draws the joined batches, with joined keys, from the data that the block is called
        with.
      lanes: the runs.
    """

    def __init__(self, agent: Agent, keys: Array, sample_fn: SampleFn, lanes: Lanes):
        def update(keys: Array, data: Any, state: AgentState) -> tuple[AgentState, Metrics]:
            batch = sample_fn(data, lanes.map(jax.random.fold_in)(keys, state.step))
            return lanes.map(_traced_update(agent))(state, lanes.spread(batch))

        @partial(jax.jit, donate_argnums=(0, 1), out_shardings=lanes.sharding)
        def block(state: AgentState, tally: Tally, keys: Array, data: Any, num_updates: Array):
            def body(index, carry):
                state, tally = carry
                new, metrics = update(keys, data, state)
                after = new, lanes.map(_add)(tally, metrics, new.step)
                if num_updates.ndim == 0:
                    return after
                goes_on = index < num_updates
                return jax.tree.map(partial(_choose, goes_on), after, carry)

            return jax.lax.fori_loop(0, jnp.max(num_updates), body, (state, tally))

        self._block, self._keys = block, keys  # an argument, so that all seeds share a program

    def __call__(
        self, state: AgentState, tally: Tally, data: Any, num_updates: Sequence[int]
    ) -> tuple[AgentState, Tally]:
        """Makes so many updates of each run; the joined states and tallies are donated."""
        equal = len(set(num_updates)) == 1
        counts = np.asarray(num_updates[0] if equal else num_updates, np.int32)
        return self._block(state, tally, self._keys, data, counts)


def _choose(mask: Array, new: Array, old: Array) -> Array:
    return jnp.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)


@functools.lru_cache(maxsize=4)
def _traced_update(agent: Agent) -> Callable[..., Any]:
    """The agent's update, which JAX traces once for all who use this: that takes seconds."""
    return jax.jit(agent.update)


def metric_names(
    agent: Agent, state: AgentState, config: ConfigDict, observation_dim: int
) -> list[str]:
    """The names of an agent's metrics, sorted; of the state only the shapes are looked at."""
    size, (_, action_dim) = config.batch_size, state.action_shape
    shapes = {
        "observations": (size, observation_dim),
        "actions": (size, config.horizon_length, action_dim),
        "rewards": (size,),
        "masks": (size,),
        "weights": (size,),
        "next_observations": (size, observation_dim),
    }
    batch = Batch(
        **{name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    )
    return sorted(_traced_update(agent).eval_shape(state, batch)[1])


def empty_tally(names: Sequence[str]) -> Tally:
    """A tally of no updates."""
    sums = {name: jnp.float32(_EMPTY.get(name[-4:], 0.0)) for name in names}
    return Tally(sums, jnp.int32(0), jnp.int32(-1), jnp.int32(0))


def averages(tally: Tally) -> dict[str, float]:
    """The mean of each metric, or its extreme; empty if there was no update."""
    sums, count = jax.device_get((tally.sums, tally.count))
    if not count:
        return {}
    return {
        name: float(total) / (1 if name[-4:] in _EMPTY else int(count))
        for name, total in sums.items()
    }


def check_finite(tally: Tally, params: chex.ArrayTree | None = None) -> None:
    """Raises NotFiniteError if a metric, or one of the parameters, was not finite.

    Args:
      tally: of one run.
      params: of the same run.
    """
    bad_update, bad_metric = jax.device_get((tally.bad_update, tally.bad_metric))
    if bad_update >= 0:
        raise _not_finite(f"the metric {sorted(tally.sums)[bad_metric]!r}", bad_update)
    if params is not None and not _all_finite(params):
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if not jnp.isfinite(leaf).all():
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise _not_finite(f"the parameter {name!r}", None)


def check_all_finite(lanes: Lanes, tally: Tally, params: chex.ArrayTree) -> None:
    """`check_finite` for each of the joined runs.

    Raises:
      NotFiniteError: see there; names the seed too if there are several.
    """
    if _none_bad(tally.bad_update) and _all_finite(params):
        return
    for index, seed in enumerate(lanes.seeds):
        try:
            check_finite(lanes.pick(tally, index), lanes.pick(params, index))
        except NotFiniteError as error:
            if len(lanes.seeds) == 1:
                raise
            raise NotFiniteError(f"seed {seed}: {error}") from error


def _not_finite(what: str, update: int | None) -> NotFiniteError:
    when = "" if update is None else f" at update {update}"
    return NotFiniteError(
        f"training went wrong: {what} is not finite{when}, the first that was. The run stops; its "
        "last checkpoint, if there is one, is kept. The usual causes are a learning rate or an "
        "inverse temperature that is too high (--config.lr, --config.inv_temp), or a clip of the "
        "gradient that is switched off (--config.clip_grad_norm)."
    )


@jax.jit
def _all_finite(params: chex.ArrayTree) -> Array:
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))


@jax.jit
def _none_bad(updates: Array) -> Array:
    return jnp.max(updates) < 0


def _add(tally: Tally, metrics: Metrics, update: Array) -> Tally:
    def combine(name: str) -> Array:
        function = {"_min": jnp.minimum, "_max": jnp.maximum}.get(name[-4:], jnp.add)
        return function(tally.sums[name], metrics[name])

    bad = ~jnp.isfinite(jnp.stack([metrics[name] for name in sorted(metrics)]))
    first = (tally.bad_update < 0) & bad.any()
    return Tally(
        sums={name: combine(name) for name in metrics},
        count=tally.count + 1,
        bad_update=jnp.where(first, update, tally.bad_update),
        bad_metric=jnp.where(first, jnp.argmax(bad).astype(jnp.int32), tally.bad_metric),
    )
