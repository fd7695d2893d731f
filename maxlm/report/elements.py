"""Small parts of report pages that several sections use, those on the preparation of data among them."""

from collections.abc import Iterable, Sequence
from html import escape

from maxlm.report.page import PALETTE, POLICY, STYLE


def document(title: str, body: Iterable[str], style: str = "") -> str:
    """A page of pieces of HTML, which may load nothing; `style` comes behind what all pages share."""
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body><main>",
            *body,
            "</main></body></html>\n",
        ]
    )


def tiles(figures: Iterable[tuple[str, str, str]]) -> str:
    """What sums something up: label, value and small print of each figure, as text."""
    cells = (
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}<small>{escape(small)}</small></dd></div>"
        for label, value, small in figures
    )
    return f'<dl class="tiles card">{"".join(cells)}</dl>'


def swatch(number: int) -> str:
    return f'<span class="swatch" style="background:{PALETTE[number % len(PALETTE)]}"></span>'


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Iterable[int] = (), attributes: Sequence[str] = ()
) -> str:
    """A table of cells that are HTML already; the columns in `numbers` are aligned to the right, and `attributes` are
    those of the rows."""
    look = {column: ' class="number"' for column in numbers}
    look.setdefault(len(head) - 1, ' class="wide"')
    top = "".join(f"<th{look.get(column, '')}>{cell}</th>" for column, cell in enumerate(head))
    body = "".join(
        f"<tr{more}>{''.join(f'<td{look.get(column, str())}>{cell}</td>' for column, cell in enumerate(row))}</tr>"
        for row, more in zip(rows, attributes or [""] * len(rows), strict=True)
    )
    return f'<div class="table card"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
