"""The errors a user can fix: what was wrong, where, and what to do."""


class InputError(Exception):
    """Input that the user can fix. The message is one sentence, and the command line prints it as one line."""


class UnreadableError(InputError):
    """An image or video that is there but is not what it should be: broken, cut short, or something else."""
