"""The progress of runs in the terminal."""

import datetime
import math
from collections.abc import Sequence

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qam_jax.analysis.progress import STATES, Progress, duration, finish_line


def progress_view(
    runs: Sequence[Progress], notes: Sequence[str], now: float, *, show_done: bool = True
) -> Group:
    """A table of runs, those at work first, with a line that sums them up."""
    table = Table(title_justify="left", pad_edge=False)
    for name in ("run", "state", "progress", "step", "stage"):
        table.add_column(name)
    for name in ("speed/s", "last score", "left", "ends"):
        table.add_column(name, justify="right", no_wrap=True)
    names = [run.name for run in runs]
    for run in sorted(runs, key=lambda run: (STATES.index(run.state), run.name)):
        if names.count(run.name) > 1:
            run = run._replace(name=f"{run.name} ({run.folder.name})")
        if show_done or run.state != "done":
            table.add_row(*_progress_cells(run, now))
    counts = {state: sum(run.state == state for run in runs) for state in STATES}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    text = f"{summary or 'no runs'}; {finish_line(runs, now)}."
    lines = [Text(f"Note: {note}", style="yellow") for note in notes]
    return Group(*lines, Text(text), *([table] if runs else []))


def _progress_cells(run: Progress, now: float) -> list:
    colors = {"running": "green", "silent": "yellow", "done": "dim", "damaged": "red"}
    state = run.state if run.state != "silent" else f"silent for {duration(run.age)}"
    if run.note:
        return [Text(run.name), Text(run.state, style=colors[run.state]), Text(run.note)]
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
        Text(f"{run.step:,} of {run.end:,}"),
        Text(run.stage if run.state != "done" else ""),
        Text(speed),
        Text(score if score == "–" else f"{score} at {run.score_step:,}"),
        Text(after + duration(run.remaining) if run.state == "running" else "–"),
        Text(ends),
    ]
