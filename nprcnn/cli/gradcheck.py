"""nprcnn gradcheck"""

from pathlib import Path

from .common import check_file, write_json


def add(command):
    """Declare the arguments."""
    p = command("gradcheck", run, "check every hand-written backward pass against numerical differences",
                "nprcnn gradcheck")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the errors to a file, too")


def run(args):
    from ..pairs import format_table, run_all
    if args.json:
        check_file(args.json)
    rows = run_all()
    print(format_table(rows))
    if args.json:
        write_json(args.json, [row._asdict() for row in rows])
    return 0 if all(row.passed for row in rows) else 1
