"""Algorithms of one's own, which are modules anywhere on Python's path."""

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from qam_jax.agents import algorithm_names, get_config, make_agent

_GREEDY = """
from ml_collections import ConfigDict
from qam_jax.agents import bc

def get_config():
    return ConfigDict({**bc.get_config(), "agent_name": "NAME", "boldness": 2.0})

def make_agent(config):
    agent = bc.make_agent(config)
    def sample_actions(state, observations, key):
        return (config.boldness * agent.sample_actions(state, observations, key)).clip(-1, 1)
    return agent._replace(sample_actions=sample_actions)
"""


@pytest.fixture(name="write")
def _write(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)

    return write


def test_a_module_of_ones_own_is_an_algorithm(write):
    write("greedy_own", _GREEDY.replace("NAME", "greedy_own"))
    config = get_config("greedy_own")
    assert "greedy_own" not in algorithm_names()
    config.update({"actor_hidden_dims": (8,), "horizon_length": 2, "flow_steps": 2})
    agent = make_agent(config)
    timid = make_agent(ConfigDict({**config, "boldness": 0.0}))
    state = agent.init(jax.random.PRNGKey(0), jnp.zeros(3), jnp.zeros(1))
    inputs = state, jnp.ones((4, 3)), jax.random.PRNGKey(1)
    assert agent.sample_actions(*inputs).shape == (4, 2, 1)
    assert (agent.sample_actions(*inputs) != 0).all()
    assert (timid.sample_actions(*inputs) == 0).all()
    config.boldnes = 1.0
    with pytest.raises(
        ValueError, match=r"unknown config field 'boldnes'.*Did you mean 'boldness'"
    ):
        make_agent(config)


def test_fields_of_ones_own_have_no_ranges_but_the_shared_ones_have(write):
    write("far_own", _GREEDY.replace("NAME", "far_own").replace("boldness", "kappa"))
    config = get_config("far_own")
    assert config.kappa == 2.0  # another algorithm's lies in [0, 1]
    make_agent(config)
    config.flow_steps = 0
    with pytest.raises(ValueError, match="'flow_steps' must lie in"):
        make_agent(config)


def test_a_config_without_the_shared_fields_is_refused(write):
    text = _GREEDY.replace("NAME", "bare_own").replace("**bc.get_config(), ", "")
    write("bare_own", text)
    with pytest.raises(ValueError, match=r"lacks the field 'compute_dtype'.*base_config"):
        make_agent(get_config("bare_own"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "nameless_own",
            _GREEDY.replace("NAME", "other"),
            r"must set agent_name to the module's name.*sets 'other'",
        ),
        (
            "empty_own",
            "",
            r"unknown algorithm 'empty_own': the module .*has no function get_config",
        ),
        ("silent_own", "raise KeyError", r"\(KeyError, line 1 of .*silent_own\.py\)"),
        ("broken_own", "1 / 0", r"broken_own\.py\) cannot be imported \(ZeroDivisionError: "),
        (
            "leaving_own",
            "import sys; sys.exit(0)",
            r"\(SystemExit: 0, line 1 of .*leaving_own\.py\)",
        ),
        (
            "void_own",
            "def get_config(): pass\ndef make_agent(config): pass",
            r"must set agent_name .*in a ConfigDict, but sets None",
        ),
    ],
)
def test_modules_that_do_not_fit(write, name, text, message):
    write(name, text)
    with pytest.raises(ValueError, match=message):
        get_config(name)


@pytest.mark.parametrize("name", ["nowhere_own", "nowhere.own", ".own", ""])
def test_names_of_nothing(name):
    with pytest.raises(ValueError, match=r"unknown algorithm .*or name a module of your own"):
        get_config(name)


def test_what_make_agent_returns_is_checked(write):
    write(
        "hollow_own", _GREEDY.replace("NAME", "hollow_own").replace("return agent._re", "agent._re")
    )
    with pytest.raises(ValueError, match=r"make_agent of .*'hollow_own' must return.*NoneType"):
        make_agent(get_config("hollow_own"))
