"""Make a skeleton pay on a CPU: the same function and gradients, at the cost of what is left."""

import time

import torch
from torch.nn.functional import cross_entropy

import skeletal

torch.manual_seed(0)
torch.set_num_threads(1)
model = skeletal.models.create("vgg11-cifar", num_classes=10)
images, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
mask = skeletal.prune(model, density=0.02, method="random-erk")  # any mask will do to time it
mask.attach(model)


def milliseconds(network: torch.nn.Module) -> float:
    """The fastest of five training steps."""
    optimizer, times = torch.optim.SGD(network.parameters(), lr=0.01), []
    for _ in range(5):
        start = time.perf_counter()
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


fast = skeletal.compile(model, mask, images)  # measures what is faster, layer by layer
print(fast.report)
same = torch.allclose(fast.eval()(images), model.eval()(images), atol=1e-4)
print(f"same outputs: {same}")
print(f"a training step: masked {milliseconds(model.train()):.0f} ms, compiled {milliseconds(fast.train()):.0f} ms")
mask.check(fast.to_dense())  # your architecture again, with what was trained
