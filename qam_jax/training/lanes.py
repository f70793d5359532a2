"""Several runs in one program, on one device or several."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qam_jax.data.sources import DataSource
from qam_jax.types import Batch, TransitionDataset

_T = TypeVar("_T")

_SEED, _DATA = "seed", "data"  # axes of the mesh


class Lanes:
    """How the runs of `N` seeds share one program.

    What a run has (its state, its metrics, its batch) is joined with that of the others along a
    leading axis [N]. A single run has no such axis: its program is the plain one.

    Several devices form a mesh of two axes. Over the axis `seed` the runs are spread; what devices
    are left beyond that share the batches of a run, over the axis `data`, and hold its state each.

    Args:
      seeds: of the runs.
      num_devices: how many devices to use; 0 for all that this process has.
      batch_size: of a run.

    Raises:
      ValueError: if there are not so many devices, or runs and batches cannot be spread evenly.
    """

    def __init__(self, seeds: Sequence[int], num_devices: int = 1, batch_size: int = 0):
        self.seeds = list(seeds)
        self._mesh = _make_mesh(len(self.seeds), num_devices, batch_size)

    def join(self, trees: Sequence[_T]) -> _T:
        """One tree of the runs' trees, on the devices."""
        spec = PartitionSpec() if self._alone else PartitionSpec(_SEED)
        return self._place(self.stack(trees), spec)

    def stack(self, trees: Sequence[_T]) -> _T:
        """One tree of the runs' trees, inside a program."""
        return trees[0] if self._alone else jax.tree.map(lambda *x: jnp.stack(x), *trees)

    def pick(self, tree: _T, index: int) -> _T:
        """What belongs to one of the runs."""
        return tree if self._alone else _pick(tree, index)

    def put(self, tree: _T, index: int, value: _T) -> _T:
        """The joined tree with another value for one of the runs."""
        if self._alone:
            return self._place(value, PartitionSpec())
        return jax.tree.map(lambda x, new: x.at[index].set(new), tree, value)

    def share(self, tree: _T) -> _T:
        """A tree that all devices hold."""
        return self._place(tree, PartitionSpec())

    def map(self, function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
        """A function of one run's arguments, made one of joined arguments."""
        if self._alone:
            return function
        axis = {} if self._mesh is None else {"spmd_axis_name": _SEED}
        return jax.vmap(function, in_axes, **axis)

    def spread(self, batch: Batch) -> Batch:
        """Inside a program: lets the devices share the joined batches."""
        if self._mesh is None:
            return batch
        spec = PartitionSpec(_DATA) if self._alone else PartitionSpec(_SEED, _DATA)
        return jax.lax.with_sharding_constraint(batch, NamedSharding(self._mesh, spec))

    @property
    def _alone(self) -> bool:
        return len(self.seeds) == 1

    def _place(self, tree: _T, spec: PartitionSpec) -> _T:
        """Puts a tree where it belongs, also without a mesh: programs are compiled once for what
        is bound to a device, as what was restored from disk is, and once for what is not."""
        if self._mesh is None:
            return jax.device_put(tree, jax.local_devices()[0])
        return jax.device_put(tree, NamedSharding(self._mesh, spec))


class SharedData:
    """The data of a source, on all devices.

    Args:
      source: of the data.
      lanes: the runs.
    """

    def __init__(self, source: DataSource, lanes: Lanes):
        self._source, self._lanes = source, lanes
        self._dataset: TransitionDataset | None = None  # the last one that the source gave,
        self._shared: TransitionDataset | None = None  # and its copy on the devices

    def at(self, step: int) -> TransitionDataset:
        """What `DataSource.at` gives."""
        dataset = self._source.at(step)
        if dataset is not self._dataset:
            self._dataset, self._shared = dataset, self._lanes.share(dataset)
        return self._shared


@jax.jit
def _pick(tree: chex.ArrayTree, index: int) -> chex.ArrayTree:
    return jax.tree.map(lambda x: x[index], tree)


def _make_mesh(num_runs: int, num_devices: int, batch_size: int) -> Mesh | None:
    devices = jax.local_devices()
    count = num_devices or len(devices)
    if count > len(devices):
        raise ValueError(
            f"--num_devices={count}, but this process has {len(devices)} "
            f"({devices[0].device_kind}): give at most as many, or 0 for all."
        )
    if count == 1:
        return None
    for_seeds = next(
        n for n in range(min(count, num_runs), 0, -1) if not (count % n or num_runs % n)
    )
    for_data = count // for_seeds
    if batch_size % for_data:
        raise ValueError(
            f"{num_runs} seeds on {count} devices leave {for_data} devices to each batch, but "
            f"batch_size = {batch_size} is not a multiple of {for_data}: change --num_devices, "
            "--num_seeds or --config.batch_size."
        )
    return jax.make_mesh(
        (for_seeds, for_data),
        (_SEED, _DATA),
        (AxisType.Auto, AxisType.Auto),
        devices=devices[:count],
    )
