"""Makes environments by their names: OGBench's, or any that gymnasium knows."""

import difflib
import functools
import importlib
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from qam_jax.data import metaworld
from qam_jax.data.normalization import Normalization
from qam_jax.data.tasks import find_task, parse_task
from qam_jax.envs.pool import EnvFailure
from qam_jax.envs.wrappers import Films, OwnRandomState
from qam_jax.errors import explain

_logger = logging.getLogger("qam_jax.envs")

_FRAME_SIZE = 400  # pixels
_MAX_FRAMES = 250  # of an episode, since a frame takes a tenth of a second without a GPU
_NOT_OF_STATES = ("visual-", "powderworld-")
_RENDER_TEST = (
    "import mujoco; "
    "mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco><worldbody/></mujoco>')).render()"
)


def make_env(
    env_name: str,
    env_module: str = "",
    normalization: Normalization | None = None,
    **kwargs: Any,
) -> gymnasium.Env:
    """Makes an environment by its name, with its own random state.

    Other environments than OGBench's get 1-D observations and actions in [-1, 1].

    Args:
      env_name: an OGBench single-task name such as `cube-double-play-singletask-task2-v0`, whose
        dataset type is ignored; Meta-World's `metaworld-<task>-v3`; or the id of any registered
        gymnasium environment with a 1-D Box or a Dict of Boxes as observation and a bounded 1-D Box
        as action, also in gymnasium's form `module:id`.
      env_module: a module to import first, which registers the environment.
      normalization: of the observations that it gives and the actions that it takes; None: none.
      **kwargs: passed to `gymnasium.make`.

    Raises ValueError if the module cannot be imported, if there is no such environment (the message
    offers names that are close), or if its spaces do not fit.
    """
    if env_module:
        _import_registering(env_module, f"--env_module={env_module}")
    make = _make_ogbench if is_ogbench(env_name) else functools.partial(_make_other, env_module)
    env = OwnRandomState(make(env_name, **kwargs))
    if normalization is None or normalization.is_identity:
        return env
    unbounded = spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)
    env = gymnasium.wrappers.TransformObservation(
        env,
        lambda values: normalization.normalize_observations(np.asarray(values, np.float32)),
        unbounded,
    )
    return gymnasium.wrappers.TransformAction(
        env, lambda action: normalization.denormalize_actions(action).clip(-1, 1), env.action_space
    )


def make_env_within(seconds: float, env_name: str, env_module: str = "") -> gymnasium.Env:
    """Makes an environment in a thread, as it may hang. Raises EnvFailure if it does."""
    made: Future[gymnasium.Env] = Future()

    def make() -> None:
        try:
            made.set_result(make_env(env_name, env_module))
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=make, daemon=True).start()
    try:
        return made.result(seconds)
    except TimeoutError:
        raise EnvFailure(
            f"the environment {env_name!r} cannot be made within {seconds} seconds (--env_timeout)."
        ) from None


def is_ogbench(env_name: str) -> bool:
    """Whether a name has the form of OGBench's single-task names."""
    return find_task(env_name) is not None


def make_film_env(
    env_name: str, folder: Path, env_module: str = "", normalization: Normalization | None = None
) -> gymnasium.Env:
    """Makes an environment (see `make_env`) that films its episodes into `folder`.

    Raises ValueError as `make_env`, or if the environment does not render images.
    """
    if is_ogbench(env_name):
        size = {"width": _FRAME_SIZE, "height": _FRAME_SIZE}
        env = make_env(env_name, env_module, normalization, **size)
    else:
        try:
            env = make_env(env_name, env_module, normalization, render_mode="rgb_array")
            env.reset(seed=0)
            frame = env.unwrapped.render()
        except Exception as error:  # whatever an environment raises that cannot render
            reason = f"{explain(error)}."
            raise ValueError(f"environment {env_name!r} cannot be filmed: {reason}") from error
        if not (isinstance(frame, np.ndarray) and frame.ndim == 3):
            raise ValueError(
                f"environment {env_name!r} cannot be filmed: with render_mode='rgb_array' its "
                f"render() gave {type(frame).__name__}, expected an image [height, width, 3]."
            )
    max_steps = env.spec.max_episode_steps if env.spec is not None else None
    return Films(env, folder, stride=max(1, (max_steps or 0) // _MAX_FRAMES))


def find_render_backend() -> str:
    """Finds a headless back end of MuJoCo that works: `MUJOCO_GL` if set, else the first that does.

    Raises OSError, which says what to install, if none works.
    """
    candidates = [os.environ["MUJOCO_GL"]] if "MUJOCO_GL" in os.environ else ["egl", "osmesa"]
    for backend in candidates:
        command, own = [sys.executable, "-c", _RENDER_TEST], {**os.environ, "MUJOCO_GL": backend}
        if not subprocess.run(command, env=own, capture_output=True, check=False).returncode:
            return backend
    raise OSError(
        f"no film can be made: MuJoCo cannot render with {' or '.join(candidates)} here. Install "
        "EGL (a GPU driver, or 'apt-get install libegl1 libgl1-mesa-dri'), or OSMesa ('apt-get "
        "install libosmesa6') and set MUJOCO_GL=osmesa."
    )


def _make_other(env_module: str, env_name: str, **kwargs: Any) -> gymnasium.Env:
    """Makes an environment with observations [O] and actions [A] in [-1, 1]."""
    if env_name.startswith(metaworld.PREFIX):
        metaworld.register()
    module, _, env_id = env_name.rpartition(":")
    if module:
        _import_registering(module, f"{module!r} of {env_name!r}")
    try:
        env = _make_registered(env_id, env_name, **kwargs)
    except ValueError:
        if env_id in gymnasium.registry:
            raise
        raise ValueError(_describe_unknown(env_name, env_id, module or env_module)) from None
    if env.spec is not None and env.spec.max_episode_steps is None:
        _warn_endless(env_name)
    return _rescaled(_flattened(env, env_name), env_name)


def _make_ogbench(env_name: str, **kwargs: Any) -> gymnasium.Env:
    _register_ogbench()
    task = parse_task(env_name)
    if task.env_id not in gymnasium.registry:
        raise ValueError(
            f"unknown environment {env_name!r}: OGBench has no {task.env_id!r}."
            + _describe_close(env_name, _ogbench_names(task.dataset_type))
        )
    if env_name.startswith(_NOT_OF_STATES):
        raise ValueError(
            f"environment {env_name!r} has images as observations, which are not supported: name "
            "one whose observations are states."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the simulators' own spaces
        return _make_registered(task.env_id, env_name, **kwargs)


def _make_registered(env_id: str, env_name: str, **kwargs: Any) -> gymnasium.Env:
    """Raises ValueError for whatever `gymnasium.make` or the environment raises."""
    try:
        return gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    except (Exception, SystemExit) as error:
        reason = str(error) if isinstance(error, gymnasium.error.Error) else explain(error)
        raise ValueError(f"environment {env_name!r} cannot be made: {reason}") from error


def _register_ogbench() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no display matters only for rendering
        import ogbench  # noqa: F401


def _ogbench_names(dataset_type: str = "") -> list[str]:
    """All single-task names, with a dataset type that suits the environment by default."""
    pairs = (name.split("-singletask") for name in gymnasium.registry if "-singletask" in name)
    return [
        f"{env}-{dataset_type or ('navigate' if 'maze' in env else 'play')}-singletask{task}"
        for env, task in pairs
    ]


def _import_registering(module: str, named: str) -> None:
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{named} cannot be imported ({explain(error)}). It has to be a module "
            "that registers the environment with gymnasium: install it, or put its folder on "
            "PYTHONPATH."
        ) from error


def _describe_unknown(env_name: str, env_id: str, module: str) -> str:
    own, registered = list(gymnasium.registry), f"that {module!r} registers."
    _register_ogbench()
    return (
        f"unknown environment {env_name!r}: it is neither an OGBench single-task name, of the form "
        "<environment>-<dataset type>-singletask[-task<1..5>]-v0 such as "
        "'cube-double-play-singletask-task2-v0', nor the id of a gymnasium environment "
        + (registered if module else "(if a package registers it, give --env_module=<package>).")
        + _describe_close(env_id, own + _ogbench_names())
    )


def _describe_close(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f" Close names: {', '.join(close)}." if close else ""


@functools.cache  # once for each name
def _warn_endless(env_name: str) -> None:
    if multiprocessing.parent_process() is None:  # not again in every environment's process
        _logger.warning(
            "%s is registered without max_episode_steps: an episode that never ends by itself "
            "never ends here either.",
            env_name,
        )


def _flattened(env: gymnasium.Env, env_name: str) -> gymnasium.Env:
    """Gives the environment observations [O]. Raises ValueError if this cannot be done."""
    space = getattr(env, "observation_space", None)
    if isinstance(space, spaces.Dict) and _consists_of_boxes(space):
        return gymnasium.wrappers.FlattenObservation(env)
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return env
    raise ValueError(
        f"environment {env_name!r} has the observation space {space}; expected a 1-D Box, or a "
        "Dict of Boxes. Register it with a wrapper that gives such observations."
    )


def _consists_of_boxes(space: gymnasium.Space) -> bool:
    if isinstance(space, spaces.Dict):
        return all(map(_consists_of_boxes, space.values()))
    return isinstance(space, spaces.Box)


def _rescaled(env: gymnasium.Env, env_name: str) -> gymnasium.Env:
    """Gives the environment actions [A] in [-1, 1]. Raises ValueError if this cannot be done."""
    space = getattr(env, "action_space", None)
    if not (
        isinstance(space, spaces.Box)
        and len(space.shape) == 1
        and np.issubdtype(space.dtype, np.floating)
        and np.isfinite(space.high - space.low).all()
        and (space.low < space.high).all()
    ):
        raise ValueError(
            f"environment {env_name!r} has the action space {space}; expected a 1-D Box of floats "
            "with finite bounds. Register it with a wrapper that takes such actions."
        )
    # Rescaling rounds, and an environment may refuse what is beyond its bounds.
    clipped = gymnasium.wrappers.TransformAction(
        env, lambda action: np.clip(action, space.low, space.high).astype(space.dtype), space
    )
    return gymnasium.wrappers.RescaleAction(clipped, np.float32(-1), np.float32(1))
