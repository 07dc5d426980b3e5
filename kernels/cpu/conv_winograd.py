"""3x3 convolution with stride 1 by Winograd's minimal filtering: a quarter of the multiplications.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015, arXiv 1509.09308), section 4. Four outputs in a row
of a filter with three taps take 4 * 3 = 12 products. Six are enough, F(4, 3), if the inputs d and the filter g are first mixed:

    y = A^T [(G g) * (B^T d)]                    d (6,), g (3,), y (4,); * is elementwise: the six products

In two dimensions, once along each axis, F(4x4, 3x3) makes 4x4 outputs from 6x6 inputs with 36 products instead of 144:

    Y = A^T [(G g G^T) * (B^T d B)] A            d (6, 6), g (3, 3), Y (4, 4)

The three matrices and where they come from are in conv_winograd_4x4.py and conv_winograd_2x2.py.

Over C input channels the products are summed before A^T, so at each of the 36 places of a tile there is a matrix product. In all:

    1. filters   w (O, C, 3, 3)    -> U (36, O, C)         G g G^T
    2. inputs    x (N, C, H, W)    -> V (36, C, T)         B^T d B, for the T tiles of 4x4 outputs that cover y
    3. products  U @ V             -> M (36, O, T)         36 matrix products: all the work
    4. outputs   M                 -> y (N, O, OH, OW)     A^T m A, then the epilogue

Tiles are counted through all images, row by row: t = (n * TH + ty) * TW + tx. So the mask head's hundred RoIs of 14 x 14 are one wide
product, not a hundred thin ones. Steps 2 to 4 run in blocks of tiles, small enough that V and M stay in the L3 cache. A thread takes a
block through all three. The matrices are small, and their numbers are on the move anyway: so U and V are written in the order in
which a product reads them (conv_product.py has it, and the shapes).

Backward. dx: step 1 with the filters turned round, then the same. dw, from the transposes of the same four steps:

    dM = A dy A^T  (36, O, T)        dU = dM @ V^T  (36, O, C)        dw = G^T dU G

which costs a quarter of the products, too. Here the sum runs over tiles, which lie in the lanes: dM and V are plain matrices for BLAS.

Numbers that are not finite: inf - inf in B^T d B makes NaN of outputs that never meet the inf. The output transform looks for
that; then conv_winograd returns None, and the caller convolves in another way, which puts NaN and inf exactly where they belong.
"""

from typing import Callable, NamedTuple

import numpy as np

from . import conv_winograd_2x2 as f2x2
from . import conv_winograd_4x4 as f4x4
from . import workers
from .conv_product import PANEL, ROWS, multiply
from .conv_scratch import scratch

FORWARD_BYTES = 8 << 20      # of V and M of a block; measured, 4 to 12 MiB are about equally fast, 2 MiB takes 1.3 times as long
GRADIENT_BYTES = 48 << 20    # of V and dM of a block; larger, for a wide product is what BLAS is good at
LEAST_TILES = 256            # of such a block, even if it gets larger
LEAST_SHARED_TILES = 32      # of few tiles each thread takes its share


class Transforms(NamedTuple):
    """One size of tile, and its compiled steps."""

    tile: int                     # outputs along each axis
    filters: Callable             # w -> U
    inputs: Callable              # x -> V
    outputs: Callable             # M -> y
    output_gradients: Callable    # dy -> dM, the transpose of `outputs`
    filter_gradients: Callable    # dU -> dw, the transpose of `filters`

    @property
    def places(self):
        """Products a tile and a pair of channels: 36 or 16."""
        return (self.tile + 2) ** 2


TILE_4X4 = Transforms(4, f4x4.filters, f4x4.inputs, f4x4.outputs, f4x4.output_gradients, f4x4.filter_gradients)
TILE_2X2 = Transforms(2, f2x2.filters, f2x2.inputs, f2x2.outputs, f2x2.output_gradients, f2x2.filter_gradients)


def conv_winograd(x, w, geo, epilogue, transforms):
    """x (N, C, H, W), w (O, C, 3, 3), stride 1, any padding -> y (N, O, OH, OW), or None if y is not finite."""
    y = np.empty(geo.y_shape, x.dtype)
    channels, out_channels, places = x.shape[1], len(w), transforms.places
    u_panels = -(-out_channels // ROWS)
    suspects = []
    with scratch(x.dtype, places * u_panels * channels * ROWS) as (u_buffer,):
        U = u_buffer.reshape(places, u_panels, channels, ROWS)
        workers.run(transforms.filters, [(w, U, *part) for part in workers.parts(u_panels)], w.size * places)

        def convolve_tiles(first, size):
            """Steps 2 to 4 of the tiles first .. first + size - 1."""
            suspect = np.zeros(out_channels, x.dtype)
            panels = -(-size // PANEL)
            with scratch(x.dtype, places * panels * channels * PANEL, places * panels * u_panels * ROWS * PANEL) as (V, M):
                M = M.reshape(places, panels, u_panels * ROWS, PANEL)
                transforms.inputs(x, V, panels * channels * PANEL, channels * PANEL, PANEL, first, size, *geo.padding, *geo.y_shape[2:])
                multiply(U, V.reshape(places, panels, channels, PANEL), M)
                transforms.outputs(M, y, first, size, epilogue.scale, epilogue.shift, epilogue.residual, epilogue.has_residual,
                                   epilogue.relu, suspect)
            suspects.append(suspect)

        workers.run(convolve_tiles, _forward_blocks(geo, transforms, x.itemsize), _multiplications(geo, transforms))
    return y if np.isfinite(suspects).all() else None


def grad_w_winograd(dy, x, geo, transforms):
    """dy (N, O, OH, OW), x (N, C, H, W) -> dw (O, C, 3, 3), or None if it is not finite."""
    channels, out_channels, places = x.shape[1], dy.shape[1], transforms.places
    dw = np.empty(geo.w_shape, x.dtype)
    pairs = places * out_channels * channels
    blocks = _gradient_blocks(geo, transforms, x.itemsize)
    shares = [blocks[start:stop] for start, stop in workers.parts(len(blocks))]

    def add_tiles(share, dU, product):
        """dU (36, O, C) = the sum over the blocks of a share."""
        for i, (first, size) in enumerate(share):
            tiles = -(-size // PANEL) * PANEL
            with scratch(x.dtype, places * channels * tiles, places * out_channels * tiles) as (V, dM):
                transforms.inputs(x, V, channels * tiles, PANEL, tiles, first, size, *geo.padding, *geo.y_shape[2:])
                V, dM = V.reshape(places, channels, tiles), dM.reshape(places, out_channels, tiles)
                transforms.output_gradients(dy, dM, first, size)
                # forward: M = U @ V, so dU = dM @ V.T, summed over the blocks
                with np.errstate(all="ignore"):
                    np.matmul(dM, V.swapaxes(1, 2), out=product if i else dU)
                    if i:
                        dU += product

    # A sum for each share, so that no two threads add to one place; they are added in their order, the same in every run
    with scratch(x.dtype, *[pairs] * len(shares), *[pairs if len(s) > 1 else 0 for s in shares]) as buffers:
        sums = [b.reshape(places, out_channels, channels) for b in buffers[:len(shares)]]
        products = [b.reshape(s.shape) if b.size else None for b, s in zip(buffers[len(shares):], sums)]
        workers.run(add_tiles, zip(shares, sums, products), _multiplications(geo, transforms))

        def finish(start, stop):
            for other in sums[1:]:
                sums[0][:, start:stop] += other[:, start:stop]
            transforms.filter_gradients(sums[0], dw, start, stop)

        workers.run(finish, workers.parts(out_channels), pairs * 3)
    return dw if np.isfinite(dw).all() else None


def tile_count(geo, tile):
    """T: tiles of `tile` x `tile` outputs that cover all images; those at the lower and right edge may stick out."""
    n, _, out_h, out_w = geo.y_shape
    return n * -(-out_h // tile) * -(-out_w // tile)


def _forward_blocks(geo, transforms, itemsize):
    """[(first, size)]: all tiles, cut into whole panels and so that V and M of a block stay below FORWARD_BYTES, or little above."""
    tiles, least = tile_count(geo, transforms.tile), LEAST_SHARED_TILES // PANEL
    bytes_per_panel = transforms.places * (geo.x_shape[1] + geo.y_shape[1]) * itemsize * PANEL
    pieces = workers.shrinking(-(-tiles // PANEL), max(1, FORWARD_BYTES // bytes_per_panel), least, least)
    return [(start * PANEL, min(stop * PANEL, tiles) - start * PANEL) for start, stop in pieces]


def _gradient_blocks(geo, transforms, itemsize):
    """[(first, size)]: all tiles, so that V and dM of a block stay below GRADIENT_BYTES, unless it would be thinner than LEAST_TILES; as
    many blocks for each thread, and all about alike."""
    tiles = tile_count(geo, transforms.tile)
    panels = -(-tiles // PANEL)
    bytes_per_panel = transforms.places * (geo.x_shape[1] + geo.y_shape[1]) * itemsize * PANEL
    count = -(-panels // max(1, LEAST_TILES // PANEL, GRADIENT_BYTES // bytes_per_panel))
    threads = len(workers.parts(panels, LEAST_SHARED_TILES // PANEL))
    count = min(panels, -(-count // threads) * threads)
    starts = [min(panels * i // count * PANEL, tiles) for i in range(count + 1)]
    return [(start, stop - start) for start, stop in zip(starts, starts[1:])]


def _multiplications(geo, transforms):
    return tile_count(geo, transforms.tile) * transforms.places * geo.x_shape[1] * geo.y_shape[1]
