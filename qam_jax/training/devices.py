"""Placement of seeds and batches on devices, and the cache of compiled programs."""

import hashlib
import logging
import math
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qam_jax.files import ensure_writable_dir, user_path
from qam_jax.runs import processes
from qam_jax.types import Batch

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_SEED, _DATA = "seed", "data"  # axes of the mesh


class Layout:
    """How the runs of `N` seeds share one program and the devices.

    The trees of the runs (states, metrics, batches) are stacked along a leading axis [N]. A single
    run has no such axis: its program is the plain one.

    Several devices form a mesh of two axes. Seeds are spread over the axis `seed`; each batch is
    spread over the axis `data`, whose devices all hold the state. The mesh of several processes
    has the devices of all of them.

    Args:
      seeds: seeds of the runs.
      num_devices: how many devices to use; 0 for all, which several processes require.
      batch_size: of one run.

    Raises:
      ValueError: if there are fewer devices, or runs and batches cannot be spread evenly.
    """

    def __init__(self, seeds: Sequence[int], num_devices: int = 1, batch_size: int = 0):
        self.seeds, self._alone = list(seeds), len(seeds) == 1
        self._mesh: Mesh | None = None
        if shape := mesh_shape(len(seeds), num_devices, batch_size):
            devices, kinds = jax.devices()[: math.prod(shape)], (AxisType.Auto, AxisType.Auto)
            self._mesh = jax.make_mesh(shape, (_SEED, _DATA), kinds, devices=devices)
        # Of stacked trees, and of trees that each device holds; None for one device.
        self.sharding = self._everywhere = None
        if self._mesh is not None:
            stacked = PartitionSpec() if self._alone else PartitionSpec(_SEED)
            self.sharding = NamedSharding(self._mesh, stacked)
            self._everywhere = NamedSharding(self._mesh, PartitionSpec())
        self._pick = jax.jit(
            lambda tree, index: jax.tree.map(lambda x: x[index], tree),
            out_shardings=self._everywhere,
        )
        self._put = jax.jit(
            lambda tree, index, value: jax.tree.map(lambda x, y: x.at[index].set(y), tree, value),
            out_shardings=self.sharding,
        )

    def join(self, trees: Sequence[_T]) -> _T:
        """Stacks the trees of the runs, and places them on the devices."""
        return _place(self.stack(trees), self.sharding)

    def stack(self, trees: Sequence[_T]) -> _T:
        """Stacks the trees of the runs, inside a program."""
        return trees[0] if self._alone else jax.tree.map(lambda *x: jnp.stack(x), *trees)

    def pick(self, tree: _T, index: int) -> _T:
        """Returns the part of a stacked tree that belongs to one run."""
        return tree if self._alone else self._pick(tree, index)

    def local(self, tree: _T) -> _T:
        """Returns a picked or shared tree as arrays of one device of this process."""
        return jax.tree.map(lambda x: x.addressable_data(0), tree) if self._mesh else tree

    def put(self, tree: _T, index: int, value: _T) -> _T:
        """Returns the stacked tree with another value for one run."""
        value = self.share(value)
        return value if self._alone else self._put(tree, index, value)

    def share(self, tree: _T) -> _T:
        """Places a tree on all devices."""
        return _place(tree, self._everywhere)

    def map(self, function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
        """Maps a function, which takes the arguments of one run, over the stacked runs."""
        if self._alone:
            return function
        return jax.vmap(function, in_axes, spmd_axis_name=_SEED if self._mesh else None)

    def spread(self, batch: Batch) -> Batch:
        """Spreads the stacked batches over the devices, inside a program."""
        if self._mesh is None:
            return batch
        spec = PartitionSpec(_DATA) if self._alone else PartitionSpec(_SEED, _DATA)
        return jax.lax.with_sharding_constraint(batch, NamedSharding(self._mesh, spec))


def keep_programs(folder: str | os.PathLike) -> None:
    """Lets JAX keep compiled programs in a folder, so that later processes do not compile them.

    All processes share the folder; each kind of processor has its own folder in it. A folder that
    JAX has already, as by `JAX_COMPILATION_CACHE_DIR`, stays. Where it has no name, or cannot be
    written to, which is logged, programs are compiled each time.
    """
    # JAX adds the attributes of its options while it runs.
    cache: str | None = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if not str(folder) or cache:
        return
    try:
        path = ensure_writable_dir(user_path(folder) / _processor())
    except OSError as error:
        _logger.warning("Compiled programs are not kept: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # the many small ones too
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _processor() -> str:
    """Names the instructions of this processor: a program for another one may crash here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        facts = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"


def _place(tree: _T, sharding: NamedSharding | None) -> _T:
    """Places a tree, also on one device: JAX compiles a program anew for arrays that are not bound
    to a device, as restored arrays are."""
    if sharding is None:
        return jax.device_put(tree, jax.local_devices()[0])

    def place(x: Any) -> jax.Array:  # of which each process places its own part
        x = np.asarray(x)
        x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, tree)


def mesh_shape(num_runs: int, num_devices: int, batch_size: int) -> tuple[int, int] | None:
    """Returns how many devices seeds and each batch are spread over; None for the plain program.

    Raises as `Layout`.
    """
    devices = jax.devices()  # of all processes
    if processes.several() and num_devices:
        raise ValueError(
            f"--num_devices={num_devices}, but {jax.process_count()} processes that train "
            f"together use all of their {len(devices)} devices: give --num_devices=0."
        )
    count = num_devices or len(devices)
    if count > len(devices):
        raise ValueError(
            f"--num_devices={count}, but this process has {len(devices)} "
            f"({devices[0].device_kind}): give at most as many, or 0 for all."
        )
    if count == 1 and not processes.several():
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
    return for_seeds, for_data
