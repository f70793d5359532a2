"""Several runs in one program, on one device or several."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qam_jax.data.dataset import DataSource
from qam_jax.training import exchange
from qam_jax.types import Batch, TransitionDataset

_T = TypeVar("_T")

_SEED, _DATA = "seed", "data"  # axes of the mesh


class Lanes:
    """How the runs of `N` seeds share one program.

    What a run has (its state, its metrics, its batch) is joined with that of the others along a
    leading axis [N]. A single run has no such axis: its program is the plain one.

    Several devices form a mesh of two axes. Over the axis `seed` the runs are spread; what devices
    are left beyond that share the batches of a run, over the axis `data`, and hold its state each.
    Where several processes train together, the mesh is of the devices of all of them; each calls
    the same methods in the same order, with the same values.

    Args:
      seeds: of the runs.
      num_devices: how many devices to use; 0 for all that there are, and always with several
        processes.
      batch_size: of a run.

    Raises:
      ValueError: if there are not so many devices, or runs and batches cannot be spread evenly.
    """

    def __init__(self, seeds: Sequence[int], num_devices: int = 1, batch_size: int = 0):
        self.seeds = list(seeds)
        self._mesh = _make_mesh(len(self.seeds), num_devices, batch_size)
        # A process can only read what it holds all of.
        everywhere = NamedSharding(self._mesh, PartitionSpec()) if exchange.several() else None
        self._pick = jax.jit(_pick, out_shardings=everywhere)

    @property
    def sharding(self) -> NamedSharding | None:
        """Where a program leaves joined trees; None if that is left to the compiler."""
        return NamedSharding(self._mesh, self._spec) if exchange.several() else None

    def join(self, trees: Sequence[_T]) -> _T:
        """One tree of the runs' trees, on the devices."""
        return self._place(self.stack(trees), self._spec)

    def stack(self, trees: Sequence[_T]) -> _T:
        """One tree of the runs' trees, inside a program."""
        return trees[0] if self._alone else jax.tree.map(lambda *x: jnp.stack(x), *trees)

    def pick(self, tree: _T, index: int) -> _T:
        """What belongs to one of the runs."""
        return tree if self._alone else self._pick(tree, index)

    def local(self, tree: _T) -> _T:
        """What was picked, or shared, as this process holds it: to be used in it alone."""
        if not exchange.several():
            return tree
        return jax.tree.map(lambda x: x.addressable_data(0), tree)

    def put(self, tree: _T, index: int, value: _T) -> _T:
        """The joined tree with another value for one of the runs."""
        if self._alone:
            return self._place(value, PartitionSpec())
        if exchange.several():
            value = self._place(value, PartitionSpec())
            return jax.jit(_put, out_shardings=self.sharding)(tree, index, value)
        return _put(tree, index, value)

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

    @property
    def _spec(self) -> PartitionSpec:
        return PartitionSpec() if self._alone else PartitionSpec(_SEED)

    def _place(self, tree: _T, spec: PartitionSpec) -> _T:
        """Puts a tree where it belongs, also without a mesh: programs are compiled once for what
        is bound to a device, as what was restored from disk is, and once for what is not."""
        if self._mesh is None:
            return jax.device_put(tree, jax.local_devices()[0])
        sharding = NamedSharding(self._mesh, spec)
        if exchange.several():
            return jax.tree.map(lambda x: _place_own_part(x, sharding), tree)
        return jax.device_put(tree, sharding)


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


def _pick(tree: chex.ArrayTree, index: int) -> chex.ArrayTree:
    return jax.tree.map(lambda x: x[index], tree)


def _put(tree: chex.ArrayTree, index: int, value: chex.ArrayTree) -> chex.ArrayTree:
    return jax.tree.map(lambda x, new: x.at[index].set(new), tree, value)


def _place_own_part(x: chex.Array, sharding: NamedSharding) -> jax.Array:
    """An array on the devices of all processes, of which each process places its own part."""
    x = np.asarray(x)
    x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _make_mesh(num_runs: int, num_devices: int, batch_size: int) -> Mesh | None:
    devices = jax.devices()  # of all processes
    if exchange.several() and num_devices:
        raise ValueError(
            f"--num_devices={num_devices}, but {exchange.process_count()} processes that train "
            f"together use all of their {len(devices)} devices: give --num_devices=0."
        )
    count = num_devices or len(devices)
    if count > len(devices):
        raise ValueError(
            f"--num_devices={count}, but this process has {len(devices)} "
            f"({devices[0].device_kind}): give at most as many, or 0 for all."
        )
    if count == 1 and not exchange.several():
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
