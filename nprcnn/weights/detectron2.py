"""Detectron2's names and its order of classes -> this package's.

    stem.conv1, stem.conv1.norm                          conv1, bn1
    resS.B.convN, resS.B.convN.norm                      layer(S-1).B.convN, layer(S-1).B.bnN
    resS.B.shortcut, resS.B.shortcut.norm                layer(S-1).B.downsample.0, .downsample.1
    fpn_lateralL, fpn_outputL                            fpn.inner_blocks.(L-2).0, fpn.layer_blocks.(L-2).0
    proposal_generator.rpn_head.{conv, objectness_logits, anchor_deltas}      rpn.head.{conv.0.0, cls_logits, bbox_pred}
    roi_heads.box_head.{fc1, fc2}                        roi_heads.box_head.{fc6, fc7}
    roi_heads.mask_head.{mask_fcnN, deconv, predictor}   roi_heads.mask_head.(N-1).0, .mask_predictor.{conv5_mask, mask_fcn_logits}
    roi_heads.res5.B (C4)                                roi_heads.box_head.layer4.B

The stages lie under "backbone.bottom_up." where there is a pyramid and under "backbone." where there is none (C4, DC5).

Detectron2 counts the classes from 0 and its background is the last one; here the background is class 0. Its box and mask predictors
have no outputs for the background, ours do (never looked at): zeros are put there. What the numbers mean is a matter of the model:
build it with conventions="detectron2" (BGR, stride in the 1x1 convolution, RoIAlign shifted by half a pixel, ...).
"""

import re

import numpy as np

from ..errors import WeightsError

STAGE = r"backbone\.(?:bottom_up\.)?res([2-5])\.(\d+)"
RES5 = r"roi_heads\.res5\.(\d+)"


def _rules():
    for prefix, stage in ((STAGE, lambda m: f"backbone.body.layer{int(m[1]) - 1}.{m[2]}"),
                          (RES5, lambda m: f"roi_heads.box_head.layer4.{m[1]}")):
        yield rf"{prefix}\.conv(?P<n>[123])\.norm\.(?P<end>\w+)", lambda m, stage=stage: f"{stage(m)}.bn{m['n']}.{m['end']}"
        yield rf"{prefix}\.conv(?P<n>[123])\.weight", lambda m, stage=stage: f"{stage(m)}.conv{m['n']}.weight"
        yield rf"{prefix}\.shortcut\.norm\.(?P<end>\w+)", lambda m, stage=stage: f"{stage(m)}.downsample.1.{m['end']}"
        yield rf"{prefix}\.shortcut\.weight", lambda m, stage=stage: f"{stage(m)}.downsample.0.weight"
    yield r"backbone\.(?:bottom_up\.)?stem\.conv1\.norm\.(\w+)", lambda m: f"backbone.body.bn1.{m[1]}"
    yield r"backbone\.(?:bottom_up\.)?stem\.conv1\.weight", lambda m: "backbone.body.conv1.weight"
    yield r"backbone\.fpn_lateral([2-5])\.(weight|bias)", lambda m: f"backbone.fpn.inner_blocks.{int(m[1]) - 2}.0.{m[2]}"
    yield r"backbone\.fpn_output([2-5])\.(weight|bias)", lambda m: f"backbone.fpn.layer_blocks.{int(m[1]) - 2}.0.{m[2]}"
    yield r"proposal_generator\.rpn_head\.conv\.(weight|bias)", lambda m: f"rpn.head.conv.0.0.{m[1]}"
    yield r"proposal_generator\.rpn_head\.objectness_logits\.(weight|bias)", lambda m: f"rpn.head.cls_logits.{m[1]}"
    yield r"proposal_generator\.rpn_head\.anchor_deltas\.(weight|bias)", lambda m: f"rpn.head.bbox_pred.{m[1]}"
    yield r"roi_heads\.box_head\.fc([12])\.(weight|bias)", lambda m: f"roi_heads.box_head.fc{int(m[1]) + 5}.{m[2]}"
    yield r"roi_heads\.mask_head\.mask_fcn([1-9]\d*)\.(weight|bias)", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}"
    yield r"roi_heads\.mask_head\.deconv\.(weight|bias)", lambda m: f"roi_heads.mask_predictor.conv5_mask.{m[1]}"
    yield r"roi_heads\.mask_head\.predictor\.(weight|bias)", lambda m: f"roi_heads.mask_predictor.mask_fcn_logits.{m[1]}"


RULES = [(re.compile(pattern), rename) for pattern, rename in _rules()]
# constants of the model, which some of Detectron2's files hold
NO_WEIGHTS = re.compile(r"proposal_generator\.anchor_generator\.cell_anchors\.\d+|pixel_mean|pixel_std")


def is_detectron2(state):
    """Do the names of a state dict follow Detectron2?"""
    return any(name.startswith(("proposal_generator.rpn_head.", "backbone.bottom_up.", "backbone.res2.")) for name in state)


def from_detectron2(state):
    """A state dict of Detectron2 under this package's names, with the background first.

    Parameters
    ----------
    state : {name: array}
        Of a Faster or Mask R-CNN of Detectron2, with FPN, C4 or DC5. A name that is not in the table above stays as it is.

    Returns
    -------
    {name: array}

    Raises
    ------
    WeightsError
        Two names become one, or there are not as many outputs as the classes need (a class-agnostic box predictor).
    """
    result = {}
    for name, array in state.items():
        if NO_WEIGHTS.fullmatch(name):
            continue
        for pattern, rename in RULES:
            match = pattern.fullmatch(name)
            if match:
                name = rename(match)
                break
        if name in result:
            raise WeightsError(f"{name} is in the file under two of Detectron2's names; take one of them out")
        result[name] = array
    return _background_first(result)


def _background_first(state):
    """cls_score: the last row becomes the first. bbox_pred and mask_fcn_logits: rows of zeros for the background."""
    score = "roi_heads.box_predictor.cls_score."
    if score + "weight" not in state:
        return state
    classes = len(state[score + "weight"])
    for end in ("weight", "bias"):
        if score + end in state:
            state[score + end] = np.roll(state[score + end], 1, axis=0)
        for predictor, rows in (("roi_heads.box_predictor.bbox_pred.", 4), ("roi_heads.mask_predictor.mask_fcn_logits.", 1)):
            array = state.get(predictor + end)
            if array is None or (rows == 1 and len(array) == 1 != classes - 1):  # one mask for all classes stays one
                continue
            if len(array) != rows * (classes - 1):
                raise WeightsError(f"{predictor}{end} has {len(array)} outputs where {classes - 1} classes need {rows * (classes - 1)}; "
                                   "a box for all classes in common is not supported")
            state[predictor + end] = np.concatenate([np.zeros((rows, *array.shape[1:]), array.dtype), array])
    return state
