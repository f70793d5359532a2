"""Normalisation of observations and actions, dimension by dimension, by statistics of the data.

Nothing here loads JAX, since the processes of environments normalise too.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import jax

    from qam_jax.types import TransitionDataset

    _A = TypeVar("_A", np.ndarray, jax.Array)

_SMALLEST_SCALE = 1e-6  # of a dimension that is not constant, relative to its offset if that is > 1


def _half_range(low: float, high: float) -> tuple[float, float]:
    return (low + high) / 2, (high - low) / 2


_STATISTICS = {  # (offset, scale) of the values [N] of a dimension
    "": lambda values: (0.0, 1.0),
    "mean_std": lambda values: (values.mean(), values.std()),
    "min_max": lambda values: _half_range(values.min(), values.max()),
    "quantiles": lambda values: _half_range(*np.quantile(values, (0.01, 0.99))),
}
NORMALIZATIONS = tuple(_STATISTICS)


@dataclasses.dataclass(frozen=True, eq=False)
class Normalization:
    """Normalised values are `(values - offset) / scale`; all arrays are float32."""

    observation_offset: np.ndarray  # [O]
    observation_scale: np.ndarray  # [O]
    action_offset: np.ndarray  # [A]
    action_scale: np.ndarray  # [A]

    @classmethod
    def identity(cls, observation_dim: int, action_dim: int) -> "Normalization":
        """Makes the normalisation that changes nothing."""
        dims = observation_dim, action_dim
        return cls(*(fill(dim, np.float32) for dim in dims for fill in (np.zeros, np.ones)))

    @property
    def is_identity(self) -> bool:
        """Whether nothing is changed."""
        dims = len(self.observation_offset), len(self.action_offset)
        return self.to_json() == Normalization.identity(*dims).to_json()

    def normalize_observations(self, observations: "_A") -> "_A":
        """Normalises observations [..., O], which may then have any size."""
        return (observations - self.observation_offset) / self.observation_scale

    def normalize_actions(self, actions: "_A") -> "_A":
        """Normalises actions [..., A] of the data, and clips them to [-1, 1]."""
        scale = np.where(self.action_scale == 0, np.float32(1), self.action_scale)
        return ((actions - self.action_offset) / scale * (self.action_scale > 0)).clip(-1, 1)

    def denormalize_actions(self, actions: "_A") -> "_A":
        """Gives a policy's actions [..., A] the units of the data."""
        return actions * self.action_scale + self.action_offset

    def to_json(self) -> dict[str, list[float]]:
        """Returns lists of numbers, from which `from_json` makes the same again."""
        return {name: array.tolist() for name, array in vars(self).items()}

    @classmethod
    def from_json(cls, saved: dict[str, list[float]]) -> "Normalization":
        """Makes a normalisation from the result of `to_json`."""
        return cls(**{name: np.array(values, np.float32) for name, values in saved.items()})


def fit_normalization(
    dataset: "TransitionDataset", observations: str, actions: str
) -> Normalization:
    """Computes statistics over all transitions of a dataset, which is not normalised.

    Of the `NORMALIZATIONS`, `mean_std` gives mean 0 and deviation 1, `min_max` takes the extremes
    to -1 and 1, `quantiles` the 1st and the 99th percentile; the empty one changes nothing.

    An observation's dimension that is constant, up to rounding, gets the scale 1. That of an action
    gets the scale 0: a policy then always does what the data do. Raises ValueError if the dataset
    has no transitions.
    """
    rows = np.asarray(dataset.start_rows)[: int(dataset.num_starts)]
    if not len(rows):
        raise ValueError(
            "there are no data to compute statistics of: name some by --dataset, or leave out "
            "--normalize_observations and --normalize_actions."
        )
    return Normalization(
        *_fit(dataset.observations, rows, observations, 1), *_fit(dataset.actions, rows, actions, 0)
    )


def _fit(
    array: Any, rows: np.ndarray, kind: str, scale_of_constants: float
) -> tuple[np.ndarray, np.ndarray]:
    pairs = []
    for column in np.asarray(array).T:  # one at a time, so that temporaries stay small
        values = column[rows].astype(np.float64)
        offset, scale = _STATISTICS[kind](values)
        widest = _STATISTICS["min_max"](values)
        if kind == "quantiles" and _is_constant(offset, scale) and not _is_constant(*widest):
            offset, scale = widest  # all but a few values are equal
        pairs.append((offset, scale_of_constants if _is_constant(offset, scale) else scale))
    offsets, scales = np.array(pairs, np.float32).T
    return offsets, scales


def _is_constant(offset: float, scale: float) -> bool:
    return scale <= _SMALLEST_SCALE * max(1, abs(offset))
