"""Actors on top of QAM's fine-tuned flow: QAM-F's one-step actor and QAM-E's editor."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base
from qam_jax.agents.base import Loss
from qam_jax.networks import InitFn, OneStepActor, TanhGaussian, init_network, make_init
from qam_jax.types import Array, Key, Params, QFn


class Draws(NamedTuple):
    """Random inputs of an actor on top, each [..., D].

    Attributes:
      noise: ~ N(0, I), where the flow starts.
      flow_actions: actions of the flow from `noise`.
      own_noise: ~ N(0, I), for the actor alone.
    """

    noise: Array
    flow_actions: Array
    own_noise: Array


class TopActor(NamedTuple):
    """Network that acts in place of the flow, or after it.

    Attributes:
      act: `(params, observations [..., O], draws) -> actions [..., D]`.
      init: of its parameters, by name.
      loss: `(params, observations [B, O], draws, q_fn) -> (loss, metrics)`; None for no network.
    """

    act: Callable[[Params, Array, Draws], Array]
    init: InitFn = make_init()
    loss: Callable[[Params, Array, Draws, QFn], Loss] | None = None


def make_top_actor(config: ConfigDict) -> TopActor:
    """Actor that the config of QAM asks for; else one that takes the flow's action.

    Raises:
      ValueError: if both `fql_alpha` and `edit_scale` are set.
    """
    fql_alpha, edit_scale = config.get("fql_alpha", 0.0), config.get("edit_scale", 0.0)
    if fql_alpha > 0 and edit_scale > 0:
        raise ValueError(
            f"fql_alpha = {fql_alpha} and edit_scale = {edit_scale} exclude each other: QAM-F "
            "acts with a one-step actor, QAM-E edits the flow's action. Set one to 0."
        )
    fields = base.network_fields(config, "actor")
    if fql_alpha > 0:
        return _one_step_actor(OneStepActor(**fields), fql_alpha)
    if edit_scale > 0:
        return _editor(TanhGaussian(**fields), edit_scale)
    return TopActor(act=lambda _, __, draws: draws.flow_actions)


def _one_step_actor(network: OneStepActor, alpha: float) -> TopActor:
    def draw(params: Params, observations: Array, noise: Array) -> Array:
        return network.apply({"params": params["one_step"]}, observations, noise)

    def act(params: Params, observations: Array, draws: Draws) -> Array:
        return jnp.clip(draw(params, observations, draws.noise), -1, 1)

    def loss(params: Params, observations: Array, draws: Draws, q_fn: QFn) -> Loss:
        actions = draw(params, observations, draws.noise)
        return actor_critic.one_step_loss(alpha, actions, draws.flow_actions, q_fn)

    return TopActor(act, make_init(one_step=network), loss)


def _editor(network: TanhGaussian, scale: float) -> TopActor:
    def init_editor(key: Key, observation: Array, action: Array) -> Params:
        return init_network(network, key, jnp.concatenate([observation, action]), action)

    def edit(params: Params, observations: Array, draws: Draws) -> tuple[Array, Array]:
        return actor_critic.edit_actions(
            scale, network, params["editor"], observations, draws.flow_actions, draws.own_noise
        )

    def act(params: Params, observations: Array, draws: Draws) -> Array:
        return edit(params, observations, draws)[0]

    def loss(params: Params, observations: Array, draws: Draws, q_fn: QFn) -> Loss:
        actions, log_prob = edit(params, observations, draws)
        log_temp, dim = params["log_edit_temp"], actions.shape[-1]
        return actor_critic.soft_actor_loss(q_fn(actions), log_prob, log_temp, dim, "edit")

    return TopActor(act, make_init(editor=init_editor, log_edit_temp=0.0), loss)
