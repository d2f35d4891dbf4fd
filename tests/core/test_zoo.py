"""Any model, proven: one of every kind is pruned, trained as a skeleton, saved and loaded."""

import copy

import pytest
import torch
from torch import nn

import skeletal
from tests.cases import ZOO, images
from tests.unchanged import assert_same, everything_about


def sentences(labels=None):
    """Batches as a tokenizer and collator make them: dicts, with padding that the attention mask hides."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(3):
        ids = torch.randint(1, 19, (4, 6), generator=generator)
        seen = torch.arange(6) < torch.tensor([[6], [6], [4], [3]])
        classes = ids.masked_fill(~seen, -100) if labels is None else torch.randint(labels, (4,), generator=generator)
        batches.append({"input_ids": ids * seen, "attention_mask": seen.long(), "labels": classes})
    return batches


def sequences():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(6, 5, 4, generator=generator), torch.randint(10, (6,), generator=generator)) for _ in range(3)]


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = dict(vocab_size=19, hidden_size=8, intermediate_size=16, max_position_embeddings=8)
    return BertForSequenceClassification(
        BertConfig(num_hidden_layers=1, num_attention_heads=2, num_labels=3, **sizes)  # with dropout
    )


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=19, n_embd=8, n_layer=1, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=0)
    )


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(vocab_size=19, hidden_size=8, intermediate_size=16, max_position_embeddings=8)
    heads = dict(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    return LlamaForCausalLM(LlamaConfig(pad_token_id=0, bos_token_id=0, eos_token_id=0, **sizes, **heads))


def vit():
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=12, depth=1, num_heads=3, num_classes=10
    )


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(4, 6, batch_first=True, **options)
        self.head = nn.Linear(12 if options.get("bidirectional") else 6, 10)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def lstm():
    return Recurrent(nn.LSTM, num_layers=2, bidirectional=True)


def gru():
    return Recurrent(nn.GRU)


class Sound(nn.Module):
    """Down with a stride, up again with a transposed convolution, and one with weight norm, which is left out."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv1d(4, 8, 2, stride=2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 1))
        self.up = nn.ConvTranspose1d(8, 10, 3, dilation=2, groups=2)

    def forward(self, x):  # (N, length, channels)
        return self.up(torch.relu(self.normed(torch.relu(self.down(x.transpose(1, 2)))))).mean(2)


class PartlyFrozen(nn.Module):
    """As in fine-tuning: a frozen stem with its norm layer, and a head that is trained."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()).requires_grad_(False)
        self.body = nn.Conv2d(6, 6, 3)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        return self.head(torch.relu(self.body(self.stem(x))).mean((2, 3)))


class Spectral(nn.Module):
    """Complex and integer buffers; complex, integer and real parameters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.exp(1j * torch.linspace(0, 1, 5)))
        self.register_buffer("order", torch.arange(9, -1, -1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.mixing = nn.Linear(4, 4, bias=False, dtype=torch.complex64)
        self.levels = nn.Parameter(torch.randint(-3, 4, (4, 10), dtype=torch.int8), requires_grad=False)
        self.head = nn.Linear(4, 10)

    def forward(self, x):  # (N, 5, 4)
        self.calls += 1
        z = self.mixing(torch.fft.fft(x, dim=1) * self.window[:, None])
        mean = torch.fft.ifft(z, dim=1).real.mean(1)
        return (self.head(mean) + mean @ self.levels.float())[:, self.order]


def every_matrix(model):
    """All trainable weights of two and more dimensions, by name: what `prunable=` takes for recurrent layers."""
    return [name for name, weight in model.named_parameters() if weight.dim() > 1 and weight.requires_grad]


CASES = {name: (make, data, None) for name, (make, data) in ZOO.items()} | {
    "timm vit": (vit, images, None),
    "bert": (bert, lambda: sentences(labels=3), None),
    "gpt2": (gpt2, sentences, None),
    "llama": (llama, sentences, None),
    "lstm": (lstm, sequences, every_matrix),
    "gru": (gru, sequences, every_matrix),
    "lstm, its head": (lstm, sequences, None),
    "sound": (Sound, sequences, None),
    "partly frozen": (PartlyFrozen, images, None),
    "spectral": (Spectral, sequences, None),
}
METHODS = {"force": {"steps": 3}, "grasp": {}}
OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9, weight_decay=5e-4),
    "adamw": lambda weights: torch.optim.AdamW(weights, 0.01, weight_decay=0.1),
}


def create(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def prune(name, model, batches, method="force"):
    select = CASES[name][2]
    prunable = None if select is None else select(model)
    return skeletal.prune(model, batches, density=0.4, method=method, prunable=prunable, **METHODS[method])


def run(model, batch):
    return model(**batch) if isinstance(batch, dict) else model(batch[0])


def train(model, optimizer, batches, mask=None):
    """A step for every batch; with a mask the slower truth: gradients and weights multiplied by hand."""
    torch.manual_seed(0)
    for batch in batches:
        optimizer.zero_grad()
        outputs = run(model, batch)
        loss = outputs["loss"] if isinstance(batch, dict) else nn.functional.cross_entropy(outputs, batch[1])
        loss.backward()
        if mask is not None:
            multiply(model, mask, "grad")
        optimizer.step()
        if mask is not None:
            multiply(model, mask, "data")


def multiply(model, mask, what):
    for name, keep in mask.items():
        getattr(model.get_parameter(name), what).mul_(keep)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_any_model_is_pruned_trained_saved_and_loaded(name, method, optimizer, tmp_path):
    make, data, _ = CASES[name]
    model, by_hand, batches = create(make), create(make), data()
    before = everything_about(model)
    mask = prune(name, model, batches, method)
    assert_same(before, everything_about(model))
    assert mask.kept == round(0.4 * mask.total) and mask.metadata["connected"] is True

    skeleton = mask.attach(model)
    multiply(by_hand, mask, "data")
    assert_same(by_hand.state_dict(), model.state_dict())
    train(model, OPTIMIZERS[optimizer](model.parameters()), batches)
    train(by_hand, OPTIMIZERS[optimizer](by_hand.parameters()), batches, mask)
    mask.check(model)
    state, start = model.state_dict(), create(make).state_dict()
    assert_same(by_hand.state_dict(), state)
    for layer, weight in model.named_parameters():
        assert weight.requires_grad == by_hand.get_parameter(layer).requires_grad
        if not weight.requires_grad:
            assert torch.equal(weight, start[layer])
    assert all((model.get_parameter(layer) != start[layer])[keep].any() for layer, keep in mask.items() if keep.any())

    mask.save(tmp_path / "mask.safetensors")
    torch.save(state, tmp_path / "model.pt")
    loaded = skeletal.Mask.load(tmp_path / "mask.safetensors")
    assert loaded == mask and loaded.metadata == mask.metadata
    again = create(make, seed=1)
    with loaded.attach(again):
        again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
        loaded.check(again)
        assert_same(state, again.state_dict())
        one, two = (run(network.eval(), batches[0]) for network in (model, again))
        assert torch.equal(*((out["logits"] if isinstance(batches[0], dict) else out) for out in (one, two)))

    skeleton.detach()
    mask.check(model)
    train(model.train(), OPTIMIZERS[optimizer](model.parameters()), batches)
    with pytest.raises(skeletal.MaskError):  # so it was the skeleton that held them
        mask.check(model)


@pytest.mark.parametrize("name", ["lstm", "gru", "sound", "gpt2", "spectral"])
def test_scores_are_those_of_plain_autograd(name):
    make, data, _ = CASES[name]
    model, (batch, *_) = create(make).eval(), data()
    select = CASES[name][2]
    seen = []
    skeletal.prune(
        model, [batch], density=0.4, method="snip", bn_mode="eval", prunable=select and select(model),
        on_step=seen.append,
    )  # fmt: skip
    outputs = run(model, batch)
    loss = outputs["loss"] if isinstance(batch, dict) else nn.functional.cross_entropy(outputs, batch[1])
    loss.backward()
    for layer, scores in seen[0].scores.items():
        weight = model.get_parameter(layer)
        torch.testing.assert_close(scores, (weight * weight.grad).abs().detach())


def test_recurrent_weights_are_left_out_and_the_mask_says_so():
    model = create(lstm)
    mask = prune("lstm, its head", model, sequences())
    assert set(mask) == {"head.weight"}
    assert mask.metadata["left_out"] == [name for name in every_matrix(model) if name.startswith("rnn.")]
    shown = "not covered: 8 more weights of two and more dimensions (rnn.weight_ih_l0, rnn.weight_hh_l0, rnn"
    assert shown in str(mask) and "prunable=[...]" in str(mask)


def test_recurrent_weights_that_are_named_are_pruned_with_their_biases_counted():
    model = create(gru)
    mask = prune("gru", model, sequences())
    assert list(mask) == ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "head.weight"]
    assert mask.metadata["biases"] == 18 + 18 + 10 and mask.metadata["left_out"] == []


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: nn.LSTM(4, 6), [r"'weight_ih_l0' \(24, 4\); 'weight_hh_l0' \(24, 6\)$"]),
        (lambda: nn.Embedding(7, 3), [r"'weight' \(7, 3\)$"]),
        (lambda: nn.Linear(4, 6).requires_grad_(False), [r"'weight' \(6, 4\), frozen$"]),
        (
            lambda: nn.Linear(4, 6, dtype=torch.complex64),
            [r"'weight' \(6, 4\) of torch\.complex64, which has no score$"],
        ),
        (lambda: nn.LSTM(4, 6, num_layers=3), [r"'weight_hh_l1' \(24, 6\); \.\.\.$"]),
    ],
    ids=["recurrent", "embedding", "frozen", "complex", "many"],
)
def test_a_model_without_prunable_weights_is_told_what_it_has(make, parts):
    for part in (r"has no prunable weights", r"name others with prunable=\[\.\.\.\]\. It has ", *parts):
        with pytest.raises(ValueError, match=part):
            skeletal.prune(make(), density=0.5, method="random")


@pytest.mark.parametrize("name", ["mixing.weight", "levels"])
def test_complex_and_integer_weights_are_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"{name} is torch\.\w+; only floating-point weights can be scored"):
        skeletal.prune(create(Spectral), sequences(), density=0.5, prunable=[name])


def test_frozen_weights_are_pruned_only_if_named_and_stay_frozen():
    model, batches = create(PartlyFrozen), images()
    assert set(prune("partly frozen", model, batches)) == {"body.weight", "head.weight"}
    dense = copy.deepcopy(model.stem[0].weight)
    mask = skeletal.prune(model, batches, density=0.5, prunable=["stem.0.weight", "body.weight"], steps=3)
    mask.attach(model)
    train(model, OPTIMIZERS["adamw"](model.parameters()), batches)
    mask.check(model)
    assert not model.stem[0].weight.requires_grad and model.stem[0].weight.grad is None
    assert torch.equal(model.stem[0].weight, dense * mask["stem.0.weight"])
