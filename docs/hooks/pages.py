"""Pages that are made from the code when the site is built, so that they are always up to date."""

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import qam_jax
from qam_jax import agents
from qam_jax.agents import base, values
from qam_jax.runs.settings import DataSettings, ProcessSettings, RunSettings

_ROOT = Path(__file__).parents[2]
_CORE = [f"qam_jax.{name}" for name in ("flow", "adjoint", "critic", "diffusion", "types")]
_TITLES = {"core": "The core", "shared": "Shared by all layers"}
_COMMANDS = (
    "evaluate", "export", "serve", "report", "watch", "sweep", "generate_dataset",
    "record_dataset", "inspect_data",
)  # fmt: skip
_FUNCTION = re.compile(r"\[`([\w.]+)`\]\((?:\.\./)+qam_jax/([\w/]+)\.py\)")
_FILE = re.compile(
    r"\]\((?!examples/)(?:docs/|((?:\.\./)+)(?:qam_jax/runs/)?(?=settings|CON|CHANGE))?"
    r"((?:\.\./)*(?:\w+/)*\w+)\.(?:md|py)"
)


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages to the site."""
    pages = {"settings.md": settings_page(), **reference_pages()}
    for name in ("CONTRIBUTING", "CHANGELOG"):
        pages[f"{name.lower()}.md"] = (_ROOT / f"{name}.md").read_text(encoding="utf-8")
    for path in sorted((_ROOT / "docs" / "tutorials").glob("*.py")):
        pages[f"tutorials/{path.stem}.md"] = tutorial_page(path.read_text(encoding="utf-8"))
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Turns links to files of the repository into links to pages of the site."""
    up = "../" * page.file.src_uri.count("/")

    def link(match: re.Match) -> str:
        return f"]({up if match[1] else ''}{match[2].lower()}.md"

    return _FILE.sub(link, _FUNCTION.sub(_reference, markdown))


def _reference(link: re.Match) -> str:
    text, path, name = link[1], link[2], link[1].rpartition(".")[2]
    return f"[`{text}`][qam_jax.{path.replace('/', '.')}.{name}]"


def tutorial_page(script: str) -> str:
    """Page of a script in cells: `# %%` for code, `# %% [markdown]` for prose."""
    parts = []
    for cell in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        head, _, body = cell.partition("\n")
        prose = head.strip() == "[markdown]"
        body = re.sub(r"^# ?", "", body, flags=re.MULTILINE) if prose else body
        parts.append(body.strip() if prose else f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


# ------------------------------------------------------------------------------------- settings


def settings_page() -> str:
    """Page of all flags of all commands, and of all fields of all algorithms."""
    data = dataclasses.fields(DataSettings)
    inherited = {field.name for field in data}
    own = [field for field in dataclasses.fields(RunSettings) if field.name not in inherited]
    config = ("`--config`", "", "File with the algorithm's config, such as one of `configs/`.")
    parts = [
        "# Every flag and field",
        "This page is made from the code. Fields of the algorithm are given as "
        "`--config.<field>=<value>`.",
        "## Training: the run",
        "Flags of `train_offline.py` and `finetune_online.py`; in Python, "
        "[`RunSettings`][qam_jax.runs.settings.RunSettings].",
        "Defaults are the library's. `train_offline.py` without `--config` takes "
        "`configs/quickstart.py`, 20,000 updates and shorter intervals. `finetune_online.py` has "
        "0 updates offline and 500,000 steps online.",
        _table([config, *map(_setting_row, own)]),
        "## Training: several processes",
        "See [Several devices, several processes](clusters.md).",
        _table(map(_setting_row, dataclasses.fields(ProcessSettings))),
        "## Training: the data",
        _table(map(_setting_row, data)),
        "## The algorithm",
        *_config_parts(),
        "## Other commands",
    ]
    for name in _COMMANDS:
        parts += [f"### {name}.py", _table(_flags_of(name))]
    return "\n\n".join(parts) + "\n"


def _setting_row(field: dataclasses.Field) -> tuple[str, str, str]:
    return f"`--{field.name}`", _code(field.default), field.metadata["help"]


def _flags_of(command: str) -> Iterator[tuple[str, str, str]]:
    """Rows for the flags of a command, from its own help."""
    script = str(_ROOT / "experiments" / f"{command}.py")
    output = subprocess.run([sys.executable, script, "--helpxml"], capture_output=True).stdout
    for flag in ElementTree.fromstring(output).iter("flag"):
        if flag.findtext("key") == "yes" and flag.findtext("file") != "absl.app":
            default = flag.findtext("default") or ""
            meaning = " ".join(flag.findtext("meaning").split())
            meaning = meaning.removesuffix("; repeat this option to specify a list of values")
            default = "" if default in ("None", "[]") else default
            yield f"`--{flag.findtext('name')}`", _code(default), meaning


def _config_parts() -> Iterator[str]:
    """Tables of the algorithms' fields: shared fields first, then each algorithm's own."""
    notes = _comments(base) | _comments(values)
    for _, module in inspect.getmembers(values, inspect.ismodule):
        notes |= _comments(module)
    common = base.base_config()
    critic = {name: v for name, v in base.critic_config().items() if name not in common}
    yield "### Fields of all algorithms"
    yield _field_table(common, notes)
    yield "### Fields of all algorithms with a critic"
    yield _field_table(critic, notes)
    yield "### Fields of the value learnings"
    yield "See [Value learning and policy extraction](values.md)."
    yield _field_table(values.FIELDS, notes)
    yield "### Fields of single algorithms"
    yield "These tables also have the fields whose default differs from the tables above."
    for name in agents.algorithm_names():
        config = agents.get_config(name)
        shared = {**common, **critic, **(values.FIELDS if "value_learning" in config else {})}
        fields = config.items()
        own = {key: value for key, value in fields if shared.get(key, value) != value}
        own |= {key: value for key, value in fields if key not in {*shared, "agent_name"}}
        if own:
            yield f"#### {name}"
            yield _field_table(dict(sorted(own.items())), notes | _comments(_module(name)))


def _module(agent_name: str) -> ModuleType:
    """Module of an algorithm; a variant is in the module before the underscore of its name."""
    return getattr(agents, agent_name, None) or getattr(agents, agent_name.split("_")[0])


def _comments(module: ModuleType) -> dict[str, str]:
    """Comment behind each field in the config of a module."""
    pattern = re.compile(r'^ +"?(\w+)(?:": |=).*?,  # (.+)$', re.MULTILINE)
    return dict(pattern.findall(inspect.getsource(module)))


def _field_table(fields: dict[str, Any], notes: dict[str, str]) -> str:
    for name in fields:
        if name not in notes:
            raise ValueError(f"the config field {name!r} has no comment that says what it is.")
    return _table((f"`{name}`", _code(value), notes[name]) for name, value in fields.items())


def _code(value: Any) -> str:
    """Default as it would be typed; nothing for an empty one."""
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{text}`" if text else ""


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
    lines = [("name", "default", "meaning"), ("---", "---", "---"), *rows]
    cells = [[cell.replace("|", "\\|").replace("<", "&lt;") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


# ------------------------------------------------------------------------------------ reference


def reference_pages() -> dict[str, str]:
    """Pages of the reference: one for each layer, with all of its public modules."""
    layers: dict[str, list[str]] = {"core": _CORE, "shared": []}
    for module in pkgutil.walk_packages(qam_jax.__path__, "qam_jax."):
        parts = module.name.split(".")[1:]
        layer = parts[0] if len(parts) > 1 or module.ispkg else "shared"
        empty = not Path(importlib.util.find_spec(module.name).origin).read_text().strip()
        if not (empty or module.name in _CORE or any(part.startswith("_") for part in parts)):
            layers.setdefault(layer, []).append(module.name)
    return {
        f"reference/{layer}.md": "\n\n".join(
            [f"# {_TITLES.get(layer, f'qam_jax.{layer}')}", *(f"::: {name}" for name in modules)]
        )
        + "\n"
        for layer, modules in layers.items()
    }
