# %% [markdown]
# # 12  Training, and what goes wrong: solutions
#
# Try the exercises of [notebook 12](../12_training.ipynb) first. Each solution here is followed by its check.

# %%
import numpy as np

from nprcnn.course.training import check_clip_together, check_learning_rates, check_sgd_step

# %% [markdown]
# ## Exercise 1: one step
#
# The decay is a part of the gradient, so it goes through the velocity like the rest.

# %%
def sgd_step(w, v, g, lr, momentum, decay):
    v = momentum * v + g + decay * w
    return w - lr * v, v

w, v = np.array([1.0]), np.zeros(1)
for step in range(3):
    w, v = sgd_step(w, v, w, 0.1, 0.9, 0.0)               # the loss w^2 / 2, whose gradient is w
    print(f"step {step}: w {w[0]:.3f}, v {v[0]:.3f}")
check_sgd_step(sgd_step)

# %% [markdown]
# ## Exercise 2: the schedule

# %%
def learning_rates(steps, base, total, warmup, drops):
    dropped = (steps[:, None] >= np.array(drops) * total).sum(axis=1)     # (n,): how many drops lie behind
    rise = np.minimum(1, (steps + 1) / warmup) if warmup else 1
    return base * 0.1 ** dropped * rise

print(learning_rates(np.array([0, 4, 59, 60, 80]), 0.02, 90, 5, (2 / 3, 8 / 9)))
check_learning_rates(learning_rates)

# %% [markdown]
# ## Exercise 3: clip together

# %%
def clip_together(a, b, most):
    norm = np.sqrt((a * a).sum() + (b * b).sum())
    factor = min(1, most / norm) if norm > 0 else 1
    return a * factor, b * factor

print(clip_together(np.array([3.0]), np.array([4.0]), 1.0), "the direction is kept, 3 : 4")
check_clip_together(clip_together)
