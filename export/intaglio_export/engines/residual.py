"""Find the residual path of a transformer in its ONNX graph and in the engine's layers.

z after block k is the sum of the image stream and of what the block computes from it: an Add where
one input, or the stream some sums before it, is an ancestor of the other input. The path consists
of these sums, followed back from the output. Blocks are identified by the names of their weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import onnx

from intaglio_export.engines.log import Layer

OP = "MASuppress"
# Nodes that pass on all of their values unchanged, or a part of them.
_WHOLE = {"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_PART = {
    "Slice",
    "Split",
}  # scale and shift are parts of one matmul, so this does not prove a stream
_BLOCK = re.compile(r"(?:^|\.)(\w*blocks|layers)\.(\d+)\.")


class _Graph:
    """Nodes in topological order, each with the set of its ancestors as the bits of a number."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.producer = {name: i for i, n in enumerate(self.nodes) for name in n.output if name}
        self.ancestors: list[int] = []
        # The node where the stream of a residual sum comes from; None for other nodes.
        self.stream: list[int | None] = []
        for node in self.nodes:
            sources = [self.producer[name] for name in node.input if name in self.producer]
            above = 0
            for i in sources if node.op_type != "Shape" else ():  # Shape passes on no values
                above |= self.ancestors[i] | 1 << i
            self.ancestors.append(above)
            is_sum = node.op_type == "Add" and len(sources) == 2
            self.stream.append(self._stream_of(*sources) if is_sum else None)
        self.output = self.producer[model.graph.output[0].name]

    def _stream_of(self, one: int, two: int) -> int | None:
        for stream, other in ((one, two), (two, one)):
            at: int | None = stream
            while at is not None and self.nodes[at].op_type not in _PART:
                if self.ancestors[other] >> at & 1:
                    return stream
                at = self.before(at)
        return None

    def before(self, index: int) -> int | None:
        """Return the node where the stream of `index` comes from, or None at its start."""
        node = self.nodes[index]
        if (stream := self.stream[index]) is not None:
            return stream
        if node.op_type == OP or node.op_type in _WHOLE | _PART:
            name = node.input[0]
        elif node.op_type == "Concat":
            ops = [n for n in node.input if self._made_by(n) == OP]
            # Elsewhere, text tokens come before image tokens.
            name = ops[0] if ops else node.input[-1]
        else:
            return None
        return self.producer.get(name)

    def _made_by(self, name: str) -> str | None:
        index = self.producer.get(name)
        return None if index is None else self.nodes[index].op_type

    def path(self) -> list[int]:
        """Return the residual sums from the first to the last."""
        above = self.ancestors[self.output]
        sums = [i for i, stream in enumerate(self.stream) if stream is not None and above >> i & 1]
        found: list[int] = []
        at = max(sums, default=None)
        while at is not None:
            if self.stream[at] is not None:
                found.append(at)
            at = self.before(at)
        return found[::-1]

    def block(self, index: int) -> tuple[str, int] | None:
        """Return the block whose weights were used last before a sum."""
        for i in range(index, -1, -1):
            if i == index or self.ancestors[index] >> i & 1:
                for name in self.nodes[i].input:
                    if found := _BLOCK.search(name):
                        return found[1], int(found[2])
        return None


def block_sums(model: onnx.ModelProto, blocks: int) -> list[list[str]]:
    """Return the names of each block's residual sums, the last of which computes z.

    The result is empty if the sums do not belong to exactly `blocks` blocks.
    """
    graph = _Graph(model)
    found: list[tuple[tuple[str, int], list[str]]] = []
    for index in graph.path():
        block, name = graph.block(index), graph.nodes[index].name
        if block is None:  # a sum of what runs before the blocks, such as Z-Image's refiners
            continue
        if found and found[-1][0] == block:
            found[-1][1].append(name)
        else:
            found.append((block, [name]))
    names = [names for _, names in found]
    return names if len(names) == blocks else []


def residual_types(
    sums: Sequence[Sequence[str]], layers: Sequence[Layer], channels: int
) -> list[dict[str, Any]]:
    """Return the type of z after each block, as far as the engine's layers show it.

    z is a tensor of `channels` from a layer with the block's last sum to a layer with the next
    block's first. The type is `fused` if there is no such tensor: z is not written to memory.
    """
    path = [name for block in sums for name in block]
    residual = []
    for block, names in enumerate(sums):
        after = path[path.index(names[-1]) + 1 :][:1]
        types = {
            tensor.dtype
            for maker in _with(names[-1], layers)
            for user in (u for name in after for u in _with(name, layers))
            for tensor in maker.outputs
            if tensor.shape[-1:] == (channels,) and tensor.name in {t.name for t in user.inputs}
        }
        residual.append({"block": block, "dtype": "/".join(sorted(types)) or "fused"})
    return residual


def op_layer(
    model: onnx.ModelProto, layers: Sequence[Layer], profiles: int
) -> dict[str, Any] | None:
    """Return the layer that computes the op, and whether the op is fused with its neighbours.

    An engine has separate layers for each of its `profiles`. The result is None without the op.
    """
    node = next((node.name for node in model.graph.node if node.op_type == OP), None)
    if node is None:
        return None
    call = f" | {node} ({OP})"
    holding = [layer for layer in layers if any(call in name for name in layer.nodes)]
    if not holding:
        return {"layer": "", "fused": False}
    alone = any(all(call in name for name in layer.nodes) for layer in holding)
    return {"layer": holding[-1].name, "fused": len(holding) == profiles and not alone}


def _with(node: str, layers: Sequence[Layer]) -> list[Layer]:
    return [layer for layer in layers if node in layer.nodes]
