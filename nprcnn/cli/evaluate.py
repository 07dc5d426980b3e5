"""nprcnn evaluate"""

from pathlib import Path

from .common import check_file, positive_number, write_json


def add(command):
    """Declare the arguments."""
    p = command("evaluate", run, "measure COCO's AP of boxes and masks on held-out scenes",
                "nprcnn evaluate shapes --weights shapes --count 200")
    p.add_argument("data", choices=["shapes"], help="what to evaluate on")
    p.add_argument("--weights", default="shapes", help='a file, or "shapes" for those that come with the package (%(default)s)')
    p.add_argument("--count", type=positive_number, default=200, help="how many scenes (%(default)s)")
    p.add_argument("--difficulty", choices=["easy", "full"], default="full", help="of the scenes (%(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to a file, too")


def run(args):
    from ..data.shapes import Shapes
    from ..evaluate import evaluate, format_metrics
    from ..models import maskrcnn_tiny
    if args.json:
        check_file(args.json)
    model = maskrcnn_tiny(weights=args.weights)
    metrics = evaluate(model, Shapes.held_out(args.count, args.difficulty))
    print(format_metrics(metrics))
    if args.json:
        write_json(args.json, metrics)
