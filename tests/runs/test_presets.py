import pytest

from qam_jax.agents import display_name, get_config, make_agent
from qam_jax.reports.published import published_methods
from qam_jax.runs.presets import find_domain, paper, paper_domains, paper_methods
from qam_jax.runs.settings import RunSettings, check_settings


def _env_name(domain):
    return f"{domain}-singletask-task2-v0"


def test_every_method_runs_in_every_domain():
    """Each is an algorithm, and takes the settings and fields that its preset names."""
    assert set(published_methods()) <= set(map(display_name, paper_methods()))
    assert len(paper_domains()) == 16
    for domain in paper_domains():
        for method in paper_methods():
            settings, fields = paper(method, _env_name(domain))
            check_settings(RunSettings(env_name=_env_name(domain), **settings))
            config = get_config(method)
            config.update(fields)  # refuses what there is not, or is of another type
            make_agent(config)


@pytest.mark.parametrize(
    ("method", "domain", "expected"),
    [
        ("qam", "cube-double-play", {"inv_temp": 1.0, "horizon_length": 5, "discount": 0.99}),
        ("qam", "humanoidmaze-large-navigate", {"inv_temp": 3.0, "rho": 0.0, "discount": 0.995}),
        ("qam", "antmaze-giant-navigate", {"rho": 0.5, "discount": 0.995, "horizon_length": 1}),
        ("fql", "antmaze-large-navigate", {"alpha": 3.0, "discount": 0.99}),
        ("qam_e", "puzzle-4x4-play", {"inv_temp": 0.1, "edit_scale": 0.9}),
        ("qam_e", "scene-play", {"inv_temp": 1.0, "edit_scale": 0.0}),
        ("qam_f", "puzzle-3x3-play", {"inv_temp": 3.0, "fql_alpha": 0.0}),
        ("cgql_m", "puzzle-4x4-play", {"guidance_coef": 1.0, "noisy_coef": 0.001}),
        ("rebrac", "cube-triple-play", {"alpha_actor": 0.01, "actor_noise": 0.2}),
        ("rlpd", "scene-play", {"bc_alpha": 0.3}),
        ("trqam", "scene-play", {"discount": 0.995}),
        ("trqam", "humanoidmaze-medium-navigate", {"discount": 0.999}),
    ],
)
def test_hyperparameters(method, domain, expected):
    fields = paper(method, _env_name(domain)).config
    assert {name: fields[name] for name in expected} == expected
    assert fields["action_chunking"] == (fields["horizon_length"] > 1)


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ("qam", (0, 1_000_000, 500_000, False)),
        ("rlpd", (0, 0, 500_000, True)),
        ("trqam", (300_000, 1_000_000, 500_000, False)),
        ("bc", (0, 1_000_000, 0, False)),
    ],
)
def test_stages(method, stages):
    settings = paper(method, _env_name("cube-double-play")).settings
    names = ("bc_steps", "offline_steps", "online_steps", "balanced_sampling")
    assert tuple(settings[name] for name in names) == stages


def test_sparse_rewards_and_large_datasets():
    settings = {domain: paper("qam", _env_name(domain)).settings for domain in paper_domains()}
    sparse = {domain for domain in settings if settings[domain]["sparse"]}
    assert sparse == {
        "scene-play", "scene-noisy", "puzzle-3x3-play", "puzzle-3x3-noisy", "puzzle-4x4-play",
    }  # fmt: skip
    folders = {
        domain: settings[domain]["ogbench_dataset_dir"]
        for domain in settings
        if settings[domain]["ogbench_dataset_dir"]
    }
    assert folders == {
        "cube-quadruple-play": "~/.ogbench/data/cube-quadruple-play-100m-v0",
        "puzzle-4x4-play": "~/.ogbench/data/puzzle-4x4-play-100m-v0",
    }
    assert settings["puzzle-4x4-play"]["dataset_replace_interval"] == 1000
    moved = paper("qam", _env_name("puzzle-4x4-play"), dataset_dir="data/").settings
    assert moved["ogbench_dataset_dir"] == "data/puzzle-4x4-play-100m-v0"


def test_other_data_has_the_settings_of_its_domain():
    play, noisy = (paper("qam_e", _env_name(f"cube-triple-{kind}")) for kind in ("play", "noisy"))
    assert noisy == play


def test_the_default_task_belongs_to_its_domain():
    assert find_domain("cube-double-play-singletask-v0") == "cube-double-play"


@pytest.mark.parametrize(
    ("method", "env_name", "message"),
    [
        ("sac", _env_name("scene-play"), r"no method 'sac'; it has bam, bc, .*trqam"),
        ("qam", _env_name("cube-single-play"), r"no environment 'cube-single-play.*scene-play"),
        ("qam", "cube-double-play-singletask-task6-v0", "no environment 'cube-double.*task<1..5>"),
        ("qam", "cube-quadruple-noisy-singletask-v0", "no environment 'cube-quadruple-noisy"),
        ("qam", "Pendulum-v1", "no environment 'Pendulum-v1'.*antmaze-giant-navigate"),
    ],
)
def test_what_the_paper_does_not_have(method, env_name, message):
    with pytest.raises(ValueError, match=message):
        paper(method, env_name)
