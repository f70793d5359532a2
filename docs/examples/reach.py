"""A task of one's own. Importing this file registers it; running it records a dataset.

python docs/examples/reach.py reach.npz
"""

import sys

import gymnasium
import numpy as np

GOAL = np.array([0.7, 0.7])


class Reach(gymnasium.Env):
    """A point in a square has to reach a goal behind a wall with a gap on either side."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (2,), np.float32)  # any bounds will do

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform([-0.9, -0.9], [0.9, -0.6])
        return self.position.astype(np.float32), {}

    def step(self, action):
        moved = np.clip(self.position + np.clip(action, -0.1, 0.1), -1, 1)
        crosses = (self.position[1] < 0) != (moved[1] < 0)
        if not (crosses and abs(moved[0]) < 0.6):  # the wall is at y = 0
            self.position = moved
        success = bool(np.linalg.norm(self.position - GOAL) < 0.15)
        reward = 0.0 if success else -1.0
        return self.position.astype(np.float32), reward, success, False, {"success": success}


gymnasium.register("Reach-v0", Reach, max_episode_steps=100)


def record(path, episodes=2000):
    """Walks from one random place to the next, and saves all steps."""
    env, rng = gymnasium.make("Reach-v0"), np.random.default_rng(0)
    names = ("observations", "actions", "rewards", "masks", "terminals", "next_observations")
    columns = {name: [] for name in names}
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        target, over = rng.uniform(-1, 1, 2), False
        while not over:
            if np.linalg.norm(target - observation) < 0.1 or rng.uniform() < 0.05:
                target = rng.uniform(-1, 1, 2)
            action = np.clip(target - observation + rng.normal(0, 0.05, 2), -0.1, 0.1)
            following, reward, terminated, truncated, _ = env.step(action.astype(np.float32))
            over = terminated or truncated
            row = (observation, action / 0.1, reward, not terminated, over, following)
            for name, value in zip(names, row, strict=True):
                columns[name].append(value)
            observation = following
    np.savez(path, **{name: np.array(column, np.float32) for name, column in columns.items()})


if __name__ == "__main__":
    record(sys.argv[1])
