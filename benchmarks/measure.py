"""Timing on a busy machine: candidates take turns, beside the limit of the machine."""

import os
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qam_jax.files import num_usable_cpus

_SIDE = 1024  # of the matrices that show the machine's limit
_PRODUCTS = 4  # of them in a row


class Times(NamedTuple):
    """Seconds of each repetition: wall time, and CPU time of this process."""

    wall: np.ndarray
    cpu: np.ndarray


def interleave(candidates: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Times]:
    """Times each candidate once per round, so that all see the same disturbances.

    Args:
      candidates: functions by name; JAX arrays that they return are waited for.
      repeats: rounds, after a first one that does not count.
    """
    times = {name: [] for name in candidates}
    for round_ in range(repeats + 1):
        for name, run in candidates.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            spent = time.perf_counter() - wall, time.process_time() - cpu
            if round_:
                times[name].append(spent)
    return {name: Times(*np.array(spent).T) for name, spent in times.items()}


def row(
    name: str, values: np.ndarray, unit: str, *, higher_is_better: bool = False, **facts: Any
) -> dict[str, Any]:
    """Makes an entry of the JSON file: median, quartiles and further facts."""
    low, median, high = np.percentile(np.atleast_1d(values), (25, 50, 75)).tolist()
    return {
        "name": name, "median": median, "low": low, "high": high, "repeats": np.size(values),
        "unit": unit, "higher_is_better": higher_is_better, **facts,
    }  # fmt: skip


def make_peak() -> tuple[Callable[[], Any], float]:
    """Makes a function that multiplies large float32 matrices, and counts its FLOPs."""
    left = jnp.asarray(np.random.default_rng(0).normal(size=(_SIDE, _SIDE)), jnp.float32)
    multiply = jax.jit(lambda x: jax.lax.fori_loop(0, _PRODUCTS, lambda _, y: x @ y / _SIDE, x))
    return lambda: multiply(left), 2 * _PRODUCTS * _SIDE**3


def fit_exponent(sizes: list[int], values: list[float]) -> float:
    """Fits `p` of `value ~ size^p` by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def machine() -> dict[str, Any]:
    """Describes the machine."""
    return {
        "processor": _processor(),
        "usable_cpus": num_usable_cpus(),
        "load": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            named = [line for line in file if line.startswith("model name")]
    except OSError:
        named = []
    return named[0].split(":", 1)[1].strip() if named else platform.processor()
