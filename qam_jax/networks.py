"""Flax modules: multi-layer perceptrons for critics, flows and tanh-Gaussian policies."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from qam_jax.types import Array

_LOG_STD_RANGE = (-5.0, 2.0)


class MLP(nn.Module):
    """Dense layers with GELU, Xavier-uniform weights and zero biases.

    Attributes:
      hidden_dims: width of each hidden layer.
      output_dim: width of the linear output.
      layer_norm: whether a LayerNorm follows every activation.
      output_scale: scale of the initial output weights; 1 is plain Xavier-uniform.
    """

    hidden_dims: Sequence[int]
    output_dim: int
    layer_norm: bool = False
    output_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in self.hidden_dims:
            x = nn.Dense(width, kernel_init=nn.initializers.xavier_uniform())(x)
            x = nn.gelu(x)
            if self.layer_norm:
                x = nn.LayerNorm()(x)
        output_init = nn.initializers.variance_scaling(self.output_scale, "fan_avg", "uniform")
        return nn.Dense(self.output_dim, kernel_init=output_init)(x)


class CriticEnsemble(nn.Module):
    """`K` independent critics, their parameters stacked on a leading axis."""

    hidden_dims: Sequence[int]
    num_qs: int
    layer_norm: bool = True

    @nn.compact
    def __call__(self, observations: Array, actions: Array) -> Array:
        """Values [K, ...] of actions [..., D] in observations [..., O]."""
        ensemble = nn.vmap(
            MLP,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            out_axes=0,
            axis_size=self.num_qs,
        )
        inputs = jnp.concatenate([observations, actions], axis=-1)
        return ensemble(self.hidden_dims, 1, self.layer_norm)(inputs).squeeze(-1)


class VectorField(nn.Module):
    """Velocity [..., D] of a flow over actions, from `[s, x, t]`."""

    hidden_dims: Sequence[int]
    layer_norm: bool = False

    @nn.compact
    def __call__(self, observations: Array, actions: Array, times: Array) -> Array:
        inputs = jnp.concatenate([observations, actions, times], axis=-1)
        return MLP(self.hidden_dims, actions.shape[-1], self.layer_norm)(inputs)


class OneStepActor(nn.Module):
    """Maps noise [..., D] to actions [..., D] at once (FQL, arXiv 2502.02538); not clipped."""

    hidden_dims: Sequence[int]
    layer_norm: bool = False

    @nn.compact
    def __call__(self, observations: Array, noise: Array) -> Array:
        inputs = jnp.concatenate([observations, noise], axis=-1)
        return MLP(self.hidden_dims, noise.shape[-1], self.layer_norm)(inputs)


class TanhGaussianSample(NamedTuple):
    """A sample [..., D] in (-1, 1) and its log-density [...]."""

    value: Array
    log_prob: Array


class TanhGaussian(nn.Module):
    """Gaussian squashed by tanh, sampled by reparameterisation (SAC, arXiv 1801.01290, app. C)."""

    hidden_dims: Sequence[int]
    layer_norm: bool = False

    @nn.compact
    def __call__(self, inputs: Array, noise: Array) -> TanhGaussianSample:
        """Sample for inputs [..., I] made from noise [..., D] ~ N(0, I)."""
        outputs = MLP(self.hidden_dims, 2 * noise.shape[-1], self.layer_norm, 0.01)(inputs)
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        log_std = jnp.clip(log_std, *_LOG_STD_RANGE)
        raw = mean + jnp.exp(log_std) * noise
        gaussian_log_prob = -0.5 * (jnp.square(noise) + jnp.log(2 * jnp.pi)) - log_std
        # log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2 x)), without loss of digits at |a| -> 1
        log_det = 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))
        return TanhGaussianSample(jnp.tanh(raw), jnp.sum(gaussian_log_prob - log_det, axis=-1))
