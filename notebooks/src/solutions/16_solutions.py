# %% [markdown]
# # 16  NMS as bits: solutions
#
# Try the exercises of [notebook 16](../16_nms_as_bits.ipynb) first. Each solution here is followed by its check.

# %%
from nprcnn.course.cuda_nms import check_barriers, check_put_out_by, check_settle

# %% [markdown]
# ## Exercise 1: who put it out?
#
# A column of the matrix: bit j % bits of word j // bits, in each row above j. Only rows of boxes that are kept count.

# %%
def put_out_by(j, mask, keep, bits):
    for i in range(j):
        if keep[i] and mask[i][j // bits] >> (j % bits) & 1:
            return i
    return -1

check_put_out_by(put_out_by)

# %% [markdown]
# ## Exercise 2: settle one word
#
# Equation (1) within a word. Boxes that are out, from before or by now, put out nobody.

# %%
def settle(removed, diagonal):
    kept = 0
    for b, word in enumerate(diagonal):
        if not removed >> b & 1:
            kept |= 1 << b
            removed |= word
    return kept

check_settle(settle)

# %% [markdown]
# ## Exercise 3: the fewest barriers
#
# What do threads read that another thread has written?
#
# - `diagonal`: 64 threads write it in line 8, thread 0 reads it in line 12. A barrier after 8.
# - `kept`: thread 0 writes it in line 13, everybody reads it in lines 15 and 18. A barrier after 14.
# - `removed`: written in lines 5 and 18, read by thread 0 in line 10 and by its next owner in line 18. The barrier after line 8, in the
#   next turn of the loop, lies between.
# - And the other way round, what is overwritten while somebody may still read? `diagonal` is written again in the next turn; thread 0
#   has read it before the barrier after 14. `kept` is written again after the next turn's barrier after 8.
#
# So two are enough. One at the end of the loop orders nothing that is not in order already.

# %%
def barriers():
    return 8, 14

check_barriers(barriers)
