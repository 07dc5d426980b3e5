"""nprcnn compare"""

from pathlib import Path

from ..errors import ConfigError, WeightsError
from .common import check_file, setting


def add(command):
    """Declare the arguments."""
    p = command("compare", run, "run two models on one image and find the first stage at which they part (exit code 1 if any)",
                "nprcnn compare mine.safetensors theirs.pth --image photo.jpg")
    p.add_argument("a", metavar="A", help="a file of weights; the model is recognised from it")
    p.add_argument("b", metavar="B", nargs="?", help="weights for the same model, or an .npz of stages that --save wrote")
    p.add_argument("--image", type=Path, help="an image file (a built-in scene, with the model's min_size at most 320)")
    p.add_argument("--tolerance", type=float, default=1e-4, help="of max|a-b| / max|b| (%(default)s)")
    p.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="to compute in (%(default)s)")
    p.add_argument("--save", type=Path, metavar="FILE.npz", help="write the stages of A")
    p.add_argument("--model", metavar="BUILDER", help="of nprcnn.models, instead of the one that is recognised")
    p.add_argument("--set", action="extend", nargs="+", default=[], metavar="NAME=VALUE",
                   help="arguments of the builder, such as min_size=400")


def run(args):
    import numpy as np
    from ..compare import compare_traces, explain, first_difference, format_rows
    from ..data.images import read_image
    from ..data.shapes import Shapes
    from ..stage_files import holds_stages, load_stages, save_stages
    from ..trace import Trace
    if not (args.b or args.save):
        raise ConfigError("there is nothing to do: give a second file to compare with, or --save FILE.npz")
    if not args.tolerance >= 0:
        raise ConfigError(f"--tolerance {args.tolerance}: a number of at least 0 is needed")
    if args.save:
        check_file(args.save)
        if args.save.suffix != ".npz":
            raise ConfigError(f"--save {args.save}: stages are written as .npz; give a name that ends so")
    image = Shapes(1, 0, size=(256, 320))[0][0] if args.image is None else read_image(args.image)
    stages = load_stages(args.b) if args.b and holds_stages(args.b) else None
    models = comparable_models([args.a] if stages or not args.b else [args.a, args.b], args.model, dict(map(setting, args.set)))
    traces = []
    for model in models:
        if args.image is None and not any(text.startswith("min_size=") for text in args.set):
            model.min_size = min(model.min_size, 320)  # a forward pass at 800 takes long, and shows no more
        traces.append(Trace())
        model.astype(np.dtype(args.dtype)).predict(image, trace=traces[-1])
    if args.save:
        save_stages(traces[0], args.save)
        print(f"wrote {args.save}")
    if not args.b:
        return 0
    print(f"B {args.b}: {'stages in a file' if stages else 'these weights in the same model'}\n")
    rows = compare_traces(traces[0], stages or traces[1], args.tolerance)
    print(f"{format_rows(rows)}\n\n{explain(rows, *(models if len(models) == 2 else ()))}")
    return 1 if first_difference(rows) else 0


def comparable_models(paths, builder, settings):
    """The model that the first file is recognised as, once with the weights of each file. Prints what it is."""
    from ..models import builders
    from ..pretrained import load_model
    from ..weights import read_weights
    from ..weights.recognise import recognise
    state = read_weights(paths[0])
    try:
        found = recognise(state)
    except WeightsError as error:
        raise WeightsError(f"{paths[0]}: {error}") from None
    if builder:
        if not (builder.startswith(("maskrcnn_", "fasterrcnn_")) and hasattr(builders, builder)):
            raise ConfigError(f"--model {builder}: there is no such builder in nprcnn.models")
        found = found._replace(builder=builder)
    print(f"A {paths[0]}: {found}")
    models = []
    for path in paths:
        model, report = load_model(path, found, **settings)
        models.append(model)
        for note in report.notes[1:]:
            print(f"  {note}")
    return models
