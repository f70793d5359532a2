"""Checks at the borders of public functions; their errors name the argument."""

from qam_jax.types import Array


def check_shape(name: str, array: Array, expected: tuple[int, ...]) -> None:
    """Raises ValueError, naming the argument, unless `array` has the shape `expected`."""
    if array.shape != expected:
        raise ValueError(f"{name} must have shape {expected}, got {array.shape}.")


def check_positive(name: str, value: float) -> None:
    """Raises ValueError, naming the argument, unless `value` is above zero."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}.")
