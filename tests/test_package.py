import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qam_jax


def test_everything_public_is_there():
    for name in qam_jax.__all__:
        assert getattr(qam_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'sample_flows'"):
        qam_jax.sample_flows  # noqa: B018 - the access is the test


def test_the_files_for_people_state_the_version_of_the_package():
    root = Path(__file__).parents[1]
    assert f"\nversion: {qam_jax.__version__}\n" in (root / "CITATION.cff").read_text()
    assert qam_jax.__version__ in (root / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("qam_jax.envs", ["jax", "flax"]),  # simulator processes start without JAX
        ("qam_jax.data.generate", ["jax", "flax"]),
        ("qam_jax.flow, qam_jax.adjoint, qam_jax.critic", ["flax", "ml_collections", "ogbench"]),
        ("qam_jax.agents", ["gymnasium", "ogbench"]),
        ("qam_jax.runs.presets, qam_jax.sweeps.worker", ["jax", "ml_collections"]),
        ("qam_jax.runs.command_line, qam_jax.reports.progress", ["jax", "pandas", "scipy"]),
    ],
)
def test_layers_import_only_what_they_may(module, unwanted):
    code = f"import sys, {module}; print([m for m in {unwanted} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


_LAYERS = (
    ("types", "files", "memory", "errors"),
    ("flow", "adjoint", "critic", "diffusion"),
    ("networks",),
    ("agents", "data", "envs"),  # agents know nothing of the others
    ("runs",),
    ("training",),
    ("reports",),
    ("sweeps",),
    ("deploy",),
)


def _imports(path):
    """What a file imports of the package, by the first name under it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "asname")]
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        for name in names:
            package, *rest = name.split(".")
            if package == "qam_jax":
                yield rest[0] if rest else ""


def test_layers_import_only_those_above_them():
    root = Path(qam_jax.__file__).parent
    place = {name: place for place, names in enumerate(_LAYERS) for name in names}
    apart = {("agents", "data"), ("agents", "envs"), ("data", "agents"), ("envs", "agents")}
    found, seen = [], set()
    for path in root.rglob("*.py"):
        own = path.relative_to(root)
        layer = own.parts[0].removesuffix(".py")
        for other in _imports(path) if layer in place else ():
            seen.add(layer)
            if (layer, other) in apart or place.get(other, 0) > place[layer]:
                found.append((str(own), other))
    assert found == []
    assert seen >= {"flow", "agents", "data", "envs", "training", "runs", "reports", "sweeps"}
    assert "deploy" in seen
