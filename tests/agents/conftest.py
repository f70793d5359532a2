"""Agents whose networks have no hidden layer: linear, so that NumPy can say what they do."""

import functools
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax.agents import algorithm_names, get_config, make_agent
from qam_jax.types import Batch

_SIZE, _OBS, _ACT, _HORIZON = 32, 2, 1, 2
_DIM = _ACT * _HORIZON


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks tests that repeat for every algorithm as slow, for all but QAM and cloning."""
    others = set(algorithm_names()) - {"qam", "bc"}
    for item in items:
        params = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if item.path.parent == Path(__file__).parent and others.intersection(map(str, params)):
            item.add_marker(pytest.mark.slow)


_BASELINES = {
    "dsrl": {"noise_scale": 1.5},
    "fawac": {"inv_temp": 4.0},
    "fbrac": {"alpha": 0.5},
    "fedit": {"edit_scale": 0.6},
    "fql": {"alpha": 0.5},
    "ifql": {"kappa": 0.9},
    "rebrac": {"alpha_actor": 0.5, "actor_noise": 0.4},
    "rlpd": {"bc_alpha": 10.0},
}


def _make(name, **changes):
    """Agent and state; chunks of two numbers, two critics, two steps of the flow.

    The targets are not what the parameters are, so that it shows which of them a loss takes.
    """
    changes = {**_BASELINES.get(name, {}), **changes}
    agent = _agent(name, tuple(sorted(changes.items())))
    state = agent.init(jax.random.PRNGKey(0), jnp.zeros(_OBS), jnp.zeros(_ACT))
    return agent, state.replace(target_params=_apart(state.target_params))


def _apart(params):
    """Parameters that are not far away."""
    return jax.tree.map(lambda leaf: 0.9 * leaf + 0.05, params)


def _config(name, **changes):
    config = get_config(name)
    fields = {
        "actor_hidden_dims": (), "critic_hidden_dims": (), "num_qs": 2, "flow_steps": 2,
        "horizon_length": _HORIZON, "clip_grad_norm": 0.0, "lr": 1e-2, **changes,
    }  # fmt: skip
    config.update({field: value for field, value in fields.items() if field in config})
    return config


@functools.lru_cache  # so that tests share compiled updates
def _agent(name, changes):
    agent = make_agent(_config(name, **dict(changes)))
    return agent._replace(update=jax.jit(agent.update))


def _batch(seed=0, **changes):
    rng = np.random.default_rng(seed)
    columns = {
        "observations": rng.normal(size=(_SIZE, _OBS)),
        "actions": rng.uniform(-1, 1, size=(_SIZE, _HORIZON, _ACT)),
        "rewards": rng.normal(size=_SIZE),
        "masks": rng.uniform(size=_SIZE) < 0.8,
        "weights": rng.uniform(size=_SIZE) < 0.8,
        "next_observations": rng.normal(size=(_SIZE, _OBS)),
        **changes,
    }
    return Batch(**{name: jnp.asarray(column, jnp.float32) for name, column in columns.items()})


def _climb():
    """A batch with which `first_action_critic` is right: the reward is the first action."""
    actions = np.random.default_rng(1).uniform(-1, 1, size=(_SIZE, _HORIZON, _ACT))
    masks, weights = np.zeros(_SIZE), np.ones(_SIZE)
    return _batch(1, actions=actions, rewards=actions[:, 0, 0], masks=masks, weights=weights)


def _first_action_critic(state):
    """The state with `Q_k(s, a) = a_1` for every k, also in the target."""
    critic = jax.tree.map(jnp.zeros_like, state.params["critic"])
    kernel = jax.tree.leaves(critic)[1].at[:, _OBS, 0].set(1.0)
    critic = jax.tree.unflatten(jax.tree.structure(critic), [jax.tree.leaves(critic)[0], kernel])
    return state.replace(
        params={**state.params, "critic": critic},
        target_params={**state.target_params, "critic": critic},
    )


def _train(agent, state, batch, updates):
    for _ in range(updates):
        state, metrics = agent.update(state, batch)
    return state, metrics


def _dense(params):
    """Kernel and bias of the one layer, in float64; [K, ...] for an ensemble."""
    bias, kernel = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params))
    return kernel, bias


def _flat(actions):
    """Chunks [B, H, A] as [B, D]."""
    return np.asarray(actions).reshape(len(actions), _DIM)


def _q_values(params, observations, actions):
    """[K, B] of a linear critic."""
    kernel, bias = _dense(params)
    inputs = np.concatenate([observations, actions], axis=-1)
    return np.einsum("bi,ki->kb", inputs, kernel[..., 0]) + bias


def _moments(state, name):
    """Adam's first moments of a network: kernel and bias."""
    adam = state.opt_state
    if hasattr(adam, "inner_states"):  # one optimiser for each network
        adam = adam.inner_states["delayed" if name == "actor" else "always"].inner_state
        adam = adam.inner_state if hasattr(adam, "inner_state") else adam
    return _dense(adam[0].mu[name])


def _gradients(state, name):
    """The gradients of the first update: a tenth of them is Adam's first moment."""
    return [10 * moment for moment in _moments(state, name)]


@pytest.fixture
def linear():
    return SimpleNamespace(
        make=_make, config=_config, batch=_batch, climb=_climb, train=_train, dense=_dense,
        first_action_critic=_first_action_critic, flat=_flat, q_values=_q_values,
        gradients=_gradients, moments=_moments, apart=_apart,
    )  # fmt: skip
