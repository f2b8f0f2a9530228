"""What the options of all commands share: errors of one line, help with an example, numbers in their ranges."""

import argparse


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str):
        self.exit(2, f"odutils: {' '.join(message.split())} (see {self.prog} --help)\n")


class ExampleFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the example's lines, and adds the default to the help of each option that has one."""

    def _get_help_string(self, action):
        has_default = isinstance(action.default, str | float | int) and action.default is not False and action.help
        return super()._get_help_string(action) if has_default else action.help


def add_command(parents, name: str, function, purpose: str, example: str) -> Parser:
    """A new command among `parents` (of `add_subparsers`), which calls `function` with the arguments."""
    command = parents.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"example:\n  python -m odutils {example}",
        formatter_class=ExampleFormatter,
    )
    command.set_defaults(command=function)
    command.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return command


def add_data(command: Parser, split: str | None = None) -> None:
    command.add_argument("--data", required=True, metavar="FOLDER", help="annotations/instances_SPLIT.json and SPLIT/")
    if split:
        command.add_argument("--split", metavar="NAME", help=f"(default: {split})")


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def positive(text: str) -> int:
    if not natural(text):
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def tile_count(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor auto")
    return text if text == "auto" else positive(text)


def share(text: str) -> float:
    return at_most(text, 1)


def rate(text: str) -> float:
    return at_most(text, 100)


def at_most(text: str, highest: float) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= number <= highest:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to {highest}")
    return number


def part(text: str) -> tuple[str, float]:
    """NAME=SHARE."""
    name, _, number = text.partition("=")
    if not name or not number:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SHARE, such as train=0.8")
    return name, share(number)
