"""The case table shared by tests and benchmarks: the arrays that batch normalisation meets in practice."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Case:
    """One array to normalise: its shape, in the order the layout names."""

    shape: tuple[int, ...]
    layout: str

    @property
    def name(self) -> str:
        """Return the shape and layout as one label, such as ``32x64x56x56 NCHW``."""
        return "x".join(map(str, self.shape)) + " " + self.layout

    @property
    def axis(self) -> int:
        """Return the position of the channel axis."""
        return self.layout.index("C")

    @property
    def channels(self) -> int:
        """Return the number of channels."""
        return self.shape[self.axis]

    @property
    def reduced(self) -> tuple[int, ...]:
        """Return the axes the statistics are taken over."""
        return tuple(axis for axis in range(len(self.shape)) if axis != self.axis)

    @property
    def broadcast(self) -> tuple[int, ...]:
        """Return the shape that lines one value per channel up with the array."""
        return tuple(length if axis == self.axis else 1 for axis, length in enumerate(self.shape))

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def count(self) -> int:
        """Return the number of values in one channel."""
        return self.size // self.channels

    @property
    def nbytes(self) -> int:
        """Return the size of the array in bytes when it holds float32."""
        return FLOAT32_BYTES * self.size

    def with_batch(self, batch: int) -> Case:
        """Return the same case with another batch size: tests need the shape, not the megabytes."""
        return replace(self, shape=(batch, *self.shape[1:]))


# (channels, height and width) of every distinct batch normalisation of ResNet-50 on 224x224 images.
RESNET50 = (
    (64, 112), (64, 56), (256, 56), (128, 56), (128, 28), (512, 28),
    (256, 28), (256, 14), (1024, 14), (512, 14), (512, 7), (2048, 7),
)  # fmt: skip
RESNET50_BATCH = 32

RESNET50_NCHW = tuple(Case((RESNET50_BATCH, c, s, s), "NCHW") for c, s in RESNET50)
RESNET50_NHWC = tuple(Case((RESNET50_BATCH, s, s, c), "NHWC") for c, s in RESNET50)
DENSE = tuple(Case(shape, "NC") for shape in ((32, 64), (256, 1024), (8192, 512), (65536, 256)))
VOLUME = Case((8, 32, 16, 56, 56), "NCDHW")
CHANNEL_POOR = Case((64, 3, 224, 224), "NCHW")

CASES = (*RESNET50_NCHW, CHANNEL_POOR, VOLUME, *RESNET50_NHWC, *DENSE)
