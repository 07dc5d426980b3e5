"""What the two reference systems do differently, as plain arguments. The builders read this table once; nothing below them does.

The same weights give other boxes and other masks when a single one of these is wrong, and nothing fails: half a pixel here, a
rounding there. Each can be set on its own: maskrcnn_resnet50_fpn(conventions="detectron2", paste="integer").
"""

from ..errors import ConfigError

TORCHVISION = {}  # the defaults of every function

DETECTRON2 = dict(
    # weights that descend from Caffe: BGR, 0..255, means and no standard deviations; images resized as bytes
    channel_order="bgr", pixel_range=255.0, image_mean=(103.53, 116.28, 123.675), image_std=(1.0, 1.0, 1.0), resize="pil",
    stride_in_1x1=True,
    anchor_rounding=False, anchor_order="size", fixed_anchor_strides=True,
    level_eps=0.0, level_eps_in_log=1e-8,
    sampling_ratio=0, aligned=True,
    # L1; and an RPN loss that counts the anchors that were wanted, not those that were found
    rpn_smooth_l1_beta=0.0, box_smooth_l1_beta=0.0, rpn_loss_normalizer="wanted",
    # a side of 0 pixels, and no other, is too small
    rpn_nms_on="logits", rpn_min_size=1e-30, box_min_size=1e-30, rpn_post_nms_top_n_train=1000,
    mask_target_aligned=True, mask_target_binary=True, paste="continuous",
)

CONVENTIONS = {"torchvision": TORCHVISION, "detectron2": DETECTRON2}
# Models without a pyramid: Detectron2 pads a batch to its largest image, and no further.
SINGLE_MAP = {"torchvision": {}, "detectron2": dict(size_divisible=1)}


def with_conventions(conventions, settings, pyramid=True):
    """The table of that name, overridden by `settings`; a new dict. pyramid: False for a model without one. ConfigError for another
    name."""
    if conventions not in CONVENTIONS:
        raise ConfigError(f"conventions={conventions!r} is not one of {', '.join(CONVENTIONS)}")
    return {**CONVENTIONS[conventions], **({} if pyramid else SINGLE_MAP[conventions]), **settings}
