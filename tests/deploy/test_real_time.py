"""Real-time chunking with the policy of a saved run."""

import contextlib

import numpy as np
import pytest

from qam_jax.deploy.executor import ChunkExecutor, soft_mask
from qam_jax.deploy.policy import load_policy

_OBSERVATION = np.array([0.3, -0.2, 0.5], np.float32)


@pytest.fixture(name="run", scope="module")
def _run(save_run):
    return save_run("qam", horizon_length=4, flow_steps=10)


def test_a_chunk_of_which_nothing_is_known_is_the_policys_own(run):
    known = np.full((4, 2), 0.9, np.float32)
    policy, other = load_policy(run), load_policy(run)
    for _ in range(2):  # with noise of its own for each
        free = other.act_chunk(_OBSERVATION, known, np.zeros(4, np.float32))
        np.testing.assert_allclose(free, policy.act_chunk(_OBSERVATION), atol=1e-6)


def test_the_known_beginning_is_kept_and_the_mask_decides_how_far(run):
    policy = load_policy(run)
    known = np.array([[0.5, -0.4], [0.2, 0.3], [-0.3, 0.1], [0.6, 0.6]], np.float32)
    weights = soft_mask(4, 2, 3)
    chunks = [policy.act_chunk(_OBSERVATION, known, weights) for _ in range(20)]
    errors = np.abs(np.array(chunks) - known).mean(axis=(0, 2))
    own = np.array([policy.act_chunk(_OBSERVATION) for _ in range(20)])
    own_errors = np.abs(own - known).mean(axis=(0, 2))
    assert errors[:2].max() < 0.1 < own_errors.min()
    assert errors[:2].max() < errors[2] < own_errors[2]


def test_in_a_loop_each_chunk_agrees_with_what_is_executed_meanwhile(run):
    rng, policy, errors = np.random.default_rng(0), load_policy(run), []

    def infer(observation, *known):
        chunk = policy.act_chunk(observation, *known)
        if known and known[1].any():
            errors.append(np.abs(chunk - known[0]).mean(axis=1))
        return chunk

    executor = ChunkExecutor(infer, mode="real_time", delay=1, execution_horizon=2)
    with contextlib.closing(executor):
        for _ in range(40):
            executor.act(rng.normal(size=3))
    passed, *later = np.mean(errors, axis=0)
    assert passed < 0.1 < min(later)


def test_a_policy_that_does_not_act_by_an_ode_says_so(save_run):
    policy = load_policy(save_run("fql"))
    assert policy.act_chunk(_OBSERVATION).shape == (2, 2)
    with pytest.raises(ValueError, match="FQL cannot continue known actions here"):
        policy.act_chunk(_OBSERVATION, np.zeros((2, 2)), np.ones(2))


def test_known_actions_that_make_no_sense_are_named(run):
    policy, known, weights = load_policy(run), np.zeros((4, 2)), np.ones(4)
    with pytest.raises(ValueError, match=r"the known actions must be .* shape \(4, 2\)"):
        policy.act_chunk(_OBSERVATION, np.full((4, 2), np.nan), weights)
    with pytest.raises(ValueError, match=r"the weights must be finite numbers of shape \(4,\)"):
        policy.act_chunk(_OBSERVATION, known, np.ones(3))
    with pytest.raises(ValueError, match="give both or neither"):
        policy.act_chunk(_OBSERVATION, known)
