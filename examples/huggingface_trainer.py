"""A skeleton in Hugging Face's Trainer: prune on its own batches, train with a callback that holds the mask."""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import skeletal
from skeletal.integrations.huggingface import MaskCallback

torch.manual_seed(0)
torch.set_num_threads(1)
sizes = dict(vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
model = BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=16, num_labels=2))

words, labels = torch.randint(10, 100, (512, 16)), torch.arange(512) % 2
words[labels == 1, 0] = 7  # the class is whether a sentence begins with word 7
sentences = [{"input_ids": w, "labels": y} for w, y in zip(words, labels, strict=True)]

arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(), per_device_train_batch_size=32, num_train_epochs=4, learning_rate=1e-3,
    save_strategy="epoch", report_to="none", disable_tqdm=True, use_cpu=True, logging_strategy="no",
)  # fmt: skip
trainer = Trainer(model=model, args=arguments, train_dataset=sentences, eval_dataset=sentences[:128])
mask = skeletal.prune(model, trainer.get_train_dataloader(), density=0.1, steps=10)
trainer.add_callback(MaskCallback(mask))
trainer.train()

mask.check(trainer.model)
print(f"kept {mask.kept:,} of {mask.total:,} weights")
print(f"loss {trainer.evaluate()['eval_loss']:.4f} (guessing: {torch.log(torch.tensor(2.0)):.4f})")
