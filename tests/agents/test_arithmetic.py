"""In what numbers the algorithms compute: every product of every algorithm, as it is compiled."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax.agents import algorithm_names, get_config, make_agent
from qam_jax.types import Batch

_OBS, _ACT = 3, 2


def _agent(name, **changes):
    config = get_config(name)
    small = {
        "actor_hidden_dims": (8,), "critic_hidden_dims": (8,), "num_qs": 2, "flow_steps": 2,
        "horizon_length": 2, **changes,
    }  # fmt: skip
    config.update({field: value for field, value in small.items() if field in config})
    agent = make_agent(config)
    return agent, agent.init(jax.random.PRNGKey(0), jnp.zeros(_OBS), jnp.zeros(_ACT))


def _batch(size=4):
    rng = np.random.default_rng(0)
    shapes = {
        "observations": (size, _OBS), "actions": (size, 2, _ACT), "rewards": (size,),
        "masks": (size,), "weights": (size,), "next_observations": (size, _OBS),
    }  # fmt: skip
    columns = {name: rng.uniform(size=shape) for name, shape in shapes.items()}
    return Batch(**{name: jnp.asarray(column, jnp.float32) for name, column in columns.items()})


def _products(agent, state):
    """The lines of products in the programs of the update and of the policy."""
    key = jax.random.PRNGKey(0)
    programs = [
        jax.jit(agent.update).lower(state, _batch()),
        jax.jit(agent.sample_actions).lower(state, jnp.zeros(_OBS), key),
    ]
    return [
        line for each in programs for line in each.as_text().splitlines() if "dot_general" in line
    ]


@pytest.mark.parametrize("name", algorithm_names())
def test_every_product_takes_bfloat16(name):
    lines = _products(*_agent(name, compute_dtype="bfloat16"))
    assert len(lines) > 5
    for line in lines:
        operands = re.findall(r"tensor<[^>]*?(bf16|f32)>", line.split(" : ")[-1])[:2]
        assert operands == ["bf16", "bf16"], line


@pytest.mark.parametrize("name", algorithm_names())
def test_every_product_has_the_precision_that_is_asked_for(name):
    for line in _products(*_agent(name, matmul_precision="highest")):
        assert "precision = [HIGHEST, HIGHEST]" in line


@pytest.mark.slow
def test_an_update_in_bfloat16_is_close_to_one_in_float32():
    metrics = {}
    for dtype in ("float32", "bfloat16"):
        agent, state = _agent("qam", compute_dtype=dtype)
        state, metrics[dtype] = jax.jit(agent.update)(state, _batch(64))
        assert all(leaf.dtype != jnp.bfloat16 for leaf in jax.tree.leaves(state))
    for name, value in metrics["float32"].items():
        np.testing.assert_allclose(metrics["bfloat16"][name], value, rtol=0.03, atol=0.01)
    assert metrics["bfloat16"]["loss"] != metrics["float32"]["loss"]
