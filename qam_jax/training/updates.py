"""Blocks of updates in one compiled program, and the metrics that they leave behind."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from qam_jax.agents import Agent, AgentState
from qam_jax.types import Array, Batch, Metrics

SampleFn = Callable[[Any, Array], Batch]
"""`(data, key) -> Batch`; pure."""

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
    not depend on how it was cut into blocks.

    Args:
      agent: the algorithm.
      key: source of the batches.
      sample_fn: draws a batch from the data that the block is called with.
    """

    def __init__(self, agent: Agent, key: Array, sample_fn: SampleFn):
        def update(data: Any, state: AgentState) -> tuple[AgentState, Metrics]:
            return agent.update(state, sample_fn(data, jax.random.fold_in(key, state.step)))

        @partial(jax.jit, donate_argnums=(0, 1))
        def block(state: AgentState, tally: Tally, data: Any, num_updates: Array):
            def body(_, carry):
                state, tally = carry
                state, metrics = update(data, state)
                return state, _add(tally, metrics, state.step)

            return jax.lax.fori_loop(0, num_updates, body, (state, tally))

        self._update, self._block = update, block
        self._names: list[str] = []  # of the metrics, once known

    def __call__(
        self, state: AgentState, tally: Tally, data: Any, num_updates: int
    ) -> tuple[AgentState, Tally]:
        """Makes updates; state and tally are donated."""
        return self._block(state, tally, data, jnp.int32(num_updates))

    def empty_tally(self, state: AgentState, data: Any) -> Tally:
        """A tally of no updates; of state and data only the shapes are looked at."""
        if not self._names:
            self._names = sorted(jax.eval_shape(self._update, data, state)[1])
        sums = {name: jnp.float32(_EMPTY.get(name[-4:], 0.0)) for name in self._names}
        return Tally(sums, jnp.int32(0), jnp.int32(-1), jnp.int32(0))


def shapes_of(data: Any) -> Any:
    """The shapes and types of data, without the data."""
    return jax.eval_shape(lambda data: data, data)


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
    """Raises NotFiniteError if a metric, or one of the parameters, was not finite."""
    bad_update, bad_metric = jax.device_get((tally.bad_update, tally.bad_metric))
    if bad_update >= 0:
        raise _not_finite(f"the metric {sorted(tally.sums)[bad_metric]!r}", bad_update)
    if params is not None and not _all_finite(params):
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if not jnp.isfinite(leaf).all():
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise _not_finite(f"the parameter {name!r}", None)


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
