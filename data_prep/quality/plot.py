"""A calibration plot as an SVG file: how often a probability of a classifier came true."""

import math
from collections.abc import Sequence
from html import escape

SIDE, LEFT, TOP, BARS, FOOT = 360, 96, 48, 80, 48


def calibration_plot(title: str, of: str, reliability: Sequence[dict]) -> str:
    """Frequency over probability, with the diagonal where both are equal, and below it how many documents there are.

    A bar through a point is where the true frequency lies in 95 % of cases, as far as its documents tell.

    reliability: bins as `evaluate.measure` has them; of: what the probability is of.
    """
    bottom = TOP + SIDE
    width, height = LEFT + SIDE + 24, bottom + BARS + FOOT
    body = [
        f'<text x="{LEFT}" y="20" font-size="15" font-weight="bold">{escape(title)}</text>',
        f'<text x="{LEFT}" y="38">probability of {escape(of)}, held-out documents</text>',
        f'<rect x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#888"/>',
        f'<path d="M{LEFT} {bottom}L{LEFT + SIDE} {TOP}" stroke="#bbb" stroke-dasharray="4 4"/>',
    ]
    for tick in range(0, 11, 2):
        x, y = LEFT + SIDE * tick / 10, bottom - SIDE * tick / 10
        body.append(f'<text x="{x:.0f}" y="{bottom + BARS + 18}" text-anchor="middle">{tick / 10:.1f}</text>')
        body.append(f'<text x="{LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{tick / 10:.1f}</text>')
    middle = TOP + SIDE // 2
    body += [
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">frequency</text>',
        f'<text x="{LEFT + SIDE // 2}" y="{height - 8}" text-anchor="middle">probability</text>',
        f'<text x="{LEFT - 8}" y="{bottom + BARS // 2}" text-anchor="end">documents</text>',
    ]
    places = [(LEFT + SIDE * one["probability"], bottom - SIDE * one["frequency"]) for one in reliability]
    body.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}" fill="none" stroke="#0b62a4"/>')
    most = max(one["documents"] for one in reliability)
    for (x, y), one in zip(places, reliability, strict=True):
        low, high = (bottom - SIDE * edge for edge in interval(one["frequency"], one["documents"]))
        left, share = LEFT + SIDE * one["from"], (BARS - 20) * one["documents"] / most
        body += [
            f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="#0b62a4" stroke-opacity="0.4" stroke-width="3"/>',
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#0b62a4"/>',
            f'<rect x="{left + 1:.1f}" y="{bottom + BARS - share:.1f}" width="{SIDE / 10 - 2}" height="{share:.1f}" '
            'fill="#9cc3e0"/>',
            f'<text x="{left + SIDE / 20:.1f}" y="{bottom + BARS - share - 3:.1f}" text-anchor="middle" '
            f'font-size="9">{one["documents"]:,}</text>',
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="{width}" height="{height}" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def interval(frequency: float, count: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a frequency among `count` documents ("Probable inference", 1927)."""
    z = 1.96
    middle, spread = (
        frequency + z * z / 2 / count,
        z * math.sqrt(frequency * (1 - frequency) / count + (z / 2 / count) ** 2),
    )
    return tuple(max(0.0, min(1.0, value / (1 + z * z / count))) for value in (middle - spread, middle + spread))
