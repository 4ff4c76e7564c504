"""A cell of which only some operations run, at the cost of these: one program for all architectures.

The active operations are a list that a loop works off, an operation of an edge a round. So the program has every
candidate once (twice in a reduction cell, for both strides) and not once for each edge, and what is not active costs
nothing, though it is not known when the program is compiled. Going back, the loop makes the inside of each operation
again: between the two loops only the nodes are kept. Where edges share what their operations compute, a round is an
operation of the node that they leave, and brings every later node its share.

Features are in tables, a row a node. Edges whose strides differ read from two tables, and all write to the last, which
has the intermediate nodes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax.nets.darts.edges import Edges, Tables, Variables
from gaea_jax.nets.darts.operations import Kind, apply
from gaea_jax.nets.lowering import max_pool
from gaea_jax.nets.lowering.window import apart
from gaea_jax.nets.ops import shuffle
from gaea_jax.spaces.darts import EDGES, NODES

_FIRST = NODES[0]
_TARGETS, _SOURCES = np.array(EDGES).T


class Plan(NamedTuple):
    """What is known of a cell when it is compiled.

    Attributes:
      groups: its edges; where those from the inputs have a larger stride, they are a group of their own, the first.
      partial: K, see `MixedCell`.
      shared: see `MixedCell`.
      inactive: see `Mixture`.
      train: batch statistics if True, running statistics if not.
    """

    groups: tuple[Edges, ...]
    partial: int
    shared: bool
    inactive: str
    train: bool


class Operands(NamedTuple):
    """What a cell is computed from.

    Attributes:
      inputs: features of both inputs, [2, B, H, W, C].
      weights: [14, operations], of the compute type.
      passing: [14], what the channels that no operation sees weigh on an edge that has an active operation.
      variables: of each group of edges what its operations have learnt.
      active: bool [14, operations].
    """

    inputs: jax.Array
    weights: jax.Array
    passing: jax.Array
    variables: tuple[Variables, ...]
    active: jax.Array


class _Round(NamedTuple):
    """An active operation of an edge, or, where they share it, of the edges that leave a node.

    Attributes:
      edges: their numbers; one, or where they share one for each node, of which those that are not there are too large.
      option: the operation.
      source: row of the node that they leave, in the table that its group reads from.
      target: row of the node that the first goes to, in the last table; the others follow it.
      row: of the edges in the parameters of their group.
      first: whether it is the first active operation of an edge that shares nothing.
    """

    edges: jax.Array
    option: jax.Array
    source: jax.Array
    target: jax.Array
    row: jax.Array
    first: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def subgraph(plan: Plan, operands: Operands) -> tuple[jax.Array, tuple[Tables, ...]]:
    """The nodes of a cell of which only what is active is computed.

    With ``inactive="probe"`` the gradients of the weights are those of the cell that computes all operations, of which
    what is not active weighs 0. Nothing flows back through these, so that they only run forward, once the way back has
    found the gradient of each node.

    Args:
      plan: what is known when it is compiled.
      operands: what is not.

    Returns:
      The features of its four intermediate nodes, [4, B, H / stride, W / stride, C], and the new running statistics,
      which have no gradient.
    """
    return _forward(plan, operands)[0]


# Compiled for itself, so that it is traced once for all cells of the same shapes; so is the gradient.
@functools.partial(jax.jit, static_argnums=0)
def _forward(plan: Plan, operands: Operands) -> tuple[Any, Any]:
    tables, running = _tables(plan, operands), []
    for group in range(len(plan.groups)):
        tables[-1], new = _run(plan, group, operands, tables)
        running.append(new)
    nodes = shuffle(tables[-1][-len(NODES) :], plan.partial)
    return (nodes, tuple(running)), (operands, tables)


@functools.partial(jax.jit, static_argnums=0)
def _backward(plan: Plan, saved: Any, cotangents: Any) -> tuple[Operands]:
    operands, tables = saved
    grads = jax.tree.map(jnp.zeros_like, operands._replace(active=None))
    of_nodes = _sorted(plan, cotangents[0])
    of_tables = [jnp.concatenate([grads.inputs, of_nodes])] if len(tables) == 1 else [grads.inputs, of_nodes]
    for group in reversed(range(len(plan.groups))):
        of_tables[group], grads = _run_back(plan, group, operands, tables, of_tables, grads)
    if plan.inactive == "scalar":
        totals = _seen(plan, of_tables[-1])[-len(NODES) :].sum((1, 2, 3, 4))[_TARGETS - _FIRST]
        grads = grads._replace(weights=jnp.where(operands.active, grads.weights, totals[:, None]))
    if plan.inactive == "probe":
        # Apart, or XLA runs all operations forward early and keeps the results.
        probe = functools.partial(_probe, plan)
        weights = jax.lax.platform_dependent(of_tables[-1], operands, tables, cpu=apart(probe), default=probe)
        grads = grads._replace(weights=weights)
    inputs = shuffle(of_tables[0][: len(operands.inputs)], plan.partial)
    return (grads._replace(inputs=inputs),)


subgraph.defvjp(_forward, _backward)


def _tables(plan: Plan, operands: Operands) -> list[jax.Array]:
    """The tables before the first round: what each group of edges reads from."""
    inputs = _sorted(plan, operands.inputs)
    stride = plan.groups[0].kinds[0].stride
    _, batch, *sides, channels = inputs.shape
    nodes = jnp.zeros((len(NODES), batch, *(side // stride for side in sides), channels), inputs.dtype)
    if plan.inactive == "scalar":
        idle = jnp.where(operands.active, 0, operands.weights).sum(axis=-1)
        numbers = jnp.stack([idle[node == _TARGETS].sum() for node in NODES])
        seen = jnp.arange(channels) < channels // plan.partial
        nodes += (numbers[:, None] * seen)[:, None, None, None]
    return [jnp.concatenate([inputs, nodes])] if len(plan.groups) == 1 else [inputs, nodes]


def _sorted(plan: Plan, x: jax.Array) -> jax.Array:
    """In tables the channels that operations see come first; a node interleaves them, when it is read."""
    return shuffle(x, x.shape[-1] // plan.partial)


def _seen(plan: Plan, x: jax.Array) -> jax.Array:
    return x[..., : x.shape[-1] // plan.partial]


def _rounds(plan: Plan, group: int, active: jax.Array) -> tuple[_Round, jax.Array]:
    """The rounds of a group, sorted by their source, in arrays with room for all operations; and how many there are."""
    rows = plan.groups[group].rows
    edges = np.array([_targets(row) if plan.shared else row for row in rows])
    of_first = np.array([row[0] for row in rows])
    sources = _SOURCES[of_first] - _first_row(group)
    targets = (np.full(len(rows), _FIRST) if plan.shared else _TARGETS[of_first]) - _first_row(len(plan.groups) - 1)
    own = jnp.any(active.at[edges].get(mode="fill", fill_value=False), axis=1)
    (places,) = jnp.nonzero(own.reshape(-1), size=own.size)
    row, option = jnp.divmod(places, active.shape[-1])
    of_round, source, target = (jnp.asarray(table)[row] for table in (edges, sources, targets))
    first = jnp.argmax(active, axis=-1).at[of_round[:, 0]].get(mode="clip") == option
    return _Round(of_round, option, source, target, row, first), own.sum()


def _targets(row: tuple[int, ...]) -> list[int]:
    """For each node the edge of the row that goes there, or one that is not there."""
    of = {EDGES[edge][0]: edge for edge in row}
    return [of.get(node, len(EDGES)) for node in NODES]


def _first_row(table: int) -> int:
    """The node whose features are the first row of a table; only the first table has the inputs."""
    return _FIRST if table else 0


def _run(plan: Plan, group: int, operands: Operands, tables: list[jax.Array]) -> tuple[jax.Array, Tables]:
    """What the edges of a group make of the last table, and their new running statistics."""
    rounds, count = _rounds(plan, group, operands.active)
    branches = [functools.partial(_evaluate, plan, kind) for kind in _kinds(plan.groups[group])]

    def advance(number: jax.Array, carry: tuple[jax.Array, Tables]) -> tuple[jax.Array, Tables]:
        last, running = carry
        now = _at(rounds, number)
        x = _at(last if group == len(tables) - 1 else tables[group], now.source)
        point = _point(plan, operands, group, now)
        result, new = jax.lax.switch(now.option, branches, _at(running, now.row), x, *point)
        return _bring(plan, last, result, _weights(operands, now), now.target), _put(running, new, now.row)

    return jax.lax.fori_loop(0, count, advance, (tables[-1], operands.variables[group].running))


def _run_back(
    plan: Plan, group: int, operands: Operands, tables: list[jax.Array], of_tables: list[jax.Array], grads: Operands
) -> tuple[jax.Array, Operands]:
    """What the edges of a group make of the gradients of the table that they read from and of the operands."""
    rounds, count = _rounds(plan, group, operands.active)
    branches = [functools.partial(_pull_back, plan, kind) for kind in _kinds(plan.groups[group])]

    def advance(number: jax.Array, carry: Any) -> Any:
        of_table, of_weights, of_passing, of_params = carry
        now = _at(rounds, count - 1 - number)
        of_last = of_table if group == len(tables) - 1 else of_tables[-1]
        point = _at(tables[group], now.source), *_point(plan, operands, group, now)
        running = _at(operands.variables[group].running, now.row)
        if plan.shared:
            of_nodes = jax.lax.dynamic_slice_in_dim(of_last, now.target, len(NODES))
            g = jnp.tensordot(_weights(operands, now), of_nodes, 1)
            (of_x, _, passing, params), result = jax.lax.switch(now.option, branches, g, running, *point)
            weights = jnp.tensordot(of_nodes, result, result.ndim)
            weights = jnp.where(_is_active(operands, now), weights, 0)
        else:
            g = _at(of_last, now.target)
            (of_x, weights, passing, params), _ = jax.lax.switch(now.option, branches, g, running, *point)
        return (
            _add(of_table, of_x, now.source),
            of_weights.at[now.edges, now.option].add(weights, mode="drop"),
            of_passing.at[now.edges[0]].add(jnp.where(now.first, passing, 0), mode="drop"),
            _add(of_params, params, now.row),
        )

    carry = of_tables[group], grads.weights, grads.passing, grads.variables[group].params
    of_table, weights, passing, params = jax.lax.fori_loop(0, count, advance, carry)
    variables = [*grads.variables]
    variables[group] = variables[group]._replace(params=params)
    return of_table, grads._replace(weights=weights, passing=passing, variables=tuple(variables))


def _point(plan: Plan, operands: Operands, group: int, now: _Round) -> tuple[jax.Array, jax.Array, Tables]:
    """What beside features an operation depends on: its weight, that of the channels that pass by, and parameters."""
    weight = jnp.ones((), operands.weights.dtype) if plan.shared else operands.weights[now.edges[0], now.option]
    # Channels pass by once, however many operations an edge has.
    passing = jnp.where(now.first, operands.passing.at[now.edges[0]].get(mode="clip"), 0)
    return weight, passing, _at(operands.variables[group].params, now.row)


def _is_active(operands: Operands, now: _Round) -> jax.Array:
    """On which edges of a round its operation is active."""
    return operands.active.at[now.edges, now.option].get(mode="fill", fill_value=False)


def _weights(operands: Operands, now: _Round) -> jax.Array:
    """What an operation weighs on each edge of a round."""
    weights = operands.weights.at[now.edges, now.option].get(mode="fill", fill_value=0)
    return jnp.where(_is_active(operands, now), weights, 0)


def _bring(plan: Plan, table: jax.Array, result: jax.Array, weights: jax.Array, target: jax.Array) -> jax.Array:
    """Adds what a round has computed to the nodes that it is for."""
    if not plan.shared:
        return _add(table, result, target)
    nodes = jax.lax.dynamic_slice_in_dim(table, target, len(NODES)) + weights[:, None, None, None, None] * result
    return jax.lax.dynamic_update_slice_in_dim(table, nodes, target, 0)


def _kinds(edges: Edges) -> list[Kind]:
    """The kind of each candidate, ``none`` too."""
    return [edges.kinds[0]._replace(operation=name) for name in edges.operations]


def _edge(
    plan: Plan, kind: Kind, running: Tables, x: jax.Array, weight: jax.Array, passing: jax.Array, params: Tables
) -> tuple[jax.Array, Tables]:
    """What one operation of an edge brings its node, from a row of a table for a row of one; new running statistics."""
    x = shuffle(x, plan.partial)
    seen = x.shape[-1] // plan.partial
    out, new = jnp.zeros_like(x[:, :: kind.stride, :: kind.stride, :seen]), dict(running)
    if kind.operation != "none":
        learnt, old = (
            {key: array[None] for key, array in table[kind.operation].items()} for table in (params, running)
        )
        (out,), found = apply(kind, learnt, old, x[..., :seen], plan.train, weight[None], 1)
        new[kind.operation] = {key: array[0] for key, array in found.items()}
    if plan.partial == 1:
        return out, new
    rest = max_pool(x[..., seen:], 2, 2) if kind.stride == 2 else x[..., seen:]
    return jnp.concatenate([out, rest * passing], axis=-1), new


def _evaluate(plan: Plan, kind: Kind, running: Tables, *point: Any) -> tuple[jax.Array, Tables]:
    # By the rules for gradients, which unlike the operations themselves have a forward-mode derivative.
    out, _, new = jax.vjp(functools.partial(_edge, plan, kind, running), *point, has_aux=True)
    return out, new


def _pull_back(plan: Plan, kind: Kind, g: jax.Array, running: Tables, *point: Any) -> Any:
    out, pull, _ = jax.vjp(functools.partial(_edge, plan, kind, running), *point, has_aux=True)
    return pull(g), out if plan.shared else None


def _probe(plan: Plan, of_nodes: jax.Array, operands: Operands, tables: list[jax.Array]) -> jax.Array:
    """The gradients of the weights of all operations, active or not, from those of the nodes.

    A node is the sum of what its edges bring it, so the gradient of a weight is the product of that of the node and the
    result of the operation.
    """
    of_weights = jnp.zeros_like(operands.weights)
    for group, edges in enumerate(plan.groups):
        for source, leaving, own in edges.by_source(operands.variables[group]):
            numbers = jnp.array(leaving.numbers)
            targets = [EDGES[number][0] - _first_row(len(plan.groups) - 1) for number in leaving.numbers]
            x = tables[group][source - _first_row(group)]
            products = _products(plan, leaving, of_nodes[jnp.array(targets)], x, own)
            of_weights = of_weights.at[numbers].set(products)
    return of_weights


def _products(plan: Plan, edges: Edges, of_targets: jax.Array, x: jax.Array, own: Variables) -> jax.Array:
    """The products of the gradients of nodes [edges, B, H, W, C] and what each operation brings them from x."""
    x = _seen(plan, shuffle(x, plan.partial))
    weights = jnp.zeros((len(edges.numbers), len(edges.operations)), x.dtype)
    _, pull = jax.vjp(lambda weights: edges.dense(x, weights, own, plan.train)[0], weights)
    return pull([*_seen(plan, of_targets)])[0]


def _at(tree: Any, row: jax.Array) -> Any:
    return jax.tree.map(lambda table: jax.lax.dynamic_index_in_dim(table, row, keepdims=False), tree)


def _put(tree: Any, rows: Any, row: jax.Array) -> Any:
    return jax.tree.map(lambda table, own: jax.lax.dynamic_update_index_in_dim(table, own, row, 0), tree, rows)


def _add(tree: Any, rows: Any, row: jax.Array) -> Any:
    return _put(tree, jax.tree.map(jnp.add, _at(tree, row), rows), row)
