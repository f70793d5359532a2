import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from qam_jax.agents import get_config, make_agent
from qam_jax.data.normalization import Normalization
from qam_jax.runs.saved import SavedRun, change_policy, init_state


def _run(agent_name, **changes):
    config = get_config(agent_name)
    config.update({"actor_hidden_dims": (8,), "flow_steps": 2, **changes})
    if "critic_hidden_dims" in config:
        config.critic_hidden_dims = (8,)
    agent = make_agent(config)
    state = init_state(agent, jax.random.PRNGKey(0), 3, 2)
    return SavedRun(ConfigDict({"agent": config}), agent, state, 4, Normalization.identity(3, 2))


def _act(run):
    observations = jnp.linspace(-1, 1, 12).reshape(4, 3)
    return run.agent.sample_actions(run.state, observations, jax.random.PRNGKey(1))


def test_best_of_n_is_as_if_the_run_had_been_trained_with_it():
    run = _run("qam")
    assert change_policy(run) is run
    best = _act(change_policy(run, best_of_n=3))
    np.testing.assert_array_equal(best, _act(_run("qam", best_of_n=3)._replace(state=run.state)))
    assert not np.array_equal(best, _act(run))
    assert run.config.agent.best_of_n == 1


def test_guidance_and_best_of_n_go_together():
    run = _run("qam")
    guided = _act(change_policy(run, guidance=0.5))
    both = _act(change_policy(run, guidance=0.5, best_of_n=3))
    assert guided.shape == both.shape == (4, 5, 2)
    assert not np.array_equal(guided, both)


def test_what_a_run_lacks_is_said():
    cloned = _run("bc")
    with pytest.raises(ValueError, match="'bc' has none at step 4"):
        change_policy(cloned, best_of_n=2)
    with pytest.raises(ValueError, match="'bc' has no critic"):
        change_policy(cloned, guidance=0.1)
    begun = _run("qam")._replace(agent=cloned.agent, state=cloned.state)  # a cloning stage
    with pytest.raises(ValueError, match="'qam' has none at step 4"):
        change_policy(begun, best_of_n=2)
    with pytest.raises(ValueError, match="'fan' has none at step 4"):
        change_policy(_run("fan"), best_of_n=2)
    with pytest.raises(ValueError, match=r"'best_of_n' must lie in \[1, inf\], got 0"):
        change_policy(_run("qam"), best_of_n=0)
