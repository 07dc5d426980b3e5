"""Putting a detector together from its parts, around any backbone: with a pyramid, with a single map, or the C4 way."""

from ..errors import ConfigError
from ..layers import NORMS
from .anchors import AnchorGenerator
from .box_head import BoxHead, BoxPredictor, ConvBoxHead
from .fpn import FPN, BackboneWithFPN, SingleLevelBackbone
from .mask_head import MASK_LOSSES, MaskHead, MaskHeadMLP, MaskPredictor, MaskPredictorMLP
from .mask_rcnn import MaskRCNN, RoIHeads
from .res5_head import Res5BoxHead, Res5MaskHead
from .roi_features import RoIFeatures
from .rpn import RPN, RPNHead

PYRAMID_SIZES = ((32,), (64,), (128,), (256,), (512,))   # one size a level (FPN, section 4.1)
SINGLE_SIZES = ((32, 64, 128, 256, 512),)                # five sizes in every cell (Mask R-CNN, section 3.1)


def assemble(rng, body, num_classes, *, kind="fpn", anchor_sizes=None, aspect_ratios=(0.5, 1.0, 2.0), anchor_rounding=True,
             anchor_order="ratio", anchor_offset=0.0, fixed_anchor_strides=False, roi_method="align", sampling_ratio=2,
             aligned=False, fpn_channels=256, rpn_convs=1, box_convs=(), box_hidden=1024, mask_channels=(256, 256, 256, 256),
             masks=True, head_norm=None, mask_head="fcn", mask_loss="sigmoid", res5_blocks=3, **settings):
    """Put a detector together.

    Parameters
    ----------
    rng : numpy.random.Generator
    body : ResNet or VGG
    num_classes : int
        Background included.
    kind : "fpn", "single" or "c4"
        "fpn": a pyramid over the four stages. "single": the body's last map alone, of stride 16, with the same heads. "c4": the same
        with a body without layer4, which becomes the head.
    anchor_sizes, aspect_ratios, anchor_rounding, anchor_order, anchor_offset
        See AnchorGenerator. None: PYRAMID_SIZES or SINGLE_SIZES.
    fixed_anchor_strides : bool
        True: the levels' strides are 4 .. 64 (or 16). False: what the padded image's size gives.
    roi_method, sampling_ratio, aligned
        See RoIFeatures. "align" or "pool": table 2c of the paper.
    fpn_channels, box_hidden, mask_channels : int, int, tuple of int
        Widths of the pyramid, of the box head's layers and of the mask head's convolutions.
    rpn_convs, box_convs : int, tuple of int
        3x3 convolutions in the RPN's head, and the channels of those in the box head (torchvision's v2 has 2 and four of 256).
    masks : bool
        False leaves the mask branch out: Faster R-CNN.
    head_norm : None, "batch" or "frozen"
        Norm in the pyramid, the mask head and the box head's convolutions.
    mask_head : "fcn" or "mlp"
        Table 2e.
    mask_loss : "sigmoid", "softmax" or "agnostic"
        Table 2b and section 4.2.
    res5_blocks : int
        Of the C4 head: blocks in layer4.
    settings
        See settings.Settings.

    Raises
    ------
    ConfigError
        A choice is none of those there are, or two do not go together.
    """
    for name, value, choices in (("roi_method", roi_method, ("align", "pool")), ("mask_head", mask_head, ("fcn", "mlp")),
                                 ("mask_loss", mask_loss, MASK_LOSSES), ("head_norm", head_norm, (None, *NORMS)),
                                 ("kind", kind, ("fpn", "single", "c4"))):
        if value not in choices:
            raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(str, choices))}")
    if num_classes < 2:
        raise ConfigError(f"num_classes={num_classes}: class 0 is the background, so at least 2 are needed")
    strides = (4, 8, 16, 32) if kind == "fpn" else (16,)
    if anchor_sizes is None:
        anchor_sizes = PYRAMID_SIZES if kind == "fpn" else SINGLE_SIZES
    anchor_strides = (strides + (64,) if kind == "fpn" else strides) if fixed_anchor_strides else None
    anchor_generator = AnchorGenerator(anchor_sizes, aspect_ratios, anchor_rounding, anchor_order, anchor_offset, anchor_strides)

    if kind == "fpn":
        if len(body.out_channels) != 4:
            raise ConfigError(f"the pyramid stands on four stages; this body has {len(body.out_channels)}")
        backbone = BackboneWithFPN(body, FPN(rng, body.out_channels, fpn_channels, head_norm))
        channels, levels = fpn_channels, ("p2", "p3", "p4", "p5", "p6")
    else:
        backbone = SingleLevelBackbone(body)
        channels, levels = body.out_channels[-1], ("single",)
    rpn = RPN(RPNHead(rng, channels, anchor_generator.anchors_per_cell, rpn_convs), levels)

    num_masks = 1 if mask_loss == "agnostic" else num_classes
    if kind == "c4":
        box = Res5BoxHead(rng, body, res5_blocks)
        heads = [box, BoxPredictor(rng, box.out_channels, num_classes)]
        if masks:
            heads += [Res5MaskHead(box), MaskPredictor(rng, box.out_channels, mask_channels[-1], num_masks)]
    else:
        box = ConvBoxHead(rng, channels, 7, box_convs, box_hidden, head_norm) if box_convs else \
            BoxHead(rng, channels * 7 * 7, box_hidden)
        heads = [box, BoxPredictor(rng, box_hidden, num_classes)]
        if masks and mask_head == "fcn":
            heads += [MaskHead(rng, channels, mask_channels, head_norm),
                      MaskPredictor(rng, mask_channels[-1], mask_channels[-1], num_masks)]
        elif masks:
            heads += [MaskHeadMLP(rng, channels * 14 * 14, box_hidden), MaskPredictorMLP(rng, box_hidden, num_masks, 28)]

    def roi_features(size):
        return RoIFeatures(roi_method, size, strides, sampling_ratio, aligned)
    return MaskRCNN(backbone, rpn, RoIHeads(*heads), anchor_generator, roi_features(14 if kind == "c4" else 7),
                    roi_features(14) if masks else None, num_classes=num_classes, mask_loss=mask_loss, **settings)
