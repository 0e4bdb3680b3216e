"""The networks that `benchmarks.torch_models` trains, of PyTorch's modules alone, as their papers have them.

A norm and the ReLU that follows it are in one ``Sequential``, where ``numbabn.torch.convert(fuse=True)``
finds them. In a residual block the addition is between the last norm and its ReLU, which stay apart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import relu

CLASSES = 1000
NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.RMSNorm)


def convolution(
    inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, ...]:
    """Return a convolution that keeps height and width, or divides them by the stride, and its norm."""
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(layer.weight)  # values stay near 1 also where the norms are left out
    return layer, nn.BatchNorm2d(outputs)


class InvertedResidual(nn.Module):
    """The block of MobileNetV2: 1x1 to more channels, 3x3 in each of them, and 1x1 back, without a ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        wider = [*convolution(inputs, hidden, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        depthwise = [*convolution(hidden, hidden, 3, stride, hidden), nn.ReLU6(inplace=True)]
        self.body = nn.Sequential(*wider, *depthwise, *convolution(hidden, outputs, 1))
        self.skipped = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the result of the body, plus x where it has the same shape."""
        return x + self.body(x) if self.skipped else self.body(x)


def mobilenet_v2() -> nn.Sequential:
    """Return the network of Sandler et al. (2018), "MobileNetV2", table 2."""
    layers = [*convolution(3, 32, 3, 2), nn.ReLU6(inplace=True)]
    inputs = 32
    for expansion, outputs, repeats, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):  # fmt: skip
        for repeat in range(repeats):
            layers.append(InvertedResidual(inputs, outputs, 1 if repeat else stride, expansion))
            inputs = outputs
    layers += [*convolution(inputs, 1280, 1), nn.ReLU6(inplace=True)]
    return nn.Sequential(*layers, *classifier(1280))


class BasicBlock(nn.Module):
    """The block of ResNet-18: ``y = relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))``."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first, second = convolution(inputs, outputs, 3, stride), convolution(outputs, outputs)
        self.body = nn.Sequential(*first, nn.ReLU(inplace=True), *second)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Sequential(*(() if same else convolution(inputs, outputs, 1, stride)))

    def forward(self, x: Tensor) -> Tensor:
        """Return y; the shortcut is x itself where the shapes are the same."""
        return relu(self.body(x) + self.shortcut(x), inplace=True)


def resnet18() -> nn.Sequential:
    """Return the network of 18 layers of He et al. (2016), "Deep residual learning", table 1."""
    layers = [*convolution(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, *classifier(512))


def classifier(channels: int) -> tuple[nn.Module, ...]:
    """Return the end of an image network: the mean over height and width, and the logits."""
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)


class EncoderBlock(nn.Module):
    """A block of a transformer with its norms first: attention, then a perceptron, each added to x."""

    def __init__(self, width: int, heads: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = norm(width), norm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return sequences of vectors of the same shape (N, length, width)."""
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.perceptron(self.second(x))


def transformer(
    norm: Callable[[int], nn.Module], width: int = 256, blocks: int = 4, heads: int = 4
) -> nn.Sequential:
    """Return an encoder of sequences of vectors (N, length, width), with the logits of every vector."""
    encoder = (EncoderBlock(width, heads, norm) for _ in range(blocks))
    return nn.Sequential(*encoder, norm(width), nn.Linear(width, CLASSES))


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "MobileNetV2": mobilenet_v2,
    "ResNet-18": resnet18,
    "transformer, LayerNorm": partial(transformer, nn.LayerNorm),
    "transformer, RMSNorm": partial(transformer, nn.RMSNorm),
}


def without_norms(network: nn.Module) -> nn.Module:
    """Put identities in the place of all norms of a network, and return it."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, NORMS):
                setattr(module, name, nn.Identity())
    return network
