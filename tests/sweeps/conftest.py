"""Jobs whose commands are a few lines of a shell."""

import dataclasses
from pathlib import Path

import pytest

from qam_jax.sweeps.jobs import make_jobs
from qam_jax.sweeps.studies import Study


@pytest.fixture
def make_shell_jobs(tmp_path):
    """`(*scripts) -> jobs`, one for each script; `$folder` is the job's own folder."""

    def make(*scripts):
        study = Study(
            name="mine",
            methods=["bc"],
            env_names=["pointmaze-medium-navigate-singletask-v0"],
            seeds=len(scripts),
        )
        jobs = make_jobs(study, Path("train_offline.py"), str(tmp_path), ["--offline_steps=20"])
        return [
            dataclasses.replace(job, command=("bash", "-c", f"folder={job.folder}\n{script}"))
            for job, script in zip(jobs, scripts, strict=True)
        ]

    return make
