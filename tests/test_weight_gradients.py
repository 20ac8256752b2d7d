"""The compiled second derivative of a convolution: the same numbers, by the kernel there is."""

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import conv2d

aten = torch.ops.aten
SIDE = 9  # of the images


def traced(
    stride: int, padding: int, dilation: int, side: int
) -> tuple[GraphModule, Tensor, Tensor]:
    """d/dw ‖d/dx ‖x ∗ w‖²‖², the objective's kind of derivative, as a graph, and its arguments."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(4, 3, side, side, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)

    def second(w: Tensor, x: Tensor) -> Tensor:
        def inner(w: Tensor) -> Tensor:
            def energy(x: Tensor) -> Tensor:
                return conv2d(x, w, None, stride, padding, dilation).square().sum()

            return torch.func.grad(energy)(x).square().sum()

        return torch.func.grad(inner)(w)

    return make_fx(second, tracing_mode="fake")(w, x), w, x


def respell(graph: GraphModule) -> None:
    from scorevae.runtime.weight_gradients import WeightGradients  # it imports the compiler

    WeightGradients()(graph.graph)
    graph.graph.lint()
    graph.recompile()


def filters(graph: GraphModule) -> list[int]:
    """The side of the filters of every convolution."""
    nodes = graph.graph.find_nodes(op="call_function", target=aten.convolution.default)
    return [node.args[1].meta["val"].shape[2] for node in nodes]


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "side"),
    [(1, 1, 1, 3), (2, 1, 1, 3), (1, 0, 1, 1), (3, 0, 1, 2), (1, 2, 2, 3)],
)
def test_second_derivative_is_the_same(
    stride: int, padding: int, dilation: int, side: int
) -> None:
    """Catches images and gradients, or stride and dilation, exchanged, and a filter cut short."""
    graph, w, x = traced(stride, padding, dilation, side)
    before, wanted = filters(graph), graph(w, x)
    respell(graph)
    assert len(filters(graph)) == len(before) - 1
    assert max(filters(graph)) == side < max(before)
    # sums of some hundred products in another order
    torch.testing.assert_close(graph(w, x), wanted, rtol=1e-13, atol=1e-10)


def test_other_convolutions_are_left_alone() -> None:
    """Catches a convolution taken for one because of its first argument alone, or in groups."""

    def others(x: Tensor, w: Tensor, grouped: Tensor) -> Tensor:
        swapped = x.permute(1, 0, 2, 3)
        both = conv2d(swapped, grouped.permute(1, 0, 2, 3), groups=2)
        return conv2d(swapped, w).sum() + both.sum()

    x, w, grouped = torch.ones(4, 3, 8, 8), torch.ones(2, 4, 3, 3), torch.ones(2, 6, 3, 3)
    graph = make_fx(others, tracing_mode="fake")(x, w, grouped)
    before = graph.code
    respell(graph)
    assert graph.code == before
