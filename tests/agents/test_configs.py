"""Configs: what they hold, and what is refused."""

import pytest
from ml_collections import ConfigDict

from qam_jax.agents import algorithm_names, get_config, make_agent


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent_name": "sac"}, "unknown algorithm 'sac'.*bc, .*qam"),
        ({"inv_tmp": 3.0}, "unknown config field 'inv_tmp'.*Did you mean 'inv_temp'"),
        ({"fql_alpha": 1.0, "edit_scale": 0.1}, "exclude each other"),
        ({"discount": 1.5}, "'discount' must lie in"),
        ({"flow_steps": 0}, "'flow_steps' must lie in"),
        ({"compute_dtype": "float16"}, "'compute_dtype' must be one of float32, bfloat16, got"),
        ({"num_qs": 0}, "'num_qs' must lie in"),
        ({"kappa": 1.5}, "'kappa' must lie in"),
        (
            {"value_learning": "sarsa"},
            "'value_learning' must be one of td, iql, divl, lql, got 'sarsa'",
        ),
        ({"value_learning": "lql", "batch_size": 6}, "'batch_size' must be a multiple of 'lql_ch"),
        ({"value_learning": "lql", "action_chunking": False}, "set action_chunking to True"),
        ({"divl_atoms": 1}, "'divl_atoms' must lie in"),
        ({"value_learning": "divl", "divl_support": (3.0, 1.0)}, "'divl_support' must hold the"),
        ({"value_learning": "divl", "discount": 1.0}, "'divl_support' must be given"),
        (
            {"value_learning": "divl", "divl_level_min": 0.7, "divl_level_max": 0.6},
            "'divl_level_min' must be at most",
        ),
        ({"actor_hidden_dims": (16, 0)}, "'actor_hidden_dims' must hold whole numbers above 0"),
        ({"actor_hidden_dims": (True,)}, "'actor_hidden_dims' must hold whole numbers above 0"),
    ],
)
def test_bad_configs_fail_at_construction(changes, message):
    config = get_config("qam")
    with config.unlocked():
        config.update(changes)
    with pytest.raises(ValueError, match=message):
        make_agent(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", "fast"),
        ("batch_size", 8.0),
        ("num_qs", True),
        ("actor_hidden_dims", 8),
        ("rho", None),
    ],
)
def test_values_of_another_type_fail_at_construction(name, value):
    config = ConfigDict({**get_config("qam"), name: value})
    with pytest.raises(ValueError, match=f"'{name}' must be of type"):
        make_agent(config)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("bc", "no critic"), ("rql", "partly generated"), ("fan", "conditioned on noise")],
)
def test_methods_say_why_they_have_no_choice_of_value_learning(name, reason):
    config = get_config(name)
    with config.unlocked():
        config.value_learning = "iql"
    with pytest.raises(ValueError, match=f"'{name}' has no choice of value_learning.*{reason}"):
        make_agent(config)


def test_methods_learn_values_by_default_as_they_always_did():
    others = {"ifql": "iql", "qgf": "iql", "edp": "iql", "bc": None, "rql": None, "fan": None}
    for name in algorithm_names():
        assert get_config(name).get("value_learning") == others.get(name, "td"), name


def test_missing_fields_fail_at_construction():
    config = get_config("qam")
    with config.unlocked():
        del config.rho
    with pytest.raises(ValueError, match="lacks the field 'rho'"):
        make_agent(config)


def test_defaults_are_those_of_the_paper():
    config = get_config("qam")
    expected = {
        "actor_hidden_dims": (512,) * 4, "critic_hidden_dims": (512,) * 4, "num_qs": 10,
        "rho": 0.5, "flow_steps": 10, "lr": 3e-4, "tau": 0.005, "batch_size": 256,
        "clip_grad_norm": 1.0, "discount": 0.99, "horizon_length": 5, "action_chunking": True,
        "critic_layer_norm": True, "actor_layer_norm": False, "best_of_n": 1,
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
