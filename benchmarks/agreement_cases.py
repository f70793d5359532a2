"""Tiny cases of every method, for `agreement.py` and `tests/agents/test_stored_numbers.py`."""

import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qam_jax.agents import Agent, AgentState, get_config, make_agent
from qam_jax.data.dataset import gather_windows, make_dataset
from qam_jax.types import Batch

OBSERVATION_DIM, ACTION_DIM, HORIZON, BATCH_SIZE = 3, 2, 2, 6

# The rates are high, so that a wrong gradient shows in the parameters.
SIZES = {
    "actor_hidden_dims": (8, 8),
    "critic_hidden_dims": (8, 8),
    "num_qs": 2,
    "flow_steps": 4,
    "horizon_length": HORIZON,
    "discount": 0.9,
    "lr": 1e-2,
    "tau": 0.1,
}

METHODS: dict[str, list[dict[str, Any]]] = {
    "qam": [{"inv_temp": 2.0}, {"inv_temp": 2.0, "residual": True}, {"inv_temp": 0.0}],
    "qam_e": [{"edit_scale": 0.3}, {"inv_temp": 0.0, "edit_scale": 0.3}],
    "qam_f": [{"fql_alpha": 2.0}],
    "bam": [{"inv_temp": 2.0}, {"inv_temp": 0.0}],
    "fql": [{"alpha": 2.0}],
    "ifql": [{"kappa": 0.9, "best_of_n": 4}],
    "fawac": [{"inv_temp": 2.0}],
    "fbrac": [{"alpha": 0.5}],
    "fedit": [{"edit_scale": 0.5}],
    "dsrl": [{"noise_scale": 1.5}],
    "cgql": [{"inv_temp": 2.0}, {"inv_temp": 0.0}],
    "cgql_m": [{"inv_temp": 2.0, "noisy_coef": 0.5}],
    "cgql_l": [{"inv_temp": 2.0, "noisy_coef": 0.5}],
    "qsm": [{"inv_temp": 2.0, "alpha": 3.0}],
    "dac": [{"alpha": 3.0}],
    "rebrac": [{"alpha_actor": 0.5, "actor_noise": 0.4}],
    "rlpd": [{"bc_alpha": 0.5}],
    "bc": [{}],
    "trqam": [{"kl_budget": 0.1}],
    "rql": [{"alpha": 0.5, "kappa": 0.7}],
    "fan": [{"actor_anchor": 2.0, "critic_anchor": 0.5}],
    "qgf": [{"guidance_weight": 0.5}],
    "edp": [{"bc_weight": 2.0}],
}
"""Fields of the cases of each method, beside `SIZES`."""

EXTREMES: dict[str, Any] = {"rho": 0.0}
"""Fields of a method's last case, if the method has them."""


class Case(NamedTuple):
    """A method with parameters and windows, all of them from a seed.

    Attributes:
      name: `agent_name`.
      changes: of the method's default config.
      agent: the method.
      state: parameters and targets, of which none is 0 and no two are equal.
      batches: of up to three updates; some windows cross an episode's end, some complete the task.
    """

    name: str
    changes: dict[str, Any]
    agent: Agent
    state: AgentState
    batches: list[Batch]


class Outcome(NamedTuple):
    """What a case gives; trees are by network.

    Attributes:
      loss: of the first update.
      gradients: of the first update, as Adam gets them: clipped if the method clips.
      params: after one update, and after the last.
      targets: after one update, and after the last.
      actions: [2, D], each for one observation.
    """

    loss: float
    gradients: Any
    params: tuple[Any, Any]
    targets: tuple[Any, Any]
    actions: np.ndarray


def cases_of(name: str) -> list[dict[str, Any]]:
    """Changes of the config of three or more cases: with and without chunks, and extremes."""
    cases = [{**changes, "action_chunking": True} for changes in METHODS[name]]
    cases.append({**METHODS[name][0], "action_chunking": False})
    config = get_config(name)
    extremes = {field: value for field, value in EXTREMES.items() if field in config}
    return [*cases, {**cases[0], **extremes}]


def make_case(name: str, changes: dict[str, Any], seed: int, num_updates: int = 3) -> Case:
    """Builds a case; its numbers depend on nothing but the arguments."""
    config = get_config(name)
    fields = {**SIZES, **changes}
    config.update({field: value for field, value in fields.items() if field in config})
    agent = make_agent(config)
    inputs = jax.random.PRNGKey(seed), jnp.zeros(OBSERVATION_DIM), jnp.zeros(ACTION_DIM)
    shapes = jax.eval_shape(agent.init, *inputs)

    def init_rest() -> AgentState:
        """The state without random parameters, which take long to compile."""
        return dataclasses.replace(agent.init(*inputs), params={}, target_params={})

    state = dataclasses.replace(
        jax.jit(init_rest)(),
        params=_numbers_like(shapes.params, f"params {seed}"),
        target_params=_numbers_like(shapes.target_params, f"targets {seed}"),
    )
    dataset = make_dataset(make_columns(seed))
    batches = [
        gather_windows(dataset, dataset.start_rows[first_rows(index)], HORIZON, SIZES["discount"])
        for index in range(num_updates)
    ]
    return Case(name, changes, agent, state, batches)


def run_case(
    case: Case,
    make_targets: Callable[..., Any] | None = None,
    start: Callable[[], None] = lambda: None,
) -> Outcome:
    """Acts twice, then makes an update with each batch.

    Args:
      case: from `make_case`.
      make_targets: `(state before, state after) -> targets`, in place of the method's own.
      start: called before each action and update.
    """
    update, sample_actions = map(jax.jit, (case.agent.update, case.agent.sample_actions))
    actions = []
    for observation in case.batches[0].observations[:2]:
        start()
        chunk = sample_actions(case.state, observation, case.state.key)
        actions.append(chunk.reshape(-1))
    states = [case.state]
    for batch in case.batches:
        start()
        state, metrics = update(states[-1], batch)
        if make_targets:
            state = dataclasses.replace(state, target_params=make_targets(states[-1], state))
        if len(states) == 1:
            loss, gradients = metrics["loss"], first_gradients(state.opt_state)
        states.append(state)
    ends = states[1], states[-1]
    return Outcome(
        float(loss),
        gradients,
        tuple(state.params for state in ends),
        tuple(state.target_params for state in ends),
        np.stack(actions),
    )


def first_gradients(opt_state: optax.OptState) -> dict[str, Any]:
    """Gradients of the first update by network: ten times Adam's first moments."""
    gradients = {}
    for _, moments in optax.tree.get_all_with_path(opt_state, "mu"):
        for name, tree in moments.items():
            if jax.tree.leaves(tree):  # else another optimiser has the network
                gradients[name] = jax.tree.map(lambda leaf: 10 * leaf, tree)
    return gradients


def summarise(case: Case, outcome: Outcome) -> dict[str, Any]:
    """Few numbers that identify an outcome; they do not depend on how a network is laid out.

    Returns:
      The case, the loss, the actions, and sum and norm of the first update's gradients and of the
      parameters after it, for each network.
    """
    trees = {"gradients": outcome.gradients, "params": outcome.params[0]}
    return {
        "method": case.name,
        "changes": case.changes,
        "loss": _short([outcome.loss])[0],
        "actions": _short(outcome.actions.ravel()),
        **{
            kind: {name: _sum_and_norm(networks[name]) for name in sorted(networks)}
            for kind, networks in trees.items()
        },
    }


def make_columns(seed: int) -> dict[str, np.ndarray]:
    """Two episodes of four transitions, each of them a row; the first completes the task."""
    rng = np.random.default_rng(seed)
    observations = rng.normal(size=(10, OBSERVATION_DIM))
    return {
        "observations": np.delete(observations, [4, 9], axis=0),
        "next_observations": np.delete(observations, [0, 5], axis=0),
        "actions": rng.uniform(-0.9, 0.9, size=(8, ACTION_DIM)),
        "rewards": rng.normal(size=8),
        "terminals": np.array([0, 0, 0, 1, 0, 0, 0, 1]),
        "masks": np.array([1, 1, 1, 0, 1, 1, 1, 1]),
    }


def first_rows(index: int) -> np.ndarray:
    """Transitions [B] at which the windows of an update start; one crosses an episode's end."""
    return np.array([3, 0, 2, 5, 6, (1 + index) % 6])


@contextlib.contextmanager
def fixed_draws(normal: Callable, uniform: Callable, randint: Callable) -> Iterator[None]:
    """Replaces what `jax.random` draws; each function takes the shape (and bounds) alone."""
    replacements = {
        "normal": lambda key, shape=(), *_, **__: normal(shape),
        "uniform": lambda key, shape=(), *_, **__: uniform(shape),
        "randint": lambda key, shape, low, high, *_: randint(shape, low, high),
    }
    with mock.patch.multiple(jax.random, **replacements):
        yield


def numbers(purpose: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers that depend on a purpose and on the shape."""
    rng = np.random.default_rng(zlib.crc32(purpose.encode()))
    return np.float32(rng.normal(size=shape))


def _sum_and_norm(tree: Any) -> list[float]:
    values = np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)])
    return _short([values.sum(), np.linalg.norm(values)])


def _short(values: Iterable[Any]) -> list[float]:
    """Numbers with six digits."""
    return [float(f"{value:.6g}") for value in values]


def _numbers_like(tree: Any, purpose: str) -> Any:
    """Random numbers in the shapes of a tree, of about the size of trained parameters."""

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        centre = 1.0 if name.endswith("['scale']") else 0.0
        size = 0.5 if name.endswith("['kernel']") else 0.2
        return jnp.asarray(centre + size * numbers(f"{purpose} {name}", leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, tree)
