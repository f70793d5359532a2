import json
import os
import signal
import time

import pytest

from qam_jax.sweeps import worker
from qam_jax.sweeps.jobs import State, read_state
from qam_jax.sweeps.slurm import make_executor, queued_jobs, submit

submitit = pytest.importorskip("submitit")

_FINISH = "mkdir -p $folder/checkpoints/20"
_TRAIN = "for i in {1..300}; do sleep 0.1; done"  # longer than any of these tests


@pytest.fixture(name="cluster")
def _cluster(tmp_path, monkeypatch):
    """Programs of SLURM that keep what they were given, in the folder that is returned."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    programs = {
        "sbatch": 'cp "$1" $(dirname $0)/script-$(ls $(dirname $0) | grep -c script); '
        "echo Submitted batch job 77",
        "srun": "exit 1",
        "squeue": "printf '77_0\\n78\\n'",
    }
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def test_arrays_are_submitted_once(cluster, make_shell_jobs, tmp_path):
    jobs = make_shell_jobs(*[_FINISH] * 3)
    parameters = {"partition": "gpu", "time": 90, "array_parallelism": 4, "mem": "8GB"}
    executor = make_executor(tmp_path / "slurm", "qam_jax-mine", parameters)
    assert submit(jobs, executor, array_length=2) == ["77_0", "77_1", "77"]
    script = (cluster / "script-0").read_text()
    for line in (
        "--job-name=qam_jax-mine", "--partition=gpu", "--time=90", "--array=0-1%2", "--mem=8GB",
        "--gpus-per-node=1", "--requeue", "--signal=USR2@120", "--open-mode=append",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in script, line
    assert "submitit.core._submit" in script
    assert "--array" not in (cluster / "script-1").read_text()
    queued = queued_jobs(tmp_path / "slurm")
    assert [read_state(job, queued)[0] for job in jobs] == [State.QUEUED, State.NEW, State.NEW]
    (cluster / "squeue").write_text("#!/bin/bash\nprintf '77_1\\n79\\n'\n")
    assert queued_jobs(tmp_path / "slurm") == {jobs[1].name}


@pytest.mark.parametrize("missing", ["sbatch", "srun", "squeue"])
def test_a_machine_that_is_no_cluster(cluster, missing, tmp_path, monkeypatch):
    (cluster / missing).unlink()
    monkeypatch.setenv("PATH", str(cluster))
    with pytest.raises(ValueError, match=f"there is no {missing} here.*--backend=commands"):
        make_executor(tmp_path, "mine", {})


def test_a_folder_that_cannot_be_written_to(cluster, tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(OSError, match=r"cannot write to the folder '.*/mine/logs'"):
        make_executor(tmp_path / "mine" / "logs", "mine", {})


def test_parameters_that_submitit_does_not_have(cluster, tmp_path):
    with pytest.raises(ValueError, match="partitoin"):
        make_executor(tmp_path, "mine", {"partitoin": "gpu"})


def test_a_queue_that_does_not_answer(cluster, tmp_path):
    (cluster / "squeue").write_text("#!/bin/bash\necho slurm is down >&2\nexit 1\n")
    with pytest.raises(OSError, match="squeue says 'slurm is down'"):
        queued_jobs(tmp_path)


def _submit_here(jobs, folder):
    """By processes of this machine in place of a cluster."""
    executor = submitit.LocalExecutor(folder=folder)
    executor.update_parameters(timeout_min=1)
    submitted = []
    map_array = executor.map_array

    def keep(*arguments):
        submitted.extend(map_array(*arguments))
        return submitted

    executor.map_array = keep
    submit(jobs, executor)
    return submitted


@pytest.mark.slow
def test_execution_by_submitit(make_shell_jobs, tmp_path):
    jobs = make_shell_jobs(_FINISH, "echo Error: no disk; exit 1")
    done, failed = _submit_here(jobs, tmp_path / "logs")
    done.result()
    with pytest.raises(submitit.core.utils.FailedJobError, match="RuntimeError: no disk"):
        failed.result()
    assert [read_state(job) for job in jobs] == [(State.FINISHED, ""), (State.FAILED, "no disk")]


@pytest.mark.slow
def test_a_preempted_job_saves_and_comes_back(make_shell_jobs, tmp_path):
    """The command preempts its own job, as SLURM would, and is asked to stop for that."""
    (job,) = make_shell_jobs(
        f"if [ -e $folder ]; then {_FINISH}; exit; fi; mkdir -p $folder; "
        "trap 'touch $folder/saved; exit 75' TERM; "
        f"kill -USR2 $$ $PPID; {_TRAIN}"
    )
    (submitted,) = _submit_here([job], tmp_path / "logs")
    submitted.result()
    assert (job.folder / "saved").exists()
    assert read_state(job)[0] is State.FINISHED
    assert job.task.log.read_text().count("$ bash") == 2


@pytest.mark.slow
def test_a_cancelled_job_saves_and_does_not_come_back(make_shell_jobs, tmp_path):
    (job,) = make_shell_jobs(
        f"mkdir -p $folder; trap 'touch $folder-saved; exit 75' TERM; kill -TERM $PPID; {_TRAIN}"
    )
    (submitted,) = _submit_here([job], tmp_path / "logs")
    submitted.wait()
    assert not submitted.paths.result_pickle.exists()
    assert list(job.folder.parent.glob("*-saved"))
    assert json.loads(job.task.record.read_text())["outcome"] == "stopped"
    assert job.task.log.read_text().count("$ bash") == 1


@pytest.mark.parametrize("request_", [signal.SIGUSR2, signal.SIGTERM])
def test_a_request_while_the_command_starts(make_shell_jobs, monkeypatch, request_):
    """It comes when the command runs already, but before the one who started it knows of it."""
    (job,) = make_shell_jobs(
        f"mkdir -p $folder; trap 'touch $folder/saved; exit 75' TERM; touch $folder/ready; {_TRAIN}"
    )
    start_task = worker.start_task

    def start(*arguments, **options):
        process = start_task(*arguments, **options)
        while process.poll() is None and not (job.folder / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), request_)
        return process

    monkeypatch.setattr(worker, "start_task", start)
    run = worker.RunTask()
    handlers = {
        signal.SIGUSR2: signal.signal(signal.SIGUSR2, lambda *_: run.checkpoint(job.task)),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: None),  # as submitit has it
    }
    try:
        with pytest.raises(SystemExit, match="75"):
            run(job.task)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert (job.folder / "saved").exists()
    assert json.loads(job.task.record.read_text())["outcome"] == "stopped"
