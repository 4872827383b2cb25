"""What deltas share, as a table."""

from collections.abc import Sequence

from lightning_app.export.stack import Overlap
from lightning_app.reports.layout import blocks


def format_overlaps(overlaps: Sequence[Overlap]) -> str:
    """Returns a line for each pair of deltas: how many neurons both have, and the share of each one's.

    >>> print(format_overlaps([Overlap("cym-Latn", "mlt-Latn", 30, (0.1, 0.05))]))
    deltas              shared neurons  of the first  of the second
    cym-Latn, mlt-Latn              30        10.0 %          5.0 %
    """
    rows = [
        {
            "deltas": f"{each.first}, {each.second}",
            "shared neurons": str(each.shared),
            "of the first": f"{100 * each.shares[0]:.1f} %",
            "of the second": f"{100 * each.shares[1]:.1f} %",
        }
        for each in overlaps
    ]
    return "\n\n".join(blocks(rows, ["deltas"]))
