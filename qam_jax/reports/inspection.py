"""What a dataset holds, as a page and in the terminal; numbers are `qam_jax.data.inspection`'s."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape

from qam_jax.data.inspection import Dimensions, Inspection, transitions, verdict
from qam_jax.files import atomic_write
from qam_jax.reports.figures import Figure, draw_figures, inline_figures
from qam_jax.reports.page import page_template
from qam_jax.types import TransitionDataset

_BINS = 60
_MAX_POINTS = 300  # marks of completed tasks in a picture
_MAX_FITTED = 20_000  # observations that the principal components are fitted to
_COLOR, _DONE_COLOR = "#2f6fdb", "#d9541e"


def facts(data: Inspection) -> dict[str, str]:
    """Facts about a dataset in words, by name."""
    windows, done = data.windows, int(data.completed.sum())
    rewards = f"{len(data.rewards):,} values from {data.rewards[0]:g} to {data.rewards[-1]:g}"
    if len(data.rewards) <= 5:
        shares = zip(data.rewards, data.reward_shares, strict=True)
        rewards = ", ".join(f"{value:g} ({share:.2%})" for value, share in shares)
    return {
        "episodes": f"{len(data.lengths):,}, of {_span(data.lengths)} transitions",
        "transitions": f"{data.lengths.sum():,}",
        "episodes that complete the task": f"{done:,} ({done / len(data.lengths):.0%})",
        "returns": _span(data.returns),
        "rewards": rewards,
        "actions within 1% of -1 or 1": f"{data.at_limits.mean():.1%}",
        "actions that are clipped": f"{data.clipped.mean():.1%}",
        f"windows of {windows.horizon_length} rows cut by their episode's end": (
            f"{windows.cut:.1%}; they train no critic"
        ),
        "windows in which the task is completed": f"{windows.completed:.2%}, without cut ones",
        f"values, with a discount of {windows.discount:g}": (
            f"from {windows.values[0]:.4g} to {windows.values[1]:.4g}"
        ),
    }


def dimension_tables(data: Inspection) -> dict[str, pd.DataFrame]:
    """A row of words for each dimension, of the observations and of the actions."""
    shares = {"within 1% of ±1": data.at_limits, "clipped": data.clipped}
    acted = _dimensions(data.actions).assign(**pd.DataFrame(shares).map("{:.1%}".format))
    return {"observations": _dimensions(data.observations), "actions": acted}


def inspection_figures(
    data: Inspection, dataset: TransitionDataset, plane: bool
) -> dict[str, Figure]:
    """Histograms, and where the observations lie: in x and y if these come first (`plane`)."""
    starts, _, num_rows = transitions(dataset)
    actions = np.asarray(dataset.actions)[starts]
    observations = np.asarray(dataset.observations)[:num_rows]
    panels = {
        "transitions of an episode": data.lengths,
        "return of an episode": data.returns,
        "reward": np.asarray(dataset.rewards)[starts],
    }
    histograms = [partial(_draw_histogram, values=v, title=name) for name, v in panels.items()]
    seen = data.observations
    done = starts[np.asarray(dataset.masks)[starts] == 0] + 1
    done = done[:: -(-len(done) // _MAX_POINTS) or 1]
    moving = (observations - seen.mean)[:, ~seen.constant] / seen.std[~seen.constant]
    scaled = np.full(observations.shape, np.nan)
    scaled[:, ~seen.constant] = moving
    points, titles = project(moving)
    if plane or observations.shape[1] == 2:
        points = observations[:, :2]
        titles = ["x", "y"] if plane else ["observation 0", "observation 1"]
    columns = [
        partial(_draw_dimensions, values=actions, span=(-1, 1), label="action"),
        partial(_draw_dimensions, values=scaled, span=(-3, 3), label="standardised observation"),
    ]
    coverage = partial(_draw_plane, points=points, done=done, titles=titles)
    return {
        "episodes": Figure(histograms),
        "coverage": Figure([coverage, *columns], size=(4.4, 3.4)),
    }


def project(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """First two principal components [N, 2] of standardised values [N, D], and their names."""
    values = np.pad(values, ((0, 0), (0, max(0, 2 - values.shape[1]))))
    some = values[:: -(-len(values) // _MAX_FITTED)]
    powers, axes = np.linalg.eigh(some.T @ some / len(some))
    shares = powers[::-1][:2] / max(powers.sum(), 1e-12)
    names = [f"component {i + 1} ({share:.0%} of variance)" for i, share in enumerate(shares)]
    return values @ axes[:, ::-1][:, :2], names


def is_plane(env: gymnasium.Env | None) -> bool:
    """Whether an environment's first two observations are its place x, y (`info["xy"]`)."""
    if env is None:
        return False
    env.reset(seed=0)
    observation, *_, info = env.step(np.zeros(env.action_space.shape, np.float32))
    place = info.get("xy")
    return place is not None and np.allclose(observation[:2], place, atol=1e-5)


def write_page(data: Inspection, figures: dict[str, Figure], folder: Path, **words: str) -> Path:
    """Writes inspection.html and the figures (PNG, SVG) into a folder; returns the page.

    The words are the page's `title`, the `source` of the data, and the `command` that made it.
    """
    draw_figures(figures, {}, folder / "figures")
    contents = {"verdict": verdict(data), "facts": facts(data), "tables": dimension_tables(data)}
    pictures = inline_figures(figures)
    page = page_template("inspection").render(words, **contents, pictures=pictures)
    with atomic_write(folder / "inspection.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "inspection.html"


def print_inspection(data: Inspection, console: Console) -> None:
    """Prints the facts, a table for observations and actions, and the verdict."""
    for name, text in facts(data).items():
        console.print(f"{escape(name)}: [bold]{escape(text)}[/]")
    for name, table in dimension_tables(data).items():
        console.print(f"\n[bold]{name}[/]\n{table.to_string()}", soft_wrap=True)
    console.print("\n[bold]Verdict[/]")
    for sentence in verdict(data):
        console.print(f"- {escape(sentence)}", soft_wrap=True)


def _span(values: np.ndarray) -> str:
    low, middle, high = values.min(), np.median(values), values.max()
    return f"{low:,.6g}" if low == high else f"{low:,.6g} to {high:,.6g} (median {middle:,.6g})"


def _dimensions(values: Dimensions) -> pd.DataFrame:
    numbers = {"least": values.low, "largest": values.high, "mean": values.mean, "std": values.std}
    notes = [f"the same as {same}" if same != i else "" for i, same in enumerate(values.same_as)]
    table = pd.DataFrame(numbers).map("{:.4g}".format)
    return table.assign(note=np.where(values.constant, "constant", notes))


def _draw_histogram(axes: Any, values: np.ndarray, title: str) -> None:
    axes.hist(values, bins=_BINS if values.min() < values.max() else 1, color=_COLOR)
    axes.set(title=title, yscale="log", ylabel="how many")


def _draw_dimensions(axes: Any, values: np.ndarray, span: tuple[float, float], label: str) -> None:
    """Histogram of each dimension as a column, relative to the value that is the most frequent.

    What lies out of the span counts at its ends; a column of nan stays empty.
    """
    edges = np.linspace(*span, _BINS + 1)
    counts = [np.histogram(column.clip(*span), edges)[0] for column in values.T]
    shares = np.array([each / max(each.max(), 1) for each in counts]).T
    extent = (-0.5, values.shape[1] - 0.5, *span)
    axes.imshow(
        shares**0.5, origin="lower", extent=extent, aspect="auto", interpolation="none",
        cmap="Blues", vmin=0,
    )  # fmt: skip
    axes.set(xlabel="dimension", ylabel=label, title=f"{label}s by dimension")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_plane(axes: Any, points: np.ndarray, done: np.ndarray, titles: list[str]) -> None:
    """How many observations lie where, on a logarithmic scale; orange where tasks are completed."""
    counts, *edges = np.histogram2d(points[:, 0], points[:, 1], bins=_BINS)
    extent = tuple(float(edge[i]) for edge in edges for i in (0, -1))
    axes.plot(*points[done].T, ".", color=_DONE_COLOR, markersize=3, alpha=0.7)
    axes.imshow(
        np.where(counts > 0, np.log1p(counts), np.nan).T, origin="lower", extent=extent,
        aspect="auto", interpolation="none", cmap="Blues",
    )  # fmt: skip
    axes.set(xlabel=titles[0], ylabel=titles[1], title="where the observations lie")
