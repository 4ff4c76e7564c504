"""Engine and transit cells in one supernet, and features that edges share."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.errors import UsageError
from gaea_jax.methods import entrannas_dst
from gaea_jax.nets import Mixture, active_parameters, count, inherit, network, supernet
from gaea_jax.nets.darts.edges import find_edge
from gaea_jax.nets.darts.skeleton import Place, engine_layers
from gaea_jax.nets.darts.supernet import MixedCell, evaluations
from gaea_jax.spaces import get_space
from gaea_jax.spaces.darts import CELLS, DARTS, EDGES, NODES, Genotype

SPACE = get_space("darts_nozero")
SMALL = DARTS("small", ("skip_connect", "avg_pool_3x3", "dil_conv_3x3"))
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 8, 8, 3)).astype(np.float32)
INPUTS = RNG.normal(size=(2, 4, 8, 8, 4)).astype(np.float32)
WEIGHTS = {cell: RNG.uniform(0.2, 1, (14, 3)).astype(np.float32) for cell in CELLS}
TWO_A_NODE = SMALL.encode(SMALL.random(RNG))
MIXED = Mixture(WEIGHTS, transit=Mixture.derived(TWO_A_NODE))
UNOPTIMISED = {"xla_backend_optimization_level": 0}


def small(**options: Any) -> Any:
    return supernet(SMALL, channels=4, cells=3, num_classes=3, **options)


def gradients(net: Any, variables: Any, mixture: Mixture) -> Any:
    """By the parameters, and by the weights that engine cells read."""

    def loss(params: Any, weights: Any) -> jax.Array:
        of = {**variables, "params": params}
        logits, _ = net.apply(of, IMAGES, mixture.replace(weights=weights), train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(3 * logits))

    return jax.jit(jax.grad(loss, argnums=(0, 1)), compiler_options=UNOPTIMISED)(variables["params"], mixture.weights)


def test_engine_layers_of_eight() -> None:
    named = {name: sorted(engine_layers(name, 8)) for name in ("all", "none", "first", "last")}
    assert named == {"all": [*range(8)], "none": [], "first": [0, 2], "last": [5, 7]}
    assert engine_layers((0,), 8) == {0}
    for wrong in ("middle", (8,), (-1,)):
        with pytest.raises(UsageError, match=r"^engine: "):
            engine_layers(wrong, 8)


@pytest.mark.parametrize(("shared", "parameters"), [(False, 1_930_618), (True, 749_050)])
def test_parameters(shared: bool, parameters: int) -> None:
    """Oracle 13."""
    tables = {cell: SPACE.choices[cell].uniform() for cell in CELLS}
    net = supernet(SPACE, channels=16, cells=8, num_classes=10, shared=shared)
    assert count(net, (32, 32, 3), Mixture(tables)).parameters == parameters


@pytest.mark.parametrize(("name", "numbers"), [("darts_nozero", (784, 244, 118)), ("darts", (896, 272, 128))])
def test_evaluations(name: str, numbers: tuple[int, ...]) -> None:
    """Oracle 12; of each node the connections are of other inputs than those of the others, so that none is shared."""
    space = get_space(name)
    active = np.zeros(space.choices["normal"].shape, bool)
    for number, node in enumerate(NODES):
        for source in (0, 1):
            active[EDGES.index((node, source)), 1 + number] = True
    mixture = Mixture(
        {cell: space.choices[cell].uniform() for cell in CELLS}, transit=Mixture({}, dict.fromkeys(CELLS, active))
    )

    def run(engine: str, shared: bool) -> int:
        return evaluations(supernet(space, channels=4, cells=8, num_classes=3, engine=engine, shared=shared), mixture)

    assert (run("all", False), run("first", False), run("first", True)) == numbers


@pytest.mark.parametrize("reduction", [False, True])
def test_shared_features_are_those_of_equal_parameters(draw: Any, reduction: bool) -> None:
    """Oracles 10 and 11: the cell whose edges have equal parameters, where they leave the same node."""
    place = Place(0, 8, reduction, False)
    together, apart = (MixedCell(SMALL.operations, place, 1, jnp.float32, shared) for shared in (True, False))
    mixture = Mixture({cell: jnp.asarray(table) for cell, table in WEIGHTS.items()})
    variables = draw(together, *INPUTS, mixture)

    def tie(tree: Any) -> Any:
        tied = {"inputs": tree["inputs"]} if "inputs" in tree else {}
        shapes = jax.eval_shape(lambda: apart.init(jax.random.key(0), *INPUTS, mixture, train=False))
        for module, arrays in shapes["params" if tree is variables["params"] else "batch_stats"].items():
            if module == "inputs":
                continue
            operation = module.removesuffix("_stride_2")
            rows: dict[int, int] = {}
            for node, source in EDGES:
                name, row = find_edge(operation, node, source, reduction)
                if name == module:
                    rows[row] = find_edge(operation, node, source, reduction, shared=True)[1]
            order = np.array([rows[row] for row in range(len(rows))])
            tied[module] = {key: np.asarray(tree[module][key])[order] for key in arrays}
        return tied

    copies = {kind: tie(tree) for kind, tree in variables.items()}

    def run(module: Any, variables: Any) -> Any:
        def loss(params: Any) -> Any:
            out, _ = module.apply(
                {**variables, "params": params}, *INPUTS, mixture, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(3 * out)), out

        return jax.jit(jax.grad(loss, has_aux=True), compiler_options=UNOPTIMISED)(variables["params"])

    (shared, out), (own, expected) = run(together, variables), run(apart, copies)
    chex.assert_trees_all_close(out, expected, atol=1e-5)
    for module, arrays in shared.items():
        if module == "inputs":
            chex.assert_trees_all_close(arrays, own[module], atol=1e-3, rtol=1e-4)
            continue
        operation = module.removesuffix("_stride_2")
        for key, found in arrays.items():
            total = np.zeros(found.shape)
            for node, source in EDGES:
                name, row = find_edge(operation, node, source, reduction)
                if name == module:
                    total[find_edge(operation, node, source, reduction, shared=True)[1]] += own[module][key][row]
            np.testing.assert_allclose(found, total, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_transit_cells_are_the_masked_ones_and_those_of_the_network(draw: Any, shared: bool) -> None:
    """Oracle 7; without pooling, which a supernet normalises and a network does not."""
    cell = (
        (("skip_connect", 0), ("dil_conv_3x3", 1)),
        (("dil_conv_3x3", 2),),
        # Two operations on one edge.
        (("dil_conv_3x3", 0), ("skip_connect", 0)),
        (("skip_connect", 1), ("skip_connect", 3), ("dil_conv_3x3", 4)),
    )
    genotype = Genotype(cell, cell)
    active = SMALL.encode(genotype)
    weights = {cell: table.astype(np.float32) for cell, table in active.items()}
    net = small(engine="none", shared=shared)
    variables = draw(net, IMAGES, Mixture(weights))

    def logits(net: Any, variables: Any, *mixture: Mixture) -> Any:
        return jax.jit(
            lambda: net.apply(variables, IMAGES, *mixture, train=True, mutable=["batch_stats"])[0],
            compiler_options=UNOPTIMISED,
        )()

    transit = logits(net, variables, Mixture(WEIGHTS, transit=Mixture.derived(active)))
    masked = logits(net, variables, Mixture(weights))
    alone = network(SMALL, genotype, channels=4, cells=3, num_classes=3)
    chex.assert_trees_all_close(transit, masked, atol=1e-5)
    chex.assert_trees_all_close(logits(alone, inherit(SMALL, variables, genotype)), masked, atol=1e-4)


def test_engine_cells_alone_have_a_gradient_by_the_mixture(draw: Any) -> None:
    """Oracle 9."""
    for engine, moved in (("none", (False, False)), ((0,), (True, False)), ("first", (True, True))):
        net = small(engine=engine, shared=True)
        _, weights = gradients(net, draw(net, IMAGES, MIXED), MIXED)
        assert tuple(bool(np.any(weights[cell])) for cell in CELLS) == moved


@pytest.mark.parametrize("shared", [False, True])
def test_what_does_not_run_has_no_gradient(draw: Any, shared: bool) -> None:
    """Oracle 14."""
    net = small(engine="first", shared=shared)
    variables = draw(net, IMAGES, MIXED)
    params, _ = gradients(net, variables, MIXED)
    active = active_parameters(net, variables["params"], MIXED)
    seen = set()

    def check(path: Any, mask: Any, leaf: jax.Array) -> None:
        for row in np.ndindex(leaf.shape[:1]) if np.ndim(mask) else [()]:
            on = bool(np.all(np.asarray(mask)[row]))
            seen.add(on)
            assert np.any(leaf[row] != 0) == on, path

    jax.tree_util.tree_map_with_path(check, active, params)
    assert seen == {True, False}
    assert all(np.all(mask) for mask in jax.tree.leaves(active["cell_0"]))


@pytest.mark.parametrize(("normalise", "equal"), [("edge", True), ("node", False)])
def test_one_operation_an_edge_is_the_same_in_engine_and_transit_cells(draw: Any, normalise: str, equal: bool) -> None:
    """Oracle 8."""
    logits = np.where(TWO_A_NODE["normal"], 0.0, -20.0), np.where(TWO_A_NODE["reduce"], 0.0, -20.0)
    # An edge without a selected operation: all of its operations are far below the node's largest.
    arch = {cell: jnp.asarray(table, jnp.float32) for cell, table in zip(CELLS, logits, strict=True)}
    method = entrannas_dst(normalise=normalise)
    arch |= {f"{cell}_thresholds": jnp.zeros(4) for cell in CELLS}
    key = jax.random.key(0)
    memory = {cell: jnp.asarray(table) for cell, table in TWO_A_NODE.items()}
    point = method.mixture(SMALL, arch, memory, key, 0, "eval")
    kept = {cell: jnp.where(TWO_A_NODE[cell], table, 0) for cell, table in point.weights.items()}
    mixture = Mixture(kept, memory, transit=Mixture.derived(memory))
    everywhere, nowhere = (small(engine=engine, shared=True) for engine in ("all", "none"))
    variables = draw(everywhere, IMAGES, mixture)
    found = [net.apply(variables, IMAGES, mixture, train=False) for net in (everywhere, nowhere)]
    assert np.allclose(*found, atol=1e-5) == equal


def test_memory_grows_with_the_operations_of_an_engine_cell_and_not_of_a_transit_cell() -> None:
    """Oracle 19. What a transit cell keeps between the loops forward and back are nodes, whatever runs."""

    def kept(operations: tuple[str, ...], shared: bool, active: Any) -> int:
        """Bytes that the compiled gradient of a cell allocates."""
        module = MixedCell(operations, Place(0, 8, False, False), 1, jnp.float32, shared)
        inputs = np.zeros((2, 8, 16, 16, 8), np.float32)
        weights = dict.fromkeys(CELLS, np.ones((len(EDGES), len(operations)), np.float32))
        variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, Mixture(weights), train=True))

        def loss(variables: Any, active: Any) -> jax.Array:
            mixture = Mixture(weights, active)
            out, _ = module.apply(variables, *inputs, mixture, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(out))

        step = jax.jit(jax.grad(loss), compiler_options=UNOPTIMISED)
        return step.lower(variables, active).compile().memory_analysis().temp_size_in_bytes

    one, two = ("dil_conv_3x3",), ("dil_conv_3x3", "dil_conv_5x5")
    engine = [kept(operations, False, None) for operations in (one, two)]
    transit = [
        kept(operations, False, {cell: np.ones((len(EDGES), len(operations)), bool) for cell in CELLS})
        for operations in (one, two)
    ]
    assert engine[1] > 1.7 * engine[0]
    assert transit[0] < engine[0] and transit[1] < 1.05 * transit[0]
    assert kept(two, True, None) < 0.8 * engine[1]


def test_features_are_shared_by_all_channels_or_not_at_all() -> None:
    with pytest.raises(UsageError, match=r"^partial: must be 1 where edges share"):
        supernet(SMALL, channels=8, cells=3, num_classes=3, partial=2, shared=True)
    for options in ({"engine": "first"}, {"shared": True}):
        with pytest.raises(UsageError, match=r"^method: needs engine cells"):
            supernet(get_space("nas_bench_201"), channels=4, cells=1, num_classes=3, **options)
