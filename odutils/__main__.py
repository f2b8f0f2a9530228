"""The command line: `python -m odutils COMMAND …`; `--help` after a command shows its options and an example.

Results go to stdout, and what went wrong to stderr, a line each; `python -m odutils --traceback COMMAND …` shows where
in the code it went wrong, too. Exit codes:

    0    all done
    1    an image or video cannot be read (of several, the others are done all the same), or `check` found problems
    2    the command cannot be carried out: wrong arguments, nothing there to work on, weights, data set or results that
         do not fit, a missing package, a place that cannot be written to (no permission, disk full)
    130  stopped with Ctrl-C
"""

import os
import sys
import traceback
import warnings

from odutils.cli.inputs import complain
from odutils.cli.options import make_parser
from odutils.errors import InputError, UnreadableError


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code, see above. Raises SystemExit for --help and for wrong arguments."""
    args = make_parser().parse_args(argv)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")  # of the libraries, about themselves
        try:
            return args.command(args)
        except (Exception, KeyboardInterrupt) as error:
            if args.traceback:
                traceback.print_exc()
            return tell(error)


def tell(error: BaseException) -> int:
    """Say in a line what went wrong; returns the exit code. What only a mistake of ours can raise is raised again."""
    stopped_while_importing = isinstance(error, ImportError) and isinstance(error.__cause__, KeyboardInterrupt)
    if isinstance(error, KeyboardInterrupt) or stopped_while_importing:
        said = isinstance(error, KeyboardInterrupt) and str(error)
        complain(f"stopped: {error}" if said else "stopped")
        return 130
    if isinstance(error, InputError):
        complain(error)
        return 1 if isinstance(error, UnreadableError) else 2
    if isinstance(error, BrokenPipeError):  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, ImportError):
        complain(f"a package cannot be loaded ({error}): {how_to_install()}")
        return 2
    if isinstance(error, OSError):
        complain(f"{error.filename}: {error.strerror}" if error.filename else error)
        return 2
    raise error


def how_to_install() -> str:
    """The command that installs every package a command may need; odutils itself is in no package index."""
    import shlex
    from importlib.metadata import requires

    from odutils.files import IN_CHECKOUT, PACKAGE

    if IN_CHECKOUT:
        return f'pip install -e "{PACKAGE.parent}[train]"'
    of_training = (line.split(";")[0] for line in requires("odutils") or [] if "train" in line.partition(";")[2])
    return "pip install " + " ".join(shlex.quote(package.strip()) for package in of_training)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a class name that the terminal's encoding lacks is shown in escapes
        stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
