"""Ready-made detectors. One function puts the parts together; the others choose the numbers."""

import numpy as np

from ..errors import ConfigError
from ..layers import NORMS
from .anchors import AnchorGenerator
from .box_head import BoxHead, BoxPredictor
from .fpn import FPN, BackboneWithFPN
from .mask_head import MASK_LOSSES, MaskHead, MaskHeadMLP, MaskPredictor, MaskPredictorMLP
from .mask_rcnn import MaskRCNN, RoIHeads
from .resnet import BasicBlock, ResNet, resnet
from .roi_features import RoIFeatures
from .rpn import RPN, RPNHead


def build(rng, body, num_classes, *, anchor_sizes=((32,), (64,), (128,), (256,), (512,)), aspect_ratios=(0.5, 1.0, 2.0),
          fpn_channels=256, box_hidden=1024, mask_channels=(256, 256, 256, 256), masks=True, head_norm=None,
          roi_method="align", mask_head="fcn", mask_loss="sigmoid", **settings):
    """Put a detector together around a ResNet.

    Parameters
    ----------
    rng : numpy.random.Generator
    body : ResNet
    num_classes : int
        Background included.
    anchor_sizes, aspect_ratios
        See AnchorGenerator.
    fpn_channels, box_hidden, mask_channels : int, int, tuple of int
        Widths of the pyramid, of the box head's layers and of the mask head's convolutions.
    masks : bool
        False leaves the mask branch out: Faster R-CNN.
    head_norm : None, "batch" or "frozen"
        Norm in the pyramid and the mask head.
    roi_method : "align" or "pool"
        Table 2c of the paper.
    mask_head : "fcn" or "mlp"
        Table 2e.
    mask_loss : "sigmoid", "softmax" or "agnostic"
        Table 2b and section 4.2.
    settings
        Of MaskRCNN.
    """
    for name, value, choices in (("roi_method", roi_method, ("align", "pool")), ("mask_head", mask_head, ("fcn", "mlp")),
                                 ("mask_loss", mask_loss, MASK_LOSSES), ("head_norm", head_norm, (None, *NORMS))):
        if value not in choices:
            raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(str, choices))}")
    if num_classes < 2:
        raise ConfigError(f"num_classes={num_classes}: class 0 is the background, so at least 2 are needed")
    anchor_generator = AnchorGenerator(anchor_sizes, aspect_ratios)
    backbone = BackboneWithFPN(body, FPN(rng, body.out_channels, fpn_channels, head_norm))
    rpn = RPN(RPNHead(rng, fpn_channels, anchor_generator.anchors_per_cell))
    heads = [BoxHead(rng, fpn_channels * 7 * 7, box_hidden), BoxPredictor(rng, box_hidden, num_classes)]
    if masks:
        num_masks = 1 if mask_loss == "agnostic" else num_classes
        if mask_head == "fcn":
            heads += [MaskHead(rng, fpn_channels, mask_channels, head_norm),
                      MaskPredictor(rng, mask_channels[-1], mask_channels[-1], num_masks)]
        else:
            heads += [MaskHeadMLP(rng, fpn_channels * 14 * 14, box_hidden),
                      MaskPredictorMLP(rng, box_hidden, num_masks, 28)]
    return MaskRCNN(backbone, rpn, RoIHeads(*heads), anchor_generator, RoIFeatures(roi_method, 7),
                    RoIFeatures(roi_method, 14) if masks else None, num_classes=num_classes, mask_loss=mask_loss,
                    **settings)


def _resnet_fpn(depth, num_classes, weights, norm, trainable_backbone_layers, rng, settings):
    rng = np.random.default_rng(0) if rng is None else rng
    model = build(rng, resnet(rng, depth, norm, trainable_backbone_layers), num_classes, **settings)
    return _with_weights(model, weights)


def _with_weights(model, weights):
    if weights is not None:
        from ..weights import load_weights
        load_weights(model, weights)
    return model


def maskrcnn_resnet50_fpn(num_classes=91, *, weights=None, norm="frozen", trainable_backbone_layers=5, rng=None,
                          **settings):
    """Mask R-CNN with ResNet-50 and FPN (the paper's "ResNet-50-FPN", torchvision's maskrcnn_resnet50_fpn).

    Parameters
    ----------
    num_classes : int
        Background included; 91 for COCO's ids.
    weights : path, optional
        A file for nprcnn.load_weights. None: random initial values.
    norm : "frozen" or "batch"
        Of the backbone. Frozen is for pretrained weights, batch for training from scratch.
    trainable_backbone_layers : int
        0 .. 5: how many of the backbone's stages train, counted from the top.
    rng : numpy.random.Generator, optional
        Draws the initial values; default_rng(0) if not given.
    settings
        See build and MaskRCNN: min_size, box_score_thresh, mask_loss, ...
    """
    return _resnet_fpn(50, num_classes, weights, norm, trainable_backbone_layers, rng, settings)


def maskrcnn_resnet101_fpn(num_classes=91, *, weights=None, norm="frozen", trainable_backbone_layers=5, rng=None,
                           **settings):
    """Mask R-CNN with ResNet-101 and FPN. Arguments as for maskrcnn_resnet50_fpn."""
    return _resnet_fpn(101, num_classes, weights, norm, trainable_backbone_layers, rng, settings)


def fasterrcnn_resnet50_fpn(num_classes=91, *, weights=None, norm="frozen", trainable_backbone_layers=5, rng=None,
                            **settings):
    """Faster R-CNN with ResNet-50 and FPN: the same model without the mask branch. Arguments as above."""
    return _resnet_fpn(50, num_classes, weights, norm, trainable_backbone_layers, rng, {**settings, "masks": False})


TINY = dict(
    # Scenes are 128 pixels wide rather than 800. The strides stay, so the boxes that each level is for shrink by less than the image.
    anchor_sizes=((16,), (32,), (64,), (128,), (256,)), canonical_size=112, min_size=128, max_size=256,
    fpn_channels=48, box_hidden=128, mask_channels=(48, 48),
    rpn_pre_nms_top_n_train=300, rpn_post_nms_top_n_train=200,
    rpn_pre_nms_top_n_test=300, rpn_post_nms_top_n_test=100,
    # Few objects and many easy negatives in an image: half of a small sample may be positive.
    rpn_batch_size_per_image=128, box_batch_size_per_image=32, box_positive_fraction=0.5,
)


def maskrcnn_tiny(num_classes=7, *, weights=None, rng=None, **settings):
    """The same classes as the big models, narrower, for images of about 128 pixels: it trains on a laptop.

    A ResNet-18 of 20 to 160 channels with batch norm, a pyramid of 48 channels, two convolutions in the mask head.

    Parameters
    ----------
    weights : "shapes", path or None
        "shapes": the weights that come with the package, trained on nprcnn.data.Shapes. None: random initial values.
    num_classes, rng, settings
        As for maskrcnn_resnet50_fpn; settings override TINY.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    settings = {**TINY, **settings}
    body = ResNet(rng, BasicBlock, settings.pop("blocks", (2, 2, 2, 2)), settings.pop("width", 20),
                  settings.pop("norm", "batch"), settings.pop("trainable_backbone_layers", 5))
    return _with_weights(build(rng, body, num_classes, **settings), weights)
