"""Rows of metrics: CSV, TensorBoard and, when asked for, Weights & Biases."""

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from qam_jax.files import DamagedError, atomic_write


class MetricLog:
    """Writes `<kind>.csv`, TensorBoard events and Weights & Biases, if its project is not empty.

    Of each kind the rows up to the step in `kept`, from which the run continues, stay.
    """

    def __init__(
        self, folder: Path, kept: Mapping[str, int], wandb_project: str, config: Mapping[str, Any]
    ):
        self._folder = folder
        self._columns: dict[str, list[str]] = {}  # of each kind of which a row was written
        for kind, step in kept.items():
            rows = read_csv(self._path(kind))
            if rows:
                write_csv(self._path(kind), rows[0], [row for row in rows if row["step"] <= step])
        self._tensorboard = SummaryWriter(str(folder), purge_step=max(kept.values()) + 1)
        self._wandb = _start_wandb(wandb_project, folder, config) if wandb_project else None

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row to `<kind>.csv` and to the other records."""
        metrics = {name: float(value) for name, value in metrics.items()}
        columns = self._columns.get(kind, []) if self._path(kind).exists() else []
        if not columns or metrics.keys() - set(columns):
            self._add_columns(kind, ["step", *metrics])
        known = _known(metrics)
        with open(self._path(kind), "a", newline="") as file:
            csv.DictWriter(file, self._columns[kind]).writerow({"step": step, **known})
        for name, value in known.items():
            self._tensorboard.add_scalar(f"{kind}/{name}", value, step)
        self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log({f"{kind}/{name}": value for name, value in known.items()}, step)

    def close(self) -> None:
        """Closes what is open."""
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _add_columns(self, kind: str, names: Iterable[str]) -> None:
        rows = read_csv(self._path(kind))
        self._columns[kind] = list(dict.fromkeys([*(rows[0] if rows else []), *names]))
        write_csv(self._path(kind), self._columns[kind], rows)

    def _path(self, kind: str) -> Path:
        return self._folder / f"{kind}.csv"


def read_csv(path: Path) -> list[dict[str, float]]:
    """Reads a file of metrics, if it exists, without a last line that a crash cut short.

    Raises DamagedError, which names the file, if a value is no number or a row has no step.
    """
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    try:
        rows = []
        for row in csv.DictReader(whole):
            rows.append({name: float(value or "nan") for name, value in row.items()})
            if not math.isfinite(rows[-1].get("step", math.nan)):
                raise ValueError("it has no step")
        return rows
    except (ValueError, TypeError) as error:  # TypeError: a row with too many values
        raise DamagedError(
            f"{path} is damaged (row {len(rows) + 1}: {error}). Restore it from a copy, mend that "
            "row, or move the file away."
        ) from error


def score(row: Mapping[str, float]) -> float:
    """Returns what ranks checkpoints: success rate in a row of eval.csv, mean return, or -inf."""
    success = row.get("success", math.nan)
    return row.get("return", -math.inf) if math.isnan(success) else success


def write_csv(path: Path, names: Iterable[str], rows: Iterable[Mapping[str, float]]) -> None:
    """Writes a file of metrics; a missing value or nan is left empty."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(names))
        writer.writeheader()
        for row in rows:
            writer.writerow({**_known(row), "step": int(row["step"])})


def _known(row: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not math.isnan(value)}


def _start_wandb(project: str, folder: Path, config: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ImportError(
            'logging to Weights & Biases needs its package: pip install -e ".[wandb]", '
            "or leave --wandb_project empty."
        ) from error
    return wandb.init(
        project=project,
        name=folder.name,
        id="-".join(folder.parts[-3:]),  # group, environment and run
        group=folder.parts[-3],
        resume="allow",
        dir=folder,
        config=config,
    )
