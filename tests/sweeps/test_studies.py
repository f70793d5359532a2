import dataclasses

import pytest

from qam_jax.runs.presets import paper_domains, paper_methods
from qam_jax.sweeps.studies import (
    Study,
    choose,
    flag_text,
    load_study,
    parse_numbers,
    parse_study,
    study_names,
)


def _runs(study):
    return len(study.methods) * len(study.env_names) * len(study.seeds) * len(study.variants)


@pytest.mark.parametrize(
    ("name", "runs", "group"),
    [
        ("main", 50 * 19 * 12, "main"),
        ("data_quality", 30 * 7 * 12, "data_quality"),
        ("sensitivity", 10 * 10 * 12, "sensitivity"),
        ("rlpd", 50 * 12, "main"),
    ],
)
def test_the_papers_studies(name, runs, group):
    study = load_study(name)
    assert (_runs(study), study.group, study.preset) == (runs, group, "paper")


def test_together_they_have_all_domains_and_methods():
    domains = {
        env_name.partition("-singletask")[0]
        for name in study_names()
        for env_name in load_study(name).env_names
    }
    assert domains == set(paper_domains())
    assert load_study("main").methods == tuple(paper_methods())
    assert load_study("rlpd").env_names == load_study("main").env_names


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        methods = ["qam", "fql"]
        env_names = ["Pendulum-v1"]
        domains = ["scene-play"]
        tasks = [2]
        seeds = [3, 5]
        flags = { offline_steps = 7, config.lr = 0.001 }
        grid = { "config.num_qs" = [2, 10], sparse = [true] }
        """
    )
    study = load_study(str(path))
    assert study.env_names == ("Pendulum-v1", "scene-play-singletask-task2-v0")
    assert (study.name, study.group, study.seeds) == ("mine", "mine", (3, 5))
    assert study.flags == {"offline_steps": 7, "config.lr": 0.001}
    assert [variant.name for variant in study.variants] == [
        "num_qs=2-sparse=true", "num_qs=10-sparse=true",
    ]  # fmt: skip
    assert study.variants[1].flags == {"config.num_qs": 10, "sparse": True}


def test_a_file_may_be_like_a_named_study():
    study = parse_study("mine", 'like = "sensitivity"\nseeds = 2')
    expected = dataclasses.replace(load_study("sensitivity"), name="mine", group="mine")
    assert study == dataclasses.replace(expected, seeds=(0, 1))


_FIELDS = 'methods = ["qam"]\nenv_names = ["Pendulum-v1"]\nseeds = 1\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods = [", "the study 'mine': Invalid value"),
        ('methods = ["qam"]\nseeds = 1', "no domains or env_names"),
        ('methods = ["sac"]\nseeds = 1', "unknown algorithm 'sac'"),
        ('env_names = ["Pendulum-v1"]\nseeds = 1', "no methods: there would be no run"),
        (f"{_FIELDS}sedes = 1", "there is no field 'sedes'; there are name, methods, seeds"),
        (f"{_FIELDS}tasks = [6]", "numbers from 1 to 5, got .6."),
        (f'{_FIELDS}domains = "scene-play"', "domains must be a list of names"),
        (_FIELDS.replace("1\n", '["a"]\n'), "seeds must be a list of whole numbers"),
        (_FIELDS.replace("seeds = 1\n", "seeds = 0\n"), "no seeds"),
        (_FIELDS.replace("seeds = 1\n", "seeds = true\n"), "seeds must be a list of whole"),
        (_FIELDS.replace("seeds = 1\n", "seeds = 99999999999\n"), "seeds must be at most"),
        (_FIELDS.replace('["qam"]', "5"), "methods must be a list of names, got 5"),
        (f"{_FIELDS}flags = 3", "flags must be a table"),
        (f"{_FIELDS}grid = {{ sparse = true }}", "sparse must have a list of values"),
        (f"{_FIELDS}variants = [{{ flag = 1 }}]", "a variant is a table with name, .*flag"),
        (f"{_FIELDS}variants = [3]", "a variant is a table"),
        (f"{_FIELDS}variants = [{{}}, {{}}]", "the names of variants must differ"),
        (f'{_FIELDS}like = "maim"', "there is no study 'maim': there are data_quality, main"),
    ],
)
def test_files_that_are_not_studies(text, message):
    with pytest.raises(ValueError, match=message):
        parse_study("mine", text)


def test_a_study_that_is_no_text_is_named(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"cannot read the study '.*mine\.toml': 'utf-8' codec"):
        load_study(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("name", ["maim", "/nowhere/mine.toml"])
def test_studies_that_are_not_there(name):
    with pytest.raises(ValueError, match=f"study '{name}'"):
        load_study(name)


def test_choosing_part_of_a_study():
    study = choose(
        load_study("main"), methods=["qam*", "fql"], domains=["cube-*"], tasks=[2], seeds=[0, 11]
    )
    assert study.methods == ("fql", "qam", "qam_e", "qam_f")
    assert study.env_names == tuple(
        f"cube-{size}-play-singletask-task2-v0" for size in ("double", "triple", "quadruple")
    )
    assert study.seeds == (0, 11)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"methods": ["sac"]}, "--methods: the study has no 'sac'; it has bam"),
        ({"domains": ["cube-single-play"]}, "--domains: .*cube-double-play"),
        ({"tasks": [2, 7]}, "--tasks: the study has no 7; it has 1, 2, 3, 4, 5"),
        ({"seeds": [12]}, "--seeds: the study has no 12; it has 0, 1"),
    ],
)
def test_choosing_what_the_study_does_not_have(wanted, message):
    with pytest.raises(ValueError, match=message):
        choose(load_study("main"), **wanted)


def test_numbers_and_values_as_they_are_written():
    assert parse_numbers("0-3,7") == [0, 1, 2, 3, 7]
    assert parse_numbers("") == []
    with pytest.raises(ValueError, match=r"such as 0-3,7, got '1-x'"):
        parse_numbers("1-x")
    with pytest.raises(ValueError, match=r"ranges upwards, such as 0-3,7, got '0,5-2'"):
        parse_numbers("0,5-2")
    with pytest.raises(ValueError, match="at most 100,000 numbers, got '0-99999999999'"):
        parse_numbers("0-99999999999")
    values = {True: "true", 3: "3", 0.1: "0.1", (16, 16): "(16, 16,)", (8,): "(8,)", "a b": "a b"}
    assert {value: flag_text(value) for value in values} == values


def test_combinations_of_variants_and_grid():
    study = Study(
        name="mine", methods=["qam"], env_names=["Pendulum-v1"], seeds=1,
        variants=[{"name": "a", "scale": {"config.inv_temp": 2.0}}, {"name": "b"}],
        grid={"config.actor_hidden_dims": [(16, 16), (8,)]},
    )  # fmt: skip
    names = [variant.name for variant in study.variants]
    assert names == [
        f"{name}-actor_hidden_dims={size}" for name in ("a", "b") for size in ("16x16", "8")
    ]
    assert study.variants[1].scale == {"config.inv_temp": 2.0}
