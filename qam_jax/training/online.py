"""Online stage: fine-tuning in the environment."""

import concurrent.futures
import dataclasses
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from qam_jax.data.replay import ReplayBuffer, sample_mixed, sample_split
from qam_jax.runs import processes
from qam_jax.training.collector import Experience, random_policy
from qam_jax.training.devices import Layout
from qam_jax.training.evaluation import Policy, make_policy
from qam_jax.training.run import Plan, Run
from qam_jax.training.stage import Stage
from qam_jax.training.update import check_finite, check_finite_run
from qam_jax.types import Array, Batch, TransitionDataset

_FIRST_ROUNDS = 5  # with updates, from which the rest is estimated; programs are compiled in some


class OnlineStage(Stage):
    """Acts, stores the experience, and trains on the dataset and on that experience.

    In every round each environment executes one chunk of actions; then there are `utd_ratio`
    updates for each environment step, in one compiled call.
    """

    unit, overlaps = "step", False

    def __init__(self, plan: Plan, runs: Sequence[Run], layout: Layout):
        super().__init__(plan, runs, layout)
        for run in runs:
            run.replay.buffer = layout.share(run.replay.buffer)
        explore = self.agent.explore or self.agent.sample_actions
        self._act = make_policy(self.agent._replace(sample_actions=explore))
        self._before: dict[Run, dict[str, Any]] = {}  # episodes before the round in progress
        self._speeds: list[float] = []  # steps of a run per second, in the first rounds
        self._threads = concurrent.futures.ThreadPoolExecutor(len(runs))

    def data(self) -> list[tuple[TransitionDataset, ReplayBuffer]]:
        """Returns the dataset and the experience of each run."""
        return [(self.dataset(run.step), run.replay.buffer) for run in self.runs]

    def sample(self, data: list[tuple[TransitionDataset, ReplayBuffer]], keys: Array) -> Batch:
        """Draws the batches of all runs, inside the program."""
        ratio, layout = self.plan.settings.offline_share, self.layout
        sample = sample_mixed if ratio is None else partial(sample_split, offline_ratio=ratio)
        return layout.stack(
            [sample(*own, layout.pick(keys, i), *self._windows) for i, own in enumerate(data)]
        )

    def advance(self, limits: list[int]) -> None:
        """Acts for one round in the runs that have not come to their limits, and updates them."""
        started, before = time.perf_counter(), [run.step for run in self.runs]
        going = [index for index, step in enumerate(before) if step < limits[index]]
        policies = [self._policy(index) for index in going]
        acting = [self.runs[index] for index in going]
        map_runs = self._threads.map if len(acting) > 1 else map  # a single run needs no thread
        self._before = {run: self._episodes(run) for run in self.runs}
        gathered = processes.from_first(lambda: list(map_runs(_gather, acting, policies)))
        self._before = {}
        for run, experience in zip(acting, gathered, strict=True):
            self._store(run, experience)
        after = [run.step for run in self.runs]
        counts = [self._num_updates(*steps) for steps in zip(before, after, strict=True)]
        if any(counts):
            self.update(counts)
            self._estimate((sum(after) - sum(before)) / len(going), time.perf_counter() - started)
        if any(after[index] >= limits[index] for index in going):  # before anything is logged
            check_finite(self.sums, self.state.params, self.layout)

    def _estimate(self, num_steps: float, seconds: float) -> None:
        """Estimates the rest of the stage from its first rounds, `num_steps` in `seconds` each."""
        if len(self._speeds) < _FIRST_ROUNDS:
            self._speeds.append(num_steps / seconds)
            if len(self._speeds) == _FIRST_ROUNDS:
                left = self.end - min(run.step for run in self.runs)
                self.log_estimate(left, statistics.median(self._speeds))

    def _store(self, run: Run, experience: Experience) -> None:
        longest_round = self.plan.settings.num_envs * self.state.action_shape[0]
        run.replay.add(experience.transitions, experience.episodes, longest_round)
        run.step += len(experience.episodes)
        for _, episode in sorted(experience.finished.items()):
            row = {"return": episode.episode_return, "length": episode.length}
            run.write("env", run.step, {**row, "success": episode.success})

    def _num_updates(self, before: int, after: int) -> int:
        settings = self.plan.settings
        waiting = self.start + settings.start_training
        return min(after - before, max(0, after - waiting)) * settings.utd_ratio

    def _policy(self, index: int) -> Policy:
        run, settings, layout = self.runs[index], self.plan.settings, self.layout
        untrained = self.start == 0 and not settings.run
        if untrained and run.step < settings.start_training:
            return random_policy(run.settings.seed, self.state.action_shape)
        state = dataclasses.replace(self.state, opt_state=())  # the largest part, of no use here
        state, sums = layout.local(layout.pick((state, self.sums), index))
        policy = self._act(state, run.keys.experience)

        def checked(*arguments: np.ndarray) -> np.ndarray:
            actions = policy(*arguments)
            if not np.isfinite(actions).all():
                check_finite_run(run.settings.seed, sums, state.params)
            return actions

        return checked

    def metrics(self, run: Run) -> dict[str, float]:
        """Returns metrics of the data, of the experience and of the environments."""
        crashes = run.collector.pool.crashes if run.collector else 0
        own = {"replay_size": int(run.replay.buffer.size), "env_crashes": crashes}
        return {**super().metrics(run), **own}

    def save(self, run: Run) -> dict[str, Any]:
        """Saves the experience; returns what else a checkpoint needs.

        Amid a round that was given up, that is what there was before it.
        """
        run.replay.save()
        episodes = self._before.get(run) or self._episodes(run)
        return {"transitions": run.replay.num_added, **episodes}

    def _episodes(self, run: Run) -> dict[str, Any]:
        return run.collector.save() if run.collector is not None else {}

    def close(self) -> None:
        """Ends the threads that act."""
        self._threads.shutdown()


def _gather(run: Run, policy: Policy) -> Experience:
    assert run.collector is not None  # in the process that acts
    return run.collector.gather(policy)
