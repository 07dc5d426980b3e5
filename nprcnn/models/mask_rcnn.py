"""Mask R-CNN: the wiring of all stages, forward and backward. Without the mask branch it is Faster R-CNN.

    image -> transform -> backbone (ResNet) -> FPN -> RPN -> proposals -> RoIAlign 7x7   -> box head  -> classes, boxes
                                                                      \\-> RoIAlign 14x14 -> mask head -> masks

The names of the stages in a trace: nprcnn.trace.NAMES.
"""

import math

import numpy as np

from .. import backend, devices
from ..data.images import as_image
from ..data.targets import check_target
from ..errors import DataError
from ..layers import Layer
from ..ops.paste import paste_masks_continuous
from ..trace import record, record_grad, record_input, record_labels
from . import box_head, mask_head, postprocess, rpn, targets, transform
from .decisions import LOSSES, Decisions, LossCache
from .postprocess import Detections
from .roi_features import as_rois, assign_levels
from .settings import Settings


class RoIHeads(Layer):
    """The second stage's layers, under torchvision's names. mask_head and mask_predictor are None in Faster R-CNN."""

    def __init__(self, box_head, box_predictor, mask_head=None, mask_predictor=None):
        self.box_head, self.box_predictor = box_head, box_predictor
        self.mask_head, self.mask_predictor = mask_head, mask_predictor


class MaskRCNN(Layer):
    """A detector: `predict`, and for training `losses` and `backward`.

    Parameters
    ----------
    backbone, rpn, roi_heads : Layers
    anchor_generator : AnchorGenerator
    box_features, mask_features : RoIFeatures
        mask_features is None in Faster R-CNN.
    num_classes : int
        Background included.
    settings
        Those of settings.Settings, by name. Each becomes an attribute: model.box_score_thresh.
    """

    def __init__(self, backbone, rpn, roi_heads, anchor_generator, box_features, mask_features, *, num_classes, **settings):
        self.backbone, self.rpn, self.roi_heads = backbone, rpn, roi_heads
        self.anchor_generator = anchor_generator
        self.box_features, self.mask_features = box_features, mask_features
        self.num_classes = num_classes
        for name, value in Settings(**settings).check()._asdict().items():
            setattr(self, name, value)
        # the pyramid level of each map that RoIs are cut from: 2 for P2, which has stride 4; 4 for a single map of stride 16
        self.roi_levels = np.array([round(math.log2(stride)) for stride in box_features.strides])

    @property
    def has_masks(self):
        """False for Faster R-CNN."""
        return self.roi_heads.mask_head is not None

    @property
    def dtype(self):
        """The parameters' dtype, in which everything is computed."""
        return self.rpn.head.cls_logits.weight.data.dtype.type

    # ---------------------------------------------------------------------------------------------------- inference

    def predict(self, images, trace=None):
        """Find the objects of an image, or of each image of a list.

        Parameters
        ----------
        images : (H, W, 3) array or list of them
            RGB; uint8 in 0..255 or float in 0..1.
        trace : Trace, optional
            Takes every stage's tensors.

        Returns
        -------
        Detections, or a list of them.

        Raises
        ------
        DataError
            An image has another shape or type, a side of length 0, or NaN.
        """
        if not isinstance(images, (list, tuple)):
            return self.predict([images], trace)[0]
        images = _checked_images(images)
        with devices.memory_errors():
            return self._predict(images, trace)

    def _predict(self, images, trace):
        batch, pyramid, anchors, logits, deltas, _ = self._first_stage(images, False, trace)
        found = self._proposals(logits, deltas, anchors, batch.sizes, self.rpn_pre_nms_top_n_test, self.rpn_post_nms_top_n_test,
                                trace)
        proposals, proposal_anchor = [f.boxes for f in found], [f.anchor for f in found]
        record(trace, "rpn.proposals", proposals)
        record(trace, "rpn.proposal_scores", [f.scores for f in found])
        record(trace, "rpn.proposal_anchors", proposal_anchor)

        levels = [self._levels(p) for p in proposals]
        class_logits, box_deltas, _ = self._box_branch(pyramid, proposals, levels, False, trace)
        splits = np.cumsum([len(p) for p in proposals])[:-1].tolist()
        found = [postprocess.filter_detections(l, d, p, size, self.box_score_thresh, self.box_nms_thresh,
                                               self.box_detections_per_img, self.bbox_reg_weights, self.box_min_size)
                 for l, d, p, size in zip(np.split(class_logits, splits), np.split(box_deltas, splits), proposals,
                                          batch.sizes)]
        boxes = [f[0] for f in found]
        record(trace, "detections.boxes", boxes)
        record(trace, "detections.labels", [f[1] for f in found])
        record(trace, "detections.scores", [f[2] for f in found])

        masks = [None] * len(images)
        if self.has_masks:
            mask_logits, _ = self._mask_branch(pyramid, boxes, [self._levels(b) for b in boxes], False, trace)
            labels = np.concatenate([f[1] for f in found])
            probabilities = mask_head.mask_probabilities(mask_logits, labels, self.mask_loss)
            record(trace, "roi_heads.mask_probabilities", probabilities)
            masks = np.split(probabilities, np.cumsum([len(b) for b in boxes])[:-1].tolist())
        return [self._detections(f, m, batch.sizes[i], batch.original_sizes[i], levels[i], proposal_anchor[i])
                for i, (f, m) in enumerate(zip(found, masks))]

    def _detections(self, found, masks, size, original_size, levels, proposal_anchor):
        boxes, labels, scores, proposal = found
        boxes = transform.resize_boxes(boxes, size, original_size)
        if masks is not None:
            if self.paste == "integer":
                masks = backend.active(masks).paste_masks(masks, boxes, original_size, threshold=0.5)
            else:
                masks = paste_masks_continuous(devices.to_host(masks, "mask probabilities"), boxes, original_size, threshold=0.5)
            masks = devices.to_host(masks, "pasted masks")
        return Detections(boxes, labels, scores, masks, proposal, self.roi_levels[levels[proposal]], proposal_anchor[proposal])

    # ----------------------------------------------------------------------------------------------------- training

    def losses(self, images, image_targets, rng, decisions=None, trace=None):
        """The losses of a batch. Batch norm uses the batch's statistics and moves its running ones, as in every training step.

        Parameters
        ----------
        images : list of (H, W, 3) arrays
            As for predict.
        image_targets : list of dict
            One an image: "boxes" (G, 4) float, "labels" (G,) int in 1 .. num_classes - 1, "masks" (G, H, W) uint8 (not needed
            without a mask branch). G may be 0.
        rng : numpy.random.Generator, or a list with one an image
            Draws the samples of anchors and RoIs. One generator serves the images one after the other; with a list, an image's sample
            does not depend on what else is in the batch. Not used if decisions are given.
        decisions : Decisions, optional
        trace : Trace, optional

        Returns
        -------
        dict with loss_objectness, loss_rpn_box_reg, loss_classifier, loss_box_reg and loss_mask (torchvision's names; what training
        minimises is their plain sum); and a cache for `backward`, whose field `decisions` tells what was decided.

        Raises
        ------
        DataError
            An image or a target cannot be used; nothing was changed.
        """
        images, image_targets = self._checked(images, image_targets)
        with devices.memory_errors():
            return self._losses(images, image_targets, rng, decisions, trace)

    def _losses(self, images, image_targets, rng, decisions, trace):
        target_boxes = [t["boxes"] for t in image_targets]
        batch, pyramid, anchors, logits, deltas, first_cache = self._first_stage(images, True, trace)
        if decisions is None:
            decisions = self._decide(logits, deltas, anchors, batch, image_targets, rng, trace)
        record_labels(trace, decisions.labels)
        record(trace, "rpn.proposals", decisions.proposals)
        record(trace, "rpn.proposal_anchors", decisions.proposal_anchor)

        wanted = self.rpn_batch_size_per_image * len(images) if self.rpn_loss_normalizer == "wanted" else None
        objectness, rpn_box, rpn_loss_cache = rpn.rpn_losses(
            logits, deltas, np.concatenate(anchors), target_boxes, decisions.anchor_positive, decisions.anchor_negative,
            decisions.anchor_matched, self.rpn_smooth_l1_beta, wanted)

        class_logits, box_deltas, box_cache = self._box_branch(pyramid, decisions.proposals, decisions.levels, True, trace)
        labels = np.concatenate(decisions.labels)
        # a background RoI has no target box; any box may stand there, for its loss is not computed
        roi_boxes = np.concatenate([b[m] if len(b) else p for b, m, p in
                                    zip(target_boxes, decisions.matched, decisions.proposals)])
        classifier, box_reg, box_loss_cache = box_head.box_losses(
            class_logits, box_deltas, np.concatenate(decisions.proposals), labels, roi_boxes, self.bbox_reg_weights,
            self.box_smooth_l1_beta)
        losses = {"loss_objectness": objectness, "loss_rpn_box_reg": rpn_box,
                  "loss_classifier": classifier, "loss_box_reg": box_reg}

        mask_cache = mask_loss_cache = None
        if self.has_masks:
            positive = [l > 0 for l in decisions.labels]
            boxes = [p[keep] for p, keep in zip(decisions.proposals, positive)]
            mask_logits, mask_cache = self._mask_branch(pyramid, boxes, [l[keep] for l, keep in
                                                                         zip(decisions.levels, positive)], True, trace)
            mask_targets = np.concatenate([
                targets.mask_targets(t["masks"], b, m[keep], mask_logits.shape[-1], self.mask_target_aligned,
                                     self.mask_target_binary)
                for t, b, m, keep in zip(image_targets, boxes, decisions.matched, positive)])
            record(trace, "roi_heads.mask_targets", mask_targets)
            losses["loss_mask"], mask_loss_cache = mask_head.mask_loss_forward(mask_logits, labels[labels > 0], mask_targets,
                                                                               self.mask_loss)
        for name, loss in losses.items():
            record(trace, f"losses.{name}", loss)
        return losses, LossCache(decisions, first_cache, rpn_loss_cache, box_cache, box_loss_cache, mask_cache, mask_loss_cache)

    def decide(self, images, image_targets, rng):
        """What `losses` would decide, and nothing else: Decisions. Keeps nothing for a backward pass and changes nothing; batch norm uses
        the batch's statistics, as `losses` does, and its running ones stay. Arguments and errors: see losses.
        """
        images, image_targets = self._checked(images, image_targets)
        before = [(tensor, tensor.data) for _, tensor in self.named_tensors()]
        batch, _, anchors, logits, deltas, _ = self._first_stage(images, True, None)
        for tensor, data in before:  # batch norm has put new arrays in the place of its running statistics
            tensor.data = data
        return self._decide(logits, deltas, anchors, batch, image_targets, rng, None)

    def loss_counts(self, decisions):
        """By what each loss of a batch is divided: {name of the loss: sampled anchors, sampled RoIs or positive RoIs}.

        A loss of a whole batch is the mean of its parts' losses, weighted with these counts: see backward's `weights`.
        """
        anchors = sum(map(len, decisions.anchor_positive + decisions.anchor_negative))
        if self.rpn_loss_normalizer == "wanted":
            anchors = self.rpn_batch_size_per_image * len(decisions.labels)
        rois = sum(map(len, decisions.labels))
        positive = sum(int((labels > 0).sum()) for labels in decisions.labels)
        return dict(zip(LOSSES if self.has_masks else LOSSES[:-1], (anchors, anchors, rois, rois, positive)))

    def backward(self, cache, trace=None, weights=None):
        """Add the gradient of the sum of the losses to every parameter's grad.

        weights: {name of the loss: factor}, all 1 by default. Where the batch is a part of a larger one, the part's share of each loss's
        count makes the gradients of the parts add up to the larger batch's (train/gradients.py).

        The stages of `losses`, from the last to the first. The proposals are constants, so no gradient flows from the second stage
        through the RPN: the two meet only in the pyramid, where their gradients add.
        """
        with devices.memory_errors():
            self._backward(cache, trace, weights)

    def _backward(self, cache, trace, weights):
        # d(weighted sum of the losses) / d(each loss)
        d = {name: self.dtype(1 if weights is None else weights[name]) for name in (LOSSES if self.has_masks else LOSSES[:-1])}
        count = len(self.box_features.strides)
        from_rois = [0] * count  # the mask branch's share
        for name in d:
            record_grad(trace, f"losses.{name}", d[name])
        if self.has_masks:
            # forward: loss_mask = mask loss(mask logits), mask logits = mask branch(P2 .. P5)
            dmask_logits = mask_head.mask_loss_backward(d["loss_mask"], cache.mask_loss)
            from_rois = self._mask_branch_backward(dmask_logits, cache.mask, trace)
        # forward: loss_classifier, loss_box_reg = box losses(class logits, box deltas), both = box branch(P2 .. P5)
        dclass_logits, dbox_deltas = box_head.box_losses_backward(d["loss_classifier"], d["loss_box_reg"], cache.box_loss)
        dbox = self._box_branch_backward(dclass_logits, dbox_deltas, cache.box, trace)
        # each of P2 .. P5 fed both branches: fan-out, so the gradients add
        for into, dp in zip(dbox, from_rois):
            into += dp

        # forward: loss_objectness, loss_rpn_box_reg = RPN losses(logits, deltas), both = RPN(P2 .. P6)
        dlogits, ddeltas = rpn.rpn_losses_backward(d["loss_objectness"], d["loss_rpn_box_reg"], cache.rpn_loss)
        backbone_cache, rpn_cache = cache.first_stage
        dpyramid = self.rpn.backward(dlogits, ddeltas, rpn_cache, trace)
        # each of P2 .. P5 fed the RPN and the RoI heads: fan-out, so the gradients add. P6 fed the RPN alone.
        for into, dp in zip(dpyramid, dbox):
            into += dp
        # forward: P2 .. P6 = backbone(images)
        self.backbone.backward(dpyramid, backbone_cache, trace)

    # ------------------------------------------------------------------------------------------------------- stages

    def _checked(self, images, image_targets):
        """Images, and targets of the resized images; DataError if one cannot be trained on."""
        images = _checked_images(images)
        if len(images) != len(image_targets):
            raise DataError(f"{len(images)} images and {len(image_targets)} targets; each image needs its own")
        for i, (image, target) in enumerate(zip(images, image_targets)):
            check_target(image.shape[:2], target, self.num_classes, i, needs_masks=self.has_masks)
        image_targets = [transform.resize_target(
            t, image.shape[:2], transform.resized_size(*image.shape[:2], self._min_size(True), self.max_size, self.resize),
            self.dtype, self.resize)
            for t, image in zip(image_targets, images)]
        for i, boxes in enumerate(t["boxes"] for t in image_targets):
            if (boxes[:, 2:] <= boxes[:, :2]).any():
                raise DataError(f"target {i}: a box is so small that {boxes.dtype} loses its area after resizing; drop it")
        return images, image_targets

    def _min_size(self, train):
        return self.min_size if self.min_size_train is None or not train else self.min_size_train

    def _first_stage(self, images, train, trace):
        batch = transform.make_batch(images, self._min_size(train), self.max_size, self.image_mean, self.image_std, self.size_divisible,
                                     self.dtype, self.channel_order, self.pixel_range, self.resize,
                                     like=self.rpn.head.cls_logits.weight.data)
        record_input(trace, images, batch.sizes, self.class_names)
        record(trace, "transform.batch", batch.tensor)
        pyramid, backbone_cache = self.backbone.forward(batch.tensor, train, trace)
        logits, deltas, rpn_cache = self.rpn.forward(pyramid, train, trace)
        anchors = self.anchor_generator(batch.tensor.shape[2:], [p.shape[2:] for p in pyramid])
        record(trace, "rpn.anchors", np.concatenate(anchors))
        return batch, pyramid, anchors, logits, deltas, (backbone_cache, rpn_cache)

    def _levels(self, boxes):
        return assign_levels(boxes, len(self.box_features.strides), self.canonical_size, eps=self.level_eps,
                             eps_in_log=self.level_eps_in_log)

    def _proposals(self, logits, deltas, anchors, sizes, pre_nms_top_n, post_nms_top_n, trace):
        """A rpn.Proposals an image."""
        found = [rpn.filter_proposals(logits[i], deltas[i], anchors, size, pre_nms_top_n, post_nms_top_n, self.rpn_nms_thresh,
                                      self.rpn_min_size, self.rpn_score_thresh, self.rpn_nms_on)
                 for i, size in enumerate(sizes)]
        record(trace, "rpn.proposals_before_nms", [f.before_nms for f in found])
        record(trace, "rpn.scores_before_nms", [f.scores_before_nms for f in found])
        return found

    def _decide(self, logits, deltas, anchors, batch, image_targets, rng, trace):
        """Everything discrete, from the RPN's outputs and the targets. No gradient flows through it."""
        all_anchors = np.concatenate(anchors)
        found = self._proposals(logits, deltas, anchors, batch.sizes, self.rpn_pre_nms_top_n_train, self.rpn_post_nms_top_n_train,
                                trace)
        rngs = rng if isinstance(rng, (list, tuple)) else [rng] * len(found)
        per_image = []
        for target, (proposals, _, anchor, *_), rng in zip(image_targets, found, rngs, strict=True):
            anchor_sample = targets.anchor_targets(
                all_anchors, target["boxes"], rng, self.rpn_fg_iou_thresh, self.rpn_bg_iou_thresh,
                self.rpn_batch_size_per_image, self.rpn_positive_fraction)
            chosen, labels, matched = targets.roi_targets(
                proposals, target["boxes"], target["labels"], rng, self.box_fg_iou_thresh, self.box_bg_iou_thresh,
                self.box_batch_size_per_image, self.box_positive_fraction)
            rois = np.concatenate([proposals, target["boxes"]])[chosen]
            anchor = np.concatenate([anchor, np.full(len(target["boxes"]), -1)])[chosen]
            per_image.append((*anchor_sample, rois, anchor, labels, matched, self._levels(rois)))
        return Decisions(*(list(field) for field in zip(*per_image)))

    def _box_branch(self, pyramid, boxes, levels, train, trace):
        x, roi_cache = self.box_features.forward(pyramid[:len(self.box_features.strides)], as_rois(boxes),
                                                 np.concatenate(levels), train)
        record(trace, "roi_heads.levels", [self.roi_levels[l] for l in levels])
        record(trace, "roi_heads.box_features", x)
        h, head_cache = self.roi_heads.box_head.forward(x, train)
        record(trace, "roi_heads.box_hidden", h)
        logits, deltas, predictor_cache = self.roi_heads.box_predictor.forward(h, train)
        record(trace, "roi_heads.class_logits", logits)
        record(trace, "roi_heads.box_deltas", deltas)
        return logits, deltas, (roi_cache, head_cache, predictor_cache)

    def _box_branch_backward(self, dlogits, ddeltas, cache, trace):
        roi_cache, head_cache, predictor_cache = cache
        record_grad(trace, "roi_heads.class_logits", dlogits)
        record_grad(trace, "roi_heads.box_deltas", ddeltas)
        dh = self.roi_heads.box_predictor.backward(dlogits, ddeltas, predictor_cache)
        record_grad(trace, "roi_heads.box_hidden", dh)
        dx = self.roi_heads.box_head.backward(dh, head_cache)
        record_grad(trace, "roi_heads.box_features", dx)
        return self.box_features.backward(dx, roi_cache)

    def _mask_branch(self, pyramid, boxes, levels, train, trace):
        x, roi_cache = self.mask_features.forward(pyramid[:len(self.mask_features.strides)], as_rois(boxes),
                                                  np.concatenate(levels), train)
        record(trace, "roi_heads.mask_features", x)
        h, head_cache = self.roi_heads.mask_head.forward(x, train)
        record(trace, "roi_heads.mask_hidden", h)
        logits, predictor_cache = self.roi_heads.mask_predictor.forward(h, train)
        record(trace, "roi_heads.mask_logits", logits)
        return logits, (roi_cache, head_cache, predictor_cache)

    def _mask_branch_backward(self, dlogits, cache, trace):
        roi_cache, head_cache, predictor_cache = cache
        record_grad(trace, "roi_heads.mask_logits", dlogits)
        dh = self.roi_heads.mask_predictor.backward(dlogits, predictor_cache)
        record_grad(trace, "roi_heads.mask_hidden", dh)
        dx = self.roi_heads.mask_head.backward(dh, head_cache)
        record_grad(trace, "roi_heads.mask_features", dx)
        return self.mask_features.backward(dx, roi_cache)


def _checked_images(images):
    if len(images) == 0:
        raise DataError("the list of images is empty; give at least one")
    return [as_image(image, f"image {i}") for i, image in enumerate(images)]
