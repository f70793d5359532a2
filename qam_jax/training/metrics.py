"""Rows of metrics: CSV, TensorBoard and, when asked for, Weights & Biases."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from qam_jax.files import atomic_write


class MetricLog:
    """Writes `<kind>.csv` and the other records in a run's folder.

    A continued run drops the rows beyond the step that it continues from, so that none is doubled.

    Args:
      folder: the run's folder.
      step: the step that the run continues from; 0 for a new one.
      wandb_project: project of Weights & Biases; empty for none.
      config: what the run is, for Weights & Biases.
    """

    def __init__(self, folder: Path, step: int, wandb_project: str, config: Mapping[str, Any]):
        self._folder = folder
        self._step = step
        self._writers: dict[str, tuple[Any, csv.DictWriter]] = {}
        self._tensorboard = SummaryWriter(str(folder), purge_step=step + 1)
        self._wandb = _start_wandb(wandb_project, folder, config) if wandb_project else None

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row to `<kind>.csv` and to the other records."""
        row = {"step": step, **metrics}
        if kind not in self._writers:
            self._writers[kind] = _open_csv(
                self._folder / f"{kind}.csv", list(row), min(self._step, step - 1)
            )
        file, writer = self._writers[kind]
        writer.writerow(row)
        file.flush()
        for name, value in metrics.items():
            self._tensorboard.add_scalar(f"{kind}/{name}", value, step)
        self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log({f"{kind}/{name}": value for name, value in metrics.items()}, step)

    def close(self) -> None:
        """Closes all files."""
        for file, _ in self._writers.values():
            file.close()
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_csv(path: Path) -> list[dict[str, float]]:
    """The rows of a file of metrics; none if there is no such file.

    A last line without its end, which a crash may leave, does not count.
    """
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(whole)]


def _open_csv(path: Path, names: list[str], step: int) -> tuple[Any, csv.DictWriter]:
    """Opens a file to add rows to, without those beyond `step` that it may hold."""
    earlier = [row for row in read_csv(path) if row["step"] <= step]
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for row in earlier:
            writer.writerow({**row, "step": int(row["step"])})
    file = open(path, "a", newline="")
    return file, csv.DictWriter(file, names)


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
