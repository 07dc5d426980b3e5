"""The stages of Mask R-CNN and their wiring."""

from .builders import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn, maskrcnn_resnet101_fpn, maskrcnn_tiny
from .mask_rcnn import Decisions, MaskRCNN
from .postprocess import Detections
