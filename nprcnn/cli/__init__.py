"""The command line. Each command has a file here and --help with an example.

Errors that are the user's to mend are printed as one sentence, without a traceback, and the exit code is 2. Each command imports what
it needs when it runs, so that `nprcnn --help` answers at once.
"""

import argparse
import os
import sys
from importlib import import_module

from ..errors import NprcnnError

# in the order of --help; a new command is a file beside this one, with add(command) and run(args), and its name here
COMMANDS = ("demo", "course", "train", "evaluate", "predict", "inspect", "compare", "bench", "gradcheck", "data", "inspect_kernel")


def main(argv=None):
    """Run one command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # of `nprcnn gradcheck | head`: who reads has seen enough
        # Python would flush once more on its way out, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell says for a program that SIGPIPE ended
    except NprcnnError as error:
        print(f"nprcnn {args.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"nprcnn {args.command}: {error.filename or 'file system'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nnprcnn {args.command}: stopped", file=sys.stderr)
        return 130


def parser():
    """The argument parser of all commands."""
    top = argparse.ArgumentParser(prog="nprcnn", description="A Mask R-CNN written from scratch in NumPy.")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    def command(name, run, text, example):
        """Add a command; returns the parser that takes its arguments."""
        sub = commands.add_parser(name, help=text, description=text, epilog=f"example: {example}")
        sub.set_defaults(run=run)
        return sub

    for name in COMMANDS:
        import_module(f".{name}", __name__).add(command)
    return top
