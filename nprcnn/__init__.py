"""nprcnn: a Mask R-CNN written from scratch in NumPy, for people who want to understand one.

    model = nprcnn.maskrcnn_tiny(weights="shapes")
    result = model.predict(image)                     boxes, labels, scores, masks
    trace = nprcnn.Trace()
    model.predict(image, trace=trace)                 every stage's tensors, by name
"""

from .backend import use
from .errors import BackendError, ConfigError, DataError, NprcnnError, WeightsError
from .gradcheck import check_gradients
from .models import (Decisions, Detections, MaskRCNN, fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn,
                     maskrcnn_resnet101_fpn, maskrcnn_tiny)
from .trace import Trace
from .weights import load_weights, save_weights

__version__ = "0.1.0"
