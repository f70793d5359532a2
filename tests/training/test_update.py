from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax.agents import make_agent
from qam_jax.data.dataset import make_dataset, sample_windows
from qam_jax.runs.saved import init_state
from qam_jax.training.devices import Layout
from qam_jax.training.update import (
    NotFiniteError,
    averages,
    check_finite,
    check_finite_run,
    empty_sums,
    make_block,
    make_update_step,
    metric_names,
)


@pytest.mark.parametrize(
    "returned", [None, ("state", jnp.zeros(2)), ("state", {"loss": jnp.zeros(2)})]
)
def test_an_update_that_returns_something_else_is_named(small_config, returned):
    config = small_config()
    agent = make_agent(config)
    state = init_state(agent, jax.random.PRNGKey(0), 3, 2)
    result = returned and (state, returned[1])
    with pytest.raises(ValueError, match=r"update of the algorithm 'qam' must return .*one number"):
        metric_names(agent._replace(update=lambda *_: result), state, config, 3)


@pytest.fixture(name="parts", scope="module")
def _parts(small_config):
    """An agent, copies of its first state and of empty sums, a sampler, and a dataset."""
    rng = np.random.default_rng(0)
    data = {
        "observations": rng.normal(size=(50, 3)),
        "actions": rng.uniform(-1, 1, size=(50, 2)),
        "rewards": -np.ones(50),
        "terminals": np.eye(50)[-1] + np.eye(50)[20],
    }
    config = small_config()
    agent = make_agent(config)
    first = init_state(agent, jax.random.PRNGKey(0), 3, 2)
    sums = empty_sums(metric_names(agent, first, config, 3))

    def sample(dataset, key):
        return sample_windows(
            dataset, key, config.batch_size, config.horizon_length, config.discount
        )

    def start():
        return jax.tree.map(jnp.copy, (first, sums))

    return agent, start, sample, make_dataset(data)


def test_blocks_of_any_length_give_the_same_state_and_tally(parts):
    agent, start, sample, dataset = parts
    key = jax.random.PRNGKey(7)
    block = make_block(agent, sample, Layout([0]))

    def run(lengths):
        state, sums = start()
        for length in lengths:
            state, sums = block(state, sums, key, dataset, length)
        return state, sums

    whole = run([6])
    jax.tree.map(np.testing.assert_array_equal, whole, run([1, 3, 2]))
    # The same again by single updates, which also gives the metrics that were tallied.
    (state, _), update, rows = start(), make_update_step(agent), []
    for step in range(6):
        state, metrics = update(state, sample(dataset, jax.random.fold_in(key, step)))
        rows.append(metrics)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), whole[0].params, state.params
    )
    means = averages(whole[1])
    np.testing.assert_allclose(means["loss"], np.mean([row["loss"] for row in rows]), rtol=1e-4)
    np.testing.assert_allclose(means["q_min"], min(row["q_min"] for row in rows), rtol=1e-4)
    np.testing.assert_allclose(means["q_max"], max(row["q_max"] for row in rows), rtol=1e-4)
    check_finite_run(0, whole[1], whole[0].params)


@pytest.mark.slow
def test_runs_side_by_side_are_the_runs_that_they_would_be_alone(parts):
    agent, start, sample, dataset = parts
    layout = Layout([4, 5, 6])
    keys = [jax.random.PRNGKey(seed) for seed in layout.seeds]
    states = [init_state(agent, key, 3, 2) for key in keys]
    _, sums = start()
    block = make_block(agent, layout.map(sample, (None, 0)), layout)
    together = layout.join(states), layout.join([sums] * 3)
    for counts in (2, jnp.array([1, 0, 3])):
        together = block(*together, layout.join(keys), dataset, counts)
    for index, count in enumerate([3, 2, 5]):
        alone = make_block(agent, sample, Layout([0]))
        expected = alone(states[index], start()[1], keys[index], dataset, count)
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5),
            layout.pick(together, index),
            expected,
        )


def test_of_runs_side_by_side_the_one_that_went_wrong_is_named(parts):
    layout = Layout([7, 8])
    state, sums = parts[1]()
    states, all_sums = layout.join([state, state]), layout.join([sums, sums])
    check_finite(all_sums, states.params, layout)
    broken = state.replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))
    with pytest.raises(NotFiniteError, match="seed 8: training went wrong: the parameter"):
        check_finite(all_sums, layout.put(states, 1, broken).params, layout)
    bad = sums._replace(bad_update=jnp.int32(3))
    with pytest.raises(NotFiniteError, match=r"seed 7: .* is not finite at update 3"):
        check_finite(layout.put(all_sums, 0, bad), states.params, layout)


def test_the_first_metric_that_is_not_finite_is_named_with_its_update(parts):
    agent, start, sample, dataset = parts

    def explode(state, batch):
        state = state.replace(step=state.step + 1)
        bad = jnp.where(state.step >= 3, jnp.inf, 0.0)
        worse = jnp.where(state.step >= 4, jnp.nan, 0.0)
        return state, {"bc_loss": bad, "loss": worse}

    exploding = agent._replace(update=explode)
    block, key = make_block(exploding, sample, Layout([0])), jax.random.PRNGKey(0)
    state, sums = block(start()[0], empty_sums(["bc_loss", "loss"]), key, dataset, 2)
    check_finite_run(0, sums, state.params)
    state, sums = block(state, sums, key, dataset, 4)
    with pytest.raises(NotFiniteError, match="metric 'bc_loss' is not finite at update 3"):
        check_finite_run(0, sums, state.params)


def test_a_parameter_that_is_not_finite_is_named(parts):
    state, sums = parts[1]()
    kernel = state.params["flow"]["MLP_0"]["Dense_1"]["kernel"]
    state.params["flow"]["MLP_0"]["Dense_1"]["kernel"] = kernel.at[0, 0].set(jnp.nan)
    with pytest.raises(NotFiniteError, match="parameter 'flow/MLP_0/Dense_1/kernel' is not finite"):
        check_finite_run(0, sums, state.params)


def test_no_updates_have_no_averages():
    assert averages(empty_sums(["loss", "q_min"])) == {}
