"""Evaluates a saved run: `python experiments/evaluate.py --run=exp/<group>/<env_name>/<run id>`."""

import contextlib
from pathlib import Path

from absl import app, flags

from qam_jax.runs.command_line import plain_errors, run_main, start_logging

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
_VIDEO_EPISODES = flags.DEFINE_integer("video_episodes", 0, "Episodes to film.", lower_bound=0)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags look like --name=value.")
    start_logging()
    with plain_errors():
        from qam_jax.memory import check_processes
        from qam_jax.runs.saved import load_run
        from qam_jax.runs.settings import RunSettings
        from qam_jax.training.devices import keep_programs
        from qam_jax.training.evaluation import Evaluator, describe, film_episodes

        check_processes(f"--envs={_ENVS.value}", min(_ENVS.value, _EPISODES.value))
        keep_programs(RunSettings.compilation_cache_dir)
        folder = Path(_RUN.value).expanduser()
        run = load_run(folder, _STEP.value)
        seed = run.config.seed if _SEED.value is None else _SEED.value
        env_name, env_module = run.config.env_name, run.config.env_module
        if not env_name:
            raise ValueError(
                f"{folder} was trained without an environment: there is none to evaluate in."
            )
        evaluator = Evaluator(
            env_name,
            env_module=env_module,
            num_episodes=_EPISODES.value,
            num_envs=_ENVS.value,
            seed=seed,
            env_timeout=_ENV_TIMEOUT.value,
        )
        with contextlib.closing(evaluator):
            episodes = evaluator.evaluate(run.agent, run.state)
        print(f"{env_name}, step {run.step}: {describe(episodes)}")
        if _VIDEO_EPISODES.value:
            videos = film_episodes(
                run.agent,
                run.state,
                env_name,
                folder / "videos",
                num_episodes=_VIDEO_EPISODES.value,
                seed=seed,
                env_module=env_module,
                env_timeout=_ENV_TIMEOUT.value,
            )
            print("Films:", *videos, sep="\n  ")


if __name__ == "__main__":
    run_main(main)
