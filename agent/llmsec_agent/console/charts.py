"""Charts as SVG files: drawn on the server, shown by the browser as pictures, so no script or style of theirs runs in a page.

A chart's figures also stand in a table beside it, for those who cannot see it.
"""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Sequence
from typing import Any, Final, Literal

from llmsec_agent.console.figures import Column

Theme = Literal["light", "dark"]
NAMES: Final[dict[str, tuple[str, str]]] = {
    "requests": ("Requests and errors", "requests"),
    "tokens": ("Tokens", "tokens"),
    "cost": ("Cost, US dollars", "cost"),
    "latency": ("First token, p95 in ms", "ms"),
    "risk": ("Highest risk score", "risk"),
}
# Of both themes: told apart without colour by their order and their names in the table.
_COLORS: Final[dict[Theme, tuple[str, str]]] = {"light": ("#1f5fa8", "#b42318"), "dark": ("#7ab4f5", "#ff9a8b")}
_TEXT: Final[dict[Theme, str]] = {"light": "#222222", "dark": "#e6e6e6"}
_MAX_LABELS: Final = 6


def draw(name: str, columns: Sequence[Column], width_s: int, theme: Theme) -> bytes:
    """An SVG file."""
    pygal, style_of, etree = _library()
    style = style_of(
        background="transparent", plot_background="transparent", colors=_COLORS[theme], foreground=_TEXT[theme], foreground_strong=_TEXT[theme],
        foreground_subtle=_TEXT[theme], font_family="sans-serif", label_font_size=11, major_label_font_size=11, legend_font_size=12, title_font_size=11, transition="0s",
    )  # fmt: skip
    kind: Any = pygal.StackedBar if name == "requests" else pygal.Bar
    chart = kind(
        style=style, js=[], show_legend=name == "requests", legend_at_bottom=True, width=560, height=220, margin=4, spacing=2, print_values=False,
        show_minor_x_labels=False, truncate_label=-1, explicit_size=True, pretty_print=False, no_data_text="no data", min_scale=3, max_scale=5,
        include_x_axis=True, x_title="UTC",
    )  # fmt: skip
    filled = _filled(columns, width_s)
    labels = [moment(begin, width_s) for begin, _ in filled]
    step = max(1, -(-len(labels) // _MAX_LABELS))
    chart.x_labels = labels
    chart.x_labels_major = labels[::step]
    for title, values in _series(name, [column for _, column in filled]):
        chart.add(title, values)
    tree = chart.render_tree()
    for parent in list(tree.iter()):
        for script in [child for child in parent if str(child.tag).rpartition("}")[2] == "script"]:
            parent.remove(script)
    drawn: bytes = etree.tostring(tree, encoding="utf-8")
    return drawn


def _library() -> tuple[Any, Any, Any]:
    """pygal, its styles and the XML that it writes with: a fifth of a second, so not before the first chart."""
    import pygal
    from pygal.etree import etree
    from pygal.style import Style

    # It leaves a finder of modules behind that serves its plug-ins alone, and that Python warns of at each import.
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "PluginImportFixer"]
    return pygal, Style, etree


def _filled(columns: Sequence[Column], width_s: int) -> list[tuple[int, Column | None]]:
    """With the empty ones between them."""
    if not columns:
        return []
    known = {column.begin_ns: column for column in columns}
    width = width_s * 1_000_000_000
    return [(begin, known.get(begin)) for begin in range(columns[0].begin_ns, columns[-1].begin_ns + 1, width)]


def _series(name: str, columns: Sequence[Column | None]) -> list[tuple[str, list[float | None]]]:
    if name == "requests":
        return [
            ("requests", [column.requests - min(column.errors, column.requests) if column else 0 for column in columns]),
            ("errors", [column.errors if column else 0 for column in columns]),
        ]
    value = {"tokens": "tokens", "cost": "cost_usd", "latency": "ttft_p95_ms", "risk": "worst_risk"}[name]
    return [(NAMES[name][1], [getattr(column, value) if column else None for column in columns])]


def moment(begin_ns: int, width_s: int) -> str:
    """UTC, as exact as the width needs."""
    at = dt.datetime.fromtimestamp(begin_ns // 1_000_000_000, dt.UTC)
    return at.strftime("%Y-%m-%d" if width_s >= 86_400 else "%m-%d %H:%M" if width_s >= 60 else "%H:%M:%S")
