import json
import os
import signal
import threading

import pytest

from qam_jax.runs.lock import FAILED, FINISHED, STOPPED
from qam_jax.runs.stopping import Stopped
from qam_jax.sweeps.jobs import State, read_state
from qam_jax.sweeps.local import run_local
from qam_jax.sweeps.worker import last_error

_FINISH = "mkdir -p $folder/checkpoints/20"


def test_outcomes_logs_and_states(make_shell_jobs, caplog):
    jobs = make_shell_jobs(
        f"echo some words; {_FINISH}; printf 'step,success,return\\n20,,-1\\n' > $folder/eval.csv",
        "echo 'bar 1%'; echo 'Error: no disk' >&2; echo 'WARN: bye'; exit 1",
        "exit 75",
        "kill -KILL $$",
        "exit 3",
    )
    caplog.set_level("INFO", "qam_jax")
    outcomes = run_local(jobs, parallel=2)
    expected = [
        (FINISHED, ""), (FAILED, "no disk"), (STOPPED, ""),
        (FAILED, "killed by SIGKILL"),
        (FAILED, "ended with status 3, without a word"),
    ]  # fmt: skip
    assert [outcomes[job.name] for job in jobs] == expected
    assert "some words\n" in jobs[0].task.log.read_text()
    assert [read_state(job)[0] for job in jobs] == [
        State.FINISHED, State.FAILED, State.NEW, State.FAILED, State.FAILED,
    ]  # fmt: skip
    assert json.loads(jobs[1].task.record.read_text())["status"] == 1
    assert f"finished  {jobs[0].name} after 0.0 min: return -1.0" in caplog.messages
    assert f"failed    {jobs[1].name} after 0.0 min: no disk" in caplog.messages


def test_a_job_that_succeeds_at_last_has_no_error(make_shell_jobs):
    (job,) = make_shell_jobs(f"test -e $folder && {_FINISH} && exit; mkdir -p $folder; exit 1")
    run_local([job])
    assert read_state(job)[0] is State.FAILED
    assert run_local([job])[job.name] == (FINISHED, "")
    assert job.task.log.read_text().count("$ bash") == 2


def test_no_more_run_side_by_side_than_there_are_slots(make_shell_jobs, tmp_path):
    """Each of four leaves a mark while it runs; two wait for each other, so both slots are used."""
    marks = tmp_path / "marks"
    marks.mkdir()
    script = (
        f"cd {marks}; touch $$; ls | wc -l >> ../counts; "
        "touch ../ready-$$; until [ $(ls .. | grep -c ready) -ge 2 ]; do :; done; rm $$"
    )
    run_local(make_shell_jobs(*[script] * 4), parallel=2)
    counts = [int(line) for line in (tmp_path / "counts").read_text().split()]
    assert len(counts) == 4
    assert max(counts) == 2


def test_jobs_take_turns_on_gpus(make_shell_jobs):
    show = "echo gpu=$CUDA_VISIBLE_DEVICES $XLA_PYTHON_CLIENT_PREALLOCATE."
    jobs = make_shell_jobs(show)
    run_local(jobs, parallel=1, gpus=["3"])
    assert "gpu=3 .\n" in jobs[0].task.log.read_text()
    run_local(jobs, parallel=2, gpus=["3"])
    assert "gpu=3 false.\n" in jobs[0].task.log.read_text()


def test_a_signal_stops_all_and_starts_no_more(make_shell_jobs, tmp_path):
    wait = (
        "mkdir -p $folder; trap 'touch $folder-saved; exit 75' TERM; "
        f"touch {tmp_path}/up; while :; do :; done"
    )
    jobs = make_shell_jobs(wait, "touch $folder-never")

    def stop_when_up():
        while not (tmp_path / "up").exists():
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_up)
    thread.start()
    with pytest.raises(Stopped, match="SIGTERM"):
        run_local(jobs)
    thread.join()
    assert [job.folder.with_name(f"{job.folder.name}-saved").exists() for job in jobs] == [
        True, False,
    ]  # fmt: skip
    assert not list(jobs[1].folder.parent.glob("*-never"))
    assert json.loads(jobs[0].task.record.read_text())["outcome"] == "stopped"


def test_a_second_signal_ends_the_runs_at_once(make_shell_jobs):
    """Which is what a run does that is asked twice."""
    (job,) = make_shell_jobs(
        "mkdir -p $folder; n=0;"
        "trap 'n=$((n + 1)); touch $folder/$n; test $n -ge 2 && exit 75' TERM;"
        "touch $folder/0; while :; do :; done"
    )

    def wait_for(name):
        while not (job.folder / name).exists():
            pass

    def stop_twice():
        for name in ("0", "1"):
            wait_for(name)
            os.kill(os.getpid(), signal.SIGINT)

    # A process that was started in the background may have been told to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread = threading.Thread(target=stop_twice)
        thread.start()
        with pytest.raises(Stopped, match="SIGINT"):
            run_local([job])
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for("2")


def test_the_line_that_says_why(tmp_path):
    log = tmp_path / "log"
    log.write_text("$ a\nError: old\n$ b\noffline: 3%|#\roffline: 5%|##\nKeyError: 'x'\n\n")
    assert last_error(log) == "KeyError: 'x'"
    log.write_text("$ a\nError: old\n$ b\n")
    assert last_error(log) == ""


def test_a_log_that_cannot_be_written_is_named(make_shell_jobs, tmp_path):
    (job,) = make_shell_jobs("exit 0")
    (tmp_path / "mine").write_text("a file where the folder of the group should be")
    assert read_state(job) == (State.NEW, "")
    with pytest.raises(OSError, match=r"cannot write to the folder '.*/mine/logs/.*Choose another"):
        run_local([job])
    (tmp_path / "mine").unlink()
    job.task.log.mkdir(parents=True)
    with pytest.raises(OSError, match=r"bc-seed0\.log cannot be written \(Is a directory\)"):
        run_local([job])


def test_a_full_disk_is_named(make_shell_jobs):
    (job,) = make_shell_jobs("exit 0")
    job.task.log.parent.mkdir(parents=True)
    job.task.log.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"bc-seed0\.log cannot be .*No space left.*make room"):
        run_local([job])
    job.task.log.unlink()
    job.task.record.mkdir()
    with pytest.raises(OSError, match=r"bc-seed0\.json cannot be written \(Is a directory\)"):
        run_local([job])
