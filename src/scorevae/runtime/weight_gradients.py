"""Gradients of weights that a second derivative has spelled as convolutions of images with images.

The objective differentiates ∇_x ln q, whose convolutions are w ∗ᵀ g, in w. PyTorch writes that as
a convolution in which g is the filter, as large as the image, for which cuDNN has no good kernel.
It is the gradient in w of a convolution that takes x to g, and for that there are good ones.
"""

from operator import getitem
from typing import Any, NamedTuple

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

aten = torch.ops.aten
SWAP = [1, 0, 2, 3]  # of images and channels


class WeightGradients(CustomGraphPass):
    """A pass over a compiled graph that calls such convolutions what they are."""

    def __call__(self, graph: Graph) -> None:
        """Replace them in place; whatever does not look like one is left as it is."""
        for node in graph.find_nodes(op="call_function", target=aten.convolution.default):
            x, g, bias, stride, padding, dilation, transposed, _, groups = node.args
            images, filters = _unswapped(x), _unswapped(g)
            if images is None or filters is None or bias is not None or transposed or groups != 1:
                continue
            geometry = Geometry(dilation, padding, stride)  # whose stride is this one's dilation
            with graph.inserting_before(node):
                gradient = _gradient(graph, node, images, filters, geometry)
            node.replace_all_uses_with(gradient)
            graph.erase_node(node)

    def uuid(self) -> Any:  # noqa: ANN401 (as the class above has it)
        """What compiled graphs are kept by."""
        return get_hash_for_files((__file__,))


def _unswapped(node: Any) -> Any:  # noqa: ANN401 (an argument of a node)
    """The node whose images and channels a node swaps, if that is what it does."""
    swaps = isinstance(node, Node) and (
        (node.target is aten.permute.default and node.args[1:] == (SWAP,))
        or (node.target is aten.transpose.int and set(node.args[1:]) == {0, 1})
    )
    return node.args[0] if swaps else None


class Geometry(NamedTuple):
    """Of a convolution, each for both axes."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]


def _gradient(graph: Graph, old: Node, x: Node, g: Node, geometry: Geometry) -> Node:
    """The gradient of the weights of a convolution that takes x to g, its channels swapped."""

    def call(target: Any, *args: Any) -> Node:  # noqa: ANN401 (an operation)
        node = graph.call_function(target, args)
        node.meta.update(old.meta)  # of the backward pass
        node.meta["val"] = target(*torch.fx.map_arg(args, lambda given: given.meta["val"]))
        return node

    channels, outputs, *sides = old.meta["val"].shape
    weights = call(aten.new_empty.default, g, [outputs, channels, *sides])  # for their shape
    direct = False, [0, 0], 1  # not transposed, one group
    only_weights = [False, True, False]
    of_all = call(
        aten.convolution_backward.default, g, x, weights, None, *geometry, *direct, only_weights
    )
    return call(aten.permute.default, call(getitem, of_all, 1), SWAP)
