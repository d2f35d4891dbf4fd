"""Prune a Hugging Face transformer: batches are dicts, and you choose which weights may go."""

import torch
from transformers import BertConfig, BertForSequenceClassification

import skeletal

torch.manual_seed(0)
torch.set_num_threads(1)
sizes = dict(vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
model = BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=16, num_labels=2))


def batch() -> dict[str, torch.Tensor]:  # sentences of 16 words; the class is whether word 7 is among them
    words = torch.randint(10, 100, (64, 16))
    labels = torch.randint(2, (64,))
    words[labels == 1, torch.randint(16, (int(labels.sum()),))] = 7
    return {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": labels}


# At initialization attention is next to uniform, so queries and keys would go first; the classifier is small.
mask = skeletal.prune(
    model,
    [batch() for _ in range(10)],
    density=0.1,
    steps=20,
    prunable=lambda name, weight: not any(part in name for part in (".query.", ".key.", "classifier")),
)
mask.attach(model)
print(f"{mask!r}\nnot covered: {', '.join(mask.metadata['left_out'][:3])}, ...")

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(201):
    optimizer.zero_grad()
    loss = model(**batch()).loss
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step:3}  loss {loss.item():.3f}")
mask.check(model)
