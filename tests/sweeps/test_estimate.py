import dataclasses

import pytest

from qam_jax.sweeps.estimate import hours, measure_speeds, parse_speeds, updates_left


def _with(job, **settings):
    resolved = job.resolved
    changed = dataclasses.replace(resolved.settings, **settings)
    return dataclasses.replace(job, resolved=resolved._replace(settings=changed))


@pytest.mark.parametrize(
    ("done", "expected"),
    [(0, 10 + 90 + 2 * 70), (60, 40 + 2 * 70), (110, 2 * 70), (150, 2 * 50), (201, 0)],
)
def test_updates_that_are_left(make_shell_jobs, done, expected):
    """10 of cloning, 90 offline; 2 for each of 100 steps online, without the first 30."""
    (job,) = make_shell_jobs("")
    job = _with(
        job, bc_steps=10, offline_steps=90, online_steps=100, start_training=30, utd_ratio=2
    )
    if done:
        (job.folder / "checkpoints" / str(done)).mkdir(parents=True)
    assert updates_left(job) == expected


def test_speeds_are_measured_without_the_first_row_and_the_online_stage(make_shell_jobs):
    jobs = make_shell_jobs("", "", "", "")
    cases = [1, 100, 140, ""], [2, 300], [1, "damaged"]
    for job, rows in zip(jobs, cases, strict=False):
        job.folder.mkdir(parents=True)
        lines = [f"{10 * row},{speed}" for row, speed in enumerate(rows)]
        text = "\n".join(["step,updates_per_second", *lines, ""])
        (job.folder / "train.csv").write_text(text)
    assert measure_speeds(jobs) == {"bc": (120 + 300) / 2}


def test_hours_and_methods_whose_speed_is_not_known(make_shell_jobs):
    jobs = [_with(job, offline_steps=3600) for job in make_shell_jobs("", "")]
    assert hours(jobs, {"bc": 2.0}) == (1.0, [])
    assert hours(jobs, {"": 4.0, "qam": 1.0}) == (0.5, [])
    assert hours(jobs, {"qam": 1.0}) == (0.0, ["bc"])


def test_speeds_as_they_are_given():
    assert parse_speeds(["100", "qam=150.5"]) == {"": 100.0, "qam": 150.5}
    for text in ("fast", "qam=0", "qam=-3"):
        with pytest.raises(ValueError, match=f"--updates_per_second={text}: "):
            parse_speeds([text])
    with pytest.raises(ValueError, match=r"unknown algorithm 'qamm'.*qam_e"):
        parse_speeds(["100", "qamm=3"])
