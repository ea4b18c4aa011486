"""Figures as SVG that stands inside a page, light or dark.

Ink and grid are drawn in two colours of their own, which become CSS variables of the page. Ids are
salted with a constant and no date is written, so that the same figure is the same text.
"""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

_INK, _GRID = "#111213", "#d1d2d3"
_CSS = {_INK: "var(--ink)", _GRID: "var(--grid)"}
# Keys are checked by matplotlib itself; their type differs between its releases.
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "foedus",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10.0,
    "font.family": "DejaVu Sans",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
}


def page_style() -> AbstractContextManager[None]:
    """The settings under which figures for the page are made and written."""
    return mpl.rc_context(_STYLE)


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element for a page: transparent, scalable, nothing to load.

    name: put before every id, so that figures on one page keep theirs apart. Equal figures give
    equal text. Call it inside `page_style`, where the ids' salt is set.
    """
    buffer = io.StringIO()
    figure.patch.set_alpha(0.0)
    for axes in figure.axes:
        axes.patch.set_alpha(0.0)
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    for colour, variable in _CSS.items():
        text = text.replace(colour, variable)
    return text
