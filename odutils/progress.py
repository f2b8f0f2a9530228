"""Progress bars, by tqdm: on terminals and in notebooks; a pipe or a log file gets none."""

import sys
import warnings
from collections.abc import Iterable

MANY = 500  # files from which on a bar is worth its line, where each takes a moment only


def bar(
    items: Iterable | None = None, total: int | None = None, unit: str = "items", show: bool = True, leave: bool = True
):
    """tqdm's bar over `items`, or one to be moved by `update(n)`: iterate over it, or use it in a `with` block.

    total: number of items, where it cannot be asked for.   unit: what is counted; "B" (bytes) is shown as kB, MB, GB.
    show: False for no bar at all.   leave: False for a bar that goes when it is done, such as one below another bar.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without ipywidgets a notebook gets a bar of text, and a warning about it
        from tqdm.auto import tqdm

    seen = sys.stderr.isatty() or "ipykernel.zmqshell" in sys.modules
    scale = unit == "B"
    unit = unit if scale else f" {unit}"
    shown = show and seen
    return tqdm(items, total=total, unit=unit, unit_scale=scale, unit_divisor=1000, disable=not shown, leave=leave)
