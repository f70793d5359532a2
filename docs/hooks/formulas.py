"""Turn formulas into MathML when the site is built, so that they need no script and no network.

Browsers set MathML well only in a font that is made for it. Not every machine has one, so the site
brings the font that ziamath ships (STIX Two Math, SIL Open Font License).
"""

import html
import importlib.util
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

_FONT = "STIXTwoMath-Regular.ttf"

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the font to the site."""
    (folder,) = importlib.util.find_spec("ziamath").submodule_search_locations
    font = Path(folder, "fonts", _FONT)
    files.append(File.generated(config, f"fonts/{_FONT}", abs_src_path=str(font)))
    return files


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """Replaces the formulas of a page, which arithmatex has marked."""

    def replace(match: re.Match) -> str:
        latex, block = html.unescape(match["latex"]).strip(), match["tag"] == "div"
        try:
            formula = convert(latex, display="block" if block else "inline")
        except Exception as error:
            where = page.file.src_uri
            raise PluginError(f"{where}: {latex!r} is no formula: {error!r}") from error
        return f'<div class="formula">{formula}</div>' if block else formula

    return _FORMULA.sub(replace, content)
