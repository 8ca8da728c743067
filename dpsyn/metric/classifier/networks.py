"""The networks that judge synthetic images, and what is done to the images that they see."""

from __future__ import annotations

from typing import Any

PUBLISHED = {  # network: (layers beside the blocks, layers of a block and stage, depth, width)
    "resnet": (2, 6, 20, 16),
    "wrn": (4, 6, 40, 64),
    "resnext": (2, 9, 29, 64),
}


def augmented(images: Any) -> Any:
    """float [n, c, h, w] -> the same shape: each moved by up to an eighth of its side, its border reflected, and
    mirrored or not. Drawn from torch's generator on the CPU, so that any device sees the same images."""
    import torch

    n, _, h, w = images.shape
    by = torch.randint(0, 2 * (h // 8) + 1, (n, 1)), torch.randint(0, 2 * (w // 8) + 1, (n, 1))
    down, right = by[0] + torch.arange(h), by[1] + torch.arange(w)
    mirrored = torch.rand(n, 1) < 0.5
    right = torch.where(mirrored, right.flip(1), right).to(images.device)
    wide = torch.nn.functional.pad(images, (w // 8, w // 8, h // 8, h // 8), "reflect").permute(0, 2, 3, 1)
    rows = torch.arange(n, device=images.device)
    moved = wide[rows[:, None, None], down.to(images.device)[:, :, None], right[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def convolutional(kind: str, h: int, w: int, channels: int, labels: int) -> Any:
    """The torch.nn.Module of `Classifier.network`, from images float [n, channels, h, w] to scores [n, labels].

    kind: 'cnn' or 'plain'.
    h: height, px.
    w: width, px.
    channels: of an image.
    labels: how many scores.
    """
    from torch import nn

    first, second, *drops = {"cnn": (24, 48, 0.25, 0.5), "plain": (32, 64, 0.3, 0.0)}[kind]
    return nn.Sequential(
        nn.Conv2d(channels, first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Dropout(drops[0]),
        nn.Flatten(),
        nn.Linear(second * -(-h // 4) * -(-w // 4), 128),
        nn.ReLU(),
        nn.Dropout(drops[1]),
        nn.Linear(128, labels),
    )


def residual(kind: str, depth: int | None, width: int | None, channels: int, labels: int) -> Any:
    """The torch.nn.Module of `Classifier.network`, from images float [n, channels, h, w] to scores [n, labels].

    Three stages, each half as high and wide as the one before and with twice the channels; where these change, the
    shortcut is a 1x1 convolution.

    kind: a key of PUBLISHED.
    depth: layers; None: the published ones.
    width: channels of the first stage; None: the published ones.
    channels: of an image.
    labels: how many scores.
    """
    from torch import Tensor, nn

    rest, each, usual_depth, usual_width = PUBLISHED[kind]
    blocks, width = ((depth or usual_depth) - rest) // each, width or usual_width

    def convolution(inner: int, outer: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
        return nn.Conv2d(inner, outer, size, stride, size // 2, groups=groups, bias=False)

    def active(width: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]

    class Block(nn.Module):
        """last(branch(y) + shortcut(y)), y = first(x); without a shortcut x itself is added"""

        def __init__(self, first: list[Any], branch: list[Any], shortcut: list[Any] | None, last: list[Any]) -> None:
            super().__init__()
            self.first, self.branch, self.last = (nn.Sequential(*layers) for layers in (first, branch, last))
            self.shortcut = None if shortcut is None else nn.Sequential(*shortcut)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.last(self.branch(y) + (x if self.shortcut is None else self.shortcut(y)))

    def block(inner: int, outer: int, stride: int) -> nn.Module:
        changes = inner != outer or stride != 1
        if kind == "wrn":
            branch = [convolution(inner, outer, 3, stride), *active(outer), nn.Dropout(0.3), convolution(outer, outer)]
            return Block(active(inner), branch, [convolution(inner, outer, 1, stride)] if changes else None, [])
        if kind == "resnet":
            branch = [convolution(inner, outer, 3, stride), *active(outer), convolution(outer, outer)]
        else:
            middle = 2 * outer  # 8 groups of `width` channels where the block ends in 4 * width
            branch = [convolution(inner, middle, 1), *active(middle)]
            branch += [convolution(middle, middle, 3, stride, 8), *active(middle), convolution(middle, outer, 1)]
        shortcut = [convolution(inner, outer, 1, stride), nn.BatchNorm2d(outer)] if changes else None
        return Block([], [*branch, nn.BatchNorm2d(outer)], shortcut, [nn.ReLU()])

    inner = {"resnet": width, "wrn": 16, "resnext": 64}[kind]
    layers = [convolution(channels, inner), *(active(inner) if kind != "wrn" else [])]
    for stage in range(3):
        outer = width * 2**stage * (4 if kind == "resnext" else 1)
        for each in range(blocks):
            layers.append(block(inner, outer, 2 if stage and not each else 1))
            inner = outer
    layers += active(inner) if kind == "wrn" else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, labels))
