"""Starts a run from the checkpoint of another."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from qam_jax.agents import AgentState
from qam_jax.agents.base import with_behavior
from qam_jax.runs.checkpoints import SavedRun, load_run
from qam_jax.runs.metrics import read_csv, write_csv
from qam_jax.runs.settings import RunSettings
from qam_jax.training import exchange

_FIXED_FIELDS = ("horizon_length", "action_chunking")  # what the policy's actions are


def start_from(
    run: str, step: str, config: ConfigDict, state: AgentState, folder: Path
) -> tuple[AgentState, int]:
    """The state that a run begins with if it starts from the checkpoint of another.

    From a run of `bc`, or a checkpoint of the stage of behaviour cloning, only the flow is taken,
    see `with_behavior`. The rows of metrics are copied, so that the curve is one.

    Args:
      run: the other run's folder.
      step: which of its checkpoints: a number, `newest` or `best`.
      config: the new run's algorithm and hyperparameters.
      state: the new run's own state before any update.
      folder: the new run's.

    Returns:
      The state, and the other run's step.

    Raises:
      FileNotFoundError: if there is no such run or checkpoint.
      ValueError: if that is a checkpoint of another algorithm, horizon or network size; names
        what differs.
    """
    saved = load_run(run, step)
    cloned = set(saved.state.params) == {"behavior"} and config.agent_name != "bc"
    _check_config(run, saved, config, cloned)
    if cloned:
        _check_shapes(run, saved, saved.state.params["behavior"], state.params["behavior"], config)
        state = with_behavior(config, state, saved.state.params["behavior"])
    else:
        _check_shapes(run, saved, saved.state, state, config)
        state = saved.state
    for kind in ("train", "eval", "env") if exchange.is_first() else ():
        rows = [row for row in read_csv(Path(run) / f"{kind}.csv") if row["step"] <= saved.step]
        if rows:
            write_csv(folder / f"{kind}.csv", rows[0], rows)
    return state, saved.step


def settings_of(run: str, step: str) -> dict[str, Any]:
    """The settings of a run, for one that goes on from its checkpoint; without `online_steps`.

    Raises:
      FileNotFoundError: if there is no such run or checkpoint.
    """
    saved = load_run(run, step)
    inherited = saved.config.to_dict()
    bc_steps = min(inherited["bc_steps"], saved.step)
    fields = dataclasses.fields(RunSettings)
    names = [field.name for field in fields if field.metadata["inherited"]]
    return {
        **{name: inherited[name] for name in names},
        "bc_steps": bc_steps,
        "offline_steps": saved.step - bc_steps,
    }


def _check_config(run: str, saved: SavedRun, config: ConfigDict, cloned: bool) -> None:
    names = _FIXED_FIELDS if cloned else ("agent_name", *_FIXED_FIELDS)
    for name in names:
        there, here = saved.config.agent[name], config[name]
        if there != here:
            mend = f"--config.{name}={there}"
            if name == "agent_name":
                mend = f"--config=experiments/configs/{there}.py"
            raise ValueError(
                f"the run {run} has {name} = {there!r}, this one {here!r}: its checkpoint cannot "
                f"be continued so. Give {mend}, or another --run."
            )


def _check_shapes(
    run: str, saved: SavedRun, there: AgentState, here: AgentState, config: ConfigDict
) -> None:
    """Raises ValueError, naming the first parameter that differs and the fields behind it."""
    found, expected = _shapes(there), _shapes(here)
    if found == expected:
        return
    name = next(name for name in [*expected, *found] if found.get(name) != expected.get(name))
    before, now = (json.loads(agent.to_json()) for agent in (saved.config.agent, config))
    fields = [
        f"{field} = {before.get(field)!r} there and {now[field]!r} here"
        for field in now
        if before.get(field) != now[field]
    ]
    raise ValueError(
        f"the checkpoint of {run} does not fit this run's networks: {name} has the shape "
        f"{found.get(name, 'none')} there and {expected.get(name, 'none')} here. Config fields "
        f"that differ: {'; '.join(fields) or 'none, so it is the environment or the data'}."
    )


def _shapes(tree: AgentState) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }
