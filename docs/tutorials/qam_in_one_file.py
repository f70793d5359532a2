# %% [markdown]
# # QAM in one file
#
# The whole algorithm from data to policy, on JAX, Flax and Optax alone. The package's agent makes
# the same update; a test compares them. The equations are in
# [From mathematics to code](../mathematics.md). Here a point learns to walk to a goal.

# %%
from collections import namedtuple
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

H, T, NUM_QS = 2, 5, 2  # rows of an action chunk, flow steps, critics
DISCOUNT, INV_TEMP, RHO, TAU = 0.95, 3.0, 0.5, 0.02
WIDTHS, BATCH_SIZE, LR, NUM_UPDATES = (64, 64), 128, 1e-3, 4000

# %% [markdown]
# ## Data
#
# The point moves by a tenth of its action. Every step costs 1 until it is within 0.2 of the goal,
# which ends the episode. In the data it walks to random places, so it meets the goal by chance.

# %%
GOAL, REACH, STEP, LIMIT = np.array([0.7, 0.7]), 0.2, 0.1, 60


def move(places, actions):
    places = np.clip(places + STEP * np.clip(actions, -1, 1), -1, 1)
    return places, np.linalg.norm(places - GOAL, axis=-1) < REACH


def make_windows(num_episodes=600, seed=0):
    """Windows of H transitions, as a dict of arrays [N, ...]."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(num_episodes):
        place, target, steps, done = *rng.uniform(-1, 1, (2, 2)), [], False
        while len(steps) < LIMIT and not done:
            if np.linalg.norm(target - place) < REACH:
                target = rng.uniform(-1, 1, 2)
            way = (target - place) / np.linalg.norm(target - place)
            action = np.clip(way + 0.5 * rng.normal(size=2), -1, 1)
            after, done = move(place, action)
            steps.append((place, action, float(done) - 1, 1 - float(done), after))
            place = after
        for start in range(len(steps)):
            window = steps[start : start + H]
            actions = [step[1] for step in window] + [np.zeros(2)] * (H - len(window))
            reward = sum(DISCOUNT**i * step[2] for i, step in enumerate(window))
            mask = window[-1][3]  # 0: the episode ended, so nothing is bootstrapped
            whole = float(len(window) == H)  # windows that cross the end of an episode count 0
            rows.append((window[0][0], np.array(actions), reward, mask, whole, window[-1][4]))
    names = ("observations", "actions", "rewards", "masks", "weights", "next_observations")
    return {n: np.array(v, np.float32) for n, v in zip(names, zip(*rows, strict=True), strict=True)}


# %% [markdown]
# ## Networks
#
# A flow is a velocity field over action chunks: it carries noise at $t = 0$ to an action at
# $t = 1$. There is a behaviour flow $f_\beta$ and a fine-tuned flow $f_\theta$.


# %%
class MLP(nn.Module):
    output_dim: int
    layer_norm: bool = False

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        for width in WIDTHS:
            x = nn.gelu(nn.Dense(width, kernel_init=nn.initializers.xavier_uniform())(x))
            x = nn.LayerNorm()(x) if self.layer_norm else x
        return nn.Dense(self.output_dim, kernel_init=nn.initializers.xavier_uniform())(x)


def flow(params, observations):
    """Velocity function `(x [..., D], t [..., 1]) -> [..., D]` in observations [..., O]."""
    return lambda x, t: MLP(x.shape[-1]).apply(params, observations, x, t)


def critics(params, observations, actions):
    """Values [K, ...] of the ensemble."""
    mlp = MLP(1, layer_norm=True)
    return jax.vmap(lambda critic: mlp.apply(critic, observations, actions)[..., 0])(params)


# %% [markdown]
# ## Flow: sampling, and the memoryless SDE
#
# Acting integrates the flow by Euler steps of size $h = 1/T$. Training simulates the memoryless SDE
# of $f_\theta$; its last step follows $f_\beta$ without noise.


# %%
def times_like(x, i):
    return jnp.full((*x.shape[:-1], 1), i / T)


def sample_flow(velocity, noise):
    for i in range(T):
        noise = noise + velocity(noise, times_like(noise, i)) / T
    return jnp.clip(noise, -1, 1)


def noise_scale(i):
    """$\\sigma_i = \\sqrt{2 (1 - t_i + h) / (t_i + h)}$"""
    return np.sqrt(2 * (1 - (i + 1) / T + 2 / T) / ((i + 1) / T))


def sample_memoryless_sde(velocity, base_velocity, initial_noise, step_noise):
    """States [T + 1, B, D]."""
    states, h = [initial_noise], 1 / T
    for i in range(T - 1):
        x, t = states[-1], times_like(initial_noise, i)
        drift = 2 * velocity(x, t) - x / (t + h)
        states.append(x + h * drift + h**0.5 * noise_scale(i) * step_noise[i])
    x = states[-1]
    return jnp.stack([*states, x + h * base_velocity(x, times_like(x, T - 1))])


# %% [markdown]
# ## The lean adjoint, and the regression on it
#
# The critic's action gradient at the end of a path, $g_T = -\tau \nabla_a Q$, goes back along the
# path by vector-Jacobian products of the *base* flow alone. Then
# $2 (f_\theta - f_\beta) / \sigma_i + \sigma_i g_i$ is driven to zero at every state of the path.
# Nothing is differentiated through the denoising steps.


# %%
def solve_lean_adjoint(base_velocity, states, terminal):
    """Adjoints [T, B, D] at the states $x_0 .. x_{T-1}$."""
    adjoints = [terminal]
    for i in reversed(range(T)):
        t = times_like(states[i], i + 1)
        _, vjp = jax.vjp(lambda x, t=t: 2 * base_velocity(x, t) - x / t, states[i])
        adjoints.append(adjoints[-1] + vjp(adjoints[-1])[0] / T)
    return jnp.stack(adjoints[:0:-1])


def adjoint_matching_loss(params, targets, observations, noise):
    velocity, base = flow(params["flow"], observations), flow(targets["behavior"], observations)
    states = sample_memoryless_sde(velocity, base, noise[0], noise[1:])
    states = jax.lax.stop_gradient(states)

    def value(actions):
        q_values = critics(targets["critic"], observations, jnp.clip(actions, -1, 1))
        return jnp.sum(jnp.mean(q_values, axis=0))

    adjoints = solve_lean_adjoint(base, states, -INV_TEMP * jax.grad(value)(states[-1]))
    loss = 0.0
    for i, x in enumerate(states[:-1]):
        t = times_like(x, i)
        residual = 2 * (velocity(x, t) - base(x, t)) / noise_scale(i) + noise_scale(i) * adjoints[i]
        loss += jnp.mean(jnp.sum(jnp.square(residual), axis=-1))
    return loss


# %% [markdown]
# ## One update
#
# One optimiser for three losses: TD learning of the critics, flow matching of $f_\beta$ on the
# data, adjoint matching of $f_\theta$. Target networks are moving averages.


# %%
State = namedtuple("State", "params targets opt_state key")
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LR))


def init(key, observation_dim, action_dim):
    behavior_key, flow_key, key, *critic_keys = jax.random.split(key, 3 + NUM_QS)
    s, a, t = jnp.zeros(observation_dim), jnp.zeros(H * action_dim), jnp.zeros(1)
    params = {
        "critic": jax.vmap(lambda k: MLP(1, layer_norm=True).init(k, s, a))(jnp.stack(critic_keys)),
        "behavior": MLP(len(a)).init(behavior_key, s, a, t),
        "flow": MLP(len(a)).init(flow_key, s, a, t),
    }
    targets = jax.tree.map(jnp.copy, {name: params[name] for name in ("critic", "behavior")})
    return State(params, targets, OPTIMIZER.init(params), key)


def loss_fn(params, state, batch, bc_key, act_key, path_key):
    observations, weights = batch["observations"], batch["weights"]
    actions = batch["actions"].reshape(len(observations), -1)
    # Critics: an H-step backup at the policy's next action, with a pessimistic target.
    noise = jax.random.normal(jax.random.split(act_key)[0], actions.shape)
    next_actions = sample_flow(flow(state.params["flow"], batch["next_observations"]), noise)
    next_q = critics(state.targets["critic"], batch["next_observations"], next_actions)
    next_value = jnp.mean(next_q, axis=0) - RHO * jnp.std(next_q, axis=0)
    target = batch["rewards"] + DISCOUNT**H * batch["masks"] * next_value
    q_values = critics(params["critic"], observations, actions)
    critic_loss = jnp.mean(weights * jnp.square(q_values - jax.lax.stop_gradient(target)))
    # Behaviour flow: flow matching on straight paths from noise to data.
    noise_key, time_key = jax.random.split(bc_key)
    noise = jax.random.normal(noise_key, actions.shape)
    t = jax.random.uniform(time_key, (len(actions), 1))
    velocity = flow(params["behavior"], observations)((1 - t) * noise + t * actions, t)
    bc_loss = jnp.mean(weights * jnp.mean(jnp.square(velocity - (actions - noise)), axis=-1))
    noise = jax.random.normal(path_key, (T, *actions.shape))
    am_loss = adjoint_matching_loss(params, state.targets, observations, noise)
    return critic_loss + bc_loss + am_loss


@partial(jax.jit, donate_argnums=0)
def update_step(state, batch):
    key, *keys = jax.random.split(state.key, 4)
    loss, grads = jax.value_and_grad(loss_fn)(state.params, state, batch, *keys)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    online = {name: params[name] for name in state.targets}
    targets = optax.incremental_update(online, state.targets, TAU)
    return State(params, targets, opt_state, key), loss


# %% [markdown]
# ## Training and acting: `behavior` acts by the clone of the data, for comparison


# %%
def success_rate(params, which, num_episodes=200):
    act = jax.jit(lambda s, z: sample_flow(flow(params[which], s), z))
    rng = np.random.default_rng(1)
    places, reached = rng.uniform(-1, 0, (num_episodes, 2)), np.zeros(num_episodes, bool)
    for _ in range(LIMIT // 2 // H):
        chunks = np.asarray(act(places, rng.normal(size=(num_episodes, 2 * H))))
        for i in range(H):
            places, at_goal = move(places, chunks[:, 2 * i : 2 * i + 2])
            reached |= at_goal
    return reached.mean()


if __name__ == "__main__":
    data, rng = make_windows(), np.random.default_rng(0)
    state = init(jax.random.PRNGKey(0), 2, 2)
    for number in range(1, NUM_UPDATES + 1):
        rows = rng.integers(len(data["rewards"]), size=BATCH_SIZE)
        state, loss = update_step(state, {name: column[rows] for name, column in data.items()})
        if number % 1000 == 0:
            rates = [f"{n} {success_rate(state.params, n):.0%}" for n in ("behavior", "flow")]
            print(f"update {number}: at the goal within {LIMIT // 2} steps:", *rates)
