import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax.agents import get_config, make_agent
from qam_jax.data.dataset import make_dataset, sample_windows
from qam_jax.training.updates import NotFiniteError, UpdateBlock, averages, check_finite


def _config():
    config = get_config("qam")
    small = {"actor_hidden_dims": (8,), "critic_hidden_dims": (8,), "num_qs": 2}
    config.update({**small, "flow_steps": 2, "batch_size": 8})
    return config


@pytest.fixture(name="parts")
def _parts():
    """An agent, its first state, a block of updates, and a dataset."""
    rng = np.random.default_rng(0)
    data = {
        "observations": rng.normal(size=(50, 3)),
        "actions": rng.uniform(-1, 1, size=(50, 2)),
        "rewards": -np.ones(50),
        "terminals": np.eye(50)[-1] + np.eye(50)[20],
    }
    config = _config()
    agent = make_agent(config)

    def sample(dataset, key):
        return sample_windows(dataset, key, config.batch_size, 5, config.discount)

    def state():
        return agent.init(jax.random.PRNGKey(0), jnp.zeros(3), jnp.zeros(2))

    return agent, state, sample, make_dataset(data)


def test_blocks_of_any_length_give_the_same_state_and_tally(parts):
    agent, init, sample, dataset = parts
    key = jax.random.PRNGKey(7)
    block = UpdateBlock(agent, key, sample)

    def run(lengths):
        state = init()
        tally = block.empty_tally(state, dataset)
        for length in lengths:
            state, tally = block(state, tally, dataset, length)
        return state, tally

    whole = run([6])
    jax.tree.map(np.testing.assert_array_equal, whole, run([1, 3, 2]))
    # The same again by single updates, which also gives the metrics that were tallied.
    state, update, rows = init(), jax.jit(agent.update), []
    for step in range(6):
        state, metrics = update(state, sample(dataset, jax.random.fold_in(key, step)))
        rows.append(metrics)
    means = averages(whole[1])
    np.testing.assert_allclose(means["loss"], np.mean([row["loss"] for row in rows]), rtol=1e-4)
    np.testing.assert_allclose(means["q_min"], min(row["q_min"] for row in rows), rtol=1e-4)
    np.testing.assert_allclose(means["q_max"], max(row["q_max"] for row in rows), rtol=1e-4)
    check_finite(whole[1], whole[0].params)


def test_the_first_metric_that_is_not_finite_is_named_with_its_update(parts):
    agent, init, sample, dataset = parts

    def explode(state, batch):
        state, metrics = agent.update(state, batch)
        bad = jnp.where(state.step >= 3, jnp.inf, 0.0)
        worse = jnp.where(state.step >= 4, jnp.nan, 0.0)
        return state, metrics | {"bc_loss": metrics["bc_loss"] + bad, "loss": worse}

    block = UpdateBlock(agent._replace(update=explode), jax.random.PRNGKey(0), sample)
    state = init()
    state, tally = block(state, block.empty_tally(state, dataset), dataset, 2)
    check_finite(tally)
    state, tally = block(state, tally, dataset, 4)
    with pytest.raises(NotFiniteError, match="metric 'bc_loss' is not finite at update 3"):
        check_finite(tally)


def test_a_parameter_that_is_not_finite_is_named(parts):
    agent, init, sample, dataset = parts
    state = init()
    tally = UpdateBlock(agent, jax.random.PRNGKey(0), sample).empty_tally(state, dataset)
    kernel = state.params["flow"]["MLP_0"]["Dense_1"]["kernel"]
    state.params["flow"]["MLP_0"]["Dense_1"]["kernel"] = kernel.at[0, 0].set(jnp.nan)
    with pytest.raises(NotFiniteError, match="parameter 'flow/MLP_0/Dense_1/kernel' is not finite"):
        check_finite(tally, state.params)


def test_no_updates_have_no_averages(parts):
    agent, init, sample, dataset = parts
    block = UpdateBlock(agent, jax.random.PRNGKey(0), sample)
    assert averages(block.empty_tally(init(), dataset)) == {}
