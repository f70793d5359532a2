"""What all algorithms share: the agent's shape, its state, and the parts that they combine."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from qam_jax import critic as critic_math
from qam_jax.agents import ensemble
from qam_jax.flow import flow_matching_loss, sample_flow
from qam_jax.networks import CriticEnsemble, StateValue, VectorField
from qam_jax.types import Array, Batch, Metrics, Params, QFn, VelocityFn


class Agent(NamedTuple):
    """A reinforcement-learning algorithm as pure functions, closed over a static config.

    Attributes:
      init: `(key, example_observation [O], example_action [A]) -> AgentState`.
      update: `(state, batch) -> (state, metrics)`, one gradient step; not jitted.
      sample_actions: `(state, observations [..., O], key) -> [..., H, A]` in [-1, 1]; `H` is 1
        without action chunking.
    """

    init: Callable[[chex.PRNGKey, Array, Array], "AgentState"]
    update: Callable[["AgentState", Batch], tuple["AgentState", Metrics]]
    sample_actions: Callable[["AgentState", Array, chex.PRNGKey], Array]


@flax.struct.dataclass
class AgentState:
    """Everything that training changes, as one pytree.

    Attributes:
      params: trained parameters, by network.
      target_params: moving averages of those networks that have one; not trained.
      opt_state: the optimiser's state, over `params` alone.
      key: source of all randomness in `update`.
      step: [] int32, updates so far.
      action_shape: static `(H, A)` of an action chunk; `H` is 1 without action chunking.
    """

    params: Params
    target_params: Params
    opt_state: optax.OptState
    key: chex.PRNGKey
    step: Array
    action_shape: tuple[int, int] = flax.struct.field(pytree_node=False)

    @property
    def action_dim(self) -> int:
        """`D`, the length of a flattened action chunk."""
        return self.action_shape[0] * self.action_shape[1]


def base_config() -> ConfigDict:
    """The fields that every algorithm has, with the paper's settings."""
    return ConfigDict(
        {
            "lr": 3e-4,  # Adam's learning rate
            "batch_size": 256,  # windows per update
            "clip_grad_norm": 1.0,  # joint norm over all trained parameters; 0 is no clipping
            "discount": 0.99,  # per environment step
            "horizon_length": 5,  # H, rows in a window of data
            "action_chunking": True,  # act in chunks of H; else H-step returns of single actions
            "flow_steps": 10,  # T, of the sampling ODE and of the simulated paths
            "actor_hidden_dims": (512, 512, 512, 512),  # widths of flows and other actors
            "actor_layer_norm": False,  # whether a LayerNorm follows each activation
            "compute_dtype": "float32",  # or bfloat16: of products' operands; sums stay float32
            "matmul_precision": "default",  # of float32 products, see jax.default_matmul_precision
        }
    )


def critic_config() -> ConfigDict:
    """The fields of every algorithm with a critic, with the paper's settings."""
    return ConfigDict(
        {
            "num_qs": 10,  # K, critics in the ensemble
            "rho": 0.5,  # pessimism in the target, in standard deviations
            "tau": 0.005,  # rate of the target networks' moving average
            "critic_hidden_dims": (512, 512, 512, 512),  # widths of critics and values
            "critic_layer_norm": True,  # whether a LayerNorm follows each activation
            "best_of_n": 1,  # actions drawn per decision; the critic keeps one
        }
    )


def network_fields(config: ConfigDict, part: str) -> dict[str, Any]:
    """The fields of a network of a part of the algorithm, `actor` or `critic`."""
    return {
        "hidden_dims": tuple(config[f"{part}_hidden_dims"]),
        "layer_norm": config[f"{part}_layer_norm"],
        "compute_dtype": config.compute_dtype,
    }


def make_flow(config: ConfigDict) -> VectorField:
    """The network of a flow policy."""
    return VectorField(**network_fields(config, "actor"))


def flow_velocity(flow: VectorField, params: Params, observations: Array) -> VelocityFn:
    """The flow's velocity in observations [..., O]."""

    def velocity(x: Array, t: Array) -> Array:
        return flow.apply({"params": params}, observations, x, t)

    return velocity


def flow_actions(config: ConfigDict, velocity_fn: VelocityFn, noise: Array) -> Array:
    """Actions [..., D] in [-1, 1] that the flow makes of noise [..., D]."""
    return jnp.clip(sample_flow(velocity_fn, noise, config.flow_steps), -1, 1)


def make_critic(config: ConfigDict) -> CriticEnsemble:
    """The ensemble of critics."""
    return CriticEnsemble(num_qs=config.num_qs, **network_fields(config, "critic"))


def make_state_value(config: ConfigDict) -> StateValue:
    """A value network, sized as the critics."""
    return StateValue(**network_fields(config, "critic"))


def chunk_shape(config: ConfigDict, example_action: Array) -> tuple[int, int]:
    """`(H, A)` of the actions that the policy produces."""
    return (config.horizon_length if config.action_chunking else 1, example_action.shape[-1])


def flat_actions(config: ConfigDict, batch: Batch) -> Array:
    """The actions [B, D] that policy and critic see: the chunk, time-major, or its first action."""
    actions = batch.actions if config.action_chunking else batch.actions[:, :1]
    return actions.reshape(actions.shape[0], -1)


def make_optimizer(
    config: ConfigDict, inner: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
    """Adam, or what stands for it, after one clip of the joint gradient norm."""
    inner = optax.adam(config.lr) if inner is None else inner
    if config.clip_grad_norm > 0:
        return optax.chain(optax.clip_by_global_norm(config.clip_grad_norm), inner)
    return inner


def init_state(
    optimizer: optax.GradientTransformation,
    params: Params,
    target_names: tuple[str, ...],
    key: chex.PRNGKey,
    action_shape: tuple[int, int],
) -> AgentState:
    """A state at step 0, whose target networks start as copies.

    Args:
      optimizer: of all trained parameters.
      params: trained parameters, by network.
      target_names: the networks that have a moving average.
      key: source of all randomness in updates.
      action_shape: `(H, A)` of an action chunk.
    """
    targets = {name: jax.tree.map(jnp.copy, params[name]) for name in target_names}
    step = jnp.zeros((), jnp.int32)
    return AgentState(params, targets, optimizer.init(params), key, step, action_shape)


def check_has_behavior(config: ConfigDict, state: AgentState) -> None:
    """Raises ValueError if the algorithm has no behaviour flow that could be trained alone."""
    if "behavior" not in state.params:
        raise ValueError(
            f"{config.agent_name!r} has no behaviour flow to start from: set bc_steps to 0."
        )


def with_behavior(config: ConfigDict, state: AgentState, behavior: Params) -> AgentState:
    """The state, its flows replaced by one that was trained by behaviour cloning alone.

    Args:
      config: the algorithm's.
      state: before its first update.
      behavior: parameters of the behaviour flow; they become those of `f_beta`, of its target
        and, where there is one, of the fine-tuned flow `f_theta`. A residual `f_theta` starts as
        a residual of 0.

    Raises:
      ValueError: if the algorithm has no behaviour flow.
    """
    check_has_behavior(config, state)
    copies = {"behavior": behavior}
    if "flow" in state.params and not config.get("residual", False):
        copies["flow"] = behavior
    elif "flow" in state.params:
        output = f"Dense_{len(config.actor_hidden_dims)}"
        mlp = state.params["flow"]["MLP_0"]
        mlp = {**mlp, output: jax.tree.map(jnp.zeros_like, mlp[output])}
        copies["flow"] = {**state.params["flow"], "MLP_0": mlp}

    def replace(params: Params) -> Params:
        return {name: jax.tree.map(jnp.copy, copies.get(name, params[name])) for name in params}

    return state.replace(params=replace(state.params), target_params=replace(state.target_params))


def apply_gradients(
    state: AgentState,
    optimizer: optax.GradientTransformation,
    loss_fn: Callable[[Params], tuple[Array, Metrics]],
    key: chex.PRNGKey,
    tau: float = 0.0,
) -> tuple[AgentState, Metrics]:
    """One step of the optimiser, then of the target networks towards the new parameters.

    Args:
      state: before the update.
      optimizer: the one that `state.opt_state` is of.
      loss_fn: `params -> (loss, metrics)`.
      key: what the new state's randomness comes from.
      tau: rate of the target networks' moving average, in [0, 1].

    Returns:
      The new state, and the metrics with `loss` and `grad_norm`, the norm before it is clipped.
    """
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    online = {name: params[name] for name in state.target_params}
    metrics = {"loss": loss, **metrics, "grad_norm": optax.global_norm(grads)}
    state = state.replace(
        params=params,
        target_params=optax.incremental_update(online, state.target_params, tau),
        opt_state=opt_state,
        key=key,
        step=state.step + 1,
    )
    return state, metrics


def behavior_cloning_loss(
    flow: VectorField, params: Params, batch: Batch, actions: Array, key: chex.PRNGKey
) -> Array:
    """`L_BC = mean_b v mean_D (f(s, x_t, t) - (a - z))^2` for one noise and time per sample.

    Args:
      flow: network of the behaviour flow.
      params: its parameters.
      batch: of its windows the observations and weights are used.
      actions: [B, D], see `flat_actions`.
      key: source of noise and times.

    Returns:
      A scalar.
    """
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, actions.shape)
    times = jax.random.uniform(time_key, (*actions.shape[:-1], 1))
    velocity = flow_velocity(flow, params, batch.observations)
    return jnp.mean(batch.weights * flow_matching_loss(velocity, noise, actions, times))


def critic_loss(
    critic: CriticEnsemble, params: Params, batch: Batch, actions: Array, targets: Array
) -> tuple[Array, Metrics]:
    """TD loss of the ensemble, with its metrics; see `critic.td_loss`.

    Args:
      critic: the ensemble.
      params: its parameters.
      batch: of its windows the observations and weights are used.
      actions: [B, D], see `flat_actions`.
      targets: [B], held fixed, see `critic_target`.
    """
    loss, q_values = ensemble.mean_td_loss(
        critic, params, batch.observations, actions, targets, batch.weights
    )
    return loss, {
        "critic_loss": loss,
        "q_mean": jnp.mean(q_values),
        "q_min": jnp.min(q_values),
        "q_max": jnp.max(q_values),
    }


def critic_target(
    config: ConfigDict, critic: CriticEnsemble, target_params: Params, batch: Batch, actions: Array
) -> Array:
    """TD targets [B] for the policy's `actions` [B, D] at the next observations."""
    next_q_values = ensemble.values(critic, target_params, batch.next_observations, actions)
    return bootstrap(config, batch, next_q_values)


def bootstrap(config: ConfigDict, batch: Batch, next_q_values: Array) -> Array:
    """TD targets [B] for values [K, B] of the next observations."""
    return critic_math.td_target(
        batch.rewards,
        batch.masks,
        next_q_values,
        discount=config.discount,
        horizon_length=config.horizon_length,
        rho=config.rho,
    )


def mean_value(
    critic: CriticEnsemble, params: Params, observations: Array, actions: Array
) -> Array:
    """`mean_k Q_k` [...] of actions [..., D] in observations [..., O]."""
    return ensemble.mean_value(critic, params, observations, actions)


def action_gradient(value_fn: QFn, actions: Array) -> Array:
    """`grad_a Q` [..., D] at each of the actions [..., D], which are not clipped."""
    return jax.grad(lambda actions: jnp.sum(value_fn(actions)))(actions)


def best_of_n(
    sample_fn: Callable[[Array, chex.PRNGKey], Array],
    value_fn: Callable[[Array, Array], Array],
    observations: Array,
    key: chex.PRNGKey,
    n: int,
) -> Array:
    """Draws `n` actions per observation and keeps the one of highest value.

    Args:
      sample_fn: `(observations [..., O], key) -> actions [..., D]`.
      value_fn: `(observations [..., O], actions [..., D]) -> [...]`; not called if `n` is 1.
      observations: [..., O].
      key: source of randomness.
      n: at least 1.

    Returns:
      [..., D].
    """
    if n == 1:
        return sample_fn(observations, key)
    repeated = jnp.broadcast_to(observations, (n, *observations.shape))
    actions = sample_fn(repeated, key)
    best = jnp.argmax(value_fn(repeated, actions), axis=0)
    return jnp.take_along_axis(actions, best[None, ..., None], axis=0)[0]


def split_chunks(state: AgentState, actions: Array) -> Array:
    """Flat actions [..., D] as chunks [..., H, A]."""
    return actions.reshape(*actions.shape[:-1], *state.action_shape)


def parameter_count(state: AgentState) -> int:
    """Number of trained parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))
