"""Results of the paper (Li & Levine, arXiv 2601.14234), and of others; README.md has the files."""

import functools
from collections.abc import Iterable
from importlib import resources
from typing import Any

import pandas as pd

from qam_jax.reports.labels import task_label

STUDIES = ("main", "data_quality", "sensitivity")


@functools.cache
def published_results(study: str) -> pd.DataFrame:
    """Table of a published study: a row for each method on each task, success rates in percent.

    Columns: `study`, `env_name`, `method`, `num_seeds`, and for both stages `offline_mean`,
    `offline_std`, `online_mean`, `online_std`; nan where the method lacks the stage; and the
    protocol, see `other_figures`. Raises ValueError if there is no such study.
    """
    if study not in STUDIES:
        raise ValueError(f"unknown study {study!r}: expected one of {', '.join(STUDIES)}.")
    return _with_protocol(_read(f"{study}.csv").assign(study=study, source="QAM"))


@functools.cache
def other_figures() -> pd.DataFrame:
    """Figures of other sources: success rates in percent at the end of the offline stage.

    A row for each method on each task; where `env_name` is a domain, over its five tasks. Columns:
    `source`, `env_name`, `method`, `num_seeds`, `mean` and `std`, nan where it is not known; and
    the protocol: `data` (transitions), `reward`, `horizon_length` (1: no chunks), `offline_steps`.
    """
    return _with_protocol(_read("others.csv"))


@functools.cache
def sources() -> dict[str, dict[str, str]]:
    """Title, arXiv number, and a note on origin and reservations, of each source of figures."""
    return _read("sources.csv").set_index("source").to_dict("index")


def published_result(env_name: str, method: str) -> Any:
    """Row of `published_results` for a label, or else its method, on a task; None if absent."""
    rows = _by_task_and_method()
    return rows.get((env_name, method)) or rows.get((env_name, base_method(method)))


@functools.cache
def published_methods() -> list[str]:
    """Methods of the main study, in the order of the paper's table."""
    return list(published_results("main")["method"].unique())


def method_order(label: str) -> str:
    """Sorting key of a label: the paper's methods, each before its variants, then all others."""
    methods, method = published_methods(), base_method(label)
    place = methods.index(method) if method in methods else len(methods)
    return f"{place:02d} {label}"


def ordered_methods(labels: Iterable[str]) -> list[str]:
    """Different labels in the order of tables, see `method_order`."""
    return sorted(set(labels), key=method_order)


def base_method(label: str) -> str:
    """Method of a variant's label, such as `QAM-E` of `QAM-E (T=3)`."""
    return label.split(" (")[0].removesuffix("-NOCLIP")


def sort_key(column: pd.Series) -> pd.Series:
    """Key for `sort_values`: methods in the order of tables, all else as it is."""
    return column.map(method_order) if column.name == "method" else column


def _with_protocol(figures: pd.DataFrame) -> pd.DataFrame:
    """Figures with the columns of their source's protocol in their domain."""
    figures = figures.assign(domain=[task_label(name)[0] for name in figures["env_name"]])
    by = ["source", "domain"]
    both = figures.merge(_read("protocols.csv"), "left", on=by, validate="many_to_one")
    return both.drop(columns="domain")


def _read(name: str) -> pd.DataFrame:
    with resources.files(__name__).joinpath(name).open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype={"arxiv": str})


@functools.cache
def _by_task_and_method() -> dict[tuple[str, str], Any]:
    rows = (row for study in STUDIES for row in published_results(study).itertuples())
    return {(row.env_name, row.method): row for row in rows}
