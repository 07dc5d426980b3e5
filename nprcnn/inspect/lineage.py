"""Where one detection comes from: anchor -> proposal -> RoI -> class and box -> mask, as a dict for the page.

Boxes are in pixels of the resized image, as everywhere inside of the model; the page scales them to the picture.
"""

import numpy as np

from ..models.roi_features import assign_levels
from ..models.transform import resize_boxes
from ..ops.activation import sigmoid, softmax
from ..ops.boxes import box_area, box_iou, clip_boxes, decode_boxes
from ..ops.paste import paste_masks, paste_masks_continuous
from .arrays import rounded, strongest

CLASSES = 8      # bars and masks of so many classes, best first
DROPPED = 25     # boxes that NMS dropped, drawn
CROPS = 12       # channels of a crop where its feature map is not shown


class Lineage:
    """Leads the detections of one prediction back.

    Parameters
    ----------
    model, trace, result
        Of model.predict(image, trace=trace).
    input_size, original_size, shown : (h, w)
        Of the image in the network, of the image, and of the picture in the page.
    maps : list of dict
        The feature maps of the page (forward.feature_map): crops show the same channels.
    arrays : Arrays
    """

    def __init__(self, model, trace, result, input_size, original_size, shown, maps, arrays):
        self.model, self.trace, self.result, self.arrays = model, trace, result, arrays
        self.input_size, self.original_size, self.shown = input_size, original_size, shown
        self.shapes = [trace[f"rpn.logits.{level}"].shape[1:] for level in model.rpn.levels]  # (A, h, w)
        self.starts = np.cumsum([0] + [a * h * w for a, h, w in self.shapes])
        self.maps = {m["name"]: m for m in maps}
        # the maps that RoIs are cut from: P2 .. P5, or the one map
        of_pyramid = [f"fpn.{level}" for level in model.rpn.levels if f"fpn.{level}" in trace]
        self.roi_maps = of_pyramid[:len(model.box_features.strides)] or [maps[-1]["name"]]
        self.scores = softmax(trace["roi_heads.class_logits"], axis=1)  # (R, K)
        self.decoded = self._decoded()                                  # (R, K, 4)
        self.mask_levels = self._levels(trace["detections.boxes"][0])
        self.objectness = {}                                            # the maps of objectness that detections need

    def _levels(self, boxes):
        """0 for P2, as the model assigns them."""
        m = self.model
        return assign_levels(boxes, len(m.box_features.strides), m.canonical_size, eps=m.level_eps, eps_in_log=m.level_eps_in_log)

    def _decoded(self):
        deltas, proposals = self.trace["roi_heads.box_deltas"], self.trace["rpn.proposals"][0]
        boxes = decode_boxes(deltas.reshape(len(proposals), self.model.num_classes, 4), proposals[:, None], self.model.bbox_reg_weights)
        return clip_boxes(boxes, self.input_size)

    def of(self, i):
        """The dict of detection i."""
        result, trace = self.result, self.trace
        proposal, label = int(result.proposal[i]), int(result.labels[i])
        hidden = trace["roi_heads.box_hidden"][proposal].ravel()
        lineage = {
            "label": label, "score": rounded(result.scores[i]), "box": rounded(trace["detections.boxes"][0][i], 5),
            "imageBox": rounded(result.boxes[i], 5),
            "anchor": self._anchor(int(result.anchor[i])), "proposal": self._proposal(proposal, int(result.anchor[i])),
            "roi": self._crop("roi_heads.box_features", proposal, trace["rpn.proposals"][0][proposal],
                              int(np.searchsorted(self.model.roi_levels, result.level[i])), self.model.box_features),
            "classes": self._classes(proposal, label), "refined": self._refined(i, proposal, label),
            "hidden": self.arrays.add(in_rows(hidden), 0), "hiddenSize": len(hidden),
        }
        if self.model.has_masks:
            lineage["maskRoi"] = self._crop("roi_heads.mask_features", i, trace["detections.boxes"][0][i],
                                            int(self.mask_levels[i]), self.model.mask_features)
            lineage["mask"] = self._mask(i, label, lineage["classes"])
            lineage["pasted"] = self._pasted(i)
        return lineage

    def _anchor(self, index):
        level = int(np.searchsorted(self.starts, index, side="right")) - 1
        a, h, w = self.shapes[level]
        cell, which = divmod(index - int(self.starts[level]), a)
        name = self.model.rpn.levels[level]
        logits = self.trace["rpn.objectness"][0]
        of_level = logits[self.starts[level]:self.starts[level + 1]]
        key = f"{name}.{which}"
        if key not in self.objectness:
            self.objectness[key] = self.arrays.add(sigmoid(self.trace[f"rpn.logits.{name}"][0, which]), 0, 1)
        return {"index": index, "level": name, "row": cell // w, "column": cell % w, "which": which, "key": key, "rows": h, "columns": w,
                "box": rounded(self.trace["rpn.anchors"][index], 5), "logit": rounded(logits[index]),
                "objectness": rounded(sigmoid(logits[index:index + 1])[0]), "rank": int((of_level > logits[index]).sum()) + 1,
                "ofLevel": len(of_level)}

    def _proposal(self, index, anchor):
        trace, threshold = self.trace, self.model.rpn_nms_thresh
        box, score = trace["rpn.proposals"][0][index], trace["rpn.proposal_scores"][0][index]
        # before NMS the boxes stand level by level, the top-k of each
        top = np.minimum(np.diff(self.starts), self.model.rpn_pre_nms_top_n_test)
        level = int(np.searchsorted(self.starts, anchor, side="right")) - 1
        mine = slice(int(top[:level].sum()), int(top[:level + 1].sum()))
        others, their_scores = trace["rpn.proposals_before_nms"][0][mine], trace["rpn.scores_before_nms"][0][mine]
        overlap = box_iou(box[None], others)[0]
        # kept is kept: whatever overlaps it too much and scores less was dropped. Equal scores: by the order.
        dropped = others[(overlap > threshold) & (their_scores <= score) & (others != box).any(axis=1)]
        return {"index": index, "box": rounded(box, 5), "deltas": rounded(trace["rpn.deltas"][0][anchor]), "score": rounded(score),
                "dropped": len(dropped), "droppedBoxes": rounded(dropped[:DROPPED])}

    def _crop(self, name, row, box, level, features):
        """What RoIAlign cuts out of one map, and where it reads."""
        of_map = self.roi_maps[level]
        crops = self.trace[name][row]
        channels = np.array(self.maps[of_map]["channels"])
        if crops.ndim != 3 or crops.shape[0] != self.maps[of_map]["shape"][0]:
            channels = strongest(crops, CROPS)  # another number of channels: layer4 has run on the crop (C4)
        stride, m, area = features.strides[level], self.model, float(box_area(box[None])[0])
        # assign_levels before it clamps to the levels there are
        k = np.floor(4 + np.log2(max(np.sqrt(area), 1e-9) / m.canonical_size + m.level_eps_in_log) + m.level_eps)
        return {"map": of_map, "box": rounded(box, 5), "stride": stride, "area": rounded(area, 5), "formula": int(k),
                "level": int(self.model.roi_levels[level]), "size": features.output_size, "method": features.method,
                "aligned": features.aligned, "shape": list(crops.shape), "channels": channels.tolist(),
                "crops": [self.arrays.add(crops[c]) for c in channels],
                **{k: rounded(v, 5) for k, v in sampling_points(box, stride, features).items()}}

    def _classes(self, proposal, label):
        scores, logits = self.scores[proposal], self.trace["roi_heads.class_logits"][proposal]
        best = np.argsort(-scores, kind="stable")[:CLASSES]
        if label not in best:
            best[-1] = label
        return [{"label": int(k), "score": rounded(scores[k]), "logit": rounded(logits[k])} for k in best]

    def _refined(self, i, proposal, label):
        deltas = self.trace["roi_heads.box_deltas"][proposal].reshape(-1, 4)[label]
        box = self.trace["detections.boxes"][0][i]
        scores, boxes = self.scores[:, label], self.decoded[:, label]
        candidate = (scores > self.model.box_score_thresh) & (scores <= scores[proposal])
        candidate[proposal] = False
        dropped = np.flatnonzero(candidate)
        dropped = dropped[box_iou(box[None], boxes[dropped])[0] > self.model.box_nms_thresh]
        return {"deltas": rounded(deltas), "dropped": len(dropped), "droppedBoxes": rounded(boxes[dropped[:DROPPED]]),
                "clipped": bool((box[:2] <= 0).any() or (box[2:] >= self.input_size[::-1]).any())}

    def _mask(self, i, label, classes):
        probability, logits = self.trace["roi_heads.mask_probabilities"][i], self.trace["roi_heads.mask_logits"][i]
        others = []
        if self.model.mask_loss == "sigmoid":  # one mask a class; the class decides which one is looked at
            others = [{"label": c["label"], "data": self.arrays.add(sigmoid(logits[c["label"]]), 0, 1)} for c in classes
                      if c["label"] not in (0, label)]
        own = logits[label if len(logits) > 1 else 0]
        return {"data": self.arrays.add(probability, 0, 1), "lowest": rounded(own.min()), "highest": rounded(own.max()),
                "channels": len(logits), "others": others}

    def _pasted(self, i):
        """The soft mask in the picture, cut to where it is not 0."""
        paste = paste_masks if self.model.paste == "integer" else paste_masks_continuous
        box = resize_boxes(self.result.boxes[i:i + 1], self.original_size, self.shown)
        soft = paste(self.trace["roi_heads.mask_probabilities"][i:i + 1], box, self.shown)[0]
        rows, columns = np.flatnonzero(soft.any(axis=1)), np.flatnonzero(soft.any(axis=0))
        if len(rows) == 0:
            return {"x": 0, "y": 0, "data": self.arrays.add(np.zeros((1, 1)), 0, 1)}
        soft = soft[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        return {"x": int(columns[0]), "y": int(rows[0]), "data": self.arrays.add(soft, 0, 1)}


def in_rows(values):
    """(n,) -> (rows, columns) about four times as wide as high; zeros fill the last row."""
    columns = 2 ** int(np.ceil(np.log2(max(len(values), 1)) / 2 + 1))
    return np.pad(values, (0, -len(values) % columns)).reshape(-1, columns)


def sampling_points(box, stride, features):
    """Where RoIAlign reads one RoI: "start" and "side" (x, y) of the RoI on the map, in cells, and the points "xs" and "ys".

    The points form a grid, xs times ys. A whole number is the centre of a cell. RoIPool reads whole cells: it has no points.
    """
    start, end = box[:2] / stride, box[2:] / stride
    if features.method != "align":
        start, end = np.round(start), np.round(end) + 1
        return {"start": start, "side": np.maximum(end - start, 1)}
    if features.aligned:
        start, end = start - 0.5, end - 0.5
    side = end - start if features.aligned else np.maximum(end - start, 1)
    bins = features.output_size
    points = []
    for first, length in zip(start, side):
        count = features.sampling_ratio if features.sampling_ratio > 0 else max(int(np.ceil(length / bins)), 1)
        points.append(first + (np.arange(bins * count) + 0.5) * length / (bins * count))
    return {"start": start, "side": side, "xs": points[0], "ys": points[1]}
