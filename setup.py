from setuptools import find_packages, setup

setup(
    name="qam_jax",
    version="0.1.0",
    description="Q-learning with Adjoint Matching (QAM) in JAX: flow-policy reinforcement learning",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["qam_jax", "qam_jax.*"]),
    package_data={
        "qam_jax.reports": ["*.j2"],
        "qam_jax.reports.published": ["*.csv", "*.md"],
        "qam_jax.runs.presets": ["*.csv"],
        "qam_jax.sweeps": ["named/*.toml"],
    },
    python_requires=">=3.11,<3.13",  # labmaze, behind ogbench, has no wheels for 3.13,
    install_requires=open("requirements.txt", encoding="utf-8").read().split(),
    extras_require={
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "wandb": ["wandb>=0.19"],
        "slurm": ["submitit>=1.5.4"],
        "minari": ["minari[arrow,hdf5,hf]>=0.5.4"],
        "test": [
            "cloudpickle>=3.1",
            "hypothesis>=6",
            "minari[hdf5]>=0.5.4",
            "pytest>=9",
            "pytest-xdist>=3.8",
            "submitit>=1.5.4",
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
