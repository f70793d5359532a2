"""A trained policy that acts: loaded from a run's folder, or from an export of it."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from qam_jax import __version__
from qam_jax.files import DamagedError, read_json, user_path
from qam_jax.flow import sample_flow_inpainted
from qam_jax.runs.folder import read_metadata
from qam_jax.runs.saved import SavedRun, load_run
from qam_jax.training.evaluation import Policy as EvaluatedPolicy
from qam_jax.training.evaluation import make_policy, split_seed
from qam_jax.types import Array, VelocityFn

METADATA = "policy.json"  # describes the files of an export
_NEEDED = ("method", "step", "observation_dim", "action_shape")

DecideFn = Callable[[np.ndarray, int, int], np.ndarray]
"""`(observation [O], episode, chunk) -> actions [H, A]`; episode and chunk determine the noise."""

InpaintFn = Callable[[np.ndarray, int, int, np.ndarray, np.ndarray], np.ndarray]
"""`(observation, episode, chunk, known [H, A], weights [H]) -> actions`; see `Policy.act_chunk`."""


class Policy:
    """A trained policy in one environment: `reset()`, then `act(observation)` at every step.

    The policy decides on a chunk of actions at once, and executes it. The next chunk is computed
    when the last one is used up. Decision `c` of episode `e` is an evaluation's decision with the
    same seed and observation. (An ONNX policy draws other noise.)

    Observations and actions are those of the environment: the policy normalises by itself. Actions
    lie in [-1, 1]. An environment of `qam_jax.envs.make_env` takes them as they are: it rescales
    them to its box. Elsewhere do that yourself, by `low + (action + 1) / 2 * (high - low)`. Of a
    run without an environment, actions are in the units of the data.

    Attributes:
      action_shape: `(H, A)` of a chunk; `H` is 1 without action chunking.
      observation_dim: `O`.
      metadata: method, environment, step, versions and more, see `policy_metadata`.
    """

    def __init__(
        self, decide: DecideFn, metadata: dict[str, Any], inpaint: InpaintFn | None = None
    ):
        self.metadata = metadata
        self.observation_dim: int = metadata["observation_dim"]
        self.action_shape: tuple[int, int] = tuple(metadata["action_shape"])
        self._decide, self._inpaint = decide, inpaint
        self._episode = self._decisions = 0
        self._rest = np.empty((0, self.action_shape[1]), np.float32)

    def reset(self) -> None:
        """Begins an episode: drops the rest of the chunk. At the very start it is not needed."""
        self._episode += self._decisions > 0
        self._decisions, self._rest = 0, self._rest[:0]

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Returns the action [A] for this step. Raises as `act_chunk`.

        The observation [O] is checked at every step. It is used where a chunk begins.
        """
        observation = self._checked(observation)
        if not len(self._rest):
            self._rest = self.act_chunk(observation)
        action, self._rest = self._rest[0], self._rest[1:]
        return action

    def act_chunk(
        self,
        observation: np.ndarray,
        known: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> np.ndarray:
        """Decides on a chunk of actions [H, A] for an observation [O]; `act` is not affected.

        Given `known` actions [H, A], as of an earlier chunk, the new chunk follows them by the
        weights [H] in [0, 1], see `flow.sample_flow_inpainted`.

        Raises ValueError if the observation has another shape or is not finite in float32. Also if
        actions are known, but the policy does not act by the ODE of a flow.
        """
        decision = self._checked(observation), self._episode, self._decisions
        if (known is None) != (weights is None):
            raise ValueError("known actions and weights go together: give both or neither.")
        if known is None or weights is None:
            actions = self._decide(*decision)
        elif self._inpaint is not None:
            _check("the known actions", known, self.action_shape)
            _check("the weights", weights, self.action_shape[:1])
            actions = self._inpaint(*decision, known, weights)
        else:
            raise ValueError(
                f"{self.metadata['method']} cannot continue known actions here: that takes a run, "
                "not an export, of a policy that acts by the ODE of a flow alone. Execute its "
                "chunks with mode='held'."
            )
        self._decisions += 1
        return actions

    def _checked(self, observation: np.ndarray) -> np.ndarray:
        array = np.asarray(observation)
        if array.shape != (self.observation_dim,) or array.dtype.kind not in "fiub":
            raise ValueError(
                f"the observation has shape {array.shape} and type {array.dtype}, expected one "
                f"vector of {self.observation_dim} real numbers, as in the data that "
                f"{self.metadata['method']} was trained on."
            )
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            place = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(
                f"the observation has {observation[place]} at place {place}, expected numbers that "
                "are finite in float32: check the sensor or the environment."
            )
        return array


def _check(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if np.shape(array) != shape or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be finite numbers of shape {shape}, got {np.asarray(array)} of shape "
            f"{np.shape(array)}."
        )


def load_policy(path: str | os.PathLike, step: int | str = "newest", seed: int = 0) -> Policy:
    """Loads a trained policy; it needs neither the data nor the environment.

    Args:
      path: a run's folder, `exp/<group>/<env_name>/<run id>`; or the folder of an export, or its
        file `policy.stablehlo` or `policy.onnx`. A folder with both acts by `policy.stablehlo`.
      step: checkpoint of the run, a number, `newest` or `best`. An export has only one.
      seed: seed of the policy's noise, as `--seed` of an evaluation.

    Raises:
      DamagedError: if a file is damaged.
      FileNotFoundError: if there is no run and no export, or no such checkpoint.
      ImportError: if onnxruntime, which an ONNX policy needs, is not installed.
      ValueError: if the algorithm had other networks in the version that wrote the run.

    Examples:
      policy = qam_jax.load_policy("exp/default/<env_name>/<run id>")
      policy.reset()
      action = policy.act(observation)
    """
    path = user_path(path)
    if path.suffix == ".safetensors" or path.name == METADATA:
        raise ValueError(f"{path} does not act: give the folder, or its .stablehlo or .onnx file.")
    if path.suffix in _LOADERS or (path / METADATA).exists():
        return _load_export(path, step, seed)
    run = load_run(path, step)
    key = split_seed(seed).evaluation
    decide = partial(_decide, run, make_policy(run.agent)(run.state, key))
    inpaint = _make_inpainting(run, key) if run.agent.sample_by else None
    return Policy(decide, policy_metadata(run, path), inpaint)


def _decide(
    run: SavedRun, policy: EvaluatedPolicy, observation: np.ndarray, episode: int, chunk: int
) -> np.ndarray:
    observations = run.normalization.normalize_observations(observation[None])
    return executed_actions(run, policy(observations, np.array([episode]), np.array([chunk]))[0])


def _make_inpainting(run: SavedRun, key: Array) -> InpaintFn:
    def sample_actions(given: Any, observations: Array, key: Array) -> Array:
        state, known, weights = given

        def solver(velocity_fn: VelocityFn, noise: Array, num_steps: int) -> Array:
            actions = jnp.broadcast_to(known.ravel(), noise.shape)
            shares = jnp.broadcast_to(jnp.repeat(weights, known.shape[-1]), noise.shape)
            return sample_flow_inpainted(velocity_fn, noise, num_steps, actions, shares)

        assert run.agent.sample_by is not None
        return run.agent.sample_by(state, observations, key, solver)

    bind: Any = make_policy(run.agent._replace(sample_actions=sample_actions))

    def inpaint(
        observation: np.ndarray, episode: int, chunk: int, known: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        given = run.state, run.normalization.normalize_actions(known), weights
        return _decide(run, bind(given, key), observation, episode, chunk)

    return inpaint


def decision_fn(run: SavedRun) -> Callable[[Array, Array], Array]:
    """The whole policy as one function, `(observation [O], key [2]) -> actions [H, A]`."""

    def decide(observation: Array, key: Array) -> Array:
        observation = run.normalization.normalize_observations(observation)
        return executed_actions(run, run.agent.sample_actions(run.state, observation, key))

    return decide


def policy_metadata(run: SavedRun, folder: Path) -> dict[str, Any]:
    """Description of a policy and its origin, for JSON."""
    saved = read_metadata(folder)
    return {
        "qam_jax": __version__,
        "method": saved["method"],
        "agent": run.config.agent.to_dict(),
        "env_name": run.config.env_name,
        "run": folder.resolve().name,
        "step": run.step,
        "observation_dim": saved["observation_dim"],
        "action_shape": list(run.state.action_shape),
        "actions": "in [-1, 1]" if run.config.env_name else "in the units of the data",
    }


def executed_actions(run: SavedRun, actions: Any) -> Any:
    """Actions in the units of the environment, or of the data where the run has no environment."""
    actions = run.normalization.denormalize_actions(actions)
    return actions.clip(-1, 1) if run.config.env_name else actions


def _load_export(path: Path, step: int | str, seed: int) -> Policy:
    folder = path.parent if path.suffix in _LOADERS else path
    files = [path] if folder != path else [path / f"policy{suffix}" for suffix in _LOADERS]
    file = next((each for each in files if each.exists()), None)
    if file is None:
        raise FileNotFoundError(
            f"there is no {' and no '.join(map(str, files))}: export with "
            "--formats=stablehlo or onnx. Parameters alone do not act."
        )
    if not (folder / METADATA).exists():
        raise FileNotFoundError(
            f"there is no {folder / METADATA}, which says what {file.name} is: copy the whole "
            "folder of the export."
        )
    metadata = read_json(folder / METADATA)
    missing = [name for name in _NEEDED if name not in metadata]
    if missing or len(metadata["action_shape"]) != 2:
        raise DamagedError(
            f"{folder / METADATA} is damaged ({', '.join(missing) or 'action_shape'}). Export the "
            "run again."
        )
    if str(step) not in ("newest", str(metadata["step"])):
        raise FileNotFoundError(
            f"the export in {folder} is of step {metadata['step']}, not {step}: export that step."
        )
    return Policy(_LOADERS[file.suffix](file, seed), metadata)


def _load_stablehlo(file: Path, seed: int) -> DecideFn:
    try:
        program = export.deserialize(bytearray(file.read_bytes()))
    except Exception as error:  # its class depends on the bytes
        raise DamagedError(f"{file} is damaged ({error}). Export the run again.") from error
    key = split_seed(seed).evaluation

    @jax.jit
    def decide(observation: Array, episode: Array, chunk: Array) -> Array:
        own_key = jax.random.fold_in(jax.random.fold_in(key, episode), chunk)
        return program.call(observation[None], own_key[None])[0]

    return lambda *decision: np.asarray(decide(*decision))


def _load_onnx(file: Path, seed: int) -> DecideFn:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f'{file} needs onnxruntime: pip install "qam_jax[export]".') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # products of one row are too small to share
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has one class for each of its codes
        raise DamagedError(f"{file} is damaged ({error}). Export the run again.") from error
    observations, *noises = session.get_inputs()

    def decide(observation: np.ndarray, episode: int, chunk: int) -> np.ndarray:
        rng = np.random.default_rng([seed % 2**32, episode, chunk])
        feed = {each.name: rng.normal(size=(1, *each.shape[1:])) for each in noises}
        feed = {name: noise.astype(np.float32) for name, noise in feed.items()}
        return session.run(None, {observations.name: observation[None], **feed})[0][0]

    return decide


_LOADERS = {".stablehlo": _load_stablehlo, ".onnx": _load_onnx}
