"""Ready-made detectors, under torchvision's names where it has them. Each chooses a backbone and numbers; assemble.py does the rest."""

import numpy as np

from .assemble import assemble
from .conventions import with_conventions
from .resnet import DEPTHS, BasicBlock, ResNet, resnet
from .vgg import VGG, VGG16


def maskrcnn_resnet_fpn(depth, num_classes=91, *, weights=None, weights_backbone=None, conventions="torchvision", norm="frozen",
                        trainable_backbone_layers=None, rng=None, **settings):
    """Mask R-CNN with a ResNet of any depth and FPN (Mask R-CNN, section 3.1: "ResNet-50-FPN", "ResNet-101-FPN").

    Parameters
    ----------
    depth : 18, 34, 50, 101 or 152
    num_classes : int
        Background included; 91 for COCO's ids.
    weights : path, optional
        A file for nprcnn.load_weights. None: random initial values.
    weights_backbone : path, optional
        A file with the backbone's weights alone, such as an ImageNet classifier's; not looked at if `weights` is given.
    conventions : "torchvision" or "detectron2"
        A table of settings (conventions.py); each can be overridden by name.
    norm : "frozen" or "batch"
        Of the backbone. Frozen is for pretrained weights, batch for training from scratch. (torchvision chooses by whether weights are
        given. Here they may come later, by load_weights, so the default is frozen.)
    trainable_backbone_layers : int, optional
        0 .. 5: how many of the backbone's stages train, counted from the top. None: 3 with weights, 5 without, as in torchvision.
    rng : numpy.random.Generator, optional
        Draws the initial values; default_rng(0) if not given.
    settings
        stride_in_1x1, norm_eps: see resnet.ResNet. The others: see assemble.assemble and settings.Settings: min_size,
        box_score_thresh, mask_loss, masks=False for Faster R-CNN, ...
    """
    rng = np.random.default_rng(0) if rng is None else rng
    settings = with_conventions(conventions, settings)
    body = _resnet(rng, depth, norm, trainable_backbone_layers, weights or weights_backbone, settings)
    return _with_weights(assemble(rng, body, num_classes, kind="fpn", **settings), weights, weights_backbone)


def maskrcnn_resnet50_fpn(num_classes=91, **options):
    """Mask R-CNN with ResNet-50 and FPN: torchvision's maskrcnn_resnet50_fpn. Options: see maskrcnn_resnet_fpn."""
    return maskrcnn_resnet_fpn(50, num_classes, **options)


def maskrcnn_resnet101_fpn(num_classes=91, **options):
    """Mask R-CNN with ResNet-101 and FPN. Options: see maskrcnn_resnet_fpn."""
    return maskrcnn_resnet_fpn(101, num_classes, **options)


def fasterrcnn_resnet50_fpn(num_classes=91, **options):
    """Faster R-CNN with ResNet-50 and FPN: the same model without the mask branch. Options: see maskrcnn_resnet_fpn."""
    return maskrcnn_resnet_fpn(50, num_classes, **{**options, "masks": False})


V2 = dict(norm="batch", head_norm="batch", rpn_convs=2, box_convs=(256, 256, 256, 256))


def maskrcnn_resnet50_fpn_v2(num_classes=91, **options):
    """torchvision's maskrcnn_resnet50_fpn_v2: batch norm in backbone, pyramid, box head and mask head, two convolutions in the RPN,
    four and one fully connected layer in the box head (Li et al. 2021, arXiv 2111.11429, appendix). Options: see
    maskrcnn_resnet_fpn."""
    return maskrcnn_resnet_fpn(50, num_classes, **{**V2, **options})


def fasterrcnn_resnet50_fpn_v2(num_classes=91, **options):
    """torchvision's fasterrcnn_resnet50_fpn_v2: maskrcnn_resnet50_fpn_v2 without the mask branch."""
    return maskrcnn_resnet_fpn(50, num_classes, **{**V2, **options, "masks": False})


# What Faster R-CNN and the C4 models do before and after NMS (Detectron2's Base-RCNN-C4).
SINGLE = dict(rpn_pre_nms_top_n_train=12000, rpn_pre_nms_top_n_test=6000, rpn_post_nms_top_n_train=2000,
              rpn_post_nms_top_n_test=1000)


def maskrcnn_resnet_c4(depth, num_classes=91, *, weights=None, weights_backbone=None, conventions="torchvision", norm="frozen",
                       trainable_backbone_layers=None, rng=None, **settings):
    """Mask R-CNN without a pyramid: one map of stride 16 after layer3 (C4), fifteen anchors a cell, layer4 on every RoI, masks of
    14x14 (Mask R-CNN, section 3 and figure 4, left). Arguments: see maskrcnn_resnet_fpn.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    settings = with_conventions(conventions, {**SINGLE, **settings}, pyramid=False)
    body = _resnet(rng, depth, norm, trainable_backbone_layers, weights or weights_backbone, settings, layer4=False)
    settings = {"res5_blocks": DEPTHS[depth][1][3], **settings}
    return _with_weights(assemble(rng, body, num_classes, kind="c4", **settings), weights, weights_backbone)


def maskrcnn_resnet50_c4(num_classes=91, **options):
    """Mask R-CNN, ResNet-50-C4. Options: see maskrcnn_resnet_c4."""
    return maskrcnn_resnet_c4(50, num_classes, **options)


def maskrcnn_resnet101_c4(num_classes=91, **options):
    """Mask R-CNN, ResNet-101-C4. Options: see maskrcnn_resnet_c4."""
    return maskrcnn_resnet_c4(101, num_classes, **options)


def maskrcnn_resnet50_dc5(num_classes=91, *, weights=None, weights_backbone=None, conventions="torchvision", norm="frozen",
                          trainable_backbone_layers=None, rng=None, **settings):
    """Mask R-CNN on the dilated last stage: layer4 keeps stride 16 ("DC5", Dai et al. 2017, arXiv 1703.06211, section 3; Detectron2's
    R50-DC5). One map, the pyramid models' heads. Arguments: see maskrcnn_resnet_fpn.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    settings = with_conventions(conventions, {**SINGLE, **settings}, pyramid=False)
    body = _resnet(rng, 50, norm, trainable_backbone_layers, weights or weights_backbone, settings, dilate_layer4=True)
    return _with_weights(assemble(rng, body, num_classes, kind="single", **settings), weights, weights_backbone)


def maskrcnn_vgg16(num_classes=91, *, weights=None, weights_backbone=None, conventions="torchvision", norm=None,
                   trainable_backbone_layers=None, rng=None, **settings):
    """Mask R-CNN on VGG-16, as Faster R-CNN had it (arXiv 1506.01497, section 3): one map of stride 16, three sizes x three ratios = nine
    anchors a cell, two fully connected layers of 4096. roi_method="pool" gives its RoIPool. masks=False leaves the mask branch, which
    it had not, away. Arguments: see maskrcnn_resnet_fpn; norm may be None, as in the paper.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    settings = {**SINGLE, "anchor_sizes": ((128, 256, 512),), "box_hidden": 4096, **settings}
    settings = with_conventions(conventions, settings, pyramid=False)
    settings.pop("stride_in_1x1", None)  # there is no 1x1 convolution
    trainable = _trainable(trainable_backbone_layers, weights or weights_backbone)
    body = VGG(rng, settings.pop("blocks", VGG16), settings.pop("width", 64), norm, trainable)
    return _with_weights(assemble(rng, body, num_classes, kind="single", **settings), weights, weights_backbone)


TINY = dict(
    # Scenes are 128 pixels wide rather than 800. The strides stay, so the boxes that each level is for shrink by less than the image.
    anchor_sizes=((16,), (32,), (64,), (128,), (256,)), canonical_size=112, min_size=128, max_size=256,
    fpn_channels=48, box_hidden=128, mask_channels=(48, 48),
    rpn_pre_nms_top_n_train=300, rpn_post_nms_top_n_train=200,
    rpn_pre_nms_top_n_test=300, rpn_post_nms_top_n_test=100,
    # Few objects and many easy negatives in an image: half of a small sample may be positive.
    rpn_batch_size_per_image=128, box_batch_size_per_image=32, box_positive_fraction=0.5,
)


def maskrcnn_tiny(num_classes=7, *, weights=None, conventions="torchvision", rng=None, **settings):
    """The same classes as the big models, narrower, for images of about 128 pixels: it trains on a laptop.

    A ResNet-18 of 20 to 160 channels with batch norm, a pyramid of 48 channels, two convolutions in the mask head.

    Parameters
    ----------
    weights : "shapes", path or None
        "shapes": the weights that come with the package, trained on nprcnn.data.Shapes. None: random initial values.
    num_classes, conventions, rng, settings
        As for maskrcnn_resnet_fpn; settings override TINY. kind="c4" and "single" give the models without a pyramid.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    kind = settings.get("kind", "fpn")
    # one map of stride 16 for all sizes: the pyramid's anchors, all in every cell
    single = {} if kind == "fpn" else {"anchor_sizes": (sum(TINY["anchor_sizes"], ())[:4],)}
    settings = with_conventions(conventions, {**TINY, **single, **settings}, pyramid=kind == "fpn")
    blocks = settings.pop("blocks", (2, 2, 2, 2))
    if kind == "c4":
        blocks, settings["res5_blocks"] = blocks[:3], blocks[3]
    body = ResNet(rng, settings.pop("block", BasicBlock), blocks, settings.pop("width", 20), settings.pop("norm", "batch"),
                  settings.pop("trainable_backbone_layers", 5), **_body_options(settings),
                  dilate_layer4=kind == "single")
    return _with_weights(assemble(rng, body, num_classes, **settings), weights, None)


def _resnet(rng, depth, norm, trainable_backbone_layers, weights, settings, **more):
    """The body. Takes its arguments out of `settings`."""
    return resnet(rng, depth, norm, _trainable(trainable_backbone_layers, weights), **_body_options(settings), **more)


def _body_options(settings):
    return {name: settings.pop(name) for name in ("stride_in_1x1", "norm_eps") if name in settings}


def _trainable(layers, weights):
    if layers is None:
        return 5 if weights is None else 3
    return layers


def _with_weights(model, weights, weights_backbone):
    if weights is not None:
        from ..weights import load_weights
        load_weights(model, weights)
    elif weights_backbone is not None:
        from ..weights import load_backbone
        load_backbone(model, weights_backbone)
    return model
