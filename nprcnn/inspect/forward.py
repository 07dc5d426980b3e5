"""The forward half of a page: image, feature maps, and the detections with their lineage, from the trace of one prediction."""

import base64
import io

import numpy as np

from ..models.transform import resized_size
from ..ops.boxes import box_iou
from ..trace import NAMES, OTHER_NAMES
from .arrays import rounded, shrunk, strongest
from .lineage import Lineage

SHOWN_SIDE = 640       # pixels: of the longer side of the picture in the page
MAP_SIDE = 160         # cells: longer maps are averaged
MAP_VALUES = 100_000   # a stage: so many values decide how many of its channels are shown
CHANNELS = 12          # of a stage, at most
DETECTIONS = 40


def forward(model, image, target, trace, result, arrays):
    """The dict of the forward half.

    Parameters
    ----------
    model : MaskRCNN
    image : (H, W, 3) uint8 or float
    target : dict or None
        What should be found, in pixels of the image: "boxes", "labels", perhaps "masks".
    trace, result
        Of model.predict(image, trace=trace).
    arrays : Arrays

    Returns
    -------
    dict, as JSON takes it.
    """
    height, width = image.shape[:2]
    input_size = resized_size(height, width, model.min_size, model.max_size, model.resize)
    shown = fit(height, width, SHOWN_SIDE)
    names = class_names(model)
    maps = [feature_map(name, trace[name][0], trace["transform.batch"].shape[2:], arrays)
            for name in trace if name.startswith(("backbone.", "fpn."))]
    lineage = Lineage(model, trace, result, input_size, (height, width), shown, maps, arrays)
    count = min(len(result.boxes), DETECTIONS)
    return {
        "image": {"url": picture(image, shown), "width": width, "height": height, "shown": list(reversed(shown))},
        "input": {"width": input_size[1], "height": input_size[0],
                  "padded": list(reversed(trace["transform.batch"].shape[2:]))},
        "classes": names, "maps": maps,
        "detections": [lineage.of(i) for i in range(count)], "detectionsFound": len(result.boxes),
        "objectness": lineage.objectness,
        "targets": [] if target is None else targets(target, result),
        "settings": settings(model, trace), "hasMasks": model.has_masks, "masksInPixelsOf": list(reversed(shown)),
    }


def class_names(model):
    """Of all labels; "class 1", ... where the model does not know."""
    names = model.class_names or ()
    return [str(names[k]) if k < len(names) else f"class {k}" if k else "background" for k in range(model.num_classes)]


def fit(height, width, longest):
    """(h, w) with the same proportions, and no side longer than `longest`."""
    scale = min(1, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def picture(image, size):
    """The image as the text of a data: address. A small one as PNG, so that its pixels stay what they are; a shrunk one as JPEG."""
    from PIL import Image

    if image.dtype != np.uint8:
        image = np.rint(image * 255).astype(np.uint8)
    picture, buffer = Image.fromarray(np.ascontiguousarray(image)), io.BytesIO()
    exact = size == image.shape[:2] and image.size < 500_000
    if exact:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.resize((size[1], size[0]), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=88)
    return f"data:image/{'png' if exact else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def feature_map(name, maps, padded, arrays):
    """One stage's channels (C, h, w) that vary most."""
    small, factor = shrunk(maps, MAP_SIDE)
    count = int(np.clip(MAP_VALUES // max(small[0].size, 1), 3, CHANNELS))
    channels = strongest(maps, count)
    return {"name": name, "about": {**NAMES, **OTHER_NAMES}.get(name, ""), "shape": list(maps.shape), "factor": factor,
            "channels": channels.tolist(), "data": [arrays.add(small[c]) for c in channels],
            "stride": padded[0] / maps.shape[1], "mean": rounded(maps.mean()), "std": rounded(maps.std())}


def targets(target, result):
    """Each target with the detection that fits it best."""
    boxes = np.asarray(target["boxes"], np.float32).reshape(-1, 4)
    iou = box_iou(boxes, np.asarray(result.boxes, np.float32))
    return [{"box": rounded(box), "label": int(label), "best": int(row.argmax()) if row.size else None,
             "iou": rounded(row.max(initial=0))} for box, label, row in zip(boxes, target["labels"], iou)]


def settings(model, trace):
    """The numbers that the texts of the page speak of."""
    before, after = trace["rpn.proposals_before_nms"][0], trace["rpn.proposals"][0]
    return {
        "anchors": len(trace["rpn.anchors"]), "beforeNms": len(before), "proposals": len(after),
        "preNms": model.rpn_pre_nms_top_n_test, "postNms": model.rpn_post_nms_top_n_test, "rpnNms": model.rpn_nms_thresh,
        "boxNms": model.box_nms_thresh, "boxScore": model.box_score_thresh, "boxWeights": rounded(model.bbox_reg_weights),
        "canonicalSize": model.canonical_size, "roiLevels": model.roi_levels.tolist(), "maskLoss": model.mask_loss,
        "paste": model.paste, "anchorsPerCell": model.anchor_generator.anchors_per_cell,
    }
