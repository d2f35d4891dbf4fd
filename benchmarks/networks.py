"""Run networks from other libraries through everything, and record what happened: right, kept whole, refused.

`python -m benchmarks.networks torchvision|timm|transformers [count] [file]`; prints each Markdown row once it is done,
and adds it to the file. Networks already there are skipped, so a run can be stopped.
Each network is pruned at random to 20%, attached, compacted, compiled, diagnosed, trained for three steps in double
precision beside the masked original, and turned back; tiny inputs, two examples. Those of more than 30 million
parameters are pruned to 2% and take one step; those of more than 250 million are left out, as they and their gradients
would take more than 12 GiB.
"""

import copy
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import skeletal
from skeletal.core.diagnosis.probing import outputs_of
from skeletal.core.model.batches import forward, map_inputs, map_tensors

TITLES = ("library", "network", "outcome", "outputs", "gradient", "layers", "why")
"""outputs and the gradient of the input: the largest difference from the masked original, relative to the largest entry
or 1, over the training steps and in eval mode; layers: how many of the masked ones run over kept weights"""


def torchvision(count: int) -> Iterator[tuple[str, Callable[[], nn.Module], Any]]:
    from torchvision import models

    for name in models.list_models(module=models)[:count]:
        size = _SIZES.get(name, 64)
        yield name, lambda name=name: models.get_model(name, weights=None), torch.randn(2, 3, size, size)


_SIZES = {"inception_v3": 299, "maxvit_t": 224}  # a second head, and windows of 7, need them


def timm(count: int) -> Iterator[tuple[str, Callable[[], nn.Module], Any]]:
    import timm

    names = [name for name in timm.list_models() if name.startswith("test_")]
    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(re.split(r"[^a-z]", name)[0], []).append(name)
    small = [min(members, key=_by_size) for family, members in families.items() if family != "test"]
    free = [
        name for name in [*names, *small] if not _fixed_size(timm.get_pretrained_cfg(name, allow_unregistered=True))
    ]
    for name in free[:count]:
        pixels = 128 if name.startswith(_NEED_MORE) else 64
        yield name, lambda name=name: timm.create_model(name, num_classes=5), torch.randn(2, 3, pixels, pixels)


def _fixed_size(config: Any) -> bool:
    """Whether a network takes images of one size, and that a large one."""
    return getattr(config, "fixed_input_size", False) and getattr(config, "input_size", (3, 224, 224))[1] > 160


_SMALL = (
    "atto", "femto", "pico", "nano", "xxtiny", "xtiny", "xxs", "xs", "tiny", "xsmall", "small", "s0", "b0", "0", "18",
    "s12", "s18", "26ts", "26", "s", "mini", "lite",
)  # fmt: skip
_NEED_MORE = ("bat_", "bot", "cs3", "coat_", "eca_", "efficientvim", "halo", "lambda", "lamhalo", "levit", "seh")
"""networks that 64 pixels are too few for: of a grid, or with a batch norm of two values, which moves gradients by more
than their size where the input moves by 1e-15"""


def _by_size(name: str) -> tuple[int, str]:
    """Networks of a family by what their names say of their size."""
    sizes = [_SMALL.index(word) for word in name.split("_") if word in _SMALL]
    return min(sizes, default=len(_SMALL)), name


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


_LARGE, _TOO_LARGE = 30e6, 250e6


def steps(network: nn.Module, batch: Any, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of training steps and of eval mode, and the gradients of floating-point inputs."""
    found, slopes, optimizer = [], [], torch.optim.SGD(network.parameters(), lr=1e-3)
    for step in range(count + 1):
        network.train(step < count)
        torch.manual_seed(step)
        leaves: list[Tensor] = []

        def leaf(tensor: Tensor, leaves: list[Tensor] = leaves) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            leaves.append(tensor.clone().requires_grad_())
            return leaves[-1]

        outputs = list(outputs_of(forward(network, map_inputs(leaf, batch))))
        found += [output.detach() for output in outputs]
        optimizer.zero_grad()
        torch.stack([output.square().mean() for output in outputs if output.requires_grad]).sum().backward()
        slopes += [value.grad for value in leaves if value.grad is not None]
        optimizer.step() if step < count else None
    return found, slopes


def off(ones: list[Tensor], others: list[Tensor]) -> float:
    """The largest difference, relative to the largest entry, or to 1 where that is less."""
    pairs = zip(ones, others, strict=True)
    return max(((a - b).abs().max().item() / max(1.0, a.abs().max().item()) for a, b in pairs), default=0.0)


def without_dropout(model: nn.Module) -> nn.Module:
    """Its tensors have other shapes once channels are gone, so that it draws other numbers."""
    for part in model.modules():
        for name in ("p", "drop_prob", "dropout", "drop_rate"):
            if isinstance(part.__dict__.get(name), float):
                setattr(part, name, 0.0)
    return model


def size_of(make: Callable[[], nn.Module]) -> int:
    """Parameters of a network, counted without making them where it can be done."""
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in make().parameters())
    except (RuntimeError, NotImplementedError):  # its code asks for values
        return sum(parameter.numel() for parameter in make().parameters())


def cells(make: Callable[[], nn.Module], batch: Any) -> tuple[str, ...]:
    """The outcome, the differences, the layers over kept weights, and what there is to say."""
    if (size := size_of(make)) > _TOO_LARGE:
        return "left out", "", "", "", f"{size / 1e6:.0f} million parameters"
    density, count, note = (0.02, 1, "2% kept, one step") if size > _LARGE else (0.2, 3, "")
    torch.manual_seed(0)
    model = without_dropout(make()).double()
    batch = map_tensors(lambda t: t.double() if t.is_floating_point() else t, batch)
    pair = (batch, None) if isinstance(batch, Tensor) else batch
    mask = skeletal.prune(model, [pair], density=density, method="random")
    skeletal.diagnose(model, mask, batch)

    small = skeletal.compact(model, mask, batch)
    held, report = skeletal.Mask(small.mask).attach(small.model), small.report
    results = [steps(small.model, pair, count)]
    held.detach()
    mask.check(small.to_dense())
    del small, held  # one network after the other, as copies of a large one are large

    fast = skeletal.compile(model, mask, batch, path="dense")
    results.append(steps(fast, pair, count))
    mask.check(fast.to_dense())
    layers = f"{len(fast.sparse_layers())} of {len(mask)}"
    del fast

    mask.attach(model)
    outputs, slopes = steps(model, pair, count)
    worst = [max(off(outputs, result[0]) for result in results), max(off(slopes, result[1]) for result in results)]
    numbers = (f"{worst[0]:.0e}", f"{worst[1]:.0e}" if slopes else "-", layers)
    outcome, why = "right", ""
    if not max(worst) < 1e-6:
        outcome = "WRONG"
    elif report.whole is not None:
        outcome, why = "right, kept whole", report.whole
    elif parts := [reason for reason in report.held if reason.endswith("kept whole")]:
        outcome, why = "right, parts kept whole", parts[0]
    return outcome, *numbers, "; ".join(filter(None, (note, why)))


def main(library: str, count: int = 60, file: Path | None = None) -> None:
    warnings.simplefilter("ignore")
    done = file.read_text() if file is not None and file.exists() else ""
    print(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}")
    for name, make, batch in {"torchvision": torchvision, "timm": timm, "transformers": transformers}[library](count):
        start = f"| {library} | {name} |"
        if start in done:
            continue
        try:
            found = cells(make, copy.deepcopy(batch))
        except Exception as error:  # a table of what happens
            found = "refused", "", "", "", f"{type(error).__name__}: {error}"
        row = f"{start} {' | '.join((*found[:-1], ' '.join(found[-1].split())[:150]))} |"
        print(row, flush=True)
        if file is not None:
            with file.open("a") as lines:
                lines.write(f"{row}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*(kind(given) for kind, given in zip((str, int, Path), sys.argv[1:], strict=False)))
