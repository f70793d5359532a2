"""Measures the cost of an update of each method: `python benchmarks/methods.py`.

FLOPs are counted from the matrix products in the program; of a conditional the dearest branch
counts. Times are of the update alone; all methods take turns in one process.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from measure import interleave
from ml_collections import ConfigDict
from training import make_batch

from qam_jax.agents import algorithm_names, get_config, make_agent
from qam_jax.files import write_json
from qam_jax.runs.saved import init_state


def main() -> None:
    """Prints a table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512, help="of all networks")
    parser.add_argument("--layers", type=int, default=4, help="hidden, of all networks")
    parser.add_argument("--num_qs", type=int, default=10, help="critics")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds; 0: only FLOPs")
    parser.add_argument("--out", default="methods.json")
    options = parser.parse_args()
    rows = [{"method": name, "gflop": _gflop(name, options)} for name in algorithm_names()]
    if options.repeats:
        updates = {name: _make_update(name, options) for name in algorithm_names()}
        times = interleave(updates, options.repeats)
        for row in rows:
            cpu = times[row["method"]].cpu
            row["cpu_ms"] = 1e3 * float(np.median(cpu))
            row["time_over_qam"] = float(np.median(cpu / times["qam"].cpu))
    for row in sorted(rows, key=lambda row: row["gflop"]):
        print(
            *(f"{name} {value:.4g}" if name != "method" else value for name, value in row.items())
        )
    write_json(Path(options.out), {"options": vars(options), "rows": rows})


def _make_config(name: str, options: argparse.Namespace) -> ConfigDict:
    config = get_config(name)
    hidden = (options.width,) * options.layers
    changes = {"actor_hidden_dims": hidden, "critic_hidden_dims": hidden, "num_qs": options.num_qs}
    config.update({field: value for field, value in changes.items() if field in config})
    return config


def _gflop(name: str, options: argparse.Namespace) -> float:
    config = _make_config(name, options)
    agent, batch = make_agent(config), make_batch(config, 28, 5)
    init = partial(agent.init, jax.random.PRNGKey(0), jnp.zeros(28), jnp.zeros(5))
    return count_flops(jax.make_jaxpr(agent.update)(jax.eval_shape(init), batch).jaxpr) / 1e9


def _make_update(name: str, options: argparse.Namespace) -> Callable[[], Any]:
    """Compiles an update that continues from its last state."""
    config = _make_config(name, options)
    agent, batch = make_agent(config), make_batch(config, 28, 5)
    carry = [init_state(agent, jax.random.PRNGKey(0), 28, 5)]
    update = jax.jit(agent.update, donate_argnums=0).lower(carry[0], batch).compile()

    def run():
        carry[0], _ = update(carry[0], batch)
        return carry[0]

    return run


def count_flops(jaxpr: jex.Jaxpr) -> float:
    """Counts the FLOPs of the matrix products in a program.

    Raises:
      ValueError: if a loop of unknown length has matrix products.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, [count_flops(each) for each in _programs(equation)]
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)
        elif name == "scan":
            total += equation.params["length"] * sum(inner)
        elif name == "cond":
            total += max(inner)
        elif name == "while" and sum(inner):
            raise ValueError("a loop of unknown length has matrix products in it")
        else:
            total += sum(inner)
    return total


def _programs(equation: Any) -> list[jex.Jaxpr]:
    """The programs inside an equation; for a custom gradient, the function itself."""
    names = ("jaxpr", "call_jaxpr", "branches", "body_jaxpr", "cond_jaxpr")
    found = [equation.params[name] for name in names if name in equation.params]
    flat = [each for item in found for each in (item if isinstance(item, tuple) else (item,))]
    return [getattr(each, "jaxpr", each) for each in flat]


if __name__ == "__main__":
    main()
