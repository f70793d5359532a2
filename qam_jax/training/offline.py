"""The offline loop: blocks of updates in one compiled program, evaluation, logs, checkpoints."""

import contextlib
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from tqdm import tqdm

from qam_jax.agents import Agent, AgentState, get_config, make_agent, parameter_count
from qam_jax.data.dataset import fingerprint, sample_windows
from qam_jax.data.sources import LoadedDataset, load_file, load_ogbench
from qam_jax.envs import make_env
from qam_jax.training.checkpoints import Checkpoints, init_state
from qam_jax.training.evaluation import Episode, Evaluator, summarize
from qam_jax.training.keys import split_seed
from qam_jax.training.metrics import MetricLog
from qam_jax.training.run_folder import find_folder, record_start
from qam_jax.training.settings import RunSettings, check_settings, resolved
from qam_jax.types import Array, Metrics, TransitionDataset

_logger = logging.getLogger(__name__)

_BLOCK_SECONDS = 1.0  # how long one call of the compiled block is to take
_FIRST_BLOCK = 10  # updates in the first call, before the speed is known

UpdateBlock = Callable[[AgentState, Metrics, TransitionDataset, int], tuple[AgentState, Metrics]]
"""`(state, sums, dataset, number of updates) -> (state, sums)`."""


class RunResult(NamedTuple):
    """What a run leaves behind.

    Attributes:
      folder: the run's folder.
      agent: the algorithm.
      state: its last state.
      episodes: of its last evaluation.
      behavior_episodes: of its behaviour flow; none if it has no such flow of its own.
    """

    folder: Path
    agent: Agent
    state: AgentState
    episodes: list[Episode]
    behavior_episodes: list[Episode]


def train_offline(settings: RunSettings, agent_config: ConfigDict) -> RunResult:
    """Trains an agent on a dataset, or continues to; see the run's folder in the README.

    Args:
      settings: what the run is.
      agent_config: the algorithm and its hyperparameters.

    Raises:
      ValueError: if settings, config, environment, data or run folder do not fit together.
      OSError: if the run's folder cannot be written to.
    """
    check_settings(settings)
    agent = make_agent(agent_config)
    env = make_env(settings.env_name)
    folder = find_folder(settings, agent_config)
    try:
        data = load_data(settings, env)
        _check_horizon(data, agent_config.horizon_length)
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()  # unless there is something in it
        raise
    _logger.info("Data: %s; %d transitions.", data.source, data.dataset.start_rows.size)
    state = init_state(agent, settings.seed, env)
    checkpoints = Checkpoints(folder)
    if checkpoints.steps:
        state = checkpoints.restore(state)
    step = int(state.step)
    if step > settings.offline_steps:
        raise ValueError(
            f"{folder} holds {step} updates already, more than --offline_steps="
            f"{settings.offline_steps}: give at least as many, or another --run_id."
        )
    record_start(
        folder,
        settings,
        agent_config,
        dataset_source=data.source,
        dataset_fingerprint=fingerprint(data.dataset),
        seed=settings.seed,
        parameter_count=parameter_count(state),
    )
    verb = f"Continuing from update {step}" if step else "Starting"
    _logger.info("%s in %s (%d parameters).", verb, folder, parameter_count(state))
    log = MetricLog(folder, step, settings.wandb_project, resolved(settings, agent_config))
    evaluator = Evaluator(
        settings.env_name,
        num_episodes=settings.eval_episodes,
        num_envs=settings.eval_envs,
        seed=settings.seed,
    )
    try:
        block = make_update_block(agent, agent_config, settings.seed)
        evaluate = partial(evaluator.evaluate, agent)
        state, episodes = _train(settings, block, state, data.dataset, checkpoints, log, evaluate)
        behavior_episodes = []
        if agent_config.agent_name != "bc" and "behavior" in state.params:
            behavior = make_agent(behavior_config(agent_config))
            behavior_episodes = evaluator.evaluate(behavior, state)
        return RunResult(folder, agent, state, episodes, behavior_episodes)
    finally:
        evaluator.close()
        log.close()
        checkpoints.close()


def _check_horizon(data: LoadedDataset, horizon_length: int) -> None:
    """Raises ValueError if no window lies within one episode, so that nothing could be learnt."""
    starts = data.dataset.start_rows
    longest = int(jnp.max(data.dataset.last_rows[starts] - starts)) + 1
    if longest < horizon_length:
        raise ValueError(
            f"horizon_length = {horizon_length} is longer than every episode of {data.path} (the "
            f"longest has {longest} transitions): choose a shorter one, "
            f"--config.horizon_length={longest} at most."
        )


def load_data(settings: RunSettings, env: gymnasium.Env) -> LoadedDataset:
    """The dataset that the settings name: a file, or OGBench's of the environment."""
    if settings.dataset:
        return load_file(settings.dataset, env, sparse=settings.sparse)
    return load_ogbench(
        settings.env_name,
        env,
        dataset_dir=settings.dataset_dir,
        data_source=settings.data_source,
        mirrors=[mirror for mirror in settings.mirrors.split(",") if mirror],
        sparse=settings.sparse,
    )


def make_update_block(agent: Agent, config: ConfigDict, seed: int) -> UpdateBlock:
    """Compiles any number of updates, batches drawn inside, into one program.

    The batch of an update depends on the seed and the update's number alone, so that a run does
    not depend on how it was cut into blocks.

    Returns:
      `(state, sums, dataset, number of updates) -> (state, sums)`. The state is donated. `sums`
      adds up the metrics of all updates since it was `{}`, except for those named `*_min` and
      `*_max`, of which it keeps the extreme.
    """
    data_key = split_seed(seed).batches
    names: list[str] = []  # of the metrics, once known

    def update(dataset: TransitionDataset, state: AgentState) -> tuple[AgentState, Metrics]:
        key = jax.random.fold_in(data_key, state.step)
        batch = sample_windows(
            dataset, key, config.batch_size, config.horizon_length, config.discount
        )
        return agent.update(state, batch)

    @partial(jax.jit, donate_argnums=0)
    def block(state: AgentState, sums: Metrics, dataset: TransitionDataset, num_updates: Array):
        def body(_, carry):
            state, sums = carry
            state, metrics = update(dataset, state)
            return state, {name: _combine(name, sums[name], metrics[name]) for name in metrics}

        return jax.lax.fori_loop(0, num_updates, body, (state, sums))

    def with_empty_sums(state, sums, dataset, num_updates):
        if not names:
            names.extend(jax.eval_shape(partial(update, dataset), state)[1])
        if not sums:
            sums = {name: jnp.float32(_EMPTY.get(name[-4:], 0.0)) for name in names}
        return block(state, sums, dataset, jnp.int32(num_updates))

    return with_empty_sums


_EMPTY = {"_min": float("inf"), "_max": -float("inf")}


def _combine(name: str, earlier: Array, metric: Array) -> Array:
    combine = {"_min": jnp.minimum, "_max": jnp.maximum}.get(name[-4:], jnp.add)
    return combine(earlier, metric)


def _train(
    settings: RunSettings,
    block: UpdateBlock,
    state: AgentState,
    dataset: TransitionDataset,
    checkpoints: Checkpoints,
    log: MetricLog,
    evaluate: Callable[[AgentState], list[Episode]],
) -> tuple[AgentState, list[Episode]]:
    """Runs updates up to `offline_steps`, and what is due on the way; returns the last episodes."""
    step, length, episodes = int(state.step), _FIRST_BLOCK, []
    bar = tqdm(total=settings.offline_steps, initial=step, unit="update", smoothing=0.1)
    with bar:
        while step < settings.offline_steps:
            target = min(step + settings.log_interval, settings.offline_steps)
            target -= target % settings.log_interval if target < settings.offline_steps else 0
            sums, started, first = {}, time.perf_counter(), step
            while step < target:
                count = min(length, target - step)
                block_started = time.perf_counter()
                state, sums = jax.block_until_ready(block(state, sums, dataset, count))
                speed = count / (time.perf_counter() - block_started)
                length = max(1, min(2 * length, int(speed * _BLOCK_SECONDS)))
                step += count
                bar.update(count)
            metrics = _averages(sums, step - first)
            metrics["updates_per_second"] = (step - first) / (time.perf_counter() - started)
            log.write("train", step, metrics)
            last = step == settings.offline_steps
            if last or step % settings.eval_interval == 0:
                episodes = evaluate(state)
                summary = summarize(episodes)
                log.write("eval", step, summary)
                bar.set_postfix(success=f"{summary['success']:.0%}")
            if last or step % settings.save_interval == 0:
                checkpoints.save(state)
    if not episodes:  # a finished run, started again
        episodes = evaluate(state)
        log.write("eval", step, summarize(episodes))
    return state, episodes


def behavior_config(agent_config: ConfigDict) -> ConfigDict:
    """The config of `bc` with all that it shares with another algorithm's."""
    config = get_config("bc")
    for name in config:
        if name != "agent_name" and name in agent_config:
            config[name] = agent_config[name]
    return config


def _averages(sums: Metrics, count: int) -> dict[str, float]:
    sums = jax.device_get(sums)
    return {
        name: float(total) / (1 if name[-4:] in _EMPTY else count) for name, total in sums.items()
    }
