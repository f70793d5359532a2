"""Parts that all algorithms share: the agent's shape, state, config, flow and optimiser step."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from qam_jax.flow import flow_matching_loss, sample_flow
from qam_jax.networks import COMPUTE_DTYPES, CriticEnsemble, VectorField
from qam_jax.types import Array, Batch, Key, Metrics, Params, VelocityFn

if TYPE_CHECKING:  # types of flax are not read, see pyproject.toml
    from dataclasses import dataclass as state_dataclass
else:
    from flax.struct import dataclass as state_dataclass


Loss = tuple[Array, Metrics]
"""A scalar to differentiate, and the metrics to log."""

ParamsLoss = Callable[[Params], Loss]
"""A loss of the trained parameters, to take the gradient of."""

Solver = Callable[[VelocityFn, Array, int], Array]
"""Integrator of a flow: `(velocity_fn, noise [..., D], num_steps) -> [..., D]`; see `flow`."""


class Agent(NamedTuple):
    """A reinforcement-learning algorithm as pure functions, closed over a static config.

    Attributes:
      init: `(key, example_observation [O], example_action [A]) -> AgentState`.
      update: `(state, batch) -> (state, metrics)`, one gradient step; not jitted.
      sample_actions: `(state, observations [..., O], key) -> [..., H, A]` in [-1, 1]; `H` is 1
        without action chunking.
      explore: `sample_actions` for gathering data online; None if there is no difference.
      sample_by: `(state, observations [..., O], key, solver) -> [..., H, A]`, `sample_actions` with
        another solver than `sample_flow`; None if the agent acts by more than the ODE of a flow.
    """

    init: Callable[[Key, Array, Array], "AgentState"]
    update: Callable[["AgentState", Batch], tuple["AgentState", Metrics]]
    sample_actions: Callable[["AgentState", Array, Key], Array]
    explore: Callable[["AgentState", Array, Key], Array] | None = None
    sample_by: Callable[["AgentState", Array, Key, Solver], Array] | None = None


class Change(NamedTuple):
    """A change of an algorithm, after which runs of earlier versions cannot be trained further.

    Attributes:
      version: first version of this package with the change.
      what: description of the change, as the end of a sentence.
      concerns: `config -> bool`, whether the change concerns runs with a config.
      losses_only: True if earlier checkpoints act as before; False if their networks do not fit.
    """

    version: str
    what: str
    concerns: Callable[[ConfigDict], bool] = lambda _: True
    losses_only: bool = False


TANH_GAUSSIAN_CHANGE = Change(
    "0.2.0", "tanh-Gaussians start from other weights, and their deviation may be smaller"
)


@state_dataclass
class AgentState:
    """Everything that training changes, as one pytree.

    Attributes:
      params: trained parameters, by network.
      target_params: moving averages of the networks that have one; not trained.
      opt_state: the optimiser's state, over `params` alone.
      key: source of all randomness in `update`.
      step: [] int32, updates so far.
      action_shape: static `(H, A)` of an action chunk; `H` is 1 without action chunking.
    """

    params: Params
    target_params: Params
    opt_state: optax.OptState
    key: Key
    step: Array
    action_shape: tuple[int, int] = dataclasses.field(metadata={"pytree_node": False})

    @property
    def action_dim(self) -> int:
        """`D`, the length of a flattened action chunk."""
        return self.action_shape[0] * self.action_shape[1]


PolicyFn = Callable[[AgentState, Array, Key], Array]
"""Draws actions: `(state, observations [..., O], key) -> [..., D]`."""


def base_config(**own: Any) -> ConfigDict:
    """Fields of every algorithm, with the paper's settings, changed and extended by `own`."""
    shared = dict(
        lr=3e-4,  # Adam's learning rate
        batch_size=256,  # windows per update
        clip_grad_norm=1.0,  # joint norm over all trained parameters; 0 is no clipping
        discount=0.99,  # per environment step
        horizon_length=5,  # H, rows in a window of data
        action_chunking=True,  # act in chunks of H; else H-step returns of single actions
        flow_steps=10,  # T, of the sampling ODE and of the simulated paths
        actor_hidden_dims=(512, 512, 512, 512),  # widths of flows and other actors
        actor_layer_norm=False,  # whether a LayerNorm follows each activation
        compute_dtype="float32",  # or bfloat16: of products and activations
        matmul_precision="default",  # of float32 products, see jax.default_matmul_precision
    )
    return ConfigDict({**shared, **own})


def critic_config(**own: Any) -> ConfigDict:
    """Fields of every algorithm with critics, those of `base_config` among them, then `own`."""
    critic = dict(
        num_qs=10,  # K, critics in the ensemble
        rho=0.5,  # pessimism in the target, in standard deviations
        tau=0.005,  # rate of the target networks' moving average
        critic_hidden_dims=(512, 512, 512, 512),  # widths of critics and values
        critic_layer_norm=True,  # whether a LayerNorm follows each activation
        best_of_n=1,  # actions drawn per decision; the critic keeps one
    )
    return base_config(**{**critic, **own})


AT_LEAST_0 = (0.0, float("inf"))
AT_LEAST_1 = (1.0, float("inf"))
SHARE = (0.0, 1.0)

RANGES = {
    "lr": AT_LEAST_0,
    "batch_size": AT_LEAST_1,
    "clip_grad_norm": AT_LEAST_0,
    "discount": SHARE,
    "horizon_length": AT_LEAST_1,
    "flow_steps": AT_LEAST_1,
    "num_qs": AT_LEAST_1,
    "rho": AT_LEAST_0,
    "tau": SHARE,
    "best_of_n": AT_LEAST_1,
}
"""Lowest and highest value of each field above; an algorithm's `RANGES` are of its own fields."""

CHOICES = {"compute_dtype": COMPUTE_DTYPES, "matmul_precision": ("default", "high", "highest")}
"""Allowed values of the fields above that are a choice."""


def network_fields(config: ConfigDict, part: str) -> dict[str, Any]:
    """Fields of a network, by the config's fields for `actor` or for `critic`."""
    return {
        "hidden_dims": tuple(config[f"{part}_hidden_dims"]),
        "layer_norm": config[f"{part}_layer_norm"],
        "compute_dtype": config.compute_dtype,
    }


def make_flow(config: ConfigDict) -> VectorField:
    """Network of a flow policy."""
    return VectorField(**network_fields(config, "actor"))


def make_critic(config: ConfigDict, network: type = CriticEnsemble) -> CriticEnsemble:
    """Ensemble of critics; `network` is its class, which has the fields of `CriticEnsemble`."""
    return network(num_qs=config.num_qs, **network_fields(config, "critic"))


def flow_velocity(flow: VectorField, params: Params, observations: Array) -> VelocityFn:
    """Velocity of a flow in observations [..., O], on `x` [..., D] or on paths [T, ..., D]."""

    def velocity(x: Array, t: Array) -> Array:
        repeated = jnp.broadcast_to(observations, (*x.shape[:-1], observations.shape[-1]))
        return flow.apply({"params": params}, repeated, x, t)

    return velocity


def flow_actions(config: ConfigDict, velocity_fn: VelocityFn, noise: Array) -> Array:
    """Actions [..., D] in [-1, 1] that a flow makes of noise [..., D]."""
    return jnp.clip(sample_flow(velocity_fn, noise, config.flow_steps), -1, 1)


def draw_noise(state: AgentState, observations: Array, key: Key) -> Array:
    """Noise [..., D] ~ N(0, I) for observations [..., O]."""
    return jax.random.normal(key, (*observations.shape[:-1], state.action_dim))


@dataclasses.dataclass(frozen=True)
class FlowPolicy:
    """Policy that acts by the ODE of a flow, a `PolicyFn`.

    Attributes:
      velocity: velocity of the flow, `(state, observations [..., O]) -> VelocityFn`.
      num_steps: `T`.
      noise: start of the ODE, `(state, observations [..., O], key) -> [..., D]`.
      solver: integrator of the ODE.
    """

    velocity: Callable[[AgentState, Array], VelocityFn]
    num_steps: int
    noise: Callable[[AgentState, Array, Key], Array] = draw_noise
    solver: Solver = sample_flow

    def __call__(self, state: AgentState, observations: Array, key: Key) -> Array:
        noise = self.noise(state, observations, key)
        velocity = self.velocity(state, observations)
        return jnp.clip(self.solver(velocity, noise, self.num_steps), -1, 1)


def acting_by(
    policy: PolicyFn, choose: Callable[[PolicyFn], PolicyFn] = lambda policy: policy
) -> dict[str, Any]:
    """Fields of an `Agent` that acts by a policy.

    Args:
      policy: draws actions; an agent with a `FlowPolicy` has `sample_by`.
      choose: makes another policy of `policy`, such as the best of n.
    """

    def in_chunks(policy: PolicyFn) -> PolicyFn:
        chosen = choose(policy)

        def sample_actions(state: AgentState, observations: Array, key: Key) -> Array:
            actions = chosen(state, observations, key)
            return actions.reshape(*actions.shape[:-1], *state.action_shape)

        return sample_actions

    def sample_by(state: AgentState, observations: Array, key: Key, solver: Solver) -> Array:
        assert isinstance(policy, FlowPolicy)
        return in_chunks(dataclasses.replace(policy, solver=solver))(state, observations, key)

    by_flow = isinstance(policy, FlowPolicy)
    return {"sample_actions": in_chunks(policy), "sample_by": sample_by if by_flow else None}


def chunk_shape(config: ConfigDict, example_action: Array) -> tuple[int, int]:
    """`(H, A)` of the actions that the policy produces."""
    return (config.horizon_length if config.action_chunking else 1, example_action.shape[-1])


def flat_actions(config: ConfigDict, batch: Batch) -> Array:
    """Actions [B, D] for policy and critic: the chunk, time-major, or its first action."""
    actions = batch.actions if config.action_chunking else batch.actions[:, :1]
    return actions.reshape(actions.shape[0], -1)


def behavior_cloning_loss(
    flow: VectorField, params: Params, batch: Batch, actions: Array, key: Key
) -> Array:
    """Flow matching on a batch, `mean_b v mean_D (f(s, x_t, t) - (a - z))^2`.

    Args:
      flow: network of the behaviour flow.
      params: its parameters.
      batch: its observations and weights `v` are used.
      actions: [B, D], see `flat_actions`.
      key: source of one noise `z` and one time `t` per sample.
    """
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, actions.shape)
    times = jax.random.uniform(time_key, (*actions.shape[:-1], 1))
    velocity = flow_velocity(flow, params, batch.observations)
    return jnp.mean(batch.weights * flow_matching_loss(velocity, noise, actions, times))


def straight_path(actions: Array, times: Array, key: Key) -> tuple[Array, Array]:
    """Points on straight paths from noise to actions, and the velocities of the paths, each [B, D].

    Args:
      actions: [B, D], the ends of the paths.
      times: [B, 1] in [0, 1], of the points.
      key: source of the noise, the starts of the paths.
    """
    noise = jax.random.normal(key, actions.shape)
    return (1 - times) * noise + times * actions, actions - noise


def make_optimizer(
    config: ConfigDict, inner: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
    """Adam, or `inner` in its place, after one clip of the joint gradient norm."""
    inner = optax.adam(config.lr) if inner is None else inner
    limit = config.clip_grad_norm

    def clip(grads: Params, _: Params | None) -> Params:
        scale = limit / jnp.maximum(global_norm(grads), limit)
        return jax.tree.map(lambda leaf: scale * leaf, grads)

    return optax.chain(optax.stateless(clip), inner) if limit > 0 else inner


def global_norm(grads: Params) -> Array:
    """Norm of all leaves together: the rows of large leaves are summed first, then all the rest."""
    squares = [jnp.square(leaf) for leaf in jax.tree.leaves(grads)]
    rows = [jnp.sum(leaf, axis=-1) if leaf.size > 2**14 else leaf for leaf in squares]
    together = jnp.concatenate([leaf.ravel() for leaf in rows])
    together = jax.lax.optimization_barrier(together)  # else XLA sums each leaf apart
    return jnp.sqrt(jnp.sum(together))


def init_state(
    optimizer: optax.GradientTransformation,
    params: Params,
    target_names: tuple[str, ...],
    key: Key,
    action_shape: tuple[int, int],
) -> AgentState:
    """State at step 0; the target networks start as copies of the networks in `target_names`."""
    targets = {name: jax.tree.map(jnp.copy, params[name]) for name in target_names}
    step = jnp.zeros((), jnp.int32)
    return AgentState(params, targets, optimizer.init(params), key, step, action_shape)


def apply_gradients(
    state: AgentState,
    optimizer: optax.GradientTransformation,
    loss_fn: ParamsLoss,
    key: Key,
    tau: float | dict[str, float] = 0.0,
) -> tuple[AgentState, Metrics]:
    """Takes one step of the optimiser, then moves the targets towards the new parameters.

    Args:
      state: before the update.
      optimizer: the optimiser that `state.opt_state` belongs to.
      loss_fn: `params -> (loss, metrics)`.
      key: the new state's source of randomness.
      tau: rate of the target networks' moving average, in [0, 1]; or one for each of them.

    Returns:
      The new state, and the metrics with `loss` and `grad_norm`, the norm before clipping.
    """
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    grad_norm = global_norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    rates = tau if isinstance(tau, dict) else dict.fromkeys(state.target_params, tau)
    targets = {
        name: optax.incremental_update(params[name], target, rates[name])
        for name, target in state.target_params.items()
    }
    state = dataclasses.replace(
        state,
        params=params,
        target_params=targets,
        opt_state=opt_state,
        key=key,
        step=state.step + 1,
    )
    return state, {"loss": loss, **metrics, "grad_norm": grad_norm}


def check_has_behavior(config: ConfigDict, state: AgentState) -> None:
    """Raises ValueError if the algorithm has no behaviour flow to train alone."""
    if "behavior" not in state.params:
        raise ValueError(
            f"{config.agent_name!r} has no behaviour flow to start from: set bc_steps to 0."
        )


def with_behavior(config: ConfigDict, state: AgentState, behavior: Params) -> AgentState:
    """State whose flows are replaced by a flow that was trained by behaviour cloning alone.

    Args:
      config: of the algorithm.
      state: before its first update.
      behavior: parameters of the cloned flow. The behaviour flow, its target and the fine-tuned
        flow, if any, become copies of it. A residual fine-tuned flow starts at 0 instead.

    Raises:
      ValueError: if the algorithm has no behaviour flow.
    """
    check_has_behavior(config, state)
    copies = {"behavior": behavior, "flow": behavior}
    if config.get("residual", False):
        copies["flow"] = make_flow(config).with_zero_output(state.params["flow"])

    def replace(params: Params) -> Params:
        return {name: jax.tree.map(jnp.copy, copies.get(name, params[name])) for name in params}

    return dataclasses.replace(
        state, params=replace(state.params), target_params=replace(state.target_params)
    )


def parameter_count(state: AgentState) -> int:
    """Number of trained parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))
