import json
from pathlib import Path

import pytest

from qam_jax.runs.folder import record_start
from qam_jax.runs.lock import lock_folder
from qam_jax.sweeps.jobs import State, make_jobs, read_state, resolve
from qam_jax.sweeps.studies import Study, choose, load_study, parse_study

_SCRIPT = Path("experiments/train_offline.py")
_MAZE = "pointmaze-medium-navigate-singletask-v0"


def _jobs(tmp_path, *extra_flags, **fields):
    fields = {"methods": ["bc"], "env_names": [_MAZE], "seeds": 1, **fields}
    return make_jobs(Study(name="mine", **fields), _SCRIPT, str(tmp_path), extra_flags)


def _start(job):
    """Leaves what a run leaves that has begun."""
    settings, config, _ = job.resolved
    job.folder.mkdir(parents=True)
    record_start(job.folder, settings, config, dataset_fingerprint="x", dataset_source="y")


def test_a_command_and_its_folder(tmp_path):
    job = _jobs(tmp_path, "--config.lr=0.1", seeds=[4], flags={"sparse": True})[0]
    program, script, *flags = job.command
    assert (Path(program).name[:6], script) == ("python", str(_SCRIPT))
    assert flags == [
        "--config=experiments/configs/bc.py", f"--env_name={_MAZE}", "--group=mine",
        f"--save_dir={tmp_path}", "--sparse=true", "--config.lr=0.1", "--seed=4",
        "--run_id=bc-seed4",
    ]  # fmt: skip
    assert job.folder == tmp_path / "mine" / _MAZE / "bc-seed4"
    assert job.task.log == tmp_path / "mine" / "logs" / _MAZE / "bc-seed4.log"
    settings, config, _ = job.resolved
    assert (settings.seed, settings.sparse, config.lr) == (4, True, 0.1)
    assert resolve("bc", flags[1:])[:2] == (settings, config)  # what the command says itself


def test_a_module_of_ones_own_is_a_method_as_the_others_are(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    config = 'ConfigDict({**bc.get_config(), "agent_name": "bold_bc", "boldness": 2.0})'
    (tmp_path / "bold_bc.py").write_text(
        "from ml_collections import ConfigDict\nfrom qam_jax.agents import bc\n"
        f"make_agent = bc.make_agent\ndef get_config():\n    return {config}\n"
    )
    flags = {"config.boldness": 3.0}
    plain, bold = _jobs(tmp_path, methods=["bc", "bold_bc"], flags=flags)
    assert bold.command[2] == f"--config={tmp_path / 'bold_bc.py'}"
    assert (bold.method, bold.folder.name) == ("bold_bc", "bold_bc-seed0")
    assert bold.resolved.config.boldness == 3.0
    assert "boldness" not in plain.resolved.config


def test_the_first_seed_of_everything_comes_first(tmp_path):
    jobs = _jobs(tmp_path, methods=["bc", "qam"], seeds=[3, 1])
    assert [job.folder.name for job in jobs] == ["bc-seed3", "qam-seed3", "bc-seed1", "qam-seed1"]


def test_seeds_that_share_a_program_have_the_folders_that_they_have_alone(tmp_path):
    study = Study(name="mine", methods=["bc"], env_names=[_MAZE], seeds=[0, 1, 2, 5])
    alone = make_jobs(study, _SCRIPT, str(tmp_path))
    together = make_jobs(study, _SCRIPT, str(tmp_path), seeds_per_run=2)
    names = ["bc-seed0-1", "bc-seed2", "bc-seed5"]
    assert [job.name for job in together] == [f"{_MAZE}/{name}" for name in names]
    assert [f for job in together for f in job.folders] == [job.folder for job in alone]
    assert together[0].command[-3:] == ("--seed=0", "--num_seeds=2", "--run_id=bc")
    for job in alone[:2]:
        assert read_state(together[0])[0] is not State.FINISHED
        _start(job)
        (job.folder / "checkpoints" / "1000000").mkdir(parents=True)
    assert read_state(together[0])[0] is State.FINISHED


def test_a_preset_and_multiples_of_its_values(tmp_path):
    study = choose(load_study("sensitivity"), domains=["puzzle-4x4-play"], seeds=[0])
    jobs = {job.folder.name: job for job in make_jobs(study, _SCRIPT, str(tmp_path))}
    assert len(jobs) == 10
    plain, tenfold = (jobs[f"qam_e-{name}-seed0"] for name in ("num_qs=2", "inv_temp-x10"))
    assert plain.resolved.config.inv_temp == 0.1
    assert tenfold.resolved.config.inv_temp == 1.0
    assert "--config.inv_temp=1.0" in tenfold.command
    assert plain.resolved.settings.sparse
    assert plain.resolved.settings.total_steps == 1_500_000


def test_the_file_of_the_documentation(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    content = text.partition("```toml\n")[2].partition("```")[0]
    jobs = make_jobs(parse_study("mine", content), _SCRIPT, str(tmp_path))
    assert len(jobs) == 2 * (2 * 2 + 1) * 3 * 2
    (job,) = (job for job in jobs if job.name.endswith("scene-noisy-singletask-task1-v0/"
              "qam_e-cautious-lr=0.001-seed2"))  # fmt: skip
    settings, config, _ = job.resolved
    assert (settings.group, settings.offline_steps, settings.sparse) == ("rates", 200_000, True)
    assert (config.lr, config.rho, config.inv_temp, config.batch_size) == (1e-3, 1.0, 0.3, 512)


def test_fields_that_only_other_methods_have_are_left_out(tmp_path):
    jobs = {job.method: job for job in _jobs(tmp_path, "--config.num_qs=2", methods=["bc", "qam"])}
    assert "--config.num_qs=2" in jobs["qam"].command
    assert "--config.num_qs=2" not in jobs["bc"].command


@pytest.mark.parametrize(
    ("extra_flags", "fields", "message"),
    [
        (["--config.num_qs=2"], {}, r"bc in point.*unknown config field 'num_qs' for 'bc'"),
        (
            ["--config.lr=1", "--config.lrr=2"],
            {},
            r"unknown config field 'lrr' for 'bc'\. Did you mean 'lr'\?",
        ),
        (["--config.lr.x=2"], {}, r"bc in point.*lr\.x"),
        (["--offline_stps=2"], {}, "Unknown command line flag 'offline_stps'.*offline_steps"),
        (["--offline_steps=x"], {}, "flag --offline_steps=x"),
        (["offline_steps=2"], {}, "unexpected argument 'offline_steps=2'"),
        (["--log_interval=7"], {}, "--eval_interval must be a multiple"),
        (["--seed=2"], {}, "--seed is set by the sweep itself: see --seeds"),
        ([], {"flags": {"run_id": "a"}}, "--run_id is set by the sweep itself"),
        (
            ["--config.lr=1"],
            {"grid": {"config.lr": [1, 2]}},
            "differs between the study.s",
        ),
        ([], {"grid": {"config.lr": ["a"]}}, r"bc \(lr=a\) in .*--config.lr=a"),
        ([], {"variants": [{"scale": {"config.rho": 2}}]}, "'config.rho' is no number"),
        ([], {"preset": "paper"}, "the paper has no environment 'pointmaze"),
        ([], {"env_names": ["pointmaze-tiny-navigate-singletask-v0"]}, "unknown environment"),
    ],
)
def test_what_a_run_would_refuse_is_refused_beforehand(tmp_path, extra_flags, fields, message):
    with pytest.raises(ValueError, match=message):
        _jobs(tmp_path, *extra_flags, **fields)


def test_how_a_job_stands(tmp_path):
    job = _jobs(tmp_path, "--offline_steps=20")[0]
    assert read_state(job) == (State.NEW, "")
    _start(job)
    assert read_state(job) == (State.UNFINISHED, "")
    with lock_folder(job.folder):
        assert read_state(job) == (State.RUNNING, "")
    assert read_state(job, {job.name}) == (State.QUEUED, "")
    job.task.record.parent.mkdir(parents=True)
    job.task.record.write_text(json.dumps({"error": "no disk"}))
    assert read_state(job) == (State.FAILED, "no disk")
    for step in ("10", "damaged-20", "20.orbax-checkpoint-tmp"):
        (job.folder / "checkpoints" / step).mkdir(parents=True)
    assert read_state(job) == (State.FAILED, "no disk")
    (job.folder / "checkpoints" / "20").mkdir()
    assert read_state(job) == (State.FINISHED, "")


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_config_says_so_of_its_own_job_alone(tmp_path, content):
    damaged, whole = _jobs(tmp_path, seeds=2)
    for job in (damaged, whole):
        _start(job)
    path = damaged.folder / "config.json"
    path.write_text(content)
    state, why = read_state(damaged)
    assert state is State.DAMAGED
    assert f"{path} is damaged" in why
    assert read_state(whole) == (State.UNFINISHED, "")


def test_a_damaged_record_tells_nothing(tmp_path):
    job = _jobs(tmp_path)[0]
    job.task.record.parent.mkdir(parents=True)
    job.task.record.write_text("{")
    assert read_state(job) == (State.NEW, "")


def test_a_folder_of_another_config_is_not_taken_for_the_job(tmp_path):
    _start(_jobs(tmp_path)[0])
    with pytest.raises(ValueError, match=r"bc-seed0 holds a run of another config: agent.lr is"):
        read_state(_jobs(tmp_path, "--config.lr=0.1")[0])
