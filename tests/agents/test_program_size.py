"""Size of the program of an update: a change that makes it larger has to say so here."""

import jax
import jax.numpy as jnp

from qam_jax.agents import algorithm_names, get_config, make_agent
from qam_jax.types import Batch

# Matrix products and loops in the program of an update with three flow steps, as XLA gets it for
# an accelerator. There, a product is a kernel at least, and a loop hides its steps from XLA.
_SIZES = {
    "bam": (58, 0),
    "bc": (8, 0),
    "cgql": (27, 0),
    "cgql_l": (38, 0),
    "cgql_m": (38, 0),
    "dac": (36, 0),
    "dsrl": (53, 0),
    "edp": (36, 0),
    "fan": (62, 0),
    "fawac": (39, 0),
    "fbrac": (37, 0),
    "fedit": (42, 0),
    "fql": (39, 0),
    "ifql": (30, 0),
    "qam": (46, 0),
    "qam_e": (63, 0),
    "qam_f": (63, 0),
    "qgf": (30, 0),
    "qsm": (36, 0),
    "rebrac": (28, 0),
    "rlpd": (36, 0),
    "rql": (28, 0),
    "trqam": (46, 0),
}


def _size(name):
    config = get_config(name)
    hidden = {"actor_hidden_dims": (16, 16), "critic_hidden_dims": (16, 16)}
    small = {**hidden, "num_qs": 2, "flow_steps": 3, "batch_size": 4}
    config.update({field: value for field, value in small.items() if field in config})
    agent, size = make_agent(config), config.batch_size
    shapes = {
        "observations": (size, 3), "actions": (size, config.horizon_length, 2), "rewards": (size,),
        "masks": (size,), "weights": (size,), "next_observations": (size, 3),
    }  # fmt: skip
    batch = Batch(**{field: jnp.zeros(shape) for field, shape in shapes.items()})
    state = jax.eval_shape(agent.init, jax.random.PRNGKey(0), jnp.zeros(3), jnp.zeros(2))
    traced = jax.jit(agent.update).trace(state, batch)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    return text.count("stablehlo.dot_general"), text.count("stablehlo.while")


def test_size_of_the_program_of_an_update():
    sizes = {name: _size(name) for name in algorithm_names()}
    table = "".join(f'    "{name}": {size},\n' for name, size in sizes.items())
    assert sizes == _SIZES, f"if this is on purpose, the table is now\n_SIZES = {{\n{table}}}"
