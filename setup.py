import re
from pathlib import Path

from setuptools import find_packages, setup

_PACKAGE = Path("qam_jax/__init__.py").read_text(encoding="utf-8")
_SERVE = ["msgpack>=1.1.2", "websockets>=17.0"]  # from then on a server ends its connections

setup(
    name="qam_jax",
    version=re.search('__version__ = "(.+)"', _PACKAGE)[1],
    description="Q-learning with Adjoint Matching (QAM) in JAX: flow-policy reinforcement learning",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["qam_jax", "qam_jax.*"]),
    package_data={
        "qam_jax.reports": ["*.j2"],
        "qam_jax.reports.published": ["*.csv", "*.md"],
        "qam_jax.runs.presets": ["*.csv", "*.toml"],
        "qam_jax.sweeps": ["named/*.toml"],
    },
    python_requires=">=3.11,<3.13",  # labmaze, behind ogbench, has no wheels for 3.13,
    install_requires=open("requirements.txt", encoding="utf-8").read().split(),
    extras_require={
        "dev": ["mypy>=2.4", "pre-commit>=4.5", "ruff>=0.17"],
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "wandb": ["wandb>=0.19"],
        "tensorboard": ["tensorboard>=2.20"],
        "export": ["onnx>=1.23", "onnxruntime>=1.32", "safetensors>=0.8"],
        "slurm": ["submitit>=1.5.4"],
        "serve": _SERVE,
        # It pins mujoco==3.3.0. Without the bound, pip downloads every dm-control to find the last
        # one for it.
        "metaworld": ["metaworld>=3.1.1", "dm-control<=1.0.28"],
        "minari": ["minari[arrow,hdf5,hf]>=0.5.4"],
        "robomimic": ["h5py>=3.16"],
        "lerobot": ["pyarrow>=21"],
        "test": [
            "cloudpickle>=3.1",
            "h5py>=3.16",
            "hypothesis>=6.170",
            "minari[hdf5]>=0.5.4",
            "onnx>=1.23",
            "onnxruntime>=1.32",
            "pyarrow>=21",
            "pytest>=9",
            "pytest-cov>=7.1",
            "pytest-xdist>=3.8",
            "safetensors>=0.8",
            "submitit>=1.5.4",
            *_SERVE,
        ],
        "docs": [
            "latex2mathml>=3.78",
            "mkdocs>=1.6,<2",
            "mkdocs-material>=9.7",
            "mkdocstrings[python]>=1.0",
            "ziamath>=0.13",  # for its font
        ],
    },
)
