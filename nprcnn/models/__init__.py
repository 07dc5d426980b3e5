"""The stages of Mask R-CNN and their wiring."""

from .builders import (fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2, maskrcnn_resnet50_c4, maskrcnn_resnet50_dc5,
                       maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2, maskrcnn_resnet101_c4, maskrcnn_resnet101_fpn,
                       maskrcnn_resnet_fpn, maskrcnn_tiny, maskrcnn_vgg16)
from .decisions import Decisions
from .mask_rcnn import MaskRCNN
from .postprocess import Detections
