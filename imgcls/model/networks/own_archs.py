"""Two small networks of our own.

In: number of classes and channels. Out: a module, float32 [B,C,H,W] -> logits_BK. Invariant: both
take any input size, and train well from new weights.

Shape legend: B batch, C channels, H height, W width, K classes.
"""

from torch import Tensor, nn


class SimpleCnn(nn.Module):
    """Convolution, pooling, convolution, pooling, fully connected, for any input of 4 px or more.

    Batch norm lets it train at high learning rates; adaptive pooling to 4x4 makes the fully
    connected part independent of the image size.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 32, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(4),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 128),
            nn.ReLU(inplace=True),
            nn.Dropout(0.2),
            nn.Linear(128, num_classes),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits float32 [B,K] of normalised images float32 [B,C,H,W]."""
        logits_BK: Tensor = self.classifier(self.features(x_BCHW))
        return logits_BK


class SpotCnn(nn.Module):
    """Four convolutions, then the maximum over all places: for what is small, wherever it is.

    A mean over places, as most networks end in, divides a scratch of 20 px by a hundred places that
    show nothing. The maximum keeps it, so a few dozen examples are enough. What it sees at a place
    is 37 px wide.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(in_channels, 16, kernel_size=5, stride=2),
            *_convolution(16, 32, kernel_size=3, stride=2),
            *_convolution(32, 64, kernel_size=3, stride=2),
            *_convolution(64, 64, kernel_size=3, stride=1),
        )
        self.classifier = nn.Linear(64, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits float32 [B,K] of normalised images float32 [B,C,H,W]."""
        logits_BK: Tensor = self.classifier(self.features(x_BCHW).amax(dim=(2, 3)))
        return logits_BK


def _convolution(
    in_channels: int, out_channels: int, *, kernel_size: int, stride: int
) -> list[nn.Module]:
    return [
        nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]
