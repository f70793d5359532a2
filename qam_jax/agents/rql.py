"""Reversal Q-learning (RQL; arXiv 2606.17551).

The critics value partly generated actions, `Q_k(s, x, t)`: noise at `t = 0`, a clean action at
`t = 1`. An action of the data is carried back along the policy's own flow to the point at a random
time, and the critics are regressed there. The backup needs no action: it takes the critics' value
of fresh noise in the next observation. The flow climbs the critics by one step at a time.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import actor_critic, base, values
from qam_jax.agents.base import AgentState, Loss, ParamsLoss
from qam_jax.critic import expectile_loss
from qam_jax.flow import reverse_flow
from qam_jax.networks import TimedCriticEnsemble, critic_values, make_init
from qam_jax.types import Array, Batch, Key, Params, VelocityFn

DISPLAY_NAME = "RQL"
CRITIC = TimedCriticEnsemble
NO_VALUE_LEARNING = (
    "its critics value partly generated actions, which only the regression of its own teaches them"
)
RANGES = {"alpha": base.AT_LEAST_0, "kappa": base.SHARE, "flow_tau": base.SHARE}


def get_config() -> ConfigDict:
    """RQL with the settings of its code for puzzle-4x4 and cube-triple; it clips no gradients."""
    return base.critic_config(
        agent_name="rql",
        clip_grad_norm=0.0,
        alpha=1.0,  # weight of cloning against the value
        kappa=0.9,  # expectile of the critics; 0.5 is half the squared error
        flow_tau=0.001,  # rate of the moving average of the flow, which acts in evaluation
    )


def make_agent(config: ConfigDict) -> base.Agent:
    """Builds the agent; its flow explores, and the flow's moving average acts in evaluation."""
    flow = base.make_flow(config)
    critic = base.make_critic(config, CRITIC)

    def value_targets(state: AgentState, batch: Batch, key: Key) -> Array:
        """`R + gamma^H m (mean_k - rho std_k) Q_k(s', z', 0)` [B]."""
        observations, params = batch.next_observations, state.target_params["critic"]
        noise = base.draw_noise(state, observations, key)
        q_values = critic_values(critic, params, observations, noise, jnp.zeros_like(noise[:, :1]))
        return values.bootstrap(config, batch, q_values)

    def value_loss(state: AgentState, batch: Batch, _: Array | None, key: Key) -> ParamsLoss:
        distance_key, target_key = jax.random.split(key)
        actions = base.flat_actions(config, batch)
        distances = draw_distances(distance_key, len(actions), config.flow_steps)
        velocity = base.flow_velocity(flow, state.params["flow"], batch.observations)
        points = reverse_flow(velocity, actions, distances, config.flow_steps)
        inputs = batch.observations, points, 1 - distances
        targets = value_targets(state, batch, target_key)

        def loss(params: Params) -> Loss:
            q_values = critic_values(critic, params["critic"], *inputs)
            losses = batch.weights * expectile_loss(targets - q_values, config.kappa)
            return jnp.mean(losses), values.critic_metrics(jnp.mean(losses), q_values)

        return loss

    def actor_loss(
        state: AgentState, params: Params, batch: Batch, actions: Array, key: Key
    ) -> Loss:
        """`alpha L_BC - v mean_k Q_k`, one step of the flow beyond a point of a straight path."""
        noise_key, time_key = jax.random.split(key)
        times = jax.random.uniform(time_key, (len(actions), 1))
        points, velocities = base.straight_path(actions, times, noise_key)
        velocity = base.flow_velocity(flow, params["flow"], batch.observations)(points, times)
        errors = jnp.mean(jnp.square(velocity - velocities), axis=-1)
        bc_loss = jnp.mean(batch.weights * errors)
        steps = jnp.minimum(1 / config.flow_steps, 1 - times)
        inputs = batch.observations, points + steps * velocity, times + steps
        q_values = critic_values(critic, state.params["critic"], *inputs)
        value = jnp.mean(batch.weights * jnp.mean(q_values, axis=0))
        return config.alpha * bc_loss - value, {"bc_loss": bc_loss, "actor_q": value}

    def average_velocity(state: AgentState, observations: Array) -> VelocityFn:
        return base.flow_velocity(flow, state.target_params["flow"], observations)

    policy = actor_critic.make_flow_policy(config, flow, "flow")
    agent = actor_critic.make_actor_critic(
        config, critic, init_actor=make_init(flow=flow), actor_loss=actor_loss,
        policy=base.FlowPolicy(average_velocity, config.flow_steps),
        target_names=("critic", "flow"), value_learning=values.ValueLearning(value_loss),
        rates={"critic": config.tau, "flow": config.flow_tau},
    )  # fmt: skip
    exploring = base.acting_by(actor_critic.best_of_n(config, critic, policy))
    return agent._replace(explore=exploring["sample_actions"])


def draw_distances(key: Key, size: int, num_steps: int) -> Array:
    """Distances [size, 1] to go back: a half uniform in [0, 1], the others whole flow steps."""
    uniform_key, grid_key = jax.random.split(key)
    uniform = jax.random.uniform(uniform_key, (size // 2, 1))
    steps = jax.random.randint(grid_key, (size - size // 2, 1), 0, num_steps + 1)
    return jnp.concatenate([uniform, steps / num_steps])
