"""Flax modules, and the values of an ensemble of critics.

Shapes: `...` is any batch shape, `K` the number of critics, `D` the action dimension.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from qam_jax.types import Array, Key, Params

COMPUTE_DTYPES = ("float32", "bfloat16")

# Names in the parameters' tree; checkpoints depend on them.
_MLP = "MLP_0"
_STACKED_MLP = "VmapMLP_0"
_TIME_MLP = "time_MLP"

_LOG_STD_RANGE = (-20.0, 2.0)
_ACTION_LIMIT = 1 - 1e-5  # as in the datasets


class MLP(nn.Module):
    """Dense layers with Xavier-uniform weights and zero biases.

    Attributes:
      hidden_dims: width of each hidden layer.
      output_dim: width of the linear output.
      layer_norm: whether a LayerNorm follows every activation.
      output_scale: scale of the initial output weights; 1 is plain Xavier-uniform.
      activation: after every hidden layer.
      compute_dtype: dtype of products and activations; parameters stay float32.
    """

    hidden_dims: Sequence[int]
    output_dim: int
    layer_norm: bool = False
    output_scale: float = 1.0
    activation: Callable[[Array], Array] = nn.gelu
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Outputs [..., output_dim] of inputs [..., I], float32."""
        dtype = jnp.dtype(self.compute_dtype)
        init = nn.initializers.xavier_uniform()
        for index, width in enumerate(self.hidden_dims):
            name = _dense_name(index)
            x = self.activation(nn.Dense(width, dtype=dtype, kernel_init=init, name=name)(x))
            if self.layer_norm:
                x = nn.LayerNorm(dtype=dtype, use_fast_variance=False)(x)
        init = nn.initializers.variance_scaling(self.output_scale, "fan_avg", "uniform")
        output = _dense_name(len(self.hidden_dims))
        dense = nn.Dense(self.output_dim, dtype=dtype, kernel_init=init, name=output)
        return dense(x).astype(jnp.float32)


def _dense_name(index: int) -> str:
    return f"Dense_{index}"


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
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        ensemble = nn.vmap(MLP, axis_size=self.num_qs, **axes)
        inputs = jnp.concatenate(
            [jnp.broadcast_to(x, (self.num_qs, *x.shape)) for x in (observations, actions)], axis=-1
        )
        fields = {"layer_norm": self.layer_norm, "compute_dtype": self.compute_dtype}
        return ensemble(self.hidden_dims, 1, **fields, name=_STACKED_MLP)(inputs).squeeze(-1)


class TimedCriticEnsemble(CriticEnsemble):
    """`K` critics `Q(s, x, t)` of noisy actions; `t = 1` is a clean action."""

    @nn.compact
    def __call__(self, observations: Array, actions: Array, times: Array | None = None) -> Array:
        """Values [K, ...] of actions [..., D] at flow times [..., 1]; None is `t = 1`."""
        times = jnp.ones_like(actions[..., :1]) if times is None else times
        fields = (self.hidden_dims, self.num_qs, self.layer_norm, self.compute_dtype)
        ensemble = CriticEnsemble(*fields)
        return ensemble(observations, jnp.concatenate([actions, times], axis=-1))


class StateValue(_Network):
    """Value [...] of observations [..., O]."""

    layer_norm: bool = True

    @nn.compact
    def __call__(self, observations: Array) -> Array:
        return self._mlp(1)(observations).squeeze(-1)


class ValueDistribution(_Network):
    """Logits [..., M] of a distribution of the value of observations [..., O]."""

    layer_norm: bool = True

    @nn.compact
    def __call__(self, observations: Array, num_atoms: int) -> Array:
        return self._mlp(num_atoms)(observations)


class VectorField(_Network):
    """Velocity [..., D] of a flow over actions, from `[s, x, t]`."""

    @nn.compact
    def __call__(self, observations: Array, actions: Array, times: Array) -> Array:
        inputs = jnp.concatenate([observations, actions, times], axis=-1)
        return self._mlp(actions.shape[-1])(inputs)

    def with_zero_output(self, params: Params) -> Params:
        """Parameters with zeros in the output layer, so that the velocity is 0 everywhere."""
        mlp, output = params[_MLP], _dense_name(len(self.hidden_dims))
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
    """Noise [..., D] in noisy actions at diffusion steps [..., 1], from `[s, x, features of t]`.

    The Fourier features of `t` first pass through an MLP of their own, of the same hidden widths.
    """

    @nn.compact
    def __call__(self, observations: Array, actions: Array, times: Array) -> Array:
        features = FourierFeatures()(times)
        if self.hidden_dims:
            *hidden_dims, width = self.hidden_dims
            fields = {"activation": jax.nn.mish, "compute_dtype": self.compute_dtype}
            features = MLP(hidden_dims, width, name=_TIME_MLP, **fields)(features)
        inputs = jnp.concatenate([observations, actions, features], axis=-1)
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
        width = self.hidden_dims[-1] if self.hidden_dims else inputs.shape[-1]
        scale = (width + 2 * dim) / (width + dim)  # each half is Xavier-uniform by itself
        outputs = self._mlp(2 * dim, output_scale=scale)(inputs)
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        return mean, jnp.clip(log_std, *_LOG_STD_RANGE)


InitFn = Callable[[Key, Array, Array], Params]
"""Makes initial parameters: `(key, observation [O], action [D]) -> params`."""


def make_init(**networks: nn.Module | InitFn | float) -> InitFn:
    """Function that makes the initial parameters of networks, by their names.

    Args:
      **networks: a network of this file; an `InitFn` for a network with other inputs; or the start
        of a trained scalar. Each network has a key of its own, in this order.
    """

    def init(key: Key, observation: Array, action: Array) -> Params:
        num_keys = sum(not isinstance(network, float) for network in networks.values())
        keys = iter([key] if num_keys == 1 else jax.random.split(key, num_keys))

        def params_of(network: nn.Module | InitFn | float) -> Params | Array:
            if isinstance(network, float):
                return jnp.full((), network, jnp.float32)
            if isinstance(network, nn.Module):
                return init_network(network, next(keys), observation, action)
            return network(next(keys), observation, action)

        return {name: params_of(network) for name, network in networks.items()}

    return init


def init_network(network: nn.Module, key: Key, observation: Array, action: Array) -> Params:
    """Initial parameters of a network of an observation [O], an action [D] and a time [1].

    A network takes the first one, two or three of these inputs.
    """
    num_inputs = {StateValue: 1, VectorField: 3, NoisePredictor: 3}.get(type(network), 2)
    inputs = (observation, action, action[:1])
    return network.init(key, *inputs[:num_inputs])["params"]


def mean_critic_value(
    critic: CriticEnsemble, params: Params, observations: Array, actions: Array
) -> Array:
    """`mean_k Q_k` [...] of actions [..., D] in observations [..., O]."""
    return jnp.mean(critic_values(critic, params, observations, actions), axis=0)


def critic_values(
    critic: CriticEnsemble,
    params: Params,
    observations: Array,
    actions: Array,
    *times: Array | None,
) -> Array:
    """Values [K, ...] of actions [..., D] in observations [..., O], at times [..., 1] if timed."""
    return critic.apply({"params": params}, observations, actions, *times)
