"""Exports of a trained policy: a StableHLO program, an ONNX model, parameters as safetensors.

Each file is checked against the checkpoint before it is kept. `policy.json` beside the files
describes them, see `policy_metadata`.
"""

import importlib.util
import os
import tempfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax import export

from qam_jax.deploy.policy import METADATA, decision_fn, executed_actions, policy_metadata
from qam_jax.files import ensure_writable_dir, flush_to_disk, user_path, write_json
from qam_jax.runs.saved import SavedRun, load_run
from qam_jax.training.evaluation import make_policy
from qam_jax.types import Array

TOLERANCE = 1e-4  # of normalised actions, which lie in [-1, 1]
_PLATFORMS = ("cpu", "cuda", "tpu")
_NUM_CHECKS = 64
_KEYS = "any two numbers for each row: the same ones give the same noise"
_NOISE = "normal, mean 0, standard deviation 1, independent"
_PACKAGES = ("onnx", "onnxruntime", "safetensors")


def export_policy(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    formats: Collection[str] = ("stablehlo", "onnx", "safetensors"),
    step: int | str = "newest",
    *,
    overwrite: bool = False,
    tolerance: float = TOLERANCE,
) -> dict[str, float]:
    """Writes a folder with `policy.<format>` in each format, and `policy.json`.

    The folder appears whole and after all checks, or not at all.

    Args:
      folder: of the run.
      out: the folder to write, or a link to it. Its parents are created.
      formats: some of `FORMATS`.
      step: a checkpoint's step, `newest` or `best`.
      overwrite: whether an earlier export in `out` may be replaced.
      tolerance: largest difference that is accepted, at least 0.

    Returns:
      The largest difference from the checkpoint in each format. For safetensors it is of
      parameters, else of actions for 64 random observations, in units of their normalisation.

    Raises:
      FileExistsError: if `out` exists and may not be replaced.
      ImportError: if a package of the extra `export` is not installed.
      ValueError: if `folder` is an export, a format is unknown or does not cover the policy, or
        a difference is too large.
    """
    folder, out = user_path(folder), Path(os.path.realpath(user_path(out)))  # links stay
    _check_request(folder, out, formats, overwrite)
    if not tolerance >= 0:
        raise ValueError(f"the tolerance must be a number of at least 0, got {tolerance}.")
    run = load_run(folder, step)
    samples = _draw_samples(run)
    differences, facts = {}, {}
    parent = ensure_writable_dir(out.parent)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=parent) as scratch:
        new = Path(scratch, "new")
        new.mkdir()
        for name in formats:
            facts[name], differences[name] = FORMATS[name](run, samples, new / f"policy.{name}")
            facts[name]["largest_difference"] = differences[name]
            if not differences[name] <= tolerance:
                raise ValueError(
                    f"the {name} export differs from the checkpoint by {differences[name]:.2g}, "
                    f"but the tolerance is {tolerance:g}. Nothing is written: raise --tolerance, "
                    "or leave the format out."
                )
        write_json(new / METADATA, {**policy_metadata(run, folder), "formats": facts})
        for file in (*new.iterdir(), new):
            flush_to_disk(file)
        if out.exists():
            os.replace(out, Path(scratch, "old"))
        os.replace(new, out)
    return differences


def _check_request(folder: Path, out: Path, formats: Collection[str], overwrite: bool) -> None:
    if (folder / METADATA).exists():
        raise ValueError(f"{folder} is an export, not a run: give the folder of its run as --run.")
    if not formats or not set(formats) <= FORMATS.keys():
        raise ValueError(
            f"formats: got {', '.join(formats) or 'none'}, expected some of {', '.join(FORMATS)}."
        )
    for package in _PACKAGES:
        if package.removesuffix("runtime") in formats and not importlib.util.find_spec(package):
            raise ImportError(
                f'the export needs {package}: pip install "qam_jax[export]", or choose other '
                "--formats."
            )
    if out.exists() and not (out / METADATA).exists():
        raise FileExistsError(f"{out} exists and is no export: give another --out.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} holds an export: add --overwrite, or give another --out.")


class _Samples(NamedTuple):
    """Random observations [B, O] and keys [B, 2], and the checkpoint's actions [B, H, A]."""

    observations: np.ndarray
    keys: Array
    actions: np.ndarray


def _draw_samples(run: SavedRun) -> _Samples:
    """Observations in the units of the data, and the actions of an evaluation of the run."""
    norm = run.normalization
    numbers = np.random.default_rng(0).normal(size=(_NUM_CHECKS, len(norm.observation_scale)))
    observations = norm.observation_offset + norm.observation_scale * numbers.astype(np.float32)
    key, rows = jax.random.PRNGKey(0), np.arange(_NUM_CHECKS)
    normalized = norm.normalize_observations(observations)
    actions = make_policy(run.agent)(run.state, key)(normalized, rows, 0 * rows)
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row), 0))(rows)
    return _Samples(observations, keys, executed_actions(run, actions))


def _write_stablehlo(run: SavedRun, samples: _Samples, path: Path) -> tuple[dict, float]:
    (batch,) = export.symbolic_shape("batch")
    arrays = {"observations": samples.observations, "keys": np.asarray(samples.keys)}
    specs = [jax.ShapeDtypeStruct((batch, a.shape[1]), a.dtype) for a in arrays.values()]
    program = export.export(jax.jit(jax.vmap(decision_fn(run))), platforms=_PLATFORMS)(*specs)
    path.write_bytes(program.serialize())
    actions = export.deserialize(bytearray(path.read_bytes())).call(*arrays.values())
    inputs = {name: _describe(array) for name, array in arrays.items()}
    inputs["keys"]["meaning"] = _KEYS
    facts = {"inputs": inputs, "platforms": _PLATFORMS, "jax": jax.__version__}
    return facts, _difference(actions, samples.actions, run.normalization.action_scale)


def _write_onnx(run: SavedRun, samples: _Samples, path: Path) -> tuple[dict, float]:
    import onnx
    import onnxruntime

    from qam_jax.deploy.onnx_graph import to_onnx

    decide = decision_fn(run)
    drawn = jax.jit(jax.vmap(partial(_drawn_noise, decide)))(samples.observations, samples.keys)
    arrays = {"observations": samples.observations}
    arrays |= {f"noise_{index}": np.asarray(noise) for index, noise in enumerate(drawn)}
    shapes = {name: array.shape[1:] for name, array in arrays.items()}
    model = to_onnx(jax.vmap(partial(_with_noise, decide)), shapes, "actions")
    onnx.save_model(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {each.name: arrays[each.name] for each in session.get_inputs()}
    inputs = {name: _describe(array) for name, array in feed.items()}
    for name in feed.keys() - {"observations"}:
        inputs[name]["distribution"] = _NOISE
    (actions,) = session.run(None, feed)
    difference = _difference(actions, samples.actions, run.normalization.action_scale)
    return {"inputs": inputs, "output": "actions"}, difference


def _write_safetensors(run: SavedRun, _: _Samples, path: Path) -> tuple[dict, float]:
    from safetensors.numpy import load_file, save

    networks = {"params": run.state.params, "target_params": run.state.target_params}
    arrays = {name: np.asarray(leaf) for name, leaf in flatten_dict(networks, sep="/").items()}
    path.write_bytes(save(arrays))
    saved = load_file(path)
    facts = {name: {"shape": a.shape, "dtype": str(a.dtype)} for name, a in arrays.items()}
    largest = max(_difference(saved[name], array) for name, array in arrays.items())
    return {"parameters": facts}, largest


FORMATS: dict[str, Callable[[SavedRun, _Samples, Path], tuple[dict[str, Any], float]]] = {
    "stablehlo": _write_stablehlo,
    "onnx": _write_onnx,
    "safetensors": _write_safetensors,
}
"""Writes and reads back a file: `(run, samples, path) -> (facts for policy.json, difference)`."""


def _describe(array: Array | np.ndarray) -> dict[str, Any]:
    return {"shape": ["batch", *array.shape[1:]], "dtype": str(array.dtype)}


def _difference(actual: Any, expected: np.ndarray, scale: Any = 1) -> float:
    scale = np.where(np.asarray(scale) == 0, 1, scale)  # constant actions
    return float(np.abs((np.asarray(actual) - expected) / scale).max(initial=0))


# Policies draw their noise by `jax.random.normal`, from a key. The functions below put another
# function in its place while a policy is traced. `to_onnx` refuses all other random numbers.


def _drawn_noise(decide: Callable[..., Array], observation: Array, key: Array) -> list[Array]:
    """All noise that a policy draws for an observation [O], in order."""
    drawn: list[Array] = []
    normal = jax.random.normal

    def record(*args: Any, **kwargs: Any) -> Array:
        drawn.append(normal(*args, **kwargs))
        return drawn[-1]

    with mock.patch.object(jax.random, "normal", record):
        decide(observation, key)
    return drawn


def _with_noise(decide: Callable[..., Array], observation: Array, *noise: Array) -> Array:
    """Actions [H, A] of a policy whose noise is given, in the order of `_drawn_noise`."""
    rest = iter(noise)
    with mock.patch.object(jax.random, "normal", lambda *_, **__: next(rest)):
        return decide(observation, jax.random.PRNGKey(0))
