"""Runs of a study that are not among those that there are."""

from collections.abc import Iterable, Sequence

from qam_jax.reports.collect import Run
from qam_jax.reports.labels import full_env_name, method_name
from qam_jax.reports.published import STUDIES, published_results

Key = tuple[str, str, int]
"""A run's method, by its label, its task's full name, and its seed."""


def absent_runs(study: str, runs: Sequence[Run]) -> list[Key]:
    """The runs of a study that there are not.

    Runs of a published study are known by their methods. Those of any other are known by their
    folders, which have the names that `sweep.py` gives them, or by their methods where the study
    has no variants.

    Args:
      study: a published or named one, or the path of a .toml file, as `sweep.py` takes it.
      runs: those that were found.

    Raises:
      ValueError: if there is no such study, or its file is not one.
    """
    known = {(run.method, run.env_name, run.seed) for run in runs}
    if study in STUDIES:
        return [key for key in _published(study) if key not in known]
    folders = {(run.env_name, run.folder.name) for run in runs}
    return [
        key
        for key, run_id in _own(study, runs)
        if (key[1], run_id) not in folders and key not in known
    ]


def _published(study: str) -> Iterable[Key]:
    for result in published_results(study):
        for seed in range(result.num_seeds):
            yield result.method, result.env_name, seed


def _own(study: str, runs: Iterable[Run]) -> Iterable[tuple[Key, str]]:
    """The runs of a named study or a file, each with the name of its folder."""
    from qam_jax.sweeps.studies import load_study  # slow, so only where it is needed

    loaded = load_study(study)
    labels = {
        (run.env_name, run.folder.name.removesuffix(f"-seed{run.seed}")): run.method for run in runs
    }
    for env_name in map(full_env_name, loaded.env_names):
        for method in loaded.methods:
            for variant in loaded.variants:
                base = "-".join(filter(None, [method, variant.name]))
                name = method_name({"agent_name": method})
                label = f"{name} ({variant.name})" if variant.name else name
                label = labels.get((env_name, base), label)
                for seed in loaded.seeds:
                    yield (label, env_name, seed), f"{base}-seed{seed}"
