"""Progress of runs, read from their folders alone, and its view in the terminal."""

import datetime
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qam_jax.files import read_json
from qam_jax.reports.folders import find_runs, read_evaluations
from qam_jax.reports.labels import method_name, task_label
from qam_jax.runs.lock import FAILED, FINISHED, LOCK, RUNNING, STOPPED, UNKNOWN, read_status
from qam_jax.runs.metrics import read_csv

# A run that has written nothing for this many of its usual pauses is silent.
_PATIENCE = 3.0
_MIN_PATIENCE = 300.0  # seconds; an evaluation may take longer than many updates

STATES = {  # of a run, in the order of the table, with their colours
    "running": "green", "silent": "yellow", "failed": "red", "stopped": "yellow", "done": "dim",
    "damaged": "red",
}  # fmt: skip

_STAGES = {"cloning": "bc_steps", "offline": "offline_steps", "online": "online_steps"}
_WIDE = 120  # characters for all columns
_COLUMNS: dict[str, tuple[Any, bool]] = {  # alignment, and whether a narrow terminal has it
    "run": ("left", True), "state": ("left", True), "progress": ("left", True),
    "step": ("right", False), "stage": ("left", False), "speed/s": ("right", False),
    "last score": ("right", True), "left": ("right", True), "ends": ("right", False),
}  # fmt: skip


class Progress(NamedTuple):
    """Progress of a run. Numbers are nan where they are unknown.

    A `silent` run has written nothing for long: it hangs, evaluates, or was killed elsewhere.
    """

    folder: Path
    name: str  # method, task and seed; the folder's name if these cannot be read
    state: str  # one of `STATES`
    step: int = 0  # of the last row of metrics
    end: int = 0  # last step of the run
    stage: str = ""  # `cloning`, `offline` or `online`; empty before the first row
    speed: float = math.nan  # steps per second without evaluations, from the last row
    score: str = "–"  # last success rate or mean return, with its step
    age: float = math.nan  # seconds since the run last wrote
    remaining: float = math.nan  # seconds until its end, evaluations included
    open_ended: bool = False  # whether a later stage may be slower than the present one
    note: str = ""  # what is wrong with the folder, or why the run failed


def watch_folders(folders: Sequence[str | Path], now: float) -> tuple[list[Progress], list[str]]:
    """Progress of the runs in and below these folders, and a note on each folder without runs."""
    paths, notes = find_runs(folders)
    return [read_progress(path, now) for path in paths], notes


def read_progress(folder: Path, now: float) -> Progress:
    """Reads the progress of the run in a folder; never raises for the contents of the folder."""
    age = now - _last_written(folder)
    try:
        return _read(folder, now, max(0.0, age))
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        return Progress(folder, folder.name, "damaged", age=age, note=text)


def progress_view(
    runs: Sequence[Progress], notes: Sequence[str], now: float, *, width: int, show_done: bool
) -> Group:
    """Table of runs, the running ones first, below the notes and a line that sums the runs up.

    A narrow terminal gets fewer columns. `now` is in seconds since the epoch.
    """
    table = Table(pad_edge=False)
    kept = [name for name, (_, narrow) in _COLUMNS.items() if narrow or width >= _WIDE]
    for name in kept:
        wraps = name in ("run", "state")
        table.add_column(name, justify=_COLUMNS[name][0], no_wrap=not wraps)
    names, order = Counter(run.name for run in runs), list(STATES)
    for run in sorted(runs, key=lambda run: (order.index(run.state), run.name)):
        if names[run.name] > 1:
            run = run._replace(name=f"{run.name} ({run.folder.name})")
        if show_done or run.state != "done":
            cells = _cells(run, now)
            table.add_row(*(cells.get(name) for name in kept))
    counts = Counter(run.state for run in runs)
    summary = ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])
    wrong = [f"{run.name}: {run.note}" for run in runs if run.state in ("failed", "damaged")]
    lines = [Text(f"Note: {note}", style="yellow") for note in [*notes, *wrong]]
    lines.append(Text(f"{summary or 'no runs'}; {finish_line(runs, now)}."))
    return Group(*lines, *([table] if table.rows else []))


def finish_line(runs: Iterable[Progress], now: float) -> str:
    """End of the last running run, in words."""
    times = [run.remaining for run in runs if run.state == "running"]
    if not times:
        return "nothing is running"
    if any(map(math.isnan, times)):
        return "the end is not known yet: a run has not written two rows"
    moment = datetime.datetime.fromtimestamp(now + max(times)).astimezone()
    return f"the last of them ends in {duration(max(times))}, {moment:%a %d %b %H:%M}"


def duration(seconds: float) -> str:
    """Seconds in words: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if math.isnan(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if hours else f"{minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def _read(folder: Path, now: float, age: float) -> Progress:
    status, why = read_status(folder)
    if not (folder / "config.json").exists():
        recent = status == UNKNOWN and age < _MIN_PATIENCE and (folder / LOCK).exists()
        if status == RUNNING or recent:
            note = "starting: no config.json yet"
            return Progress(folder, folder.name, "running", age=age, note=note)
        return Progress(folder, folder.name, "damaged", age=age, note="no config.json")
    config, path = read_json(folder / "config.json"), folder / "metadata.json"
    metadata = read_json(path) if path.exists() else {}
    lengths = {stage: config[name] for stage, name in _STAGES.items()}
    ends = dict(zip(lengths, itertools.accumulate(lengths.values()), strict=True))
    end = ends["online"]
    method = metadata.get("method") or method_name(config["agent"])
    name = " ".join(dict.fromkeys([method, *task_label(config["env_name"])]))
    rows = read_csv(folder / "train.csv")
    steps, scores, unit = read_evaluations(folder)
    score = "–"
    if steps:
        value = f"{scores[-1]:.0f}%" if unit == "%" else f"return {scores[-1]:.1f}"
        score = f"{value} at {_short(steps[-1])}"
    step = max([int(rows[-1]["step"]) if rows else 0, *steps[-1:]])
    stage = next((stage for stage in ends if step < ends[stage]), "online")
    # Rows of the online stage have another column than those before.
    speeds = [value for key, value in (rows or [{}])[-1].items() if key.endswith("s_per_second")]
    speed = next((value for value in reversed(speeds) if not math.isnan(value)), math.nan)
    pause = config["log_interval"] / speed if speed > 0 else 0.0
    if status != RUNNING and (step >= end or status == FINISHED):
        state = "done"
    elif status in (STOPPED, FAILED):
        state = status
    else:
        state = "silent" if age > max(_MIN_PATIENCE, _PATIENCE * pause) else "running"
    begin, written, remaining = ends[stage] - lengths[stage], now - age, math.nan
    moments = _known_moments(folder, metadata.get("starts", []))
    moments = [(at, when) for at, when in moments if begin <= at < step and when < written]
    rate = (step - moments[0][0]) / (written - moments[0][1]) if moments else speed
    if state == "running" and rate > 0:
        remaining = max(0.0, (end - step) / rate - age)
    return Progress(
        folder, f"{name} seed {config['seed']}", state, step, end, stage if rows else "", speed,
        score, age, remaining, ends[stage] < end and state == "running",
        why if state == FAILED else "",
    )  # fmt: skip


def _known_moments(folder: Path, starts: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Steps whose time is known: a run's only start, and the checkpoints since the last start."""
    if not starts:
        return []
    started = datetime.datetime.fromisoformat(starts[-1]["time"]).timestamp()
    moments = [(0, started)] if len(starts) == 1 else []
    for entry in folder.glob("checkpoints/*"):
        if entry.name.isdigit() and entry.stat().st_mtime > started:
            moments.append((int(entry.name), entry.stat().st_mtime))
    return sorted(moments)


def _last_written(folder: Path) -> float:
    """Time at which the run last wrote one of its files."""
    names = "train.csv eval.csv env.csv config.json metadata.json checkpoints".split()
    paths = [folder / name for name in (*names, LOCK)]
    times = [path.stat().st_mtime for path in paths if path.exists()]
    return max(times, default=folder.stat().st_mtime)


def _cells(run: Progress, now: float) -> dict[str, RenderableType]:
    """Cells of a run's row, by column."""
    state = f"silent for {duration(run.age)}" if run.state == "silent" else run.state
    if run.state in ("failed", "stopped"):
        state += f" {duration(run.age)} ago"
    known = {"run": Text(run.name), "state": Text(state, style=STATES[run.state])}
    if run.note and run.state != "failed":
        return {**known, "progress": "see above" if run.state == "damaged" else run.note}
    left = ends = "–"
    if not math.isnan(run.remaining):
        after = "≥ " if run.open_ended else ""
        moment = datetime.datetime.fromtimestamp(now + run.remaining)
        left = after + duration(run.remaining)
        ends = after + moment.strftime("%H:%M" if run.remaining < 72_000 else "%a %d %H:%M")
    return {
        **known,
        "progress": ProgressBar(run.end or 1, run.step, width=16),
        "step": f"{_short(run.step)} of {_short(run.end)}",
        "stage": run.stage if run.state != "done" else "",
        "speed/s": "–" if math.isnan(run.speed) else f"{run.speed:,.1f}",
        "last score": run.score,
        "left": left,
        "ends": ends,
    }


def _short(steps: int) -> str:
    """Number of steps in short: 950, 50k, 1.25M."""
    for size, letter in ((1_000_000, "M"), (1000, "k")):
        if steps >= size:
            return f"{steps / size:.4g}{letter}"
    return str(steps)
