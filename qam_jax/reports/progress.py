"""How far runs are, from their folders alone, so that it works over a shared file system."""

import datetime
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from qam_jax.files import read_json
from qam_jax.reports.collect import find_run_folders, why_empty
from qam_jax.reports.labels import method_name, parse_task
from qam_jax.runs.lock import (
    FAILED,
    FINISHED,
    LOCK,
    RUNNING,
    STOPPED,
    UNKNOWN,
    read_status,
)
from qam_jax.runs.metrics import read_csv

# A run that writes nothing for so many times its usual pause is not at work.
_PATIENCE = 3.0
_MIN_PATIENCE = 300.0  # seconds; an evaluation may take longer than many updates

STATES = ("running", "silent", "failed", "stopped", "done", "damaged")


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
      folder: its folder.
      name: method, task and seed; the folder's name if these cannot be read.
      state: one of `STATES`. `silent` has written nothing for long: hanging, evaluating, or killed
        on another machine.
      step: of the last row of metrics.
      end: the last step.
      stage: `cloning`, `offline` or `online`; empty before the first row.
      speed: steps per second without evaluations, of the last row; nan if unknown.
      score: last success rate in percent, or mean return; nan without any.
      score_step: the step that the score is of.
      unit: `%` or `return`.
      age: seconds since it last wrote.
      remaining: seconds until its end, evaluations included; nan if unknown.
      open_ended: whether a stage that it has not reached yet may be slower than this one.
      note: what is wrong with its folder, or why it failed.
    """

    folder: Path
    name: str
    state: str
    step: int = 0
    end: int = 0
    stage: str = ""
    speed: float = math.nan
    score: float = math.nan
    score_step: int = 0
    unit: str = "%"
    age: float = math.nan
    remaining: float = math.nan
    open_ended: bool = False
    note: str = ""


def watch_folders(
    folders: Sequence[str | Path], now: float | None = None
) -> tuple[list[Progress], list[str]]:
    """The progress of all runs in and below these folders.

    Args:
      folders: of runs, or above them.
      now: seconds since the epoch; the clock's by default.

    Returns:
      The runs, and a line for each folder without any.
    """
    now = time.time() if now is None else now
    found, notes = [], []
    for folder in map(lambda name: Path(name).expanduser(), folders):
        runs = list(find_run_folders(folder))
        if not runs:
            notes.append(f"{folder}: {why_empty(folder)}.")
        found += [read_progress(path, now) for path in runs]
    return found, notes


def read_progress(folder: Path, now: float) -> Progress:
    """How far the run in a folder is; never raises for what the folder holds."""
    try:
        return _read(folder, now)
    except (ValueError, KeyError, TypeError, OSError) as error:
        age = now - _newest(folder)
        text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        return Progress(folder, folder.name, "damaged", age=age, note=text)


def _read(folder: Path, now: float) -> Progress:
    age = max(0.0, now - _newest(folder))
    status, why = read_status(folder)
    if not (folder / "config.json").exists():
        recent = status == UNKNOWN and age < _MIN_PATIENCE and (folder / LOCK).exists()
        state = "running" if status == RUNNING or recent else "damaged"
        note = "starting: no config.json yet" if state == "running" else "no config.json"
        return Progress(folder, folder.name, state, age=age, note=note)
    config = read_json(folder / "config.json")
    ends = {"cloning": config["bc_steps"]}
    ends["offline"] = ends["cloning"] + config["offline_steps"]
    ends["online"] = end = ends["offline"] + config["online_steps"]
    task = parse_task(config["env_name"])
    label = "" if task.label == task.domain else f" {task.label}"
    name = f"{method_name(config['agent'])} {task.domain}{label} seed {config['seed']}"
    rows = read_csv(folder / "train.csv")
    score, score_step, unit = _last_score(folder / "eval.csv")
    step = max(int(rows[-1]["step"]) if rows else 0, score_step)
    stage = next((stage for stage in ends if step < ends[stage]), "online")
    speed = _speed(rows[-1]) if rows else math.nan
    rate = _overall_rate(folder, step, now - age, ends, stage)
    rate = speed if math.isnan(rate) else rate
    pause = config["log_interval"] / speed if speed > 0 else 0.0
    if status != RUNNING and (step >= end or status == FINISHED):
        state = "done"
    elif status in (STOPPED, FAILED):
        state = status
    elif age > max(_MIN_PATIENCE, _PATIENCE * pause):
        state = "silent"
    else:
        state = "running"
    remaining = math.nan
    if state == "running" and rate > 0:
        remaining = max(0.0, (end - step) / rate - age)
    return Progress(
        folder, name, state, step, end, stage if rows else "", speed, score, score_step, unit,
        age, remaining, ends[stage] < end and state == "running", why if state == FAILED else "",
    )  # fmt: skip


def finish_line(runs: Iterable[Progress], now: float) -> str:
    """When the last of the runs at work will end, in words."""
    times = [run.remaining for run in runs if run.state == "running"]
    if not times:
        return "nothing is running"
    if any(math.isnan(seconds) for seconds in times):
        return "the end is not known yet: a run has not written two rows"
    moment = datetime.datetime.fromtimestamp(now + max(times)).astimezone()
    return f"the last of them ends in {duration(max(times))}, {moment:%a %d %b %H:%M}"


def duration(seconds: float) -> str:
    """Seconds as a reader likes them: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if math.isnan(seconds):
        return "–"
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _speed(row: dict[str, float]) -> float:
    """Steps per second of a row; online rows and offline rows have columns of their own."""
    values = [
        value for name, value in row.items() if name.endswith("s_per_second") and value == value
    ]
    return values[-1] if values else math.nan


def _overall_rate(
    folder: Path, step: int, written: float, ends: dict[str, int], stage: str
) -> float:
    """Steps per second with evaluations, since a moment of this stage whose step is known.

    Known are the start of a run that was never continued, and the checkpoints that it has kept.
    """
    metadata = read_json(folder / "metadata.json") if (folder / "metadata.json").exists() else {}
    starts = metadata.get("starts", [])
    if not starts:
        return math.nan
    started = datetime.datetime.fromisoformat(starts[-1]["time"]).timestamp()
    earlier = [end for end in ends.values() if end < ends[stage]]
    stage_start = max(earlier, default=0)
    moments = [(started, 0)] if len(starts) == 1 and stage_start == 0 else []
    checkpoints = folder / "checkpoints"
    if checkpoints.is_dir():
        for entry in checkpoints.iterdir():
            if entry.name.isdigit() and entry.stat().st_mtime > started:
                moments.append((entry.stat().st_mtime, int(entry.name)))
    moments = [(when, at) for when, at in moments if stage_start <= at < step and when < written]
    if not moments:
        return math.nan
    when, at = min(moments, key=lambda moment: moment[1])
    return (step - at) / (written - when)


def _last_score(path: Path) -> tuple[float, int, str]:
    rows = read_csv(path)
    if not rows:
        return math.nan, 0, "%"
    row = rows[-1]
    if math.isnan(row["success"]):
        return row["return"], int(row["step"]), "return"
    return 100 * row["success"], int(row["step"]), "%"


def _newest(folder: Path) -> float:
    """When the run last wrote one of its files."""
    names = ("train.csv", "eval.csv", "env.csv", "config.json", "metadata.json", LOCK)
    files = [folder / name for name in names]
    times = [path.stat().st_mtime for path in (*files, folder / "checkpoints") if path.exists()]
    return max(times, default=folder.stat().st_mtime)
