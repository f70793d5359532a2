"""The paper's code, from a checkout of it: what its methods give in the tiny cases of this project.

Nothing of that code is part of this project. Its two libraries of distributions do not work with
recent versions of JAX; small stand-ins take their place in this process.
"""

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from agreement_cases import (
    ACTION_DIM,
    HORIZON,
    OBSERVATION_DIM,
    SIZES,
    Case,
    Outcome,
)

from qam_jax.agents import get_config
from qam_jax.types import Batch


def _critic(tree: Any) -> Any:
    return {"value_net": tree["VmapMLP_0"]}


def _timed_critic(tree: Any) -> Any:
    return {"mlp": tree["CriticEnsemble_0"]["VmapMLP_0"]}


def _value(tree: Any) -> Any:
    return {"value_net": tree["MLP_0"]}


def _flow(tree: Any) -> Any:
    return {"mlp": tree["MLP_0"]}


def _log(tree: Any) -> Any:
    return {"log_value": tree}


def _tanh_actor(tree: Any) -> Any:
    hidden, last = _split_last(tree["MLP_0"])
    return {"actor_net": hidden, "mean_net": last}


def _gaussian(tree: Any) -> Any:
    hidden, last = _split_last(tree["MLP_0"])
    halves = {name: jnp.split(leaf, 2, axis=-1) for name, leaf in last.items()}
    mean, log_std = ({name: both[index] for name, both in halves.items()} for index in (0, 1))
    return {"MLP_0": hidden, "OutputDenseMean": mean, "OutputDenseLogStd": log_std}


def _noise_predictor(tree: Any) -> Any:
    first = tree["MLP_0"]["Dense_0"]  # of `[s, a, features]`; the paper's of `[a, s, features]`
    observation, rest = jnp.split(first["kernel"], [OBSERVATION_DIM])
    dim = len(rest) - tree["time_MLP"]["Dense_1"]["bias"].size
    kernel = jnp.concatenate([rest[:dim], observation, rest[dim:]])
    return {
        "FourierFeatures_0": {"kernel": tree["FourierFeatures_0"]["frequencies"][:, None]},
        "MLP_0": tree["time_MLP"],
        "MLP_1": {**tree["MLP_0"], "Dense_0": {**first, "kernel": kernel}},
    }


def _split_last(layers: Any) -> tuple[Any, Any]:
    """All layers but the last, and the last."""
    *hidden, last = sorted(layers)
    return {name: layers[name] for name in hidden}, layers[last]


class Method(NamedTuple):
    """How the paper's code names a method of this project.

    Attributes:
      agent: name in its registry.
      networks: by our name: its name, and a function from our layout to its.
    """

    agent: str
    networks: dict[str, tuple[str, Callable[[Any], Any]]]


_QAM = {
    "critic": ("critic", _critic),
    "behavior": ("actor_slow", _flow),
    "flow": ("actor_fast", _flow),
}
_CRITIC = {"critic": ("critic", _critic)}
_CGQL = {"critic": ("critic", _timed_critic), "behavior": ("actor", _flow)}
_CLONED = {**_CRITIC, "behavior": ("actor_bc_flow", _flow)}
_DIFFUSION = {**_CRITIC, "actor": ("actor", _noise_predictor)}

PAPER_METHODS = {
    "qam": Method("qam", _QAM),
    "qam_e": Method(
        "qam",
        {**_QAM, "editor": ("edit_actor", _gaussian), "log_edit_temp": ("edit_alpha", _log)},
    ),
    "qam_f": Method("qam", {**_QAM, "one_step": ("one_step_actor", _flow)}),
    "bam": Method("bam", _QAM),
    "fql": Method("fql", {**_CLONED, "one_step": ("actor_onestep_flow", _flow)}),
    "ifql": Method(
        "ifql", {**_CRITIC, "behavior": ("actor_flow", _flow), "value": ("value", _value)}
    ),
    "fawac": Method("fawac", {**_CRITIC, "behavior": ("actor", _flow), "value": ("value", _value)}),
    "fbrac": Method("fbrac", {**_CRITIC, "behavior": ("actor_flow", _flow)}),
    "fedit": Method(
        "fedit",
        {**_CLONED, "editor": ("edit_actor", _gaussian), "log_edit_temp": ("alpha", _log)},
    ),
    "dsrl": Method(
        "dsrl",
        {
            **_CLONED,
            "latent_critic": ("z_critic", _critic),
            "latent_actor": ("actor", _gaussian),
            "log_latent_temp": ("alpha", _log),
        },
    ),
    "cgql": Method("cgql", _CGQL),
    "cgql_m": Method("cgql", _CGQL),
    "cgql_l": Method("cgql", _CGQL),
    "qsm": Method("dcgql", _DIFFUSION),
    "dac": Method("dcgql", _DIFFUSION),
    "rebrac": Method("rebrac", {**_CRITIC, "actor": ("actor", _tanh_actor)}),
    "rlpd": Method(
        "rlpd", {**_CRITIC, "actor": ("actor", _gaussian), "log_actor_temp": ("alpha", _log)}
    ),
}
"""The methods that the paper's code has."""

_CONSTANTS: dict[str, dict[str, Any]] = {
    "cgql": {"mode": "simple"},
    "cgql_m": {"mode": "mse"},
    "cgql_l": {"mode": "linex"},
    "qsm": {"actor_loss_type": "qsm", "clip_sampler_before": False, "clip_sampler_after": True},
    "dac": {"actor_loss_type": "dac", "clip_sampler_before": True, "clip_sampler_after": False},
}
"""Fields by which the paper's code tells methods apart that are one agent there."""

_FIELDS = {
    "critic_hidden_dims": "value_hidden_dims",
    "best_of_n": "num_samples",
    "flow_steps": "diffusion_steps",
}
"""Fields that the paper's code, or a method of it, names otherwise."""


def load_paper(folder: Path) -> None:
    """Makes the paper's code importable.

    Raises:
      FileNotFoundError: if the folder is not a checkout of it.
    """
    if not (folder / "agents" / "dcgql.py").exists():
        raise FileNotFoundError(
            f"{folder} is no checkout of the paper's code: clone "
            "https://github.com/ColinQiyangLi/qam and give its folder."
        )
    sys.path.insert(0, str(folder))
    sys.modules.update(_stand_ins())


def run_paper(case: Case, start: Callable[[], None] = lambda: None) -> Outcome:
    """What the paper's code gives in a case, in its own names and layouts.

    Args:
      case: of a method in `PAPER_METHODS`.
      start: called before each action and update.
    """
    method = PAPER_METHODS[case.name]
    agent, config = _make_agent(method, case)
    actions = []
    for observation in case.batches[0].observations[:2]:
        start()
        actions.append(agent.sample_actions(observation, rng=agent.rng).reshape(-1))
    windows = [as_windows(batch) for batch in case.batches]
    start()
    loss = agent.total_loss(windows[0], agent.network.params, rng=agent.rng)[0]
    if method.agent == "dcgql":  # it raises losses to the power v, which adds 1 where v = 0
        loss -= (1 + config["alpha"]) * jnp.mean(1 - case.batches[0].weights)
    agents = [agent]
    for index, each in enumerate(windows):
        start()
        due = {"full_update": index % 2 == 1} if method.agent == "rebrac" else {}
        agents.append(agents[-1].update(each, **due)[0])
    moments = optax.tree.get(agents[1].network.opt_state, "mu")
    ends = [agents[index].network.params for index in (1, -1)]
    return Outcome(
        float(loss),
        jax.tree.map(lambda leaf: 10 * leaf, _select(method, moments, case.state.params)),
        tuple(_select(method, params, case.state.params) for params in ends),
        tuple(_select(method, params, case.state.target_params, "target_") for params in ends),
        np.stack(actions),
    )


def to_paper(name: str, networks: dict[str, Any]) -> dict[str, Any]:
    """Parameters, gradients or targets of ours in the paper's names and layouts."""
    known = PAPER_METHODS[name].networks
    return {known[own][0]: known[own][1](tree) for own, tree in networks.items()}


def paper_windows(columns: dict[str, np.ndarray], rows: np.ndarray) -> Batch:
    """Windows that the paper's code makes of transitions."""
    datasets = importlib.import_module("utils.datasets")
    dataset = datasets.Dataset.create(**columns)
    draw, np.random.randint = np.random.randint, lambda *_, **__: rows
    try:
        windows = dataset.sample_sequence(len(rows), HORIZON, SIZES["discount"])
    finally:
        np.random.randint = draw
    return Batch(
        observations=windows["observations"],
        actions=windows["actions"],
        rewards=windows["rewards"][:, -1],
        masks=windows["masks"][:, -1],
        weights=windows["valid"][:, -1],
        next_observations=windows["next_observations"][:, -1],
    )


def translate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a config, by the paper's names too."""
    fields = {name: value for name, value in config.items() if name != "agent_name"}
    return fields | {_FIELDS[name]: fields[name] for name in _FIELDS if name in fields}


def _make_agent(method: Method, case: Case) -> tuple[Any, Any]:
    """The paper's agent with the parameters of a case, and its config."""
    module = importlib.import_module(f"agents.{method.agent}")
    config = module.get_config()
    fields = translate({**get_config(case.name), **SIZES, **case.changes})
    fields |= _CONSTANTS.get(case.name, {})
    config.update({name: value for name, value in fields.items() if name in config})
    (agent_class,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    )
    examples = jnp.zeros(OBSERVATION_DIM), jnp.zeros(ACTION_DIM)
    agent = agent_class.create(0, *examples, config)
    network = agent.network
    own = to_paper(case.name, case.state.params)
    targets = to_paper(case.name, case.state.target_params)
    params = {
        **network.params,
        **{f"modules_{name}": tree for name, tree in own.items()},
        **{f"modules_target_{name}": tree for name, tree in targets.items()},
    }
    _check_same_shapes(params, network.params)
    network = network.replace(params=params, opt_state=network.tx.init(params))
    return agent.replace(network=network), config


def _check_same_shapes(params: Any, expected: Any) -> None:
    found, wanted = (jax.tree.map(jnp.shape, tree) for tree in (params, expected))
    if found != wanted:
        raise ValueError(f"parameters have the shapes {found}, the paper's code has {wanted}.")


def _select(method: Method, params: Any, own: Iterable[str], prefix: str = "") -> dict[str, Any]:
    """The networks of the paper's code, by its names, that ours has under the names `own`."""
    names = [method.networks[name][0] for name in own]
    return {name: params[f"modules_{prefix}{name}"] for name in names}


def as_windows(batch: Batch) -> dict[str, jax.Array]:
    """Our windows in the paper's layout, of which it reads the last row alone."""
    return {
        "observations": batch.observations,
        "actions": batch.actions,
        "rewards": batch.rewards[:, None],
        "masks": batch.masks[:, None],
        "valid": batch.weights[:, None],
        "next_observations": batch.next_observations[:, None],
    }


class _Normal:
    """Stand-in for a normal distribution with a diagonal covariance."""

    def __init__(self, loc: jax.Array, scale_diag: jax.Array):
        self._loc, self._scale = loc, scale_diag

    def sample(self, seed: jax.Array) -> jax.Array:
        return self._loc + self._scale * jax.random.normal(seed, self._loc.shape)

    def log_prob(self, value: jax.Array) -> jax.Array:
        return jnp.sum(jax.scipy.stats.norm.logpdf(value, self._loc, self._scale), axis=-1)

    def mode(self) -> jax.Array:
        return self._loc

    def stddev(self) -> jax.Array:
        return self._scale


class _Tanh:
    """Stand-in for the bijector; like the original it remembers what it made a value of."""

    def __init__(self):
        self._made: list[tuple[jax.Array, jax.Array]] = []

    def forward(self, raw: jax.Array) -> jax.Array:
        self._made.append((jnp.tanh(raw), raw))
        return self._made[-1][0]

    def inverse(self, value: jax.Array) -> jax.Array:
        raws = [raw for made, raw in self._made if made is value]
        return raws[0] if raws else jnp.arctanh(value)

    @staticmethod
    def log_det(raw: jax.Array) -> jax.Array:
        return jnp.sum(2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw)), axis=-1)


class _Transformed:
    """Stand-in for a distribution behind a bijector."""

    def __init__(self, distribution: _Normal, bijector: _Tanh, validate_args: bool = False):
        self.distribution = self._distribution = distribution
        self.bijector = bijector

    def sample(self, seed: jax.Array) -> jax.Array:
        return self.bijector.forward(self.distribution.sample(seed))

    def log_prob(self, value: jax.Array) -> jax.Array:
        raw = self.bijector.inverse(value)
        return self.distribution.log_prob(raw) - self.bijector.log_det(raw)


def _stand_ins() -> dict[str, Any]:
    distributions = SimpleNamespace(
        Distribution=object,
        MultivariateNormalDiag=_Normal,
        TransformedDistribution=_Transformed,
    )
    substrate = SimpleNamespace(distributions=distributions, bijectors=SimpleNamespace(Tanh=_Tanh))
    return {
        "tensorflow_probability": SimpleNamespace(substrates=SimpleNamespace(jax=substrate)),
        "distrax": SimpleNamespace(
            MultivariateNormalDiag=_Normal,
            Transformed=_Transformed,
            Tanh=_Tanh,
            Block=lambda bijector, ndims: bijector,
        ),
    }
