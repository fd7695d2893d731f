"""Small parts of the report page that several of its sections use."""

from collections.abc import Iterable, Sequence

from maxlm.report.page import PALETTE


def swatch(number: int) -> str:
    return f'<span class="swatch" style="background:{PALETTE[number % len(PALETTE)]}"></span>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table of cells that are HTML already; the columns in `numbers` are aligned to the right."""
    look = {column: ' class="number"' for column in numbers}
    look.setdefault(len(head) - 1, ' class="wide"')
    top = "".join(f"<th{look.get(column, '')}>{cell}</th>" for column, cell in enumerate(head))
    body = "".join(
        f"<tr>{''.join(f'<td{look.get(column, str())}>{cell}</td>' for column, cell in enumerate(row))}</tr>"
        for row in rows
    )
    return f'<div class="table card"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
