"""Evaluates a saved run: `python experiments/evaluate.py --run=exp/<group>/<env_name>/<run id>`.

With `--guidance` or `--best_of_n` the run acts otherwise than it was trained to, and is evaluated
once for each of their values.
"""

import contextlib
import itertools
from collections.abc import Callable

from absl import flags

from qam_jax.runs.command_line import run_main

_RUN = flags.DEFINE_string("run", None, "The run's folder.", required=True)
_STEP = flags.DEFINE_string("step", "newest", "Checkpoint: a step, newest or best.")
_EPISODES = flags.DEFINE_integer("episodes", 50, "Number of episodes.", lower_bound=1)
_ENVS = flags.DEFINE_integer(
    "envs", 0, "Environments side by side; 0: twice the processors.", lower_bound=0
)
_ENV_TIMEOUT = flags.DEFINE_integer(
    "env_timeout", 60, "Seconds for an environment to start, reset or execute a chunk.", 1
)
_SEED = flags.DEFINE_integer(
    "seed", None, "Seed of the episodes; by default the seed of the run.", lower_bound=0
)
_GUIDANCE = flags.DEFINE_list(
    "guidance",
    [],
    "Weights such as 0,0.01,0.02,0.04: the behaviour flow acts, guided in its ODE by the gradient "
    "of the lowest target critic (QGF); with 0 it is not guided. A fine-tuned flow beside it and "
    "other actors of the run do not act. The run's best_of_n holds, unless --best_of_n is given.",
)
_BEST_OF_N = flags.DEFINE_list(
    "best_of_n",
    [],
    "Numbers such as 1,4,16 of actions drawn per decision, of which the critic keeps one; by "
    "default the run's own number. With --guidance, each number under each weight.",
)
_VIDEO_EPISODES = flags.DEFINE_integer("video_episodes", 0, "Episodes to film.", lower_bound=0)


def main(_: list[str]) -> None:
    changes = _changes()
    from qam_jax.files import user_path
    from qam_jax.memory import check_processes
    from qam_jax.runs.saved import change_policy, load_run
    from qam_jax.runs.settings import RunSettings
    from qam_jax.training.devices import keep_programs
    from qam_jax.training.evaluation import Evaluator, describe

    check_processes(f"--envs={_ENVS.value}", min(_ENVS.value, _EPISODES.value))
    keep_programs(RunSettings.compilation_cache_dir)
    folder = user_path(_RUN.value)
    run = load_run(folder, _STEP.value)
    seed = run.config.seed if _SEED.value is None else _SEED.value
    env_name, env_module = run.config.env_name, run.config.env_module
    if not env_name:
        raise ValueError(
            f"{folder} was trained without an environment: there is none to evaluate in."
        )
    agents = [change_policy(run, *change).agent for change in changes]
    evaluator = Evaluator(
        env_name,
        env_module=env_module,
        num_episodes=_EPISODES.value,
        num_envs=_ENVS.value,
        seed=seed,
        env_timeout=_ENV_TIMEOUT.value,
        normalization=run.normalization,
    )
    with contextlib.closing(evaluator):
        print(f"{env_name}, step {run.step}:")
        for change, agent in zip(changes, agents, strict=True):
            episodes = evaluator.evaluate(agent, run.state)
            print(f"  {_label(*change)}{describe(episodes)}", flush=True)
        if _VIDEO_EPISODES.value:
            folder /= "videos"
            films = evaluator.film(agents[0], run.state, folder, _VIDEO_EPISODES.value)
            print("Films:", *films, sep="\n  ")


def _changes() -> list[tuple[float | None, int | None]]:
    """Weight of guidance and number of actions of each policy to evaluate."""
    weights, counts = _numbers(_GUIDANCE, float), _numbers(_BEST_OF_N, int)
    if _VIDEO_EPISODES.value and max(len(weights), len(counts)) > 1:
        raise ValueError(
            "--video_episodes films one policy: give one number to --guidance and --best_of_n."
        )
    return list(itertools.product(weights or [None], counts or [None]))


def _label(weight: float | None, count: int | None) -> str:
    guidance = "" if weight is None else f"guidance {weight:<6g} "
    return guidance + ("" if count is None else f"best of {count:<4} ")


def _numbers(flag: flags.FlagHolder, number: Callable[[str], float]) -> list:
    try:
        return [number(text) for text in flag.value]
    except ValueError as error:
        kind = "whole numbers" if number is int else "numbers"
        raise ValueError(f"--{flag.name}: expected {kind} such as 1,4 ({error}).") from None


if __name__ == "__main__":
    run_main(main)
