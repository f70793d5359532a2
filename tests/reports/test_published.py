import dataclasses

import pytest

from qam_jax import agents
from qam_jax.reports.labels import full_env_name, method_name, task_label
from qam_jax.reports.paper_settings import (
    paper_differences,
    paper_settings,
    sensitivity_variant,
)
from qam_jax.reports.published import (
    STUDIES,
    published_result,
    published_results,
)
from qam_jax.runs import presets
from qam_jax.runs.settings import RunSettings, resolved
from qam_jax.sweeps.studies import load_study

_TASK = "cube-double-play-singletask-task2-v0"


def _config(agent_name="qam", env_name=_TASK, **changes):
    """A run's config.json at the paper's settings, with some of the agent's changed."""
    agent = agents.get_config(agent_name)
    agent.update(changes)
    return resolved(RunSettings(env_name=env_name, online_steps=500_000), agent)


def test_the_tables_are_whole():
    sizes = {study: len(published_results(study)) for study in STUDIES}
    assert sizes == {"main": 50 * 17, "data_quality": 30 * 7, "sensitivity": 10 * 10}
    for study in STUDIES:
        table = published_results(study)
        assert (table["num_seeds"] == 12).all()
        assert (table["offline_mean"].isna() == (table["method"] == "RLPD")).all()
        for stage in ("offline", "online"):
            known = table.dropna(subset=f"{stage}_mean")
            assert known[f"{stage}_mean"].between(0, 100).all()
            assert (known[f"{stage}_std"] >= 0).all()
    with pytest.raises(ValueError, match="expected one of main, data_quality"):
        published_results("mian")


def test_a_figure_is_found_by_task_and_method():
    result = published_result("antmaze-giant-navigate-singletask-task1-v0", "BAM")
    assert (result.offline_mean, result.offline_std) == (3.3, 8.3)
    assert (result.online_mean, result.online_std) == (25.2, 37.9)
    task = full_env_name("antmaze-giant-navigate-singletask-v0")  # OGBench means its task 1
    assert published_result(task, "BAM") is result
    assert published_result("antmaze-giant-navigate-singletask-task1-v0", "QAM-E (T=3)")
    assert published_result("cube-single-play-singletask-task1-v0", "QAM") is None


def _preset_run(method, env_name, variant):
    """The config.json of a run of a study, whose variant changes the agent's config."""
    preset = presets.paper(method, env_name)
    agent = agents.get_config(method)
    agent.update(preset.config)
    for flag, value in variant.flags.items():
        agent[flag.removeprefix("config.")] = value
    for flag, factor in variant.scale.items():
        agent[flag.removeprefix("config.")] *= factor
    settings = dataclasses.replace(RunSettings(env_name=env_name), **preset.settings)
    return resolved(settings, agent)


@pytest.mark.parametrize("name", ["main", "data_quality", "sensitivity"])
def test_the_runs_of_the_studies_do_not_differ(name):
    study = load_study(name)
    by_domain = {task_label(env_name)[0]: env_name for env_name in study.env_names}
    methods = set()
    for method in study.methods:
        for env_name in by_domain.values():
            for variant in study.variants:
                config = _preset_run(method, env_name, variant)
                assert paper_differences(config, {}) == {}, (method, env_name, variant)
                label = sensitivity_variant(config) or method_name(config["agent"])
                methods.add(label)
                if label not in ("BC", "TRQAM"):
                    assert published_result(env_name, label).study == name
    assert methods - {"BC", "TRQAM"} == set(published_results(name)["method"])


def test_downloaded_data_do_not_differ():
    assert paper_differences(_config(), {"dataset_source": "downloaded from https://…"}) == {}


@pytest.mark.parametrize(("method", "label"), [("qam_e", "QAM-E"), ("qam_f", "QAM-F")])
def test_a_variant_of_qam_is_told_by_its_name_or_its_field(method, label):
    env_name = "antmaze-giant-navigate-singletask-task1-v0"
    fields = presets.paper(method, env_name).config
    for agent_name in (method, "qam"):
        config = _config(agent_name, env_name, **fields)
        assert method_name(config["agent"]) == label
        assert paper_differences(config, {}) == {}
        config["agent"]["inv_temp"] = 7.0
        assert list(paper_differences(config, {})) == ["inv_temp"]


def test_both_fields_of_the_variants_of_qam_differ():
    config = _config(edit_scale=0.1, fql_alpha=300.0)
    assert "fql_alpha = 300 (paper: 0)" in paper_differences(config, {}).values()


def test_each_setting_that_differs_is_named():
    config = _config(actor_hidden_dims=(16, 16), inv_temp=3.0)
    config["offline_steps"] = 200
    source = "local file cube-double-play-v0.npz (simulated: 500 episodes, seed 0)"
    assert paper_differences(config, {"dataset_source": source}) == {
        "offline_steps": "offline_steps = 200 (paper: 1,000,000)",
        "actor_hidden_dims": "actor_hidden_dims = 2 × 16 (paper: 4 × 512)",
        "inv_temp": "inv_temp = 3 (paper: 1)",
        "dataset_source": "data simulated here (500 episodes), not OGBench's file",
    }


def test_domains_have_their_own_settings():
    giant = paper_settings("fql", "antmaze-giant-navigate-singletask-task1-v0")
    assert (giant["discount"], giant["horizon_length"], giant["alpha"]) == (0.995, 1, 3.0)
    noisy = paper_settings("qam_e", "puzzle-3x3-noisy-singletask-task1-v0")
    assert (noisy["sparse"], noisy["edit_scale"], noisy["horizon_length"]) == (True, 0.1, 5)
    assert paper_settings("qam", "humanoidmaze-large-navigate-singletask-task1-v0")["rho"] == 0
    assert paper_settings("rlpd", _TASK)["offline_steps"] == 0
    assert paper_settings("qam", "Pendulum-v1")["horizon_length"] == 5
    assert paper_settings("mine", _TASK) == {}
    large = _config(env_name="puzzle-4x4-play-singletask-task1-v0", inv_temp=30.0)
    large["sparse"] = True
    assert list(paper_differences(large, {})) == ["ogbench_dataset_dir"]


@pytest.mark.parametrize(
    ("changes", "variant"),
    [
        ({}, None),
        ({"flow_steps": 3}, "QAM-E (T=3)"),
        ({"num_qs": 2}, "QAM-E (K=2)"),
        ({"clip_grad_norm": 0.0}, "QAM-E-NOCLIP"),
        ({"inv_temp": 1.0}, "QAM-E (0.1x tau)"),  # 10 in antmaze-giant
        ({"inv_temp": 0.1 * 10.0 * (1 + 1e-12)}, "QAM-E (0.1x tau)"),
        ({"inv_temp": 2.0}, None),
        ({"flow_steps": 3, "num_qs": 2}, None),
    ],
)
def test_runs_of_the_sensitivity_study_are_recognised(changes, variant):
    env_name = "antmaze-giant-navigate-singletask-task1-v0"
    settings = {"edit_scale": 0.1, "inv_temp": 10.0, "horizon_length": 1, "discount": 0.995}
    config = _config(env_name=env_name, **(settings | changes))
    assert sensitivity_variant(config) == variant
    if variant:
        assert published_result(env_name, variant)
        assert paper_differences(config, {}) == {}
