from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.errors import UsageError
from gaea_jax.nets import Mixture, count, inherit, network, supernet
from gaea_jax.nets.darts.network import DerivedCell
from gaea_jax.nets.darts.operations import Kind, Operation
from gaea_jax.nets.darts.skeleton import Place, Preprocess
from gaea_jax.spaces import get_space
from gaea_jax.spaces.darts import NODES
from gaea_jax.spaces.published import PUBLISHED

SPACE = get_space("darts")
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
CIFAR = ({"channels": 36, "cells": 20, "num_classes": 10, "stem": "cifar"}, 32)
IMAGENET = ({"channels": 48, "cells": 14, "num_classes": 1000, "stem": "imagenet"}, 224)
HEADS = {"cifar": 476_426, "imagenet": 1_260_776}
# Parameters without and with the auxiliary head, and multiply-adds in millions.
SIZES = [
    (CIFAR, "DARTS_V1", 3_169_414, 3_645_840, 500.98752),
    (CIFAR, "DARTS_V2", 3_349_342, 3_825_768, 528.35904),
    (CIFAR, "PC_DARTS_CIFAR", 3_634_678, 4_111_104, 556.670592),
    (CIFAR, "GAEA_PC_DARTS_CIFAR10", 3_688_246, 4_164_672, 563.831424),
    (CIFAR, "GAEA_PC_DARTS_IMAGENET", 4_002_958, 4_479_384, 627.034752),
    (IMAGENET, "DARTS_V2", 4_718_752, 5_979_528, 529.911552),
    (IMAGENET, "PC_DARTS_CIFAR", 5_270_560, 6_531_336, 571.137408),
    (IMAGENET, "GAEA_PC_DARTS_CIFAR10", 5_297_344, 6_558_120, 576.057792),
    (IMAGENET, "GAEA_PC_DARTS_IMAGENET", 5_620_864, 6_881_640, 624.038592),
]
# No pooling, which a supernet normalises and a network does not; a node with one input, and one with three.
CELL = SPACE.parse(
    '{"space": "darts", "normal": [[["skip_connect", 0], ["dil_conv_3x3", 1]], [["sep_conv_3x3", 2]],'
    ' [["dil_conv_5x5", 0], ["skip_connect", 1], ["skip_connect", 3]], [["skip_connect", 0], ["sep_conv_5x5", 4]]],'
    ' "reduce": [[["skip_connect", 0], ["dil_conv_3x3", 1]], [["sep_conv_3x3", 1], ["skip_connect", 2]],'
    ' [["skip_connect", 1], ["skip_connect", 2]], [["dil_conv_3x3", 0], ["skip_connect", 4]]]}'
)


@pytest.mark.parametrize(("size", "name", "parameters", "with_head", "millions"), SIZES)
def test_sizes_of_the_published_networks(
    size: tuple[dict[str, Any], int], name: str, parameters: int, with_head: int, millions: float
) -> None:
    fields, side = size
    net = network(SPACE, PUBLISHED[name], auxiliary=True, **fields)
    assert count(net, (side, side, 3)) == (with_head, round(millions * 1e6), fields["num_classes"] * 2)
    assert with_head - parameters == HEADS[fields["stem"]]


def test_the_size_of_the_network_of_nasp() -> None:
    genotype = PUBLISHED["NASP"]
    net = network(get_space(genotype.space), genotype, channels=36, cells=20, num_classes=10)
    assert count(net, (32, 32, 3)).parameters == 7_363_486


def test_the_size_of_the_network_of_ista_nas() -> None:
    net = network(SPACE, PUBLISHED["ISTA_TWOSTAGE"], channels=36, cells=20, num_classes=10)
    assert count(net, (32, 32, 3)).parameters == 3_316_726


def test_the_multiply_adds_of_a_network_that_is_known_to_four_digits() -> None:
    fields, side = IMAGENET
    net = network(SPACE, PUBLISHED["PC_DARTS_IMAGE"], **fields)
    assert round(count(net, (side, side, 3)).multiply_adds / 1e6, 1) == 581.6


def test_a_network_computes_what_the_supernet_computes_under_its_genotype(draw: Any) -> None:
    size = {"channels": 4, "cells": 2, "num_classes": 3}
    relaxed = supernet(SPACE, **size)
    derived = Mixture.derived(SPACE.encode(CELL))
    variables = draw(relaxed, IMAGES, Mixture(derived.weights))
    alone, own = network(SPACE, CELL, **size), inherit(SPACE, variables, CELL)
    for train in (True, False):
        expected = jax.jit(
            lambda v, train=train: relaxed.apply(v, IMAGES, derived, train=train, mutable=["batch_stats"])[0]
        )(variables)
        found = jax.jit(lambda v, train=train: alone.apply(v, IMAGES, train=train, mutable=["batch_stats"])[0])(own)
        chex.assert_trees_all_close(found, expected, atol=1e-4)


def test_remat_and_paths_that_are_never_dropped_change_nothing(draw: Any) -> None:
    size = {"channels": 2, "cells": 1, "num_classes": 3}
    plain, again = (network(SPACE, CELL, remat=remat, **size) for remat in (False, True))
    variables = draw(plain, IMAGES)

    def gradient(net: Any, **options: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            out, _ = net.apply({**variables, "params": params}, IMAGES, train=True, mutable=["batch_stats"], **options)
            return jnp.sum(out**2)

        return jax.jit(jax.value_and_grad(loss))(variables["params"])

    expected = gradient(plain)
    chex.assert_trees_all_close(gradient(again), expected, rtol=1e-4, atol=1e-4)
    never = {"drop_path": jnp.zeros(()), "rngs": {"drop_path": jax.random.key(0)}}
    chex.assert_trees_all_close(gradient(plain, **never), expected, rtol=1e-4, atol=1e-4)
    often = {"drop_path": 0.5, "rngs": {"drop_path": jax.random.key(0)}}
    assert abs(gradient(again, **often)[0] - expected[0]) > 1e-3


@pytest.mark.parametrize("shared", [False, True])
def test_a_node_is_the_sum_of_however_many_connections_it_has(draw: Any, shared: bool) -> None:
    """One, two and five of a node, two of them of the same input; shared or not, each node by hand."""
    cell = (
        (("skip_connect", 1),),
        (("dil_conv_3x3", 0), ("skip_connect", 0)),
        (("dil_conv_3x3", 0), ("skip_connect", 0), ("skip_connect", 1), ("skip_connect", 2), ("skip_connect", 3)),
        (("skip_connect", 4), ("dil_conv_3x3", 0)),
    )
    module = DerivedCell(cell, Place(0, 4, False, False), jnp.float32, shared)
    inputs = np.random.default_rng(0).normal(size=(2, 3, 8, 8, 4)).astype(np.float32)
    variables = draw(module, *inputs)
    branches = [name for name in variables["params"] if "dil_conv_3x3" in name]
    assert len(branches) == (1 if shared else 3)
    place = {"params": variables["params"]["inputs"], "batch_stats": variables["batch_stats"]["inputs"]}
    states = [*Preprocess(module.place, True, jnp.float32).apply(place, *inputs, train=False)]
    kind = Kind("dil_conv_3x3", 4, 1, affine=True, norm_pools=False, dtype=jnp.float32)
    for node, pairs in zip(NODES, cell, strict=True):
        total = 0
        for operation, source in pairs:
            if operation == "skip_connect":
                total += states[source]
                continue
            name = branches[0] if shared else f"edge_{node}_{source}_{operation}"
            own = {name_of: tree[name] for name_of, tree in variables.items()}
            total += Operation(kind, 1).apply(own, states[source], train=False)[0]
        states.append(total)
    found = module.apply(variables, *inputs, train=False)
    chex.assert_trees_all_close(found, jnp.concatenate(states[2:], axis=-1), atol=1e-4)


def test_only_training_has_auxiliary_logits(draw: Any) -> None:
    net = network(SPACE, CELL, channels=2, cells=1, num_classes=3, auxiliary=True)
    x = np.zeros((2, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x, train=False))
    train = jax.eval_shape(lambda v: net.apply(v, x, train=True, mutable=["batch_stats"])[0], shapes)
    chex.assert_trees_all_equal_shapes(train, (jnp.zeros((2, 3)), jnp.zeros((2, 3))))
    chex.assert_shape(jax.eval_shape(lambda v: net.apply(v, x, train=False), shapes), (2, 3))
    with pytest.raises(UsageError, match="must be 0 here: the auxiliary head needs features of 8x8") as caught:
        jax.eval_shape(lambda: net.init(jax.random.key(0), IMAGES, train=True))
    assert caught.value.argument == "auxiliary_weight"


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"auxiliary": True}, "auxiliary_weight"),
        ({"stem": "imagenet"}, "stem"),
        ({"remat": True}, "remat"),
        ({"shared": True}, "share_features"),
    ],
)
def test_nas_bench_201_refuses_what_it_has_not(options: dict[str, Any], argument: str) -> None:
    space = get_space("nas_bench_201")
    cell = space.random(np.random.default_rng(0))
    with pytest.raises(UsageError) as caught:
        network(space, cell, channels=4, cells=1, num_classes=2, **options)
    assert caught.value.argument == argument
    with pytest.raises(UsageError, match="needs partial channels"):
        supernet(space, channels=4, cells=1, num_classes=2, partial=4)
    with pytest.raises(UsageError, match="drops no paths"):
        net = network(space, cell, channels=4, cells=1, num_classes=2)
        jax.eval_shape(lambda: net.init(jax.random.key(0), IMAGES, train=True, drop_path=0.1))


@pytest.mark.parametrize(("options", "sentence"), [({"partial": 2}, "partial"), ({"stem": "imagenet"}, "stem")])
def test_a_supernet_of_other_shapes_than_its_networks_is_refused(options: dict[str, Any], sentence: str) -> None:
    relaxed = supernet(SPACE, channels=4, cells=1, num_classes=3, **options)
    uniform = Mixture({name: choice.uniform() for name, choice in SPACE.choices.items()})
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(lambda key: relaxed.init(key, images, uniform, train=False), jax.random.key(0))
    with pytest.raises(UsageError, match=sentence) as caught:
        inherit(SPACE, variables, CELL)
    assert caught.value.argument == "variables"
