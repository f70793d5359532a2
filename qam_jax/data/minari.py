"""Reads datasets of Minari's (minari.farama.org) that are on this machine.

They lie in the folder that `MINARI_DATASETS_PATH` names, by default `~/.minari/datasets`. Every
step is a row with `next_observations` of the fields in `qam_jax.data.checks`:

- `masks` is 0 where the environment terminated, and 1 where an episode was only truncated;
- `actions` are rescaled from the bounds of the action space to [-1, 1], as by Gymnasium's
  `RescaleAction`; a component without bounds is left as it is, and must lie there already;
- `observations` of several parts (a `Dict` or `Tuple` space) are put into one vector, in the order
  of Gymnasium's `FlattenObservation`.
"""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from qam_jax.data.checks import check_transitions
from qam_jax.data.demonstrations import Choice, needs_extra
from qam_jax.data.npz import as_float32

_UNREADABLE = (AssertionError, KeyError, OSError, TypeError, ValueError)


def load_minari(
    dataset_id: str, _: Choice, env: gymnasium.Env | None = None
) -> tuple[dict[str, np.ndarray], Path, str]:
    """Reads and checks a dataset, such as `D4RL/door/human-v2`; nothing is downloaded.

    The environment that the data are for, if there is one, knows the order in which the parts of an
    observation are flattened.

    Returns the fields as described above, float32; the dataset's folder; a line about the data.

    Raises:
      FileNotFoundError: if it is not on this machine.
      ImportError: if Minari is not installed.
      ValueError: if it cannot be read, has actions or observations of a kind that is not supported,
        or breaks a rule of `qam_jax.data.checks`.
    """
    source = f"minari:{dataset_id}"
    try:
        with needs_extra("minari", source):
            import minari
            from minari.storage import get_dataset_path

            path = get_dataset_path(dataset_id)
            dataset = minari.load_dataset(dataset_id, download=False)
            episodes = [episode for episode in dataset.iterate_episodes() if len(episode)]
    except _UNREADABLE as error:
        if not (path / "data").exists():
            raise FileNotFoundError(
                f"{source}: there is no such dataset on this machine (in {path}). There are: "
                f"{', '.join(minari.list_local_datasets()) or 'none'}. Download it first: "
                f"minari download {dataset_id}"
            ) from error
        raise ValueError(
            f"{source}: {path} cannot be read ({type(error).__name__}: {error}). Get it again: "
            f"minari download --force {dataset_id}"
        ) from error
    space = _observation_space(dataset.observation_space, env)
    if not episodes:
        raise ValueError(
            f"{source}: there is no episode with a step in it. Choose another dataset."
        )
    if not space.is_np_flattenable:
        raise ValueError(
            f"{source}: its observations are those of {space}, which cannot be put into vectors. "
            "Expected a Box space, or a Dict or Tuple of such."
        )
    rows = [_to_fields(episode, space) for episode in episodes]
    data = {name: np.concatenate([each[name] for each in rows]) for name in rows[0]}
    data["actions"] = _rescale(data["actions"], dataset.action_space, source)
    data = {name: as_float32(array) for name, array in data.items()}
    check_transitions(data, source=source)
    return data, path, f"{source} in {path}"


def _observation_space(space: spaces.Space, env: gymnasium.Env | None) -> spaces.Space:
    """Space of the dataset, its parts in the environment's order: Minari sorts them by name."""
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        theirs = env.observation_space
        if isinstance(theirs, spaces.Dict) and isinstance(space, spaces.Dict):
            return theirs if theirs == space else space
    return space


def _to_fields(episode: Any, space: spaces.Space) -> dict[str, np.ndarray]:
    observations = _flatten(space, episode.observations)
    return {
        "observations": observations[:-1],
        "actions": np.asarray(episode.actions),
        "terminals": np.eye(1, len(episode), len(episode) - 1)[0],
        "rewards": np.asarray(episode.rewards),
        "masks": ~np.asarray(episode.terminations, bool),
        "next_observations": observations[1:],
    }


def _flatten(space: spaces.Space, values: Any, *, is_part: bool = False) -> np.ndarray:
    """Puts an episode's observations into vectors, as Gymnasium's `flatten` does with each."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        rows = [_flatten(part, values[key], is_part=True) for key, part in parts]
        return np.concatenate(rows, axis=1)
    if isinstance(space, spaces.Box):
        values = np.asarray(values)
        # Images keep their shape, so that the check names them.
        return values.reshape(len(values), -1) if is_part else values
    return np.stack([spaces.utils.flatten(space, value) for value in values])


def _rescale(actions: np.ndarray, space: spaces.Space, source: str) -> np.ndarray:
    """Maps the bounds of the space to -1 and 1."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(
            f"{source}: its actions are those of {space}. Expected vectors of real numbers (a "
            "Box space with one axis): other kinds are not supported."
        )
    bounded = np.isfinite(space.low) & np.isfinite(space.high) & (space.low < space.high)
    outside = np.abs(actions[:, ~bounded]).max(initial=0.0)
    if outside > 1:
        raise ValueError(
            f"{source}: its action space has no bounds ({space}), and the actions reach "
            f"{outside:g}. They have to lie in [-1, 1]: save them as an .npz file, rescaled, and "
            "act in an environment that is rescaled alike."
        )
    low, high = np.where(bounded, [space.low, space.high], [[-1.0], [1.0]]).astype(np.float64)
    return 2 * (actions - low) / (high - low) - 1
