"""What a network sees before its last layer: the embedding, and the last feature map.

In: a classifier. Out: the same classifier, tapped: after a forward pass the calling thread may read
both. Invariant: nothing that the network computes is changed by it.

The embedding is the input of the last layer. The feature map is the last output before it that
still knows places: of a convolutional network [B,E,h,w], of a transformer its tokens, laid out as
the patches they stand for.

Shape legend: B batch, E embedding, h w height and width of the feature map, N tokens.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from imgcls.model.architectures import find_head

_NUM_ROWS: Final = 2  # of a pass that looks for them: some networks treat a single row apart

Layout = Literal["", "channels_first", "channels_last", "tokens"]


class Features(NamedTuple):
    """Of the latest forward pass of a thread, on its device, float32."""

    embedding_BE: Tensor
    map_BEhw: Tensor | None


@dataclass(frozen=True, slots=True)
class TapPoints:
    """Where to tap a classifier: modules by name, which folding and copying keep."""

    head: str
    """Its input is the embedding."""
    last_map: str
    """Its output is the feature map; "" where there is none."""
    layout: Layout
    grid: tuple[int, int] = (0, 0)
    """h and w."""

    @property
    def why_no_map(self) -> str:
        """Why there is no feature map, "" where there is one."""
        return "" if self.last_map else "no layer of this network keeps places to its end"


def find_tap_points(classifier: nn.Module, x_BCHW: Tensor) -> TapPoints:
    """Run a classifier once, and see where its places end.

    Args:
        classifier: in evaluation mode.
        x_BCHW: float32, normalised, on its device; one row is enough.
    """
    head, head_module = find_head(classifier)
    seen: list[tuple[str, torch.Size]] = []
    embedding: list[torch.Size] = []

    def see(name: str, output: object) -> None:
        if not embedding and isinstance(output, Tensor) and output.ndim in (3, 4):
            seen.append((name, output.shape))

    hooks = [
        module.register_forward_hook(lambda _m, _in, output, name=name: see(name, output))
        for name, module in classifier.named_modules()
        if name
    ]
    hooks.append(
        head_module.register_forward_pre_hook(lambda _m, inputs: embedding.append(inputs[0].shape))
    )
    with torch.inference_mode():
        classifier(x_BCHW[:1].repeat(_NUM_ROWS, 1, 1, 1))
    for hook in hooks:
        hook.remove()
    shape = embedding[0]
    return TapPoints(head, *_find_map(seen, width=shape[1] if len(shape) == 4 else shape[-1]))


def find_embedding(classifier: nn.Module) -> TapPoints:
    """Return where to tap for the embedding alone, without running anything."""
    head, _ = find_head(classifier)
    return TapPoints(head, last_map="", layout="")


def _find_map(
    seen: list[tuple[str, torch.Size]], width: int
) -> tuple[str, Layout, tuple[int, int]]:
    """Return the last output that has places, and how they lie in it."""
    grids = [(h, w) for _, (*_, h, w) in _maps(seen)]
    for name, shape in reversed(seen):
        if len(shape) == 3 and shape[2] == width:
            # Queries and keys of attention have four dimensions, too, but no places.
            grid = next(((h, w) for h, w in grids if 1 < h * w <= shape[1]), None)
            if grid is not None:
                return name, "tokens", grid
        # Of a map as high as it has channels nothing tells: channels come first then.
        is_last = len(shape) == 4 and shape[3] == width != shape[1]
        if is_last and shape[1] * shape[2] > 1:
            return name, "channels_last", (shape[1], shape[2])
        if len(shape) == 4 and shape[2] * shape[3] > 1:
            return name, "channels_first", (shape[2], shape[3])
    return "", "", (0, 0)


def _maps(seen: list[tuple[str, torch.Size]]) -> list[tuple[str, torch.Size]]:
    """Return the outputs of four dimensions, the last one first."""
    return [(name, shape) for name, shape in reversed(seen) if len(shape) == 4]


class Tap:
    """Keeps the features of each thread's latest pass through a classifier."""

    def __init__(self, classifier: nn.Module, points: TapPoints) -> None:
        self.points = points
        self._of_thread = threading.local()
        modules = dict(classifier.named_modules())
        self._hooks = [modules[points.head].register_forward_pre_hook(self._keep_embedding)]
        if points.last_map:
            self._hooks.append(modules[points.last_map].register_forward_hook(self._keep_map))

    def remove(self) -> None:
        """Leave the classifier as it was."""
        for hook in self._hooks:
            hook.remove()

    def read(self) -> Features:
        """Return the features of this thread's latest pass.

        A convolutional last layer (squeezenet) sees a map, another may see tokens: the embedding is
        their mean.
        """
        embedding = self._of_thread.embedding
        if embedding.ndim == 4:
            embedding = embedding.mean(dim=(2, 3))
        elif embedding.ndim == 3:
            embedding = embedding.mean(dim=1)
        found = getattr(self._of_thread, "map", None)
        return Features(embedding.float(), None if found is None else self._laid_out(found))

    def _laid_out(self, found: Tensor) -> Tensor:
        points = self.points
        if points.layout == "tokens":
            height, width = points.grid
            # What stands before the patches is of the whole image: class and register tokens.
            patches = found[:, found.shape[1] - height * width :]
            found = patches.transpose(1, 2).reshape(len(patches), -1, height, width)
        elif points.layout == "channels_last":
            found = found.permute(0, 3, 1, 2)
        return found.float()

    def _keep_embedding(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._of_thread.embedding = inputs[0]

    def _keep_map(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self._of_thread.map = output


@contextmanager
def tapped_network(network: nn.Module, points: TapPoints | None) -> Iterator[nn.Module]:
    """Give a network that returns its features too, for the time of its conversion.

    Without points it is the network itself. Afterwards it is as it was: a network with hooks is
    neither copied nor compiled.
    """
    if points is None:
        yield network
        return
    tap = Tap(network, points)
    try:
        yield TappedNetwork(network, tap)
    finally:
        tap.remove()


def features_of(outputs: list[Tensor]) -> Features:
    """Return what a TappedNetwork gave beside its logits."""
    return Features(outputs[0], outputs[1] if len(outputs) > 1 else None)


class TappedNetwork(nn.Module):
    """A network that returns its features beside its logits, for libraries that run it whole."""

    def __init__(self, network: nn.Module, tap: Tap) -> None:
        super().__init__()
        self.network, self._tap = network, tap

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return logits, the embedding, and the feature map where there is one."""
        logits_BK: Tensor = self.network(x_BCHW)
        return (logits_BK, *(part for part in self._tap.read() if part is not None))
