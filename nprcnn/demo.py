"""`nprcnn demo`: learn from nothing for two minutes, then lead one new image through every stage of a trained model."""

import numpy as np

from . import viz
from .data.shapes import Shapes
from .models import maskrcnn_tiny
from .models.transform import resize_boxes, resized_size
from .recipes import for_small_arrays, train_demo
from .trace import Trace


SCENES = 10_000
FIRST_SCENE = 1007  # large and small objects, five classes
SHOWN_SCORE = 0.5
SHOWN_BEFORE_NMS = 150


def demo(out, quick=False, seed=0):
    """Train (unless quick) and print "mask AP50 0.xx"; then write a picture of each stage to the folder `out`."""
    with for_small_arrays():
        out.mkdir(parents=True, exist_ok=True)
        if not quick:
            print("A Mask R-CNN learns from random weights, on scenes made as it goes. The bar shows its five losses:")
            print("obj (is this anchor an object?), rpn-box (where exactly?), cls (which class?), box (where exactly?), mask.")
            _, ap50 = train_demo(seed)
            print(f"mask AP50 {ap50:.2f}")
            print()
        model = maskrcnn_tiny(weights="shapes")
        image, _ = Shapes.held_out(SCENES)[(FIRST_SCENE + seed) % SCENES]
        print("The weights that come with the package, on one new image. Every stage's tensors, by name:")
        trace = Trace()
        result = model.predict(image, trace=trace)
        print(trace)
        print()
        for name, figure in stage_figures(model, image, trace, result):
            viz.save(figure, out / name)
            print(f"wrote {out / name}")


def stage_figures(model, image, trace, result):
    """Yield (file name, figure) for each stage of one image's prediction, in order."""
    anchors = trace["rpn.anchors"]
    before, before_scores = trace["rpn.proposals_before_nms"][0], trace["rpn.scores_before_nms"][0]
    best = np.argsort(-before_scores, kind="stable")[:SHOWN_BEFORE_NMS]  # all of them would hide the image
    proposals = trace["rpn.proposals"][0]
    scores, levels = trace["rpn.proposal_scores"][0], trace["roi_heads.levels"][0]
    # the boxes of these stages are in pixels of the network's input, which is this image at another size
    height, width = image.shape[:2]
    input_size = resized_size(height, width, model.min_size, model.max_size)
    anchors, before, rois = (resize_boxes(boxes, input_size, (height, width)) for boxes in (anchors, before, proposals))
    names = model.class_names or Shapes.class_names

    yield "0_image.png", viz.draw_detections(image, np.zeros((0, 4)), title="the image")
    for level in ("p2", "p3", "p4"):
        yield f"1_features_{level}.png", viz.draw_feature_maps(trace[f"fpn.{level}"][0], title=f"pyramid level {level.upper()}")
    yield "2_anchors.png", viz.draw_anchors(image, anchors)
    yield "3_proposals_before_nms.png", viz.draw_boxes(
        image, before[best], values=before_scores[best], title=f"the best {len(best)} of {len(before)} boxes before NMS")
    yield "4_proposals.png", viz.draw_boxes(image, rois, values=scores,
                                            title=f"{len(proposals)} proposals after NMS, by objectness")
    yield "5_rois_by_level.png", viz.draw_rois_by_level(image, rois, levels)
    shown = np.flatnonzero(result.scores >= SHOWN_SCORE)
    labels, shown_scores = result.labels[shown], result.scores[shown]
    if len(shown):
        yield "6_mask_logits.png", viz.draw_mask_logits(trace["roi_heads.mask_logits"][shown, labels],
                                                        [f"{names[l]} {s:.2f}" for l, s in zip(labels, shown_scores)])
    found = (result.boxes[shown], labels, shown_scores, result.masks[shown])
    yield "7_detections.png", viz.draw_detections(image, *found, class_names=names,
                                                  title=f"detections, score at least {SHOWN_SCORE}")

    overview, panels = viz.image_panels(5, width, height, columns=5, side=256)
    viz.draw_boxes(image, np.zeros((0, 4)), ax=panels[0], title="image")
    viz.draw_boxes(image, before[best], values=before_scores[best], ax=panels[1], title="RPN: boxes by objectness")
    viz.draw_boxes(image, rois, values=scores, ax=panels[2], title="proposals after NMS")
    viz.draw_boxes(image, rois[result.proposal[shown]], values=shown_scores, width=1.5, ax=panels[3],
                   title="the RoIs behind the detections")
    viz.draw_detections(image, *found, class_names=names, ax=panels[4], title="classes, boxes, masks")
    yield "8_overview.png", overview
