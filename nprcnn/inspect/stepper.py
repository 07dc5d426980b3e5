"""All stages of a trace, one after the other: buttons in a notebook, or a sheet of figures where there are no widgets."""

import base64
import io

from .figures import figure

SKIPPED = {"rpn.scores_before_nms", "rpn.proposal_scores", "rpn.proposal_anchors", "detections.labels", "detections.scores",
           "rpn.objectness", "rpn.deltas"}  # numbers that another stage's figure shows


# of all stages, for a page to print
SHEET = ["transform.batch", "backbone.stem", "backbone.layer4", "fpn.p2", "fpn.p4", "rpn.logits.p2", "rpn.anchors",
         "rpn.proposals_before_nms", "rpn.proposals", "roi_heads.class_logits", "detections.boxes", "roi_heads.mask_logits"]
WIDTH = 260  # pixels of a figure on the sheet


def stages(trace, gradient=False):
    """The names that are worth a figure, in the order in which they were recorded."""
    if gradient:
        return [name for name in trace.grad if name not in SKIPPED and not name.startswith("losses.")]
    names = [name for name in trace if name not in SKIPPED]
    losses = [name for name in names if name.startswith("losses.")]
    return [name for name in names if name not in losses[1:]]  # one figure shows all losses


def stepper(trace, names=None, image=0, gradient=False, interactive=None):
    """Step through the stages.

    Parameters
    ----------
    trace : Trace
    names : list of str, optional
        Of the stages; by default all that are worth a figure, on a sheet a dozen of them.
    image, gradient : see figures.figure
    interactive : bool, optional
        Buttons and a list, which need ipywidgets and a running kernel. By default where ipywidgets are installed. False gives a sheet
        with all the figures, which also a stored notebook shows.

    Returns
    -------
    a widget, or a Sheet; both show themselves as a cell's last value.
    """
    if interactive is None:
        interactive = widgets_are_there()
    if names is None:
        names = stages(trace, gradient)
        if not interactive:
            names = [name for name in names if name in SHEET] or names
    drawn = {}

    def png(name):
        if name not in drawn:
            drawn[name] = figure(trace, name, image, gradient=gradient)._repr_png_()
        return drawn[name]

    return widget(names, png) if interactive and names else Sheet(names, png)


def widgets_are_there():
    try:
        import ipywidgets
    except ImportError:
        return False
    return True


def widget(names, png):
    """Buttons for the stage before and the next one, a list of the stages' names, a play button, and the picture."""
    import ipywidgets as widgets

    small = widgets.Layout(width="7em")
    back, forward = (widgets.Button(description=text, layout=small) for text in ("previous", "next"))
    stage = widgets.Dropdown(options=[(f"{i + 1} of {len(names)}: {name}", i) for i, name in enumerate(names)], value=0)
    play = widgets.Play(min=0, max=len(names) - 1, interval=1500, description="play")
    picture = widgets.Image(value=png(names[0]), format="png",
                            layout=widgets.Layout(max_width="100%", object_fit="contain", align_self="flex-start"))
    widgets.link((play, "value"), (stage, "value"))

    def ends(place):
        back.disabled, forward.disabled = place == 0, place == len(names) - 1

    def show(change):
        picture.value = png(names[change["new"]])
        ends(change["new"])

    def step(by):
        stage.value = min(max(stage.value + by, 0), len(names) - 1)

    stage.observe(show, names="value")
    back.on_click(lambda _: step(-1))
    forward.on_click(lambda _: step(1))
    ends(0)
    return widgets.VBox([widgets.HBox([back, forward, stage, play]), picture])


class Sheet:
    """The figures of several stages side by side, small, as HTML."""

    def __init__(self, names, png):
        self.names, self.png = names, png

    def __repr__(self):
        return f"{len(self.names)} stages: {', '.join(self.names)}"

    def _repr_html_(self):
        pictures = "".join(f'<img style="margin: 6px; vertical-align: top" alt="{name}" '
                           f'src="data:image/png;base64,{base64.b64encode(small(self.png(name))).decode()}">' for name in self.names)
        return f"<div>{pictures}</div>"


def small(png):
    """A PNG, not wider than WIDTH pixels and with 48 colours."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail((WIDTH, WIDTH))
    buffer = io.BytesIO()
    picture.quantize(48, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
