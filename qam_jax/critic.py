"""Temporal-difference learning of an ensemble of critics.

Shapes: `...` is any batch shape, `K` the number of critics. Functions raise ValueError, which names
the argument, if a shape does not fit.
"""

import jax
import jax.numpy as jnp
import numpy as np

from qam_jax.types import Array, check_shape


def pessimistic_value(q_values: Array, rho: float) -> Array:
    """Mean less `rho` population standard deviations over the ensemble (QAM, arXiv 2601.14234).

    The gradient is finite also where all critics agree.

    Args:
      q_values: [K, ...].
      rho: pessimism, at least 0.

    Examples:
      >>> print(pessimistic_value(jnp.array([1.0, 3.0]), rho=0.5))
      1.5
    """
    return jnp.mean(q_values, axis=0) - rho * _deviation(q_values)


def expectile_loss(errors: Array, kappa: float) -> Array:
    """`|kappa - 1(u < 0)| u^2`, whose minimum is an expectile (IQL, arXiv 2110.06169, eq. 4).

    Args:
      errors: [...], `u`, target minus prediction.
      kappa: in (0, 1); 0.5 is half the squared error.
    """
    return jnp.where(errors < 0, 1 - kappa, kappa) * jnp.square(errors)


def td_target(
    rewards: Array,
    masks: Array,
    next_q_values: Array,
    *,
    discount: float,
    horizon_length: int,
    rho: float,
) -> Array:
    """H-step targets [...], `R + discount^H * mask * pessimistic_value(next_q_values)`.

    Chunks of actions make this an unbiased H-step backup (Q-chunking, arXiv 2507.07969).

    Args:
      rewards: [...], discounted sum `R` over the window.
      masks: [...], 0 where the task was completed, else 1.
      next_q_values: [K, ...], target critics at the window's next observation.
      discount: per environment step, in [0, 1].
      horizon_length: `H`, rows in a window.
      rho: pessimism, at least 0.

    Examples:
      Two windows of two steps, the second of which completed the task:

      >>> rewards, masks = jnp.array([-1.5, -1.0]), jnp.array([1.0, 0.0])
      >>> next_q_values = jnp.array([[-8.0, -8.0], [-8.0, -8.0]])
      >>> print(td_target(rewards, masks, next_q_values, discount=0.5, horizon_length=2, rho=0.5))
      [-3.5 -1. ]
    """
    check_shape("masks", masks, rewards.shape)
    check_shape("next_q_values", next_q_values, (next_q_values.shape[0], *rewards.shape))
    return rewards + discount**horizon_length * masks * pessimistic_value(next_q_values, rho)


def td_loss(q_values: Array, targets: Array, weights: Array) -> Array:
    """Weighted squared error, averaged over the ensemble and the batch.

    Args:
      q_values: [K, ...].
      targets: [...], held fixed by the caller.
      weights: [...], 0 for windows that cross the end of an episode, else 1.
    """
    check_shape("targets", targets, q_values.shape[1:])
    check_shape("weights", weights, targets.shape)
    return jnp.mean(weights * jnp.square(q_values - targets))


def window_hinges(
    q_values: Array,
    targets: Array,
    next_values: Array,
    rewards: Array,
    masks: Array,
    weights: Array,
    *,
    discount: float,
) -> tuple[Array, Array]:
    """Hinge penalties of all pairs p < q of chunks in windows (LQL, arXiv 2605.05812).

    The rewards in between, `G(p, q) = sum_{p<=r<q} discount^(r-p) R_r`, bound both values:

    - lower bound: `[G(p, q) + discount^(q-p) y_q - Q_p]_+^2`, whose gradient goes to `Q_p` alone;
    - upper bound: `[G(p+1, q) + discount^(q-p-1) Q_q - W_p]_+^2`, to `Q_q` alone.

    A pair counts if chunk q has weight 1, and no chunk from p to q - 1 completed the task.

    Args:
      q_values: [K, B, N], of the N consecutive chunks of each of B windows.
      targets: [B, N], `y`, held fixed by the caller.
      next_values: [B, N], `W`, of the observations after each chunk, held fixed by the caller.
      rewards: [B, N], `R`, discounted sum over each chunk.
      masks: [B, N], 0 where the task was completed in the chunk, else 1.
      weights: [B, N], 0 for chunks that cross the end of an episode, else 1.
      discount: per chunk, in [0, 1].

    Returns:
      Means over the pairs and the ensemble, of the lower and of the upper bound; 0 without pairs.
    """
    shape = q_values.shape[1:]
    check_shape("targets", targets, shape)
    check_shape("next_values", next_values, shape)
    check_shape("rewards", rewards, shape)
    first, last, between = np.ogrid[: shape[1], : shape[1], : shape[1]]
    gaps = np.maximum(last - first, 0)[..., 0]

    def returns(start: np.ndarray) -> Array:
        """`G(start, q)` [B, N, N]."""
        discounts = discount ** np.maximum(between - start, 0)
        counted = (start <= between) & (between < last)
        return jnp.sum(jnp.where(counted, discounts * rewards[:, None, None], 0), axis=-1)

    def penalty(errors: Array) -> Array:
        squares = pairs * jnp.square(jax.nn.relu(errors))
        return jnp.sum(squares) / (len(q_values) * jnp.maximum(jnp.sum(pairs), 1))

    passed = (first <= between) & (between < last)
    linked = jnp.min(jnp.where(passed, masks[:, None, None], 1), axis=-1)
    pairs = jnp.where(gaps > 0, linked * weights[:, None], 0)
    later_targets = discount**gaps * targets[:, None]
    lower = returns(first) + later_targets - q_values[..., None]
    later_values = discount ** np.maximum(gaps - 1, 0) * q_values[..., None, :]
    upper = returns(first + 1) + later_values - next_values[..., None]
    return penalty(lower), penalty(upper)


def project_to_atoms(values: Array, atoms: Array) -> Array:
    """Distributions [..., M] over atoms with the means `values` (DIVL, arXiv 2605.00416, eq. 12).

    The mass of a value lies on its two neighbouring atoms; beyond the atoms, on the last of them.

    Args:
      values: [...].
      atoms: [M], equally spaced and increasing.

    Examples:
      >>> print(project_to_atoms(jnp.array([0.25, 9.0]), jnp.array([0.0, 1.0, 2.0])))
      [[0.75 0.25 0.  ]
       [0.   0.   1.  ]]
    """
    distances = jnp.clip(values, atoms[0], atoms[-1])[..., None] - atoms
    return jnp.maximum(1 - jnp.abs(distances) / (atoms[1] - atoms[0]), 0)


def atom_quantile(probabilities: Array, atoms: Array, levels: Array) -> Array:
    """Quantiles of distributions over atoms: the smallest atom up to which the mass is `levels`.

    Args:
      probabilities: [..., M].
      atoms: [M], increasing.
      levels: [...] in [0, 1].
    """
    cumulated = jnp.cumsum(probabilities, axis=-1).at[..., -1].set(1)
    return atoms[jnp.argmax(cumulated >= levels[..., None], axis=-1)]


def relative_entropy(probabilities: Array) -> Array:
    """`-sum_j p_j log p_j / log M` [...] in [0, 1] of distributions [..., M]; 1 if uniform."""
    entropy = jnp.sum(jax.scipy.special.entr(probabilities), axis=-1)
    return entropy / jnp.log(probabilities.shape[-1])


@jax.custom_jvp
def _deviation(q_values: Array) -> Array:
    return jnp.std(q_values, axis=0)


@_deviation.defjvp
def _deviation_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Derivative of the deviation; 0 where all critics agree."""
    (q_values,), (change,) = primals, tangents
    deviation = jnp.std(q_values, axis=0)
    centred = q_values - jnp.mean(q_values, axis=0)
    slope = jnp.mean(centred * change, axis=0) / jnp.where(deviation > 0, deviation, 1)
    return deviation, slope
