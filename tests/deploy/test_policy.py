import json

import numpy as np
import pytest

import qam_jax
from qam_jax.deploy.policy import load_policy
from qam_jax.files import DamagedError
from qam_jax.runs.saved import load_run
from qam_jax.training.evaluation import make_policy, split_seed

_OBSERVATIONS = np.random.default_rng(0).normal([1, 2, 3], [1, 2, 0.5], (6, 3)).astype(np.float32)


@pytest.fixture(name="evaluated", scope="module")
def _evaluated(qam_run):
    """Chunks that an evaluation with seed 5 executes: `(observation, episode, chunk) -> [H, A]`."""
    run = load_run(qam_run)
    policy = make_policy(run.agent)(run.state, split_seed(5).evaluation)

    def evaluate(observation, *at):
        observations = run.normalization.normalize_observations(observation[None])
        actions = policy(observations, *np.array(at)[:, None])[0]
        return run.normalization.denormalize_actions(actions).clip(-1, 1)

    return evaluate


@pytest.fixture(name="policy", scope="module")
def _policy(qam_run):
    """A policy within a chunk."""
    policy = load_policy(qam_run)
    policy.act(_OBSERVATIONS[0])
    return policy


def test_actions_are_those_of_an_evaluation(qam_run, evaluated):
    """Also in the second episode; a chunk is executed before the next is computed."""
    policy = qam_jax.load_policy(qam_run, seed=5)
    policy.reset()
    actions = [policy.act(observation) for observation in _OBSERVATIONS[:3]]
    policy.reset()  # which drops the rest of a chunk
    actions += [policy.act(observation) for observation in _OBSERVATIONS[3:5]]
    first, second = (evaluated(_OBSERVATIONS[2 * chunk], 0, chunk) for chunk in range(2))
    third = evaluated(_OBSERVATIONS[3], 1, 0)
    np.testing.assert_array_equal(actions, [*first, second[0], *third])
    assert len({tuple(action) for action in actions}) == 5


def test_chunks_alone_are_those_of_an_evaluation_too(qam_run, evaluated):
    policy = load_policy(qam_run, seed=5)
    for chunk, observation in enumerate(_OBSERVATIONS[:2]):
        actions = policy.act_chunk(observation.astype(np.float64))
        np.testing.assert_array_equal(actions, evaluated(observation, 0, chunk))
    other = load_policy(qam_run, seed=6).act_chunk(_OBSERVATIONS[0])
    assert not np.array_equal(other, evaluated(_OBSERVATIONS[0], 0, 0))


def test_actions_without_an_environment_are_those_of_the_data(save_run):
    """Of the second number the data have values from -0.5 to 1.5."""
    policies = [load_policy(save_run("bc", name)) for name in ("Pendulum-v1", "")]
    clipped, free = (
        np.array([policy.act_chunk(each) for each in _OBSERVATIONS]) for policy in policies
    )
    np.testing.assert_array_equal(free.clip(-1, 1), clipped)
    assert free[..., 1].max() > 1
    assert [policy.metadata["actions"] for policy in policies] == [
        "in [-1, 1]", "in the units of the data",
    ]  # fmt: skip


def test_what_a_policy_is_stands_with_it(policy):
    assert (policy.observation_dim, policy.action_shape) == (3, (2, 2))
    assert json.loads(json.dumps(policy.metadata)) == policy.metadata
    assert (policy.metadata["method"], policy.metadata["step"]) == ("QAM", 4)
    assert policy.metadata["env_name"] == "Pendulum-v1"


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(4), r"shape \(4,\) and type float64, expected one vector of 3 real numbers"),
        (np.zeros((1, 3)), r"shape \(1, 3\)"),
        (np.array(["a", "b", "c"]), "type <U1"),
        ([0.0, np.nan, 0.0], "has nan at place 1"),
        (np.array([0.0, 0.0, 1e300]), r"has 1e\+300 at place 2"),
    ],
)
def test_a_wrong_observation_is_named_at_any_step(policy, observation, message):
    for method in (policy.act, policy.act_chunk):
        with pytest.raises(ValueError, match=message):
            method(observation)


def test_what_is_no_policy_is_said(qam_run, tmp_path):
    with pytest.raises(FileNotFoundError, match="give the folder of a run"):
        load_policy(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 5 .* one of the steps \[4\]"):
        load_policy(qam_run, step=5)


def test_an_export_without_its_description_is_refused(tmp_path):
    program = tmp_path / "policy.onnx"
    program.touch()
    with pytest.raises(FileNotFoundError, match="copy the whole folder of the export"):
        load_policy(program)
    (tmp_path / "policy.json").write_text('{"method": "QAM", "action_shape": [5, 2]}')
    with pytest.raises(DamagedError, match=r"is damaged \(step, observation_dim\)"):
        load_policy(tmp_path)
    with pytest.raises(ValueError, match="does not act: give the folder"):
        load_policy(tmp_path / "policy.json")
