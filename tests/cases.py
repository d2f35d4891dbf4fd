"""Small networks and batches for tests: one of every kind that pruning has to work on."""

import torch
from torch import Tensor, nn

from skeletal.core.model.weights import prunable_weights


def images(count: int = 3, size: int = 8, channels: int = 3, examples: int = 12, seed: int = 0) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(examples, channels, size, size, generator=generator),
            torch.randint(10, (examples,), generator=generator),
        )
        for _ in range(count)
    ]


def convnet(seed: int = 0, width: int = 8) -> nn.Module:
    """Two convolutions with batch norm and a linear layer: the smallest thing like the paper's networks."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, 10),
        )


def mlp(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.Tanh(), nn.Linear(20, 10))


class Residual(nn.Module):
    """A plain block, and one that its skip connection bridges when it is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.block(x))
        return self.head(self.dropout(x.mean((2, 3))))


class Everything(nn.Module):
    """Grouped, transposed, 1d and 3d convolution, attention, a tied weight, and dict inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, groups=2, padding=1)
        self.transposed = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.line = nn.Conv1d(4, 6, 3, padding=1)
        self.volume = nn.Conv3d(1, 2, (1, 3, 3), padding=(0, 1, 1))
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.norm = nn.LayerNorm(12)
        self.tied = nn.Linear(12, 12)
        self.tied_again = nn.Linear(12, 12)
        self.tied_again.weight = self.tied.weight
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        x = self.transposed(torch.relu(self.grouped(x)))
        x = torch.relu(self.line(x.flatten(2)))
        x = self.volume(x.unflatten(2, (16, -1)).unsqueeze(1)[:, :, :, :4, :4])
        x = self.norm(x.flatten(3).flatten(1, 2)[:, :, :12])
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.tied_again(torch.relu(self.tied(x))).mean(1)[:, :10]


class Tokens(nn.Module):
    """Takes keyword arguments and returns its own loss, as Hugging Face models do."""

    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, 8)
        self.mixer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 17, bias=False)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.mixer(self.embedding(input_ids)))
        outputs = {"logits": logits}
        if labels is not None:
            outputs["loss"] = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return outputs


def tokens(count: int = 3, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(17, (6, 5), generator=generator),
            "labels": torch.randint(17, (6, 5), generator=generator),
        }
        for _ in range(count)
    ]


ZOO = {
    "convnet": (convnet, images),
    "mlp": (mlp, images),
    "residual": (Residual, images),
    "everything": (Everything, lambda: images(channels=4)),
    "tokens": (Tokens, tokens),
}


def random_mask(model: nn.Module, density: float, seed: int = 0) -> dict[str, Tensor]:
    """Every prunable weight kept with the probability `density`."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(w.shape, generator=generator) < density for name, w in prunable_weights(model).items()}
