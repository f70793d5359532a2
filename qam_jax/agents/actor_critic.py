"""Parts that algorithms with critics combine: backups, acting, the update, losses of actors."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from qam_jax.agents import base, values
from qam_jax.agents.base import AgentState, Loss, PolicyFn
from qam_jax.networks import (
    CriticEnsemble,
    InitFn,
    TanhGaussian,
    VectorField,
    critic_values,
    init_network,
)
from qam_jax.types import Array, Batch, Key, Metrics, Params, QFn, VelocityFn

LossFn = Callable[[AgentState, Params, Batch, Array, Key], Loss]
"""An algorithm's own losses: `(state, params, batch, actions [B, D], key) -> (loss, metrics)`."""


def make_actor_critic(
    config: ConfigDict,
    critic: CriticEnsemble,
    *,
    init_actor: InitFn,
    actor_loss: LossFn,
    policy: PolicyFn,
    target_names: tuple[str, ...] = ("critic",),
    value_learning: values.ValueLearning | None = None,
    target_policy: PolicyFn | None = None,
    rates: dict[str, float] | None = None,
    choose: Callable[[PolicyFn], PolicyFn] | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> base.Agent:
    """Agent that learns critics by a value learning and everything else by one loss of its own.

    Args:
      config: of the algorithm.
      critic: network of the critics.
      init_actor: makes the parameters of all other networks. Parameters named `critic`, or as a
        network of the value learning, replace the usual ones.
      actor_loss: gradients are taken in `params`; `state.params` holds the same numbers fixed.
      policy: the way to act, before best-of-n.
      target_names: the networks that have a moving average.
      value_learning: regression of the critics; by default the one that the config names.
      target_policy: draws the next actions that critics are backed up from; by default `policy`.
      rates: of the moving averages, by network; by default `config.tau` for all.
      choose: makes the policy that acts of `policy`; by default `best_of_n`.
      optimizer: of all networks; by default `base.make_optimizer(config)`.
    """
    optimizer = base.make_optimizer(config) if optimizer is None else optimizer
    learning = value_learning or values.make_value_learning(config, critic)
    choose = choose or partial(best_of_n, config, critic)
    next_policy = best_of_n(config, critic, target_policy or policy)

    def init(key: Key, example_observation: Array, example_action: Array) -> AgentState:
        action_shape = base.chunk_shape(config, example_action)
        action = jnp.zeros(action_shape).reshape(-1)
        key, critic_key, actor_key = jax.random.split(key, 3)
        params = {"critic": init_network(critic, critic_key, example_observation, action)}
        params |= learning.init(jax.random.fold_in(critic_key, 1), example_observation)
        params |= init_actor(actor_key, example_observation, action)
        names = target_names + learning.target_names
        return base.init_state(optimizer, params, names, key, action_shape)

    def update(state: AgentState, batch: Batch) -> tuple[AgentState, Metrics]:
        key, value_key, actor_key = jax.random.split(state.key, 3)
        actions, nexts = base.flat_actions(config, batch), batch.next_observations
        next_actions = next_policy(state, nexts, value_key) if learning.needs_actions else None
        value_loss = learning.loss(state, batch, next_actions, value_key)

        def loss_fn(params: Params) -> Loss:
            loss, metrics = value_loss(params)
            extra, more = actor_loss(state, params, batch, actions, actor_key)
            return loss + extra, metrics | more

        return base.apply_gradients(state, optimizer, loss_fn, key, rates or config.tau)

    return base.Agent(init, update, **base.acting_by(policy, choose))


def best_of_n(
    config: ConfigDict,
    critic: CriticEnsemble,
    policy: PolicyFn,
    *,
    rank: Callable[..., Array] = jnp.mean,
    by_target: bool = False,
) -> PolicyFn:
    """Policy that takes the action of highest value among `config.best_of_n` of another policy.

    The value is `rank(values [K, ...], axis=0)`, with `by_target` by the target critics.
    """

    def best(state: AgentState, observations: Array, key: Key) -> Array:
        actions = policy(state, repeat_observations(config, observations), key)
        params = state.target_params if by_target else state.params
        return choose_best(critic, params["critic"], observations, actions, rank)

    return best


def repeat_observations(config: ConfigDict, observations: Array) -> Array:
    """Observations [N, ..., O], one for each of the `best_of_n` actions of a decision."""
    return jnp.broadcast_to(observations, (config.get("best_of_n", 1), *observations.shape))


def choose_best(
    critic: CriticEnsemble,
    params: Params,
    observations: Array,
    actions: Array,
    rank: Callable[..., Array] = jnp.mean,
) -> Array:
    """The action [..., D] of highest value among N in each observation, actions [N, ..., D]."""
    if len(actions) == 1:
        return actions[0]
    repeated = jnp.broadcast_to(observations, (len(actions), *observations.shape))
    values = rank(critic_values(critic, params, repeated, actions), axis=0)
    best = jnp.argmax(values, axis=0)
    return jnp.take_along_axis(actions, best[None, ..., None], axis=0)[0]


def init_flow_and_value(
    flow: VectorField,
    init_value: Callable[[Key, Array], Params],
    key: Key,
    observation: Array,
    action: Array,
) -> Params:
    """Parameters of the behaviour flow and of the networks that `init_value` makes, by name."""
    flow_key, value_key = jax.random.split(key)
    behavior = init_network(flow, flow_key, observation, action)
    return {"behavior": behavior, **init_value(value_key, observation)}


def make_flow_policy(
    config: ConfigDict, flow: VectorField, name: str = "behavior"
) -> base.FlowPolicy:
    """Policy that acts by the ODE of a flow, with the parameters `state.params[name]`."""

    def velocity(state: AgentState, observations: Array) -> VelocityFn:
        return base.flow_velocity(flow, state.params[name], observations)

    return base.FlowPolicy(velocity, config.flow_steps)


def action_gradient(value_fn: QFn, actions: Array) -> Array:
    """`grad_a Q` [..., D] at each of the actions [..., D], which are not clipped."""
    return jax.grad(lambda actions: jnp.sum(value_fn(actions)))(actions)


def one_step_loss(alpha: float, actions: Array, flow_actions: Array, value_fn: QFn) -> Loss:
    """`alpha mean (mu(s, z) - a_flow)^2 - mean_k Q_k(s, clip mu(s, z))` (FQL, arXiv 2502.02538).

    Args:
      alpha: weight of the distillation, at least 0.
      actions: [B, D], the one-step actor's `mu(s, z)`; not clipped.
      flow_actions: [B, D], the flow's actions for the same noise; held fixed by the caller.
      value_fn: `mean_k Q_k`, its parameters held fixed.
    """
    distilled = jnp.mean(jnp.square(actions - flow_actions))
    value = jnp.mean(value_fn(jnp.clip(actions, -1, 1)))
    metrics = {"one_step_distill_loss": distilled, "one_step_q": value}
    return alpha * distilled - value, metrics


def edit_actions(
    scale: float,
    editor: TanhGaussian,
    params: Params,
    observations: Array,
    actions: Array,
    noise: Array,
) -> tuple[Array, Array]:
    """`clip(a + scale Delta)` [..., D] with the log-density [...] of `Delta` (EXPO, 2507.07986).

    The edit `Delta ~ pi_e(s, a)` of actions `a` [..., D] is drawn from noise [..., D] ~ N(0, I).
    """
    inputs = jnp.concatenate([observations, actions], axis=-1)
    edit = editor.apply({"params": params}, inputs, noise)
    return jnp.clip(actions + scale * edit.value, -1, 1), edit.log_prob


def soft_actor_loss(
    values: Array, log_prob: Array, log_temp: Array, action_dim: int, name: str
) -> Loss:
    """Soft actor-critic's losses of actor and temperature (SAC, arXiv 1812.05905, sec. 5).

    `-Q + temp log pi`, and `temp (entropy - target)` with the target `-D / 2`, each trained apart.

    Args:
      values: [B], `Q` of the actions that the actor drew, its parameters held fixed.
      log_prob: [B], log-density of these actions.
      log_temp: scalar, trained logarithm of the temperature.
      action_dim: `D`.
      name: prefix of the metrics.
    """
    temp = jnp.exp(log_temp)
    entropy = -jnp.mean(log_prob)
    actor_loss = -jnp.mean(values) - jax.lax.stop_gradient(temp) * entropy
    target_entropy = -0.5 * action_dim
    temp_loss = temp * jax.lax.stop_gradient(entropy - target_entropy)
    metrics = {
        f"{name}_loss": actor_loss,
        f"{name}_temp_loss": temp_loss,
        f"{name}_temp": temp,
        f"{name}_entropy": entropy,
    }
    return actor_loss + temp_loss, metrics
