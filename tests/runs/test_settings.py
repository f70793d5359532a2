import dataclasses

from qam_jax.runs.settings import ROLES, RunSettings, names_with_role


def test_every_setting_has_a_role():
    for field in dataclasses.fields(RunSettings):
        assert field.metadata["role"] in ROLES, f"{field.name} needs one of the roles {list(ROLES)}"


def test_roles_divide_the_settings():
    names = [name for role in ROLES for name in names_with_role(role)]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(RunSettings))
    assert {"env_name", "dataset", "sparse"} <= names_with_role("result")
    assert {"normalize_observations", "reward_scale"} <= names_with_role("result")
    assert {"overlap_evaluation", "compilation_cache_dir"} <= names_with_role("free")


def test_the_share_of_the_dataset_is_given_by_either_setting():
    given = [{}, {"balanced_sampling": True}, {"balanced_sampling": True, "offline_ratio": 0.0}]
    assert [RunSettings(**each).offline_share for each in given] == [None, 0.5, 0.0]
