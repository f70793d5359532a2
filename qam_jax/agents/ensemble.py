"""The critic ensemble, laid out for the processor: all members at once, or each in turn.

An accelerator is fastest with one stacked product for all members. On the CPU the members of a
large ensemble are worked on in turn, each one's gradient right after its values, while both are in
the cache: XLA's stacked products are slower there, and so is carrying all members' activations to
the backward pass. The parameters are stacked on a leading axis either way.

Shapes: `K` is the number of critics, `B` the batch, `...` any batch shape.
"""

from functools import partial

import jax
import jax.numpy as jnp

from qam_jax.critic import td_loss
from qam_jax.networks import CriticEnsemble, TimedCriticEnsemble
from qam_jax.types import Array, Params

_SMALL = 64  # width; below, a loop costs more than it saves


def in_turn(critic: CriticEnsemble | TimedCriticEnsemble) -> bool:
    """Whether the members are worked on one after the other."""
    large = max(critic.hidden_dims, default=0) >= _SMALL
    return isinstance(critic, CriticEnsemble) and large and jax.default_backend() == "cpu"


def values(critic: CriticEnsemble, params: Params, observations: Array, actions: Array) -> Array:
    """Values [K, ...] of actions [..., D] in observations [..., O]; slow to differentiate."""
    if not in_turn(critic):
        return critic.apply({"params": params}, observations, actions)
    return jax.lax.map(lambda member: critic.member(member, observations, actions), params)


def mean_value(
    critic: CriticEnsemble, params: Params, observations: Array, actions: Array
) -> Array:
    """`mean_k Q_k` [...] of actions [..., D] in observations [..., O]."""
    if not in_turn(critic):
        return jnp.mean(critic.apply({"params": params}, observations, actions), axis=0)
    return _mean_value(critic, params, observations, actions)


def mean_td_loss(
    critic: CriticEnsemble,
    params: Params,
    observations: Array,
    actions: Array,
    targets: Array,
    weights: Array,
) -> tuple[Array, Array]:
    """`critic.td_loss` of the ensemble, for gradients in the parameters alone.

    Args:
      critic: the ensemble.
      params: its parameters.
      observations: [B, O].
      actions: [B, D].
      targets: [B].
      weights: [B].

    Returns:
      The loss, and the values [K, B], through which no gradient flows.
    """
    if not in_turn(critic):
        q_values = critic.apply({"params": params}, observations, actions)
        return td_loss(q_values, targets, weights), jax.lax.stop_gradient(q_values)
    return _mean_td_loss(critic, params, observations, actions, targets, weights)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mean_value(critic, params, observations, actions):
    return jnp.mean(values(critic, params, observations, actions), axis=0)


def _mean_value_forward(critic, params, observations, actions):
    """Takes the gradient in the actions at once, if it is the only one that is wanted."""
    others = jax.tree.leaves((params, observations), is_leaf=_is_primal)
    params, observations, actions = jax.tree.map(
        lambda primal: primal.value, (params, observations, actions), is_leaf=_is_primal
    )
    if any(primal.perturbed for primal in others):
        return jax.vjp(partial(_stacked_mean_value, critic), params, observations, actions)

    def add(sums, member):
        total, vjp_fn = jax.vjp(partial(critic.member, member, observations), actions)
        (slope,) = vjp_fn(jnp.ones_like(total))
        return (sums[0] + total, sums[1] + slope), None

    start = jnp.zeros(actions.shape[:-1]), jnp.zeros_like(actions)
    (total, slope), _ = jax.lax.scan(add, start, params)
    return total / critic.num_qs, slope / critic.num_qs


def _mean_value_backward(_, residuals, gradient):
    if callable(residuals):
        return residuals(gradient)
    return None, None, gradient[..., None] * residuals


_mean_value.defvjp(_mean_value_forward, _mean_value_backward, symbolic_zeros=True)


def _is_primal(node) -> bool:
    return hasattr(node, "perturbed")


def _stacked_mean_value(critic, params, observations, actions):
    return jnp.mean(critic.apply({"params": params}, observations, actions), axis=0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mean_td_loss(critic, params, observations, actions, targets, weights):
    q_values = values(critic, params, observations, actions)
    return td_loss(q_values, targets, weights), q_values


def _mean_td_loss_forward(critic, params, observations, actions, targets, weights):
    def member_loss(member):
        q_values = critic.member(member, observations, actions)
        return td_loss(q_values[None], targets, weights) / critic.num_qs, q_values

    (losses, q_values), gradients = jax.lax.map(
        jax.value_and_grad(member_loss, has_aux=True), params
    )
    return (jnp.sum(losses), q_values), gradients


def _mean_td_loss_backward(_, gradients, gradient):
    scaled = jax.tree.map(lambda leaf: gradient[0] * leaf, gradients)
    return scaled, None, None, None, None


_mean_td_loss.defvjp(_mean_td_loss_forward, _mean_td_loss_backward)
