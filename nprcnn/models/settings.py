"""The numbers and choices of a detector that are not in its layers. torchvision's names and defaults, where it has them."""

from typing import NamedTuple

from ..errors import ConfigError
from .box_head import BOX_WEIGHTS
from .mask_head import MASK_LOSSES
from .transform import IMAGENET_MEAN, IMAGENET_STD, RESIZES


class Settings(NamedTuple):
    """Keyword arguments of the builders; conventions.py lists those that Detectron2 has otherwise.

    Sizes are in pixels of the resized image. "train" and "test": in `losses` and in `predict`.
    """

    # the input (transform.make_batch)
    min_size: int = 800
    max_size: int = 1333
    min_size_train: int | None = None  # in `losses`; None: min_size, too. Another size where training sees crops of the images
    image_mean: tuple = IMAGENET_MEAN
    image_std: tuple = IMAGENET_STD
    channel_order: str = "rgb"
    pixel_range: float = 1.0
    resize: str = "float"
    size_divisible: int = 32

    # the RPN's proposals (rpn.filter_proposals)
    rpn_pre_nms_top_n_train: int = 2000
    rpn_pre_nms_top_n_test: int = 1000
    rpn_post_nms_top_n_train: int = 2000
    rpn_post_nms_top_n_test: int = 1000
    rpn_nms_thresh: float = 0.7
    rpn_score_thresh: float = 0.0
    rpn_min_size: float = 1e-3
    rpn_nms_on: str = "scores"

    # its training (targets.anchor_targets, rpn.rpn_losses)
    rpn_fg_iou_thresh: float = 0.7
    rpn_bg_iou_thresh: float = 0.3
    rpn_batch_size_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_smooth_l1_beta: float = 1 / 9
    rpn_loss_normalizer: str = "sampled"  # both losses / the sampled anchors; "wanted": / rpn_batch_size_per_image, an image

    # the level of an RoI (roi_features.assign_levels)
    canonical_size: float = 224
    level_eps: float = 1e-6
    level_eps_in_log: float = 0.0

    # the box head's detections (postprocess.filter_detections)
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_detections_per_img: int = 100
    box_min_size: float = 1e-2
    bbox_reg_weights: tuple = BOX_WEIGHTS

    # its training (targets.roi_targets, box_head.box_losses)
    box_fg_iou_thresh: float = 0.5
    box_bg_iou_thresh: float = 0.5
    box_batch_size_per_image: int = 512
    box_positive_fraction: float = 0.25
    box_smooth_l1_beta: float = 1 / 9

    # the masks (mask_head.mask_loss_forward, targets.mask_targets, ops.paste)
    mask_loss: str = "sigmoid"
    mask_target_aligned: bool = False
    mask_target_binary: bool = False
    paste: str = "integer"                # or "continuous": paste_masks or paste_masks_continuous

    class_names: tuple | None = None      # of labels 0 .. num_classes - 1, for those who print them

    def check(self):
        """Returns self; ConfigError if a choice is none of those there are."""
        for name, choices in (("channel_order", ("rgb", "bgr")), ("resize", RESIZES), ("rpn_nms_on", ("scores", "logits")),
                              ("rpn_loss_normalizer", ("sampled", "wanted")), ("mask_loss", MASK_LOSSES),
                              ("paste", ("integer", "continuous"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}={getattr(self, name)!r} is not one of {', '.join(choices)}")
        return self
