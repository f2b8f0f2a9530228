"""The command line: `python -m odutils COMMAND …`; `--help` after a command shows its options and an example.

Results go to stdout, and what went wrong to stderr, a line each. Exit codes:

    0    all done
    1    an image or video cannot be read (of several, the others are done all the same), or `check` found problems
    2    the command cannot be carried out: wrong arguments, nothing there to work on, weights, data set or results that
         do not fit, a missing package, a place that cannot be written to (no permission, disk full)
    130  stopped with Ctrl-C
"""

import os
import sys
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
        except InputError as error:
            complain(error)
            return 1 if isinstance(error, UnreadableError) else 2
        except ImportError as error:
            if isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C while a compiled package was being loaded
                complain("stopped")
                return 130
            complain(f"a package cannot be loaded ({error}): pip install 'odutils[train]' brings all that is needed")
            return 2
        except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            complain(f"{error.filename}: {error.strerror}" if error.filename else error)
            return 2
        except KeyboardInterrupt as error:
            complain(f"stopped: {error}" if str(error) else "stopped")
            return 130


if __name__ == "__main__":
    sys.exit(main())
