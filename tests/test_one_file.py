"""The algorithm in one file makes the same update as the package's agent."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from qam_jax.agents import get_config, make_agent
from qam_jax.types import Batch

_PATH = Path(__file__).parents[1] / "docs" / "tutorials" / "qam_in_one_file.py"


def _load():
    spec = importlib.util.spec_from_file_location("qam_in_one_file", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_stays_short_enough_to_be_read_at_once():
    assert len(_PATH.read_text().splitlines()) <= 250


def test_three_updates_are_those_of_the_agent():
    one = _load()
    config = get_config("qam")
    config.update(
        actor_hidden_dims=one.WIDTHS, critic_hidden_dims=one.WIDTHS, num_qs=one.NUM_QS,
        horizon_length=one.H, flow_steps=one.T, discount=one.DISCOUNT, inv_temp=one.INV_TEMP,
        rho=one.RHO, tau=one.TAU, lr=one.LR, batch_size=16,
    )  # fmt: skip
    agent = make_agent(config)
    state = jax.jit(agent.init)(jax.random.PRNGKey(0), jnp.zeros(2), jnp.zeros(2))
    windows = one.make_windows(num_episodes=2)
    batch = {name: column[:: len(column) // 16][:16] for name, column in windows.items()}

    def like(structure, tree):  # the same parameters, under the file's own names
        return jax.tree.unflatten(jax.tree.structure(structure), jax.tree.leaves(tree))

    own = one.init(jax.random.PRNGKey(1), 2, 2)
    own = one.State(
        like(own.params, state.params),
        like(own.targets, state.target_params),
        like(own.opt_state, state.opt_state),
        jnp.array(state.key),
    )
    own = jax.tree.map(jnp.copy, own)  # the update donates it
    update_step = jax.jit(agent.update)
    for _ in range(3):
        state, metrics = update_step(state, Batch(**batch))
        own, loss = one.update_step(own, batch)
        np.testing.assert_allclose(loss, metrics["loss"], rtol=1e-5)
    expected = (state.params, state.target_params)
    for leaf, other in zip(
        jax.tree.leaves((own.params, own.targets)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=2e-6)
    np.testing.assert_array_equal(own.key, state.key)
    start = jax.tree.leaves(
        like(own.params, agent.init(jax.random.PRNGKey(0), jnp.zeros(2), jnp.zeros(2)).params)
    )
    moved = [
        not np.allclose(a, b, atol=1e-4)
        for a, b in zip(start, jax.tree.leaves(own.params), strict=True)
    ]
    assert all(moved)
