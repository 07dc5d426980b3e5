"""Training: the optimiser, the schedules, the loop; and what a long training needs: parts of a batch, checkpoints, guards, a log."""

from .folder import train_in_folder
from .loop import train
from .schedule import cosine_schedule, make_schedule, step_schedule
from .sgd import SGD, clip_gradients
