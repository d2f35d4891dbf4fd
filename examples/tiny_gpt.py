"""Train a tiny GPT with 1% of its blocks' weights on text that comes with Python: dense, masked, compiled for the CPU.

python examples/tiny_gpt.py [--quick] [--method force] [--density 0.01] [--steps 400]
"""

import argparse
import random
import statistics
import time
from pydoc_data.topics import topics  # 465,000 characters about Python's language, which `help()` shows

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

import skeletal

CONTEXT, BATCH = 64, 16
TEXT = "\n".join(topics[name] for name in sorted(topics))
CHARACTERS = sorted(set(TEXT))
TOKENS = torch.tensor([CHARACTERS.index(character) for character in TEXT])
TRAIN, VALIDATION = TOKENS[: len(TOKENS) * 9 // 10], TOKENS[len(TOKENS) * 9 // 10 :]


class Block(nn.Module):
    """Causal attention, then a feed-forward layer; torch.fx can trace it, so compact and compile see into it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Features in and out: (batch, context, width)."""
        normed = self.norm1(x)
        q, k, v = (
            project(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, context, width / heads)
            for project in (self.query, self.key, self.value)
        )
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Decoder-only transformer over characters; its output layer shares the weight of the embedding."""

    def __init__(self, width: int = 384, heads: int = 6, layers: int = 2) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(len(CHARACTERS), width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(CHARACTERS), bias=False)
        self.head.weight = self.characters.weight
        nn.init.normal_(self.characters.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Indices, (batch, context), to logits of each next character, (batch, context, characters)."""
        x = self.characters(x) + self.positions.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def in_blocks(name: str, weight: Tensor) -> bool:
    """What is pruned. Embeddings are tables, and the output layer shares one; norms and biases are vectors."""
    return name.startswith("blocks.") and weight.ndim == 2


def batch(text: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    starts = random.Random(seed).sample(range(len(text) - CONTEXT), BATCH)
    pieces = torch.stack([text[start : start + CONTEXT + 1] for start in starts])
    return pieces[:, :-1], pieces[:, 1:]


def loss_of(outputs: Tensor, following: Tensor) -> Tensor:
    return cross_entropy(outputs.flatten(0, 1), following.flatten())


@torch.no_grad()
def mean_loss(network: nn.Module, text: Tensor, batches: int = 20) -> float:
    drawn = (batch(text, seed) for seed in range(batches))
    return statistics.mean(loss_of(network(characters), following).item() for characters, following in drawn)


def train(name: str, network: nn.Module, steps: int, rate: float = 3e-3) -> list[tuple[int, float, float]]:
    """Steps, training and validation loss, printed as it goes; AdamW, its rate falling to zero."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    times, curve = [], []
    for step in range(steps + 1):
        if step % 100 == 0 or step == steps:
            curve.append((step, mean_loss(network, TRAIN), mean_loss(network, VALIDATION)))
            print(f"{name:10} step {step:4}  train {curve[-1][1]:.3f}  validation {curve[-1][2]:.3f}", flush=True)
        start = time.perf_counter()
        characters, following = batch(TRAIN, 1000 + step)
        optimizer.zero_grad()
        loss_of(network(characters), following).backward()
        optimizer.step()
        scheduler.step()
        times.append(1000 * (time.perf_counter() - start))
    print(f"{name:10} {statistics.median(times):.0f} ms a step")
    return curve


@torch.no_grad()
def sample(network: nn.Module, length: int = 200, seed: int = 0) -> str:
    """Text the network writes, one character after the other."""
    text, generator = TRAIN[:CONTEXT].clone(), torch.Generator().manual_seed(seed)
    for _ in range(length):
        chances = network(text[None, -CONTEXT:])[0, -1].softmax(0)
        text = torch.cat([text, torch.multinomial(chances, 1, generator=generator)])
    return "".join(CHARACTERS[index] for index in text[CONTEXT:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller network, 20 steps")
    parser.add_argument("--method", default="random-erk", choices=skeletal.METHODS)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes, steps = (dict(width=48, heads=2, layers=1), 20) if arguments.quick else ({}, arguments.steps)

    def initial() -> GPT:
        torch.manual_seed(0)
        return GPT(**sizes)

    train("dense", initial(), steps)
    model = initial()
    batches = [batch(TRAIN, seed) for seed in range(60)]
    mask = skeletal.prune(
        model, batches, density=arguments.density, method=arguments.method, loss=loss_of, prunable=in_blocks
    )
    print(mask)
    mask.attach(model)
    fast = skeletal.compile(model, mask, batches[0])  # before the masked one is trained: both begin alike
    print(str(fast.report).split("\n\n")[0])
    train("masked", model, steps)
    train("compiled", fast, steps)
    mask.check(fast.to_dense())
    print(f"the compiled network writes:\n{sample(fast.eval())}")


if __name__ == "__main__":
    main()
