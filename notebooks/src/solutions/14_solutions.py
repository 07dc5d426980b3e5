# %% [markdown]
# # 14  Winograd on the CPU: solutions
#
# Try the exercises of [notebook 14](../14_winograd_on_the_cpu.ipynb) first. Each solution here is followed by its
# check.

# %%
import numpy as np

from nprcnn.course.winograd import check_saving, check_tiles_backward, check_two_outputs
from nprcnn.gradcheck import check_adjoint

rng = np.random.default_rng(0)

# %% [markdown]
# ## Exercise 1: two outputs, four products
#
# Read the rows of the three matrices. $B^T d$ has the entries $d_0 - d_2$, $d_1 + d_2$, $d_2 - d_1$, $d_1 - d_3$,
# and $G g$ has $g_0$, $(g_0 + g_1 + g_2)/2$, $(g_0 - g_1 + g_2)/2$, $g_2$. Multiply entry by entry, then add up as
# $A^T$ says. The halving is a product with a constant, and in a network it happens once a filter.

# %%
def two_outputs(d0, d1, d2, d3, g0, g1, g2):
    m0 = (d0 - d2) * g0
    m1 = (d1 + d2) * ((g0 + g1 + g2) / 2)
    m2 = (d2 - d1) * ((g0 - g1 + g2) / 2)
    m3 = (d1 - d3) * g2
    return m0 + m1 + m2, m1 - m2 - m3

check_two_outputs(two_outputs)

# %% [markdown]
# Why it is right: $m_1 + m_2$ leaves $d_1 g_1 + d_2 (g_0 + g_2)$, and $m_0$ corrects $d_2 g_0$ to $d_0 g_0$.
#
# ## Exercise 2: what a map really saves
#
# Tiles stand on a grid. Along an axis of 13 outputs, tiles of 4 need 4, not 3.25. All $(m + 2)^2$ products of a
# tile are paid, whether it sticks out or not.

# %%
def saving(height, width, m):
    tiles = -(-height // m) * -(-width // m)              # rounded up along each axis
    return 9 * height * width / ((m + 2) ** 2 * tiles)

for name, size in (("P2", (200, 304)), ("C5", (25, 38)), ("a RoI", (14, 14)), ("P6", (13, 19)), ("a RoI", (7, 7))):
    print(f"{name:6} {size!s:11}" + "".join(f"   m = {m}: {saving(*size, m):.2f}" for m in (2, 4, 6)))
check_saving(saving)

# %% [markdown]
# The larger the tile, the more a small map wastes. For 7 x 7, tiles of 6 are worse than tiles of 4.
#
# ## Exercise 3: a tile's way back
#
# $V = B^T d B$ is linear in $d$. For one side, $V = M d$ gives $dd = M^T dV$, and $V = d N$ gives $dd = dV N^T$.
# Here $M = B^T$ and $N = B$, so $dd = B\, dV\, B^T$. With stacks of tiles, `@` works on the last two axes.

# %%
def tiles_backward(dV, BT):
    return BT.T @ dV @ BT

BT = np.array([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
d, dV = rng.standard_normal((3, 4, 4)), rng.standard_normal((3, 4, 4))
error = check_adjoint(lambda d: BT @ d @ BT.T, lambda dV: tiles_backward(dV, BT), d, dV)
print(f"the adjoint of the forward pass: relative error {error:.0e}")
check_tiles_backward(tiles_backward)
