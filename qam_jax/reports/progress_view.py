"""The progress of runs in the terminal."""

import datetime
import math
from collections import Counter
from collections.abc import Sequence

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qam_jax.reports.progress import STATES, Progress, duration, finish_line

_WRONG = ("failed", "damaged")  # states whose reasons are shown
_WIDE = 120  # characters, for all columns
_COLUMNS = (
    ("run", "left"),
    ("state", "left"),
    ("progress", "left"),
    ("step", "right"),
    ("stage", "left"),
    ("speed/s", "right"),
    ("last score", "right"),
    ("left", "right"),
    ("ends", "right"),
)


def progress_view(
    runs: Sequence[Progress],
    notes: Sequence[str],
    now: float,
    *,
    width: int,
    show_done: bool = True,
) -> Group:
    """A table of runs, those at work first, below a line that sums them up.

    Args:
      runs: the runs.
      notes: lines above them.
      now: seconds since the epoch.
      width: of the terminal; where it is narrow, columns are left out.
      show_done: whether runs that are done are in the table.
    """
    table = Table(pad_edge=False)
    hidden = () if width >= _WIDE else ("step", "stage", "speed/s", "ends")
    kept = [index for index, (name, _) in enumerate(_COLUMNS) if name not in hidden]
    for index in kept:
        name, justify = _COLUMNS[index]
        table.add_column(name, justify=justify, no_wrap=index > 1)
    names = Counter(run.name for run in runs)
    for run in sorted(runs, key=lambda run: (STATES.index(run.state), run.name)):
        if names[run.name] > 1:
            run = run._replace(name=f"{run.name} ({run.folder.name})")
        if show_done or run.state != "done":
            cells = _progress_cells(run, now)
            table.add_row(*(cells[index] for index in kept if index < len(cells)))
    counts = Counter(run.state for run in runs)
    summary = ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])
    text = f"{summary or 'no runs'}; {finish_line(runs, now)}."
    notes = [*notes, *(f"{run.name}: {run.note}" for run in runs if run.state in _WRONG)]
    lines = [Text(f"Note: {note}", style="yellow") for note in notes]
    return Group(*lines, Text(text), *([table] if table.rows else []))


def _progress_cells(run: Progress, now: float) -> list:
    colors = {
        "running": "green", "silent": "yellow", "failed": "red", "stopped": "yellow",
        "done": "dim", "damaged": "red",
    }  # fmt: skip
    state = f"silent for {duration(run.age)}" if run.state == "silent" else run.state
    if run.state in ("failed", "stopped"):
        state += f" {duration(run.age)} ago"
    if run.note and run.state != "failed":
        note = "see above" if run.state == "damaged" else run.note
        return [Text(run.name), Text(run.state, style=colors[run.state]), Text(note)]
    share = run.step / run.end if run.end else 0.0
    score = "–" if math.isnan(run.score) else f"{run.score:.0f}%"
    if run.unit == "return" and not math.isnan(run.score):
        score = f"return {run.score:.1f}"
    after = "≥ " if run.open_ended and not math.isnan(run.remaining) else ""
    ends = "–"
    if not math.isnan(run.remaining):
        moment = datetime.datetime.fromtimestamp(now + run.remaining)
        ends = after + moment.strftime("%H:%M" if run.remaining < 72_000 else "%a %d %H:%M")
    speed = "–" if math.isnan(run.speed) else f"{run.speed:,.1f}"
    return [
        Text(run.name),
        Text(state, style=colors[run.state]),
        ProgressBar(total=1.0, completed=share, width=16),
        Text(f"{_short(run.step)} of {_short(run.end)}"),
        Text(run.stage if run.state != "done" else ""),
        Text(speed),
        Text(score if score == "–" else f"{score} at {_short(run.score_step)}"),
        Text(after + duration(run.remaining) if run.state == "running" else "–"),
        Text(ends),
    ]


def _short(steps: int) -> str:
    """A number of steps in short: 950, 50k, 1.25M."""
    for size, letter in ((1_000_000, "M"), (1000, "k")):
        if steps >= size:
            return f"{steps / size:.4g}{letter}"
    return str(steps)
