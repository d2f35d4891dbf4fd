"""Prune a network of your own and train it in a loop of your own, with any optimizer."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import skeletal
from skeletal.harness import data

torch.manual_seed(0)
torch.set_num_threads(1)
digits = data.load("digits")  # or your own DataLoader of (inputs, targets)
model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, 10),
)  # fmt: skip

mask = skeletal.prune(model, digits.train.batches(128, train=True), density=0.05, steps=20)
mask.attach(model)  # pruned weights are 0 now, and stay 0
print(mask)

optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
for epoch in range(6):
    for images, labels in digits.train.batches(64, train=True, epoch=epoch):
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
mask.check(model)  # raises if a pruned weight has moved

model.eval()
with torch.no_grad():
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in digits.test.batches(256, train=False))
print(f"test accuracy {100 * right / len(digits.test):.1f}%")
