"""Pictures of a run: its learning curve, and the paths that it takes through a maze."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from qam_jax.envs import make_env
from qam_jax.files import atomic_write
from qam_jax.runs.metrics import read_csv
from qam_jax.runs.settings import RunSettings
from qam_jax.training.evaluation import Episode, describe, make_evaluator

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_COLOR = "#1f5fa8"
_FAILURE_COLOR = "#c44e3a"


def show_result(result: Any, settings: RunSettings, agent_name: str) -> None:
    """Prints the scores of a run's `RunResult`, draws its pictures and films its episodes."""
    prefix = f"seed {result.seed}: " if settings.num_seeds > 1 else ""
    episodes = {agent_name: result.episodes, "behaviour cloning alone": result.behavior_episodes}
    episodes = {policy: runs for policy, runs in episodes.items() if runs}
    for policy, runs in episodes.items():
        print(f"{prefix}{policy}: {describe(runs)}")
    pictures = plot_run(result.folder, settings, episodes)
    if settings.video_episodes:
        own = dataclasses.replace(settings, seed=result.seed)
        with contextlib.closing(make_evaluator(own, result.normalization)) as evaluator:
            folder = result.folder / "videos"
            pictures += evaluator.film(result.agent, result.state, folder, settings.video_episodes)
    print(f"{prefix}Run: {result.folder}")
    if pictures:
        print("Pictures:", *pictures, sep="\n  ")


def plot_run(
    folder: Path, settings: RunSettings, episodes: Mapping[str, Sequence[Episode]]
) -> list[Path]:
    """Draws all pictures of a run into its folder and returns their paths.

    The episodes are of the last evaluation, by the name of the policy.
    """
    title = settings.env_name or folder.name
    pictures = plot_training(folder, title)
    if not settings.env_name:
        return pictures
    border = settings.bc_steps + settings.offline_steps if settings.online_steps else None
    if read_csv(folder / "eval.csv"):  # not all evaluations failed
        pictures.insert(0, plot_learning_curve(folder, title, border))
    env = make_env(settings.env_name, settings.env_module)
    env.reset(seed=0)
    if hasattr(env.unwrapped, "maze_map") and hasattr(env.unwrapped, "cur_goal_xy"):
        pictures.append(plot_maze_paths(env.unwrapped, episodes, folder / "trajectories.png"))
    env.close()
    return pictures


def plot_learning_curve(folder: Path, title: str, border: int | None = None) -> Path:
    """Draws `learning_curve.png`: success rates with their 95% intervals, from a run's eval.csv.

    Where the environment does not report success, it draws the mean return instead. Fine-tuning
    online begins at the step `border`, if it does.
    """
    rows = pd.DataFrame(read_csv(folder / "eval.csv"))
    figure, (axes,) = _panels(1, (6, 3.6))
    if rows["success"].isna().all():
        axes.plot(rows["step"], rows["return"], "o-", color=_COLOR, label="mean return")
        axes.set(ylabel="return")
    else:
        low, high = 100 * rows["success_low"], 100 * rows["success_high"]
        band = {"color": _COLOR, "alpha": 0.2, "linewidth": 0, "label": "95% interval"}
        axes.fill_between(rows["step"], low, high, **band)
        axes.plot(rows["step"], 100 * rows["success"], "o-", color=_COLOR, label="success rate")
        axes.set(ylabel="success rate (%)", ylim=(-3, 103))
    if border is not None:
        axes.axvline(border, color="0.4", linestyle="--", linewidth=1, label="fine-tuning begins")
    words = "updates" if border is None else "offline updates, then environment steps"
    axes.set(xlabel=words, title=title, xlim=(0, None))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    return _save(figure, folder / "learning_curve.png")


def plot_training(folder: Path, title: str) -> list[Path]:
    """Draws `training.png`, if there are such metrics: losses and Q-values, each in one panel."""
    rows = pd.DataFrame(read_csv(folder / "train.csv"))
    kinds = {"loss": r"(^|_)loss$", "Q": r"(^|_)q(_|$)"}
    panels = {kind: rows.filter(regex=pattern) for kind, pattern in kinds.items()}
    panels = {kind: columns for kind, columns in panels.items() if not columns.empty}
    if not panels:
        return []
    figure, all_axes = _panels(len(panels), (6 * len(panels), 3.6))
    for axes, (kind, columns) in zip(all_axes, panels.items(), strict=True):
        for name in columns:
            axes.plot(rows["step"], columns[name], label=name)
        axes.set(xlabel="steps", ylabel=kind, title=title)
        if kind == "loss":
            axes.set_yscale("symlog", linthresh=1e-3)
        axes.grid(alpha=0.3)
        axes.legend(loc="best", frameon=False)
    return [_save(figure, folder / "training.png")]


def plot_maze_paths(env: Any, episodes: Mapping[str, Sequence[Episode]], path: Path) -> Path:
    """Draws the paths of episodes, by policy, on the map of an OGBench maze reset to its task."""
    rows, columns = env.maze_map.shape
    left, bottom = np.subtract(env.ij_to_xy((0, 0)), env._maze_unit / 2)
    right, top = np.add(env.ij_to_xy((rows - 1, columns - 1)), env._maze_unit / 2)
    size = (4.6 * len(episodes), 4.6 * rows / columns + 0.6)
    figure, panels = _panels(len(episodes), size)
    for axes, (name, runs) in zip(panels, episodes.items(), strict=True):
        extent = (left, right, bottom, top)
        axes.imshow(env.maze_map, cmap="Greys", vmin=0, vmax=2, origin="lower", extent=extent)
        for episode in runs:
            color = _COLOR if episode.success else _FAILURE_COLOR
            axes.plot(*episode.positions.T, color=color, alpha=0.35, linewidth=1)
            axes.plot(*episode.positions[:1].T, "o", color=color, markersize=3)
        axes.plot(*env.cur_goal_xy, "*", color="#e0a100", markersize=18, markeredgecolor="black")
        reached = sum(bool(episode.success) for episode in runs)
        axes.set(xticks=[], yticks=[], title=f"{name}: {reached} of {len(runs)} reach the goal")
    return _save(figure, path)


def _panels(count: int, size: tuple[float, float]) -> tuple[Any, Any]:
    figure, axes = plt.subplots(1, count, figsize=size, layout="constrained", squeeze=False)
    return figure, axes[0]


def _save(figure: Any, path: Path) -> Path:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=140)
    plt.close(figure)
    return path
