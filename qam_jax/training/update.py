"""Blocks of updates in one compiled program, and the sums of their metrics."""

import functools
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from qam_jax import memory
from qam_jax.agents import Agent, AgentState
from qam_jax.training.devices import Layout
from qam_jax.types import Array, Batch, Metrics

_EXTREMES = {"_min": (jnp.minimum, float("inf")), "_max": (jnp.maximum, -float("inf"))}


class MetricSums(NamedTuple):
    """Metrics of the updates since the last row of train.csv."""

    sums: Metrics  # sum of each metric; of a metric named `*_min` or `*_max` its extreme
    count: Array  # type: ignore[assignment]  # [] int32, updates; tuples have a method `count`
    bad_update: Array  # [] int32, first update with a metric that is not finite; -1 for none
    bad_metric: Array  # [] int32, index of that metric among the sorted names


class NotFiniteError(ValueError):
    """Training went wrong: a loss or a parameter is not finite."""


@functools.lru_cache(maxsize=4)
def make_update_step(agent: Agent) -> Callable[[AgentState, Batch], tuple[AgentState, Metrics]]:
    """Compiles the agent's update; cached, since JAX takes seconds to trace it."""
    return jax.jit(agent.update)


def make_block(
    agent: Agent, sample_fn: Callable[[Any, Array], Batch], layout: Layout
) -> jax.stages.Wrapped:
    """Makes one program of any number of update steps, batches drawn inside.

    `sample_fn(data, keys)` draws the batches of all seeds; it is pure.

    The batch of an update depends on the update's number and its seed's key alone. So a run depends
    neither on the lengths of its blocks nor on the seeds that are trained beside it.

    Returns:
      `block(state, sums, keys, data, num_updates) -> (state, sums)`, jitted: makes `num_updates`
      updates of each seed, or [N] their numbers. It donates the stacked states and sums.
    """
    update_step = layout.map(make_update_step(agent))

    @partial(jax.jit, donate_argnums=(0, 1), out_shardings=layout.sharding)
    def block(
        state: AgentState, sums: MetricSums, keys: Array, data: Any, num_updates: Array
    ) -> tuple[AgentState, MetricSums]:
        def body(index, carry):
            state, sums = carry
            batch = sample_fn(data, layout.map(jax.random.fold_in)(keys, state.step))
            new_state, metrics = update_step(state, layout.spread(batch))
            after = new_state, layout.map(_add)(sums, metrics, new_state.step)
            if num_updates.ndim == 0:
                return after
            return jax.tree.map(partial(_choose, index < num_updates), after, carry)

        return jax.lax.fori_loop(0, jnp.max(num_updates), body, (state, sums))

    return block


def compile_block(block: jax.stages.Wrapped, *arguments: Any) -> jax.stages.Compiled:
    """Compiles a block for arguments like these. Raises MemoryError if it needs too much memory."""
    program = block.lower(*arguments).compile()
    if stats := program.memory_analysis():
        new = stats.output_size_in_bytes - stats.alias_size_in_bytes
        memory.check_fits(
            "updates", stats.temp_size_in_bytes + new, "Lower --config.batch_size, the widths "
            "of the networks, --config.num_qs or --num_seeds.",
        )  # fmt: skip
    return program


def _choose(mask: Array, new: Array, old: Array) -> Array:
    return jnp.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _add(sums: MetricSums, metrics: Metrics, update: Array) -> MetricSums:
    def combine(name: str) -> Array:
        function, _ = _EXTREMES.get(name[-4:], (jnp.add, 0.0))
        return function(sums.sums[name], metrics[name])

    bad = ~jnp.isfinite(jnp.stack([metrics[name] for name in sorted(metrics)]))
    first = (sums.bad_update < 0) & bad.any()
    return MetricSums(
        sums={name: combine(name) for name in metrics},
        count=sums.count + 1,
        bad_update=jnp.where(first, update, sums.bad_update),
        bad_metric=jnp.where(first, jnp.argmax(bad), sums.bad_metric).astype(jnp.int32),
    )


def metric_names(
    agent: Agent, state: AgentState, config: ConfigDict, observation_dim: int
) -> list[str]:
    """Returns the sorted names of an agent's metrics, from the shapes of its state alone.

    Raises ValueError if an update does not return a state and metrics, each a number.
    """

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.float32)

    observation, number = array(observation_dim), array()
    batch = Batch(
        observations=observation, actions=array(config.horizon_length, state.action_shape[1]),
        rewards=number, masks=number, weights=number, next_observations=observation,
    )  # fmt: skip
    result = jax.eval_shape(make_update_step(agent), state, batch)
    metrics = result[1] if isinstance(result, tuple) and len(result) == 2 else None
    if not isinstance(metrics, Mapping) or any(value.shape for value in metrics.values()):
        raise ValueError(
            f"an update of the algorithm {config.agent_name!r} must return (state, metrics), where "
            f"metrics has one number for each name; got metrics {metrics}."
        )
    return sorted(metrics)


def empty_sums(names: Iterable[str]) -> MetricSums:
    """Returns the sums of no updates."""
    starts = {name: _EXTREMES.get(name[-4:], (None, 0.0))[1] for name in names}
    sums = {name: jnp.float32(start) for name, start in starts.items()}
    return MetricSums(sums, jnp.int32(0), jnp.int32(-1), jnp.int32(0))


def averages(sums: MetricSums) -> dict[str, float]:
    """Returns the mean, or the extreme, of each metric; nothing if there was no update."""
    totals, count = jax.device_get((sums.sums, sums.count))
    if not count:
        return {}
    return {
        name: float(total) / (1 if name[-4:] in _EXTREMES else int(count))
        for name, total in totals.items()
    }


def check_finite(sums: MetricSums, params: chex.ArrayTree, layout: Layout) -> None:
    """Raises NotFiniteError, naming the seed, if a metric or a parameter of the runs is not finite.

    Both trees are stacked over the seeds of the layout.
    """
    if not _all_fine(sums, params):
        for index, seed in enumerate(layout.seeds):
            check_finite_run(seed, *layout.local(layout.pick((sums, params), index)))


def check_finite_run(seed: int, sums: MetricSums, params: chex.ArrayTree) -> None:
    """Raises NotFiniteError as `check_finite`, for the trees of a single run."""
    trouble = _find_not_finite(*jax.device_get((sums, params)))
    if trouble:
        raise NotFiniteError(
            f"seed {seed}: training went wrong: {trouble}, the first that was. The run stops; its "
            "last checkpoint, if there is one, is kept. The usual causes are a learning rate "
            "or an inverse temperature that is too high (--config.lr, --config.inv_temp), or "
            "a clip of the gradient that is switched off (--config.clip_grad_norm)."
        )


def _find_not_finite(sums: MetricSums, params: chex.ArrayTree) -> str:
    if sums.bad_update >= 0:
        name = sorted(sums.sums)[sums.bad_metric]
        return f"the metric {name!r} is not finite at update {sums.bad_update}"
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return f"the parameter {name!r} is not finite"
    return ""


@jax.jit
def _all_fine(sums: MetricSums, params: chex.ArrayTree) -> Array:
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
    return jnp.all(jnp.array(finite)) & (jnp.max(sums.bad_update) < 0)
