"""Offline results beside the figures of other papers, apart by the protocol of the figures.

The table has a row for each method of these runs on each task that a source has figures of. Where
a source has figures of a domain, the row is over the domain's five tasks. Its columns:

- `source` and `protocol` of the figures, the protocol in words;
- `env_name`, the task or the domain, with its `label`;
- `figures`: mean, standard deviation and number of seeds of each published method, in words;
- `method`, `mean` and `num_runs` of these runs;
- `differences`: why this result cannot be held against the figures; empty if it can.
"""

from typing import Any

import pandas as pd

from qam_jax.reports.comparisons import difference_letters
from qam_jax.reports.labels import task_label
from qam_jax.reports.paper_settings import protocol_differences
from qam_jax.reports.published import base_method, other_figures, sources

_TASKS = 5  # of a domain


def beside_other_papers(results: pd.DataFrame) -> pd.DataFrame:
    """Table of the results (of `task_results`) that other papers have figures beside."""
    offline = results[(results["stage"] == "offline") & (results["unit"] == "%")]
    rows = []
    for (source, env_name), figures in other_figures().groupby(["source", "env_name"], sort=False):
        here = offline[(offline["env_name"] == env_name) | (offline["domain"] == env_name)]
        for method, tasks in here.groupby("method", sort=False):
            rows.append(_row(source, env_name, figures, method, tasks))
    return pd.DataFrame(rows).sort_values("protocol", kind="stable") if rows else pd.DataFrame()


def other_papers_view(table: pd.DataFrame) -> dict[str, Any]:
    """Contents of a table with at least one row: rows by protocol, `letters`, and the sources."""
    letters = difference_letters(table)
    table = table.assign(letter=[letters.get(texts, "") for texts in table["differences"]])
    return {
        "protocols": {
            protocol: {name: group.to_dict("records") for name, group in rows.groupby("label")}
            for protocol, rows in table.groupby("protocol", sort=False)
        },
        "letters": {letter: texts for texts, letter in letters.items()},
        "sources": {name: sources()[name] for name in table["source"].unique()},
    }


def source_notes(runs: pd.DataFrame) -> list[str]:
    """Notes on methods and value learnings of these runs whose source has no figures by task."""
    known = {"QAM", *other_figures()["source"]}
    used = {base_method(method) for method in runs["method"]}
    used |= {config["agent"].get("value_learning", "").upper() for config in runs["config"]}
    names = sorted(used & sources().keys() - known)
    return [
        f"{name} (arXiv {sources()[name]['arxiv']}): {sources()[name]['note']}" for name in names
    ]


def _row(
    source: str, env_name: str, figures: pd.DataFrame, method: str, tasks: pd.DataFrame
) -> dict[str, Any]:
    protocol = figures.to_dict("records")[0]
    texts = [
        text
        for result in tasks.itertuples()
        for run in zip(result.configs, result.metadata, strict=True)
        for text in protocol_differences(*run, protocol).values()
    ]
    domain, task = task_label(env_name)
    if domain == task and len(tasks) < _TASKS:
        texts.append(f"{len(tasks)} of the domain's {_TASKS} tasks")
    return {
        "source": source,
        "protocol": _protocol_words(source, protocol),
        "env_name": env_name,
        "label": domain if domain == task else f"{domain} {task}",
        "figures": tuple(_figure_words(figure) for figure in figures.itertuples()),
        "method": method,
        "mean": tasks["mean"].mean(),
        "num_runs": tasks["num_seeds"].min(),
        "differences": tuple(dict.fromkeys(texts)),
    }


def _protocol_words(source: str, protocol: dict[str, Any]) -> str:
    length = protocol["horizon_length"]
    chunks = f"chunks of {length} actions" if length > 1 else "single actions"
    return (
        f"{source}: {protocol['data']} transitions, {protocol['reward']} rewards, {chunks}, "
        f"{protocol['offline_steps']:,} updates"
    )


def _figure_words(figure: Any) -> str:
    spread = "" if pd.isna(figure.std) else f" ± {figure.std:g}"
    return f"{figure.method} {figure.mean:g}{spread} ({figure.num_seeds})"
