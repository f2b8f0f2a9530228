"""The errors a user can fix: what was wrong, where, and what to do; and how messages are worded."""

import re

ADDRESS = re.compile(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>")  # such as <_io.BytesIO object at 0x7f0123456789>


class InputError(Exception):
    """Input that the user can fix. The message is one sentence, and the command line prints it as one line."""


class UnreadableError(InputError):
    """An image or video that is there but is not what it should be: broken, cut short, or something else."""


def plain_text(error: Exception | str) -> str:
    """What an exception says, on one line and without addresses in memory; its type's name if it says nothing."""
    return " ".join(ADDRESS.sub("", str(error)).split()) or type(error).__name__


def plural(number: int, noun: str) -> str:
    """1 image, 2 images, no images."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
