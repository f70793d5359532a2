"""Flax modules, and the values of an ensemble of critics.

Shapes: `...` is any batch shape, `B` the batch, `K` the number of critics, `D` the action
dimension. How products and ensembles are laid out for a processor is in `layout.py`, which only
this module calls.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from qam_jax import layout
from qam_jax.critic import td_loss
from qam_jax.types import Array, Params

COMPUTE_DTYPES = ("float32", "bfloat16")

# Names in the parameters' tree; checkpoints depend on them.
_MLP = "MLP_0"
_STACKED_MLP = "VmapMLP_0"
_LAYER = "Dense_{}"

_LOG_STD_RANGE = (-5.0, 2.0)
_ACTION_LIMIT = 1 - 1e-5  # as in the datasets


class MLP(nn.Module):
    """Dense layers with Xavier-uniform weights and zero biases.

    Attributes:
      hidden_dims: width of each hidden layer.
      output_dim: width of the linear output.
      layer_norm: whether a LayerNorm follows every activation.
      output_scale: scale of the initial output weights; 1 is plain Xavier-uniform.
      activation: after every hidden layer.
      compute_dtype: dtype of the operands of the products; see `layout.product`.
    """

    hidden_dims: Sequence[int]
    output_dim: int
    layer_norm: bool = False
    output_scale: float = 1.0
    activation: Callable[[Array], Array] = nn.gelu
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Outputs [..., output_dim] of inputs [..., I]."""
        for index, width in enumerate(self.hidden_dims):
            x = self._dense(index, width, nn.initializers.xavier_uniform())(x)
            x = self.activation(x)
            if self.layer_norm:
                x = nn.LayerNorm()(x)
        output_init = nn.initializers.variance_scaling(self.output_scale, "fan_avg", "uniform")
        return self._dense(len(self.hidden_dims), self.output_dim, output_init)(x)

    def _dense(self, index: int, width: int, init: nn.initializers.Initializer) -> nn.Dense:
        def dot_general(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
            return layout.product(x, kernel, self.compute_dtype)

        name = _LAYER.format(index)
        return nn.Dense(width, kernel_init=init, dot_general=dot_general, name=name)


class _Network(nn.Module):
    """Base of the networks of a single MLP; see `MLP` for the fields."""

    hidden_dims: Sequence[int]
    layer_norm: bool = False
    compute_dtype: str = "float32"

    def _mlp(self, output_dim: int, **fields: Any) -> MLP:
        shared = {"layer_norm": self.layer_norm, "compute_dtype": self.compute_dtype}
        return MLP(self.hidden_dims, output_dim, name=_MLP, **shared, **fields)


class CriticEnsemble(nn.Module):
    """`K` independent critics; see `critic_values` for their values."""

    hidden_dims: Sequence[int]
    num_qs: int
    layer_norm: bool = True
    compute_dtype: str = "float32"

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
        return ensemble(**self._mlp_fields(), name=_STACKED_MLP)(inputs).squeeze(-1)

    def single(self, params: Params, observations: Array, actions: Array) -> Array:
        """Values [...] of one critic, whose parameters are a slice of the ensemble's."""
        inputs = jnp.concatenate([observations, actions], axis=-1)
        mlp = MLP(**self._mlp_fields(), parent=None)
        return mlp.apply({"params": params[_STACKED_MLP]}, inputs).squeeze(-1)

    def _mlp_fields(self) -> dict[str, Any]:
        return {
            "hidden_dims": self.hidden_dims,
            "output_dim": 1,
            "layer_norm": self.layer_norm,
            "compute_dtype": self.compute_dtype,
        }


class TimedCriticEnsemble(nn.Module):
    """`K` critics `Q(s, x, t)` of noisy actions; `t = 1` is a clean action."""

    hidden_dims: Sequence[int]
    num_qs: int
    layer_norm: bool = True
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, observations: Array, actions: Array, times: Array | None = None) -> Array:
        """Values [K, ...] of actions [..., D] at flow times [..., 1]; None is `t = 1`."""
        times = jnp.ones_like(actions[..., :1]) if times is None else times
        ensemble = CriticEnsemble(
            self.hidden_dims, self.num_qs, self.layer_norm, self.compute_dtype
        )
        return ensemble(observations, jnp.concatenate([actions, times], axis=-1))


class StateValue(_Network):
    """Value [...] of observations [..., O]."""

    layer_norm: bool = True

    @nn.compact
    def __call__(self, observations: Array) -> Array:
        return self._mlp(1)(observations).squeeze(-1)


class VectorField(_Network):
    """Velocity [..., D] of a flow over actions, from `[s, x, t]`."""

    @nn.compact
    def __call__(self, observations: Array, actions: Array, times: Array) -> Array:
        inputs = jnp.concatenate([observations, actions, times], axis=-1)
        return self._mlp(actions.shape[-1])(inputs)

    def with_zero_output(self, params: Params) -> Params:
        """Parameters with zeros in the output layer, so that the velocity is 0 everywhere."""
        mlp, output = params[_MLP], _LAYER.format(len(self.hidden_dims))
        return {**params, _MLP: {**mlp, output: jax.tree.map(jnp.zeros_like, mlp[output])}}


class FourierFeatures(nn.Module):
    """Cosines and sines [..., F] of a time [..., 1], at learned frequencies.

    Random Fourier features (arXiv 2006.10739), here trained with the network.

    Attributes:
      num_features: `F`, even.
      scale: standard deviation of the initial frequencies, in turns per unit of time.
    """

    num_features: int = 64
    scale: float = 0.2

    @nn.compact
    def __call__(self, times: Array) -> Array:
        init = nn.initializers.normal(self.scale)
        frequencies = self.param("frequencies", init, (self.num_features // 2,))
        phases = 2 * jnp.pi * times * frequencies
        return jnp.concatenate([jnp.cos(phases), jnp.sin(phases)], axis=-1)


class NoisePredictor(_Network):
    """Noise [..., D] in noisy actions at diffusion steps [..., 1], from `[s, x, features of t]`."""

    @nn.compact
    def __call__(self, observations: Array, actions: Array, times: Array) -> Array:
        inputs = jnp.concatenate([observations, actions, FourierFeatures()(times)], axis=-1)
        return self._mlp(actions.shape[-1], activation=jax.nn.mish)(inputs)


class OneStepActor(_Network):
    """Map from noise [..., D] to actions [..., D], not clipped (FQL, arXiv 2502.02538)."""

    @nn.compact
    def __call__(self, observations: Array, noise: Array) -> Array:
        inputs = jnp.concatenate([observations, noise], axis=-1)
        return self._mlp(noise.shape[-1])(inputs)


class TanhActor(_Network):
    """Deterministic policy [..., dim] in (-1, 1) of observations [..., O]; starts near 0."""

    @nn.compact
    def __call__(self, observations: Array, dim: int) -> Array:
        return jnp.tanh(self._mlp(dim, output_scale=0.01)(observations))


class TanhGaussianSample(NamedTuple):
    """A sample [..., D] in (-1, 1) and its log-density [...]."""

    value: Array
    log_prob: Array


class TanhGaussian(_Network):
    """Gaussian squashed by tanh, sampled by reparameterisation (SAC, arXiv 1801.01290, app. C)."""

    def __call__(self, inputs: Array, noise: Array) -> TanhGaussianSample:
        """Sample for inputs [..., I], from noise [..., D] ~ N(0, I)."""
        mean, log_std = self._gaussian(inputs, noise.shape[-1])
        raw = mean + jnp.exp(log_std) * noise
        gaussian_log_prob = -0.5 * (jnp.square(noise) + jnp.log(2 * jnp.pi)) - log_std
        # log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2 x)), exact for |a| -> 1
        log_det = 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))
        return TanhGaussianSample(jnp.tanh(raw), jnp.sum(gaussian_log_prob - log_det, axis=-1))

    def log_prob(self, inputs: Array, actions: Array) -> Array:
        """Log-density [...] of given actions [..., D], moved to 1e-5 within (-1, 1)."""
        mean, log_std = self._gaussian(inputs, actions.shape[-1])
        actions = jnp.clip(actions, -_ACTION_LIMIT, _ACTION_LIMIT)
        upper, lower = jnp.log1p(actions), jnp.log1p(-actions)
        noise = (0.5 * (upper - lower) - mean) * jnp.exp(-log_std)  # of arctanh(a)
        gaussian_log_prob = -0.5 * (jnp.square(noise) + jnp.log(2 * jnp.pi)) - log_std
        return jnp.sum(gaussian_log_prob - (upper + lower), axis=-1)  # 1 - a^2 = (1 + a) (1 - a)

    @nn.compact
    def _gaussian(self, inputs: Array, dim: int) -> tuple[Array, Array]:
        """Mean and log standard deviation [..., dim] before the tanh."""
        outputs = self._mlp(2 * dim, output_scale=0.01)(inputs)
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        return mean, jnp.clip(log_std, *_LOG_STD_RANGE)


def critic_values(
    critic: CriticEnsemble | TimedCriticEnsemble,
    params: Params,
    observations: Array,
    actions: Array,
    *times: Array | None,
    differentiated: bool = True,
) -> Array:
    """Values [K, ...] of actions [..., D] in observations [..., O].

    Args:
      critic: the ensemble.
      params: its parameters.
      observations: [..., O].
      actions: [..., D].
      *times: [..., 1], of a `TimedCriticEnsemble`.
      differentiated: False where no gradient is taken, which lets large ensembles take turns.
    """
    if differentiated or not _take_turns(critic):
        return critic.apply({"params": params}, observations, actions, *times)
    return layout.values_by_turns(critic, params, observations, actions)


def mean_critic_value(
    critic: CriticEnsemble, params: Params, observations: Array, actions: Array
) -> Array:
    """`mean_k Q_k` [...] of actions [..., D] in observations [..., O]."""
    if _take_turns(critic):
        return layout.mean_by_turns(critic, params, observations, actions)
    return jnp.mean(critic_values(critic, params, observations, actions), axis=0)


def critic_td_loss(
    critic: CriticEnsemble,
    params: Params,
    observations: Array,
    actions: Array,
    targets: Array,
    weights: Array,
) -> tuple[Array, Array]:
    """`critic.td_loss` of an ensemble, for gradients in the parameters alone.

    Args:
      critic: the ensemble.
      params: its parameters.
      observations: [B, O].
      actions: [B, D].
      targets: [B].
      weights: [B].

    Returns:
      The loss, and the values [K, B], through which no gradient flows.
    """
    if _take_turns(critic):
        return layout.td_loss_by_turns(critic, params, observations, actions, targets, weights)
    q_values = critic_values(critic, params, observations, actions)
    return td_loss(q_values, targets, weights), jax.lax.stop_gradient(q_values)


def _take_turns(critic: CriticEnsemble | TimedCriticEnsemble) -> bool:
    return isinstance(critic, CriticEnsemble) and layout.take_turns(critic.hidden_dims)
