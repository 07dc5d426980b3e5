"""nprcnn evaluate"""

from pathlib import Path

from ..errors import ConfigError
from .common import check_file, check_folder, check_images, positive_number, setting, write_json


def add(command):
    """Declare the arguments."""
    p = command("evaluate", run, "measure COCO's AP and AR of boxes and masks, of a model or of result files",
                "nprcnn evaluate --data coco:instances_val2017.json --weights FILE --results results --plot curves.png")
    p.add_argument("scenes", nargs="?", choices=["shapes"], help="the built-in scenes, held out from every training")
    p.add_argument("--data", metavar="KIND:PATH", help="a data set instead, such as coco:instances.json or labels:FOLDER")
    p.add_argument("--weights", metavar="FILE", help='of the model, which is recognised from them; "shapes": those that come with the '
                   "package (the default on the built-in scenes)")
    p.add_argument("--set", action="extend", nargs="+", default=[], metavar="NAME=VALUE",
                   help="arguments of the model's builder, such as min_size=400")
    p.add_argument("--count", type=positive_number, help="how many images, the first ones (200 scenes; all of --data)")
    p.add_argument("--difficulty", choices=["easy", "full"], help="of the scenes (full)")
    p.add_argument("--results", type=Path, metavar="DIR", help="write what was found there, as COCO result files")
    p.add_argument("--results-in", type=Path, nargs="+", metavar="FILE",
                   help="no model: measure these COCO result files, of boxes, of masks or one of each, against --data")
    p.add_argument("--plot", type=Path, metavar="PNG", help="draw precision against recall")
    p.add_argument("--pictures", type=Path, metavar="PNG", help="draw eight of the images with what was found, found wrongly and missed")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to a file, too")


def run(args):
    from ..evaluate import format_metrics, measure, summarise
    check_arguments(args)
    if args.results_in:
        source, entries, kinds = from_files(args)
    else:
        source, entries = from_model(args)
        kinds = entries.kinds
    measured = measure(entries.truths, entries.found, entries.sizes, source.class_names, kinds)
    metrics = summarise(measured, entries.truths, entries.sizes, source.class_names)
    print(format_metrics(metrics))
    if args.results:
        from ..evaluate.results import write_results
        for path in write_results(args.results, entries, source):
            print(f"wrote {path}")
    if args.plot:
        from ..canvas import save
        from ..evaluate.curves import draw_precision_recall
        save(draw_precision_recall(measured, source.class_names), args.plot)
        print(f"wrote {args.plot}")
    if args.pictures:
        from ..canvas import save
        from ..evaluate.pictures import draw_hits
        save(draw_hits(source, entries), args.pictures)
        print(f"wrote {args.pictures}")
    if args.json:
        write_json(args.json, metrics)


def check_arguments(args):
    """ConfigError for what does not go together, or cannot be written, before any work is done."""
    if bool(args.scenes) == bool(args.data):
        raise ConfigError("give either `shapes`, for the built-in scenes, or --data KIND:PATH, such as coco:instances.json")
    if args.data and args.difficulty:
        raise ConfigError("--difficulty is of the built-in scenes; for --data write shapes:200,difficulty=easy")
    if args.results_in:
        beside = [name for name in ("weights", "set", "results", "count", "pictures") if getattr(args, name)]
        if beside:
            raise ConfigError(f"--results-in measures files; --{beside[0]} is for a model")
    elif args.data and not args.weights:
        raise ConfigError("--weights FILE is missing; or measure result files with --results-in")
    for path in (args.json, args.plot, args.pictures):
        if path:
            check_file(path)
    for name in ("plot", "pictures"):
        path = getattr(args, name)
        if path and path.suffix.lower() != ".png":
            raise ConfigError(f"--{name} {path}: pictures are written as PNG; give a name that ends in .png")
    if args.results:
        check_folder(args.results, "--results")


def from_files(args):
    """The data set, Entries with what the result files hold, and the kinds that they hold."""
    from ..evaluate.results import read_results
    source = open_data(args)
    return source, *read_results(args.results_in, source)


def from_model(args):
    """The data set, and Entries with what the model finds in it."""
    from ..evaluate import collect
    from ..evaluate.classes import match_classes
    from ..evaluate.entries import names_of
    from ..pretrained import load_model
    source = open_data(args)
    model, report = load_model(args.weights or "shapes", **dict(map(setting, args.set)))
    notes = match_classes(names_of(model), source.class_names)[1]
    print("\n".join([*report.notes, *notes, ""]))
    count = len(source) if args.count is None else min(args.count, len(source))
    return source, collect(model, source, range(count))


def open_data(args):
    """The data source that the arguments name."""
    if args.data:
        from ..data.sources import open_source
        source = open_source(args.data)
        check_images(source, args.data)
        return source
    from ..data.shapes import Shapes
    return Shapes.held_out(args.count or 200, args.difficulty or "full")
