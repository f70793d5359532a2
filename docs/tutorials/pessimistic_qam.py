# %% [markdown]
# # Tutorial 3: a new algorithm in sixty lines
#
# QAM's critics are pessimistic when they back up values, `mean_k Q_k − ρ std_k Q_k`, but its policy
# follows the gradient of their mean alone: it may run where the critics disagree. So let the policy
# be pessimistic, too. Its terminal adjoint becomes
#
# $$g_T = -\tau\, \nabla_a \bigl(\operatorname{mean}_k \bar Q_k
#   - \rho_\pi \operatorname{std}_k \bar Q_k\bigr)(s, a),$$
#
# and all else stays. By the [same argument](../mathematics.md) the optimum is `π_β · exp(τ (mean −
# ρ_π std))`. This is an example of how to write an algorithm, not a recommendation.
#
# ## The algorithm
#
# An algorithm is a module with two functions. `get_config` names its hyperparameters and their
# defaults. `critic_config` adds the hyperparameters that all algorithms with critics share.
# `agent_name` is the module's own name.

# %%
import shutil
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import qam_jax
from qam_jax.agents import actor_critic, base, qam
from qam_jax.flow import velocities_along
from qam_jax.networks import critic_values, make_init
from qam_jax.reports.plots import plot_run
from qam_jax.training.evaluation import describe
from qam_jax.training.train import train


def get_config() -> ConfigDict:
    return base.critic_config(
        agent_name="pessimistic_qam",
        inv_temp=1.0,  # τ
        actor_rho=0.5,  # pessimism of the policy, in standard deviations of the critics
    )


# %% [markdown]
# `make_agent` builds the three functions of an [`Agent`](../../qam_jax/agents/base.py). Algorithms
# with critics share the TD backup, the optimiser, the target networks and best-of-n:
# [`make_actor_critic`](../../qam_jax/agents/actor_critic.py) has them. An algorithm names its
# networks, says how they act, and gives their loss. Here the loss is cloning for the behaviour
# flow, and adjoint matching, from the same four functions as in [the first tutorial](mixture.py).


# %%
def make_agent(config: ConfigDict) -> base.Agent:
    flow, critic = base.make_flow(config), base.make_critic(config)

    def matching_loss(state, params, observations, key):
        velocity = base.flow_velocity(flow, params["flow"], observations)
        base_velocity = base.flow_velocity(flow, state.target_params["behavior"], observations)

        def q_fn(actions):
            q_values = critic_values(critic, state.target_params["critic"], observations, actions)
            return qam_jax.pessimistic_value(q_values, config.actor_rho)  # all that is new

        noise = qam.path_noise(config, state, observations, key)
        states = qam_jax.sample_memoryless_sde(velocity, base_velocity, *noise)
        states = jax.lax.stop_gradient(states)
        terminal = qam_jax.terminal_adjoint(q_fn, states[-1], config.inv_temp)
        adjoints = qam_jax.solve_lean_adjoint(base_velocity, states, terminal)
        velocities, base_velocities = (
            velocities_along(flow_fn, states[:-1]) for flow_fn in (velocity, base_velocity)
        )
        return jnp.mean(qam_jax.adjoint_matching_loss(velocities, base_velocities, adjoints))

    def actor_loss(state, params, batch, actions, key):
        bc_key, path_key = jax.random.split(key)
        bc_loss = base.behavior_cloning_loss(flow, params["behavior"], batch, actions, bc_key)
        am_loss = matching_loss(state, params, batch.observations, path_key)
        return bc_loss + am_loss, {"bc_loss": bc_loss, "adjoint_matching_loss": am_loss}

    return actor_critic.make_actor_critic(
        config,
        critic,
        init_actor=make_init(behavior=flow, flow=flow),
        actor_loss=actor_loss,
        policy=actor_critic.make_flow_policy(config, flow, "flow"),
        target_names=("critic", "behavior"),
    )


# %% [markdown]
# ## Training it
#
# Nothing else is needed: the loop, evaluation, checkpoints, several seeds in one program and
# fine-tuning work as for any algorithm. The run below has the data and the settings of
# [the second tutorial](maze.py). On the command line, give the file as `--config`. Python has to
# find its folder, also later, when a run is continued or evaluated:
#
# ```bash
# export PYTHONPATH=docs/tutorials
# python experiments/train_offline.py --config=docs/tutorials/pessimistic_qam.py \
#   --config.actor_hidden_dims="(128,128)" --config.critic_hidden_dims="(128,128)" \
#   --config.num_qs=2 --config.lr=1e-3 --config.tau=0.02 --config.actor_rho=1.0 \
#   --offline_steps=20000 --log_interval=500 --eval_interval=4000 --save_interval=4000
# ```
#
# Without these flags the networks and the schedule are the paper's, which need a GPU.


# %%
def main() -> None:
    from maze import make_config, make_data, make_settings  # the second tutorial, beside this file

    pictures = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    started = time.monotonic()
    config = get_config()
    small = make_config()
    own = ("agent_name", "inv_temp")
    config.update({name: small[name] for name in small if name in config and name not in own})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        settings = make_settings(folder)
        result = train(settings, config)
        print(f"pessimistic QAM: {describe(result.episodes)}")
        plot_run(result.folder, settings, {"pessimistic QAM": result.episodes})
        shutil.copy(result.folder / "trajectories.png", pictures / "pessimistic_qam.png")
    print(f"done after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()

# %% [markdown]
# ![Paths of pessimistic QAM in the maze](pessimistic_qam.png)
#
# After 12,000 updates all of 20 episodes reach the goal (95% interval 84 to 100%), in 384 steps
# on average, with `inv_temp=1.0` (seed 0). Plain QAM reached it in no episode with `inv_temp=1.0`,
# and in all with the second tutorial's 3.0. One seed of each, with few data, does not show which
# algorithm is better. [Sweeps](../sweeps.md) compare algorithms.
