"""Take networks of other libraries through everything, and write down what happened: right, kept whole, refused.

`python -m benchmarks.networks torchvision|timm|transformers [count]`; prints a Markdown table, a row as it is done.
Each network is pruned at random to 20%, attached, compacted, compiled, diagnosed, trained for three steps in double
precision beside the masked original, and turned back; tiny inputs, two examples.
"""

import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import skeletal
from skeletal.core.diagnosis.probing import outputs_of
from skeletal.core.model.batches import forward, map_tensors
from skeletal.core.model.snapshot import copied

LARGEST = 12_000_000
"""parameters; what is larger takes a small machine too long"""


def torchvision(count: int) -> Iterator[tuple[str, Callable[[], nn.Module], Any]]:
    from torchvision import models

    for name in models.list_models(module=models)[:count]:
        size = 96 if "inception" in name else 64
        yield name, lambda name=name: models.get_model(name, weights=None), torch.randn(2, 3, size, size)


def timm(count: int) -> Iterator[tuple[str, Callable[[], nn.Module], Any]]:
    import timm

    names = [name for name in timm.list_models() if name.startswith("test_")]
    families = sorted({name.split("_")[0]: name for name in reversed(timm.list_models())}.values())
    for name in [*names, *families][:count]:
        size = timm.get_pretrained_cfg(name, allow_unregistered=True)
        fixed = getattr(size, "fixed_input_size", False)
        pixels = (getattr(size, "input_size", (3, 224, 224)) if fixed else (3, 64, 64))[1]
        yield name, lambda name=name: timm.create_model(name, num_classes=5), torch.randn(2, 3, pixels, pixels)


def transformers(count: int) -> Iterator[tuple[str, Callable[[], nn.Module], Any]]:
    import transformers as hf

    ids = torch.randint(1, 60, (2, 8))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1])}
    plain = {"vocab_size": 64, "num_labels": 2, "pad_token_id": 0, "max_position_embeddings": 32}
    sizes = plain | {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "embedding_size": 16,
    }
    kinds = (
        "Bert Roberta Albert Electra Llama Mistral Qwen2 Gemma GPT2 GPTNeo OPT Phi DistilBert MPNet Camembert"
        " XLMRoberta Ernie ConvBert RoFormer DebertaV2"
    )
    others = {
        "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
        "GPTNeo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]},
        "OPT": {"ffn_dim": 32, "word_embed_proj_dim": 16},
        "DistilBert": {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2},
    }
    for kind in kinds.split()[:count]:

        def make(kind: str = kind) -> nn.Module:
            config = getattr(hf, f"{kind}Config")(**sizes | others.get(kind, {}))
            return getattr(hf, f"{kind}ForSequenceClassification")(config)

        yield f"{kind}ForSequenceClassification", make, batch


def steps(network: nn.Module, batch: Any) -> list[Tensor]:
    """Outputs of three training steps and of eval mode."""
    found, optimizer = [], torch.optim.SGD(network.parameters(), lr=1e-3)
    for step in range(4):
        network.train(step < 3)
        torch.manual_seed(step)
        outputs = list(outputs_of(forward(network, batch)))
        found += [output.detach() for output in outputs]
        optimizer.zero_grad()
        torch.stack([output.square().mean() for output in outputs if output.requires_grad]).sum().backward()
        optimizer.step() if step < 3 else None
    return found


def without_dropout(model: nn.Module) -> nn.Module:
    """Its tensors have other shapes once channels are gone, so that it draws other numbers."""
    for part in model.modules():
        for name in ("p", "drop_prob", "dropout", "drop_rate"):
            if isinstance(part.__dict__.get(name), float):
                setattr(part, name, 0.0)
    return model


def row(make: Callable[[], nn.Module], batch: Any) -> tuple[str, str]:
    """The outcome, and what there is to say about it."""
    torch.manual_seed(0)
    model = without_dropout(make())
    if (size := sum(p.numel() for p in model.parameters())) > LARGEST:
        return "left out", f"{size / 1e6:.0f} million parameters"
    model = model.double()
    batch = map_tensors(lambda t: t.double() if t.is_floating_point() else t, batch)
    pair = (batch, None) if isinstance(batch, Tensor) else batch
    mask = skeletal.prune(model, [pair], density=0.2, method="random")
    masked = copied(model)
    mask.attach(masked)
    small = skeletal.compact(model, mask, batch)
    fast = skeletal.compile(model, mask, batch, path="dense")
    skeletal.diagnose(model, mask, batch)
    held = skeletal.Mask(small.mask).attach(small.model)
    expected = steps(masked, pair)
    worst = 0.0
    for network in (small.model, fast):
        for one, two in zip(expected, steps(network, pair), strict=True):
            worst = max(worst, (one - two).abs().max().item() / max(1.0, one.abs().max().item()))
    held.detach()
    mask.check(small.to_dense())
    mask.check(fast.to_dense())
    if not worst < 1e-6:
        return "WRONG", f"off by {worst:.2g}"
    if small.report.whole is not None:
        return "right, kept whole", small.report.whole
    parts = [reason for reason in small.report.held if reason.endswith("kept whole")]
    return ("right, parts kept whole", parts[0]) if parts else ("right", "")


def main(library: str, count: int) -> None:
    warnings.simplefilter("ignore")
    for name, make, batch in {"torchvision": torchvision, "timm": timm, "transformers": transformers}[library](count):
        start = time.perf_counter()
        try:
            outcome, what = row(make, copy.deepcopy(batch))
        except Exception as error:  # a table of what happens
            outcome, what = "refused", f"{type(error).__name__}: {error}"
        print(f"| {name} | {outcome} | {' '.join(what.split())[:150]} |", flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 30)
