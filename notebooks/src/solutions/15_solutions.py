# %% [markdown]
# # 15  RoIAlign in CUDA: solutions
#
# Try the exercises of [notebook 15](../15_roi_align_in_cuda.ipynb) first. Each solution here is followed by its check.

# %%
import numpy as np

from nprcnn.course.cuda import check_passes, check_place, check_sectors

# %% [markdown]
# ## Exercise 1: whose number?
#
# C · OH · OW threads share one RoI, OH · OW of them one channel, OW of these one row. The quotient says which group,
# the remainder where in it.

# %%
def place(k, C, OH, OW):
    return k // (C * OH * OW), k // (OH * OW) % C, k // OW % OH, k % OW

check_place(place)

# %% [markdown]
# ## Exercise 2: sectors
#
# A number of at most 32 bytes lies in the sector of its first byte and that of its last, which may be the same.

# %%
def sectors(addresses, size):
    return len(np.union1d(addresses // 32, (addresses + size - 1) // 32))

check_sectors(sectors)

# %% [markdown]
# ## Exercise 3: bank conflicts
#
# First drop the lanes that want what another lane wants already. Of what is left, the busiest bank counts.

# %%
def passes(words):
    return np.bincount(np.unique(words) % 32).max()

check_passes(passes)
