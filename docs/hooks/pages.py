"""Pages that are made of the code when the site is built, so that they cannot fall behind it."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mkdocs.structure.files import File, Files

import qam_jax
from qam_jax import agents
from qam_jax.agents import base
from qam_jax.runs.settings import DataSettings, HostSettings, RunSettings

_ROOT = Path(__file__).parents[2]
_CORE = ("flow", "adjoint", "critic", "diffusion", "types")  # in this order
_TITLES = {"core": "The core", "shared": "What layers share"}
_COMMANDS = ("evaluate", "report", "watch", "sweep", "generate_dataset")


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages."""
    pages = {"settings.md": settings_page(), **reference_pages()}
    for name in ("CONTRIBUTING", "CHANGELOG"):
        text = (_ROOT / f"{name}.md").read_text(encoding="utf-8")
        text = text.replace("](docs/", "](")
        pages[f"{name.lower()}.md"] = re.sub(r"\]\((tutorials/\w+)\.py\)", r"](\1.md)", text)
    for path in sorted((_ROOT / "docs" / "tutorials").glob("*.py")):
        pages[f"tutorials/{path.stem}.md"] = tutorial_page(path.read_text(encoding="utf-8"))
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts code where a page names it: `!!source <function>`, `!!file <path>`."""
    markdown = re.sub(r"^!!file (\S+)$", lambda m: _file(m[1]), markdown, flags=re.MULTILINE)
    return re.sub(r"^!!source (\S+)$", lambda m: _source(m[1]), markdown, flags=re.MULTILINE)


def _file(path: str) -> str:
    """A script as a block of code."""
    return f"```python\n{(_ROOT / path).read_text(encoding='utf-8').strip()}\n```"


def _source(name: str) -> str:
    """A function's source as a block of code, without its docstring; its name is a link."""
    module, _, function = name.rpartition(".")
    text = inspect.getsource(getattr(importlib.import_module(module), function))
    lines = text.splitlines()
    docstring = ast.parse(text).body[0].body[0]
    code = "\n".join(lines[: docstring.lineno - 1] + lines[docstring.end_lineno :])
    title = f"[`{name}`][{name}]" if not function.startswith("_") else f"`{name}`"
    return f"{title}\n\n```python\n{code}\n```\n"


# ------------------------------------------------------------------------------------ tutorials


def tutorial_page(script: str) -> str:
    """A script in cells (`# %%`, and `# %% [markdown]` for prose) as a page."""
    cells = re.split(r"^# %%", script, flags=re.MULTILINE)[1:]
    parts = []
    for cell in cells:
        head, _, body = cell.partition("\n")
        if head.strip() == "[markdown]":
            parts.append(re.sub(r"^# ?", "", body.strip("\n"), flags=re.MULTILINE).rstrip())
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


# ------------------------------------------------------------------------------------- settings


def settings_page() -> str:
    """Every flag of every command, and every field of every algorithm's config."""
    data = [field.name for field in dataclasses.fields(DataSettings)]
    fields = {field.name: field for field in dataclasses.fields(RunSettings)}
    own = [name for name in fields if name not in data]
    heads = ("flag", "default", "meaning")
    config = ("`--config`", "", "File with the algorithm's config, such as one of `configs/`.")
    parts = [
        "# Every flag and field",
        "This page is made of the code. Flags are given by name, fields of the algorithm as "
        "`--config.<field>=<value>`.",
        "## Training: the run",
        "Of `train_offline.py` and `finetune_online.py`; in Python, "
        "[`RunSettings`][qam_jax.runs.settings.RunSettings].",
        "Defaults are those of a library call. `train_offline.py` without `--config` takes "
        "`configs/quickstart.py`, 20,000 updates and shorter intervals; `finetune_online.py` has "
        "0 updates offline and 500,000 steps online.",
        _table(heads, [config, *(_setting_row(fields[name]) for name in own)]),
        "## Training: several processes",
        "See [Several hosts and TPU pods](clusters.md).",
        _table(heads, [_setting_row(field) for field in dataclasses.fields(HostSettings)]),
        "## Training: the data",
        _table(heads, [_setting_row(fields[name]) for name in data]),
        "## The algorithm",
        *_config_parts(),
        "## Other commands",
    ]
    for name in _COMMANDS:
        parts += [f"### {name}.py", _table(heads, _flag_rows(name))]
    return "\n\n".join(parts) + "\n"


def _setting_row(field: dataclasses.Field) -> tuple[str, str, str]:
    return f"`--{field.name}`", _code(field.default), field.metadata["help"]


def _config_parts() -> Iterator[str]:
    notes = _comments(base)
    heads = ("field", "default", "meaning")
    shared = {**base.base_config(), **base.critic_config()}
    yield "### Fields of all algorithms"
    yield _table(heads, [_field_row(item, notes) for item in base.base_config().items()])
    yield "### Fields of all algorithms with a critic"
    yield _table(heads, [_field_row(item, notes) for item in base.critic_config().items()])
    yield "### Fields of single algorithms"
    yield "And fields whose default is not the one above."
    for name in agents.algorithm_names():
        own = notes | _comments(_module(name))
        rows = [
            _field_row(item, own)
            for item in agents.get_config(name).items()
            if item[0] != "agent_name" and (item[0] not in shared or shared[item[0]] != item[1])
        ]
        if rows:
            yield f"#### {name}"
            yield _table(heads, sorted(rows))


def _module(agent_name: str) -> Any:
    """The module of an algorithm; variants are in that of the name before the underscore."""
    return getattr(agents, agent_name, None) or getattr(agents, agent_name.split("_")[0])


def _comments(module: Any) -> dict[str, str]:
    """The comment behind each field in a module's config."""
    pattern = re.compile(r'^ +"(\w+)": .*?,  # (.+)$', re.MULTILINE)
    return dict(pattern.findall(inspect.getsource(module)))


def _field_row(item: tuple[str, Any], notes: dict[str, str]) -> tuple[str, str, str]:
    name, value = item
    if name not in notes:
        raise ValueError(f"the config field {name!r} has no comment that says what it is.")
    return f"`{name}`", _code(value), notes[name]


def _flag_rows(script: str) -> list[tuple[str, str, str]]:
    """The flags of a command, by its own help."""
    command = [sys.executable, str(_ROOT / "experiments" / f"{script}.py"), "--helpxml"]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    rows = []
    for flag in ElementTree.fromstring(output).iter("flag"):
        if flag.findtext("key") == "yes" and flag.findtext("file") != "absl.app":
            default = flag.findtext("default") or ""
            default = default if default not in ("None", "[]") else ""
            meaning = " ".join(flag.findtext("meaning").split())
            meaning = meaning.removesuffix("; repeat this option to specify a list of values")
            rows.append((f"`--{flag.findtext('name')}`", _code(default), meaning))
    return rows


def _code(value: Any) -> str:
    """A default as it would be typed; nothing for an empty one."""
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{text}`" if text else ""


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    cells = [[cell.replace("|", "\\|").replace("<", "&lt;") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


# ------------------------------------------------------------------------------------ reference


def reference_pages() -> dict[str, str]:
    """A page of the reference for each layer, with all of its public modules."""
    layers = {"core": [f"qam_jax.{name}" for name in _CORE], "shared": []}
    for module in pkgutil.walk_packages(qam_jax.__path__, "qam_jax."):
        parts = module.name.split(".")[1:]
        if any(part.startswith("_") for part in parts):
            continue
        layer = parts[0] if len(parts) > 1 or module.ispkg else "shared"
        if module.name not in layers["core"]:
            layers.setdefault(layer, []).append(module.name)
    return {
        f"reference/{layer}.md": _reference_page(layer, modules)
        for layer, modules in layers.items()
    }


def _reference_page(layer: str, modules: list[str]) -> str:
    title = _TITLES.get(layer, f"qam_jax.{layer}")
    blocks = [f"# {title}"]
    for name in modules:
        if _has_content(name):
            blocks.append(f"::: {name}")
    return "\n\n".join(blocks) + "\n"


def _has_content(name: str) -> bool:
    """Whether a module has anything to show."""
    path = _ROOT / Path(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return bool(ast.parse(path.read_text(encoding="utf-8")).body)
