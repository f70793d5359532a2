import gymnasium
import ogbench  # noqa: F401 - registers the environments
import pytest

from qam_jax.agents import algorithm_names, display_name, get_config, variant_name
from qam_jax.reports.labels import (
    estimate_words,
    full_env_name,
    method_name,
    number,
    seeds_words,
    task_label,
)
from qam_jax.reports.published import (
    base_method,
    method_order,
    published_methods,
    published_results,
)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"agent_name": "qam", "edit_scale": 0.0, "fql_alpha": 0.0}, "QAM"),
        ({"agent_name": "qam", "edit_scale": 0.1, "fql_alpha": 0.0}, "QAM-E"),
        ({"agent_name": "qam", "edit_scale": 0.0, "fql_alpha": 300.0}, "QAM-F"),
        ({"agent_name": "qam_e", "edit_scale": 0.0}, "QAM-E"),
        ({"agent_name": "qam_f"}, "QAM-F"),
        ({"agent_name": "cgql_m"}, "CGQL-M"),
        ({"agent_name": "mine"}, "mine"),
    ],
)
def test_methods_have_their_published_names(config, name):
    assert method_name(config) == name


def test_every_algorithm_and_every_published_method_has_a_name():
    labels = [method_name({"agent_name": name}) for name in algorithm_names()]
    assert len(set(labels)) == len(labels)
    assert set(published_methods()) <= set(labels)
    assert set(published_results("sensitivity")["method"].map(base_method)) == {"QAM-E"}
    assert display_name("cgql_l") == "CGQL-L"
    for name in algorithm_names():  # a default config describes the algorithm that it names
        assert variant_name(get_config(name)) == name


def test_methods_come_in_the_papers_order_with_their_variants():
    labels = ["mine", "FQL", "QAM-E (T=3)", "QAM", "QAM-E"]
    assert sorted(labels, key=method_order) == ["QAM", "QAM-E", "QAM-E (T=3)", "FQL", "mine"]


def test_tasks():
    assert task_label("cube-double-play-singletask-task3-v0") == ("cube-double-play", "task 3")
    assert task_label("Pendulum-v1") == ("Pendulum-v1", "Pendulum-v1")
    assert full_env_name("Pendulum-v1") == "Pendulum-v1"
    assert full_env_name("soccer-play-singletask-v0") == "soccer-play-singletask-v0"


def test_numbers_as_the_page_shows_them():
    assert [number(x) for x in (1234.56, -0.04, -3.25, float("nan"))] == [
        "1,234.6", "0.0", "−3.2", "–",
    ]  # fmt: skip
    row = {"x": 1.0, "x_low": 0.25, "x_high": 2.0}
    assert estimate_words(row, "x") == ("1.0", "0.2 to 2.0")
    assert estimate_words(row, "x", 100, 0) == ("100", "25 to 200")
    nan = float("nan")
    assert estimate_words({"x": 1.0, "x_low": nan, "x_high": nan}, "x") == ("1.0", "")
    assert (seeds_words([2]), seeds_words([2, 0, 1])) == ("seed 2", "seeds 0–2")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["cube-single-singletask-v0", "scene-singletask-v0", "puzzle-3x3-singletask-v0"]
)
def test_default_tasks_are_ogbenchs(name):
    env = gymnasium.make(name).unwrapped
    kind = name.removesuffix("-singletask-v0") + "-play"
    assert task_label(f"{kind}-singletask-v0")[1] == f"task {env._reward_task_id}"
    assert full_env_name(f"{kind}-singletask-v0").endswith(f"task{env._reward_task_id}-v0")
