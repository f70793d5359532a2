import subprocess
import sys

import pytest

import qam_jax


def test_everything_public_is_there():
    for name in qam_jax.__all__:
        assert getattr(qam_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'sample_flows'"):
        qam_jax.sample_flows  # noqa: B018 - the access is the test


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("qam_jax.envs", ["jax", "flax"]),  # simulator processes start without JAX
        ("qam_jax.data.generate", ["jax", "flax"]),
        ("qam_jax.flow, qam_jax.adjoint, qam_jax.critic", ["flax", "ml_collections", "ogbench"]),
        ("qam_jax.agents", ["gymnasium", "ogbench"]),
        ("qam_jax.presets, qam_jax.sweeps.worker", ["jax", "ml_collections"]),
    ],
)
def test_layers_import_only_what_they_may(module, unwanted):
    code = f"import sys, {module}; print([m for m in {unwanted} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
