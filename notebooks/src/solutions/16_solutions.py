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
# First the rows of the table, without the loop:
#
# - `diagonal`: from line 8 to line 12. A barrier after 8.
# - `kept`: from line 13 to lines 15 and 18. A barrier after 14.
# - `removed`: from line 5 to line 10. The barrier after 8 is on the way.
#
# Then round the loop: `removed` from line 18 to lines 10 and 18 of the next turn. The barrier after 8 is on the way again.
#
# And what is overwritten while somebody may still read? `diagonal` is written again in the next turn; thread 0 has read it
# before the barrier after 14. `kept` is written again after the next turn's barrier after 8.

# So two are enough. One at the end of the loop orders nothing that is not in order already.

# %%
def barriers():
    return 8, 14

check_barriers(barriers)
