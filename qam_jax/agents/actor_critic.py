"""Actor parts that several algorithms combine: acting, one-step actors, edits, soft actors."""

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from qam_jax.agents import base
from qam_jax.networks import CriticEnsemble, OneStepActor, TanhGaussian, VectorField
from qam_jax.types import Array, Batch, Metrics, Params, QFn

PolicyFn = Callable[[base.AgentState, Array, chex.PRNGKey], Array]
"""An algorithm's sampler before best-of-n: `(state, observations [..., O], key) -> [..., D]`."""

SampleFn = Callable[[base.AgentState, Array, chex.PRNGKey], Array]
"""How an agent acts: `(state, observations [..., O], key) -> [..., H, A]`."""

ActorLossFn = Callable[[base.AgentState, Params, Batch, Array, chex.PRNGKey], tuple[Array, Metrics]]
"""An algorithm's own losses: `(state, params, batch, actions [B, D], key) -> (loss, metrics)`."""

TargetFn = Callable[[base.AgentState, Batch, chex.PRNGKey], Array]
"""TD targets [B] of the critics: `(state, batch, key) -> [B]`."""


def make_one_step_actor(config: ConfigDict) -> OneStepActor:
    """The network of a one-step actor, sized as the flow."""
    return OneStepActor(**base.network_fields(config, "actor"))


def make_tanh_gaussian(config: ConfigDict) -> TanhGaussian:
    """The network of a tanh-Gaussian policy, sized as the flow."""
    return TanhGaussian(**base.network_fields(config, "actor"))


def draw_noise(state: base.AgentState, observations: Array, key: chex.PRNGKey) -> Array:
    """Noise [..., D] ~ N(0, I) for observations [..., O]."""
    return jax.random.normal(key, (*observations.shape[:-1], state.action_dim))


def make_behavior_policy(config: ConfigDict, flow: VectorField) -> PolicyFn:
    """The policy that acts by the ODE under the behaviour flow."""

    def policy(state, observations, key):
        noise = draw_noise(state, observations, key)
        velocity = base.flow_velocity(flow, state.params["behavior"], observations)
        return base.flow_actions(config, velocity, noise)

    return policy


def best_actions(
    config: ConfigDict,
    critic: CriticEnsemble,
    policy: PolicyFn,
    state: base.AgentState,
    observations: Array,
    key: chex.PRNGKey,
    rank: Callable[..., Array] = jnp.mean,
) -> Array:
    """Best of `config.best_of_n` actions [..., D] of the policy.

    Args:
      config: the algorithm's.
      critic: the ensemble; `state.params` has its parameters.
      policy: what draws actions.
      state: the agent's.
      observations: [..., O].
      key: source of randomness.
      rank: makes one value of those of the ensemble, over `axis=0`.
    """
    critic_params = {"params": state.params["critic"]}
    return base.best_of_n(
        lambda observations, key: policy(state, observations, key),
        lambda observations, actions: rank(
            critic.apply(critic_params, observations, actions), axis=0
        ),
        observations,
        key,
        config.best_of_n,
    )


def policy_targets(
    config: ConfigDict,
    critic: CriticEnsemble,
    policy: PolicyFn,
    state: base.AgentState,
    batch: Batch,
    key: chex.PRNGKey,
) -> Array:
    """TD targets [B] at the actions that the policy takes in the next observations."""
    actions = best_actions(config, critic, policy, state, batch.next_observations, key)
    return base.critic_target(config, critic, state.target_params["critic"], batch, actions)


def make_sampler(
    config: ConfigDict,
    critic: CriticEnsemble,
    policy: PolicyFn,
    rank: Callable[..., Array] = jnp.mean,
) -> SampleFn:
    """The agent's `sample_actions`: the policy, best of n, in chunks [..., H, A].

    Args:
      config: the algorithm's.
      critic: the ensemble.
      policy: what draws actions.
      rank: see `best_actions`.
    """

    def sample_actions(state, observations, key):
        actions = best_actions(config, critic, policy, state, observations, key, rank)
        return base.split_chunks(state, actions)

    return sample_actions


def make_actor_critic(
    config: ConfigDict,
    critic: CriticEnsemble,
    *,
    init_actor: Callable[[chex.PRNGKey, Array, Array], Params],
    actor_loss: ActorLossFn,
    policy: PolicyFn,
    target_names: tuple[str, ...] = ("critic",),
    target_fn: TargetFn | None = None,
    rank: Callable[..., Array] = jnp.mean,
    optimizer: optax.GradientTransformation | None = None,
) -> base.Agent:
    """An agent that learns critics by TD backups and everything else by one loss of its own.

    Args:
      config: the algorithm's.
      critic: the ensemble.
      init_actor: `(key, observation [O], action [D]) -> params` of all networks but the critic.
      actor_loss: `(state, params, batch, actions [B, D], key) -> (loss, metrics)`; gradients are
        taken in `params`, `state.params` holds the same numbers fixed.
      policy: how the agent acts, before best-of-n.
      target_names: the networks that have a moving average.
      target_fn: `(state, batch, key) -> [B]`, the TD targets; by default those of the policy.
      rank: see `best_actions`.
      optimizer: by default `base.make_optimizer(config)`.
    """
    optimizer = base.make_optimizer(config) if optimizer is None else optimizer
    target_fn = target_fn or partial(policy_targets, config, critic, policy)

    def init(key, example_observation, example_action):
        action_shape = base.chunk_shape(config, example_action)
        action = jnp.zeros(action_shape).reshape(-1)
        key, critic_key, actor_key = jax.random.split(key, 3)
        params = {
            "critic": critic.init(critic_key, example_observation, action)["params"],
            **init_actor(actor_key, example_observation, action),
        }
        return base.init_state(optimizer, params, target_names, key, action_shape)

    def update(state, batch):
        key, target_key, actor_key = jax.random.split(state.key, 3)
        actions = base.flat_actions(config, batch)
        targets = target_fn(state, batch, target_key)

        def loss_fn(params):
            loss, metrics = base.critic_loss(critic, params["critic"], batch, actions, targets)
            extra, more = actor_loss(state, params, batch, actions, actor_key)
            return loss + extra, metrics | more

        return base.apply_gradients(state, optimizer, loss_fn, key, config.tau)

    return base.Agent(init, update, make_sampler(config, critic, policy, rank))


def one_step_loss(
    alpha: float, actions: Array, flow_actions: Array, value_fn: QFn
) -> tuple[Array, Metrics]:
    """`alpha mean (mu(s, z) - a_flow)^2 - mean_k Q_k(s, clip mu(s, z))` (FQL, arXiv 2502.02538).

    Args:
      alpha: weight of the distillation, at least 0.
      actions: [B, D], the one-step actor's `mu(s, z)`; not clipped.
      flow_actions: [B, D], what the flow makes of the same noise; held fixed by the caller.
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

    Args:
      scale: size of an edit.
      editor: the policy `Delta ~ pi_e(s, a)`.
      params: its parameters.
      observations: [..., O].
      actions: [..., D], `a`, what is edited.
      noise: [..., D], the edit's own.
    """
    inputs = jnp.concatenate([observations, actions], axis=-1)
    edit = editor.apply({"params": params}, inputs, noise)
    return jnp.clip(actions + scale * edit.value, -1, 1), edit.log_prob


def soft_actor_loss(
    values: Array, log_prob: Array, log_temp: Array, action_dim: int, name: str
) -> tuple[Array, Metrics]:
    """Soft actor-critic's losses of actor and temperature (SAC, arXiv 1812.05905, sec. 5).

    `-Q + temp log pi`, and `temp (entropy - target)` with the target `-D / 2`, each trained apart.

    Args:
      values: [B], `Q` of the actions that the actor drew, its parameters held fixed.
      log_prob: [B], their log-density.
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
