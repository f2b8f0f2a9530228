"""The one error a user can mend: what was wrong, where, and what to do."""


class InputError(Exception):
    """Input that the user can mend. The message is one sentence, and the command line prints it as one line."""
