"""How a convolution, a pooling or a sum is lowered: the same values on every backend, in a form that each runs fast.

XLA's CPU backend rewrites convolutions to the one layout that its fast kernel takes, but only those of a program's
outermost computation. Inside a loop or a conditional the gradients that JAX writes, which are convolutions in other
layouts, fall back to a naive loop that is 6 to 80 times slower (jax-ml/jax#12868). So for the CPU they are written in
that layout from the start.

It has no fast kernel at all for depthwise convolutions and for the gradient of a maximum. Both are sums over the places
of the window, which on the CPU are written as such: a product of the shifted features for each place, which XLA fuses
into one pass. Each pass is kept apart from its neighbours: fused with them, it would compute them again for each place,
or be computed again for each of its users. Sums over all pixels, as the gradients of kernels are and the moments of
BatchNorm, are many in one pass over what they read, which XLA does not make of them by itself.

Depthwise and pointwise convolutions work on stacks of features, [m, B, H, W, C], with a kernel for each of the m: the
edges that leave a node, of which a few large operations are faster than many small ones.
"""

from gaea_jax.nets.lowering.convolution import conv_general_dilated, pointwise
from gaea_jax.nets.lowering.depthwise import depthwise
from gaea_jax.nets.lowering.pooling import max_pool, sum_pool
from gaea_jax.nets.lowering.sums import each, gradient_once, members_of_sum, moments, scale

__all__ = [
    "conv_general_dilated",
    "depthwise",
    "each",
    "gradient_once",
    "max_pool",
    "members_of_sum",
    "moments",
    "pointwise",
    "scale",
    "sum_pool",
]
