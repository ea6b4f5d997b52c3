"""What runs on indices: norms are folded, pools are moved behind activations, and every value is seen to be indices or floats.

A value is *wanted* as indices if a weighted layer takes it, at once or through pools, reshapes and functions of single values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .forms import Pointwise, Weighted
from .graph import Graph, Node


@dataclass(frozen=True, eq=False)
class Placed:
    """A node with the pointwise ones that its activation table takes over (`fused`); name: of the value that comes out at the end of
    them; wanted: as indices."""

    node: Node
    fused: tuple[Node, ...]
    name: str
    wanted: bool


def simplify(graph: Graph, fold: bool = True) -> Graph:
    """The same network with pointwise functions before pools and reshapes and, to `fold`, norms in the layers before them."""
    nodes = list(graph.nodes)
    while (changed := _change(nodes, graph.exit, fold)) is not None:
        nodes = changed
    return replace(graph, nodes=tuple(nodes))


def place(graph: Graph) -> tuple[Placed, ...]:
    """Every node, in order; those that are fused into the one before are only there."""
    users = _users(list(graph.nodes), graph.exit)
    makers = {node.name: node for node in graph.nodes}

    def wanted(name: str) -> bool:
        return any(_wants(node) for node in users[name] if node is not None)

    def _wants(node: Node) -> bool:
        if node.kind == "pointwise" and on_floats(node):
            return False  # a float value gets levels behind the function, not before
        return node.kind == "weighted" or node.kind != "float" and wanted(node.name)

    def on_floats(node: Node) -> bool:
        before = makers.get(node.sources[0])
        if before is None or before.kind == "float" or before.kind == "pointwise" and on_floats(before):
            return True
        return before.kind == "weighted" and (len(users[before.name]) > 1 or not _fits(node, before))

    taken: set[str] = set()
    placed = []
    for node in graph.nodes:
        if node.name in taken:
            continue
        fused, end = [], node
        while node.kind == "weighted" and len(users[end.name]) == 1 and _fits(users[end.name][0], node):
            end = users[end.name][0]
            fused.append(end)
        if not wanted(end.name):
            fused, end = [], node
        taken.update(other.name for other in fused)
        placed.append(Placed(node, tuple(fused), end.name, wanted(end.name)))
    return tuple(placed)


def _fits(after: Node | None, node: Node) -> bool:
    """Whether the activation table of a weighted layer can take a function over: its channels must be the outputs."""
    if after is None or after.kind != "pointwise":
        return False
    return not after.content.channels or _channels_last(node)


def _channels_last(node: Node) -> bool:
    """Whether axis 1 of the outputs counts the outputs of the layer: not so for Linear on sequences."""
    return node.content.window.axes > 0 or len(node.shape) == 2


def _users(nodes: list[Node], end: str) -> dict[str, list[Node | None]]:
    """Who takes each value; None: it is the network's output."""
    users: dict[str, list[Node | None]] = {}
    for node in nodes:
        users.setdefault(node.name, [])
        for source in node.sources:
            users.setdefault(source, []).append(node)
    users[end].append(None)
    return users


def _change(nodes: list[Node], end: str, fold: bool) -> list[Node] | None:
    """The nodes after one change for the better, None if there is none."""
    users = _users(nodes, end)
    makers = {node.name: (at, node) for at, node in enumerate(nodes)}
    for at, node in enumerate(nodes):
        if node.kind != "pointwise" or node.sources[0] not in makers or len(users[node.sources[0]]) > 1:
            continue
        place, before = makers[node.sources[0]]
        function: Pointwise = node.content
        if fold and before.kind == "weighted" and before.content.learned and function.line is not None and _channels_last(before):
            scale, shift = function.line
            content: Weighted = before.content
            folded = replace(content, weight=content.weight * scale[:, None, None, None], bias=content.bias * scale + shift)
            new = replace(before, name=node.name, title=f"{before.title}+{node.title}", content=folded)
            return [*nodes[:place], new, *nodes[place + 1 : at], *nodes[at + 1 :]]
        if before.kind == "largest" and function.rising or before.kind == "flatten" and not function.channels:
            first = replace(node, name=before.name, sources=before.sources, shape=())
            second = replace(before, name=node.name, sources=(before.name,))
            return [*nodes[:place], first, *nodes[place + 1 : at], second, *nodes[at + 1 :]]
    return None
