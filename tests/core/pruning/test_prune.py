import copy
import random
import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import skeletal
from skeletal.core.model.tensors import flatten
from tests.cases import ZOO, Everything, Residual, Tokens, convnet, images, mlp, tokens
from tests.unchanged import assert_same, everything_about

# What sends noise or ones through a network needs floating-point inputs, and walks need layers they know.
REFUSED = [("tokens", name) for name in ("synflow", "ntk-sap", "px", "phew", "npb")]
REFUSED += [("everything", "phew"), ("everything", "npb")]


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, method) for name in ZOO for method in skeletal.METHODS if (name, method) not in REFUSED],
)
def test_any_model_exactly_and_left_as_found(name, method):
    make, data = ZOO[name]
    torch.manual_seed(3)
    model, batches = make(), data()
    model.train()
    list(model.modules())[-1].eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    next(model.parameters()).register_hook(lambda g: g * 2)
    before = everything_about(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", skeletal.CollapseWarning)
        mask = skeletal.prune(
            model,
            batches,
            density=0.3,
            method=method,
            steps=None if skeletal.METHODS[method].one_shot else 4,
            on_collapse="keep",
        )
    assert mask.kept == round(0.3 * mask.total)
    assert_same(before, everything_about(model))
    mask.attach(model)
    mask.check(model)


def test_default_selection_of_every_kind_of_layer():
    names = set(skeletal.prune(Everything(), density=0.5, method="random"))
    assert names == {
        "grouped.weight",
        "transposed.weight",
        "line.weight",
        "volume.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "tied.weight",
    }
    tied = skeletal.prune(Tokens(), density=0.5, method="random")
    assert "embedding.weight" in tied and "head.weight" not in tied
    separate = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    assert set(skeletal.prune(separate, density=0.5, method="random")) == {
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "out_proj.weight",
    }


def test_own_selection():
    model = convnet()
    narrowed = skeletal.prune(model, density=0.5, method="random", prunable=lambda name, weight: weight.dim() == 4)
    assert set(narrowed) == {"0.weight", "3.weight"}
    named = skeletal.prune(model, images(), density=0.5, method="snip", prunable=["8.bias", "1.weight"])
    assert set(named) == {"1.weight", "8.bias"}
    model[0].weight.requires_grad_(False)
    assert "0.weight" not in skeletal.prune(model, density=0.5, method="random")
    assert "0.weight" in skeletal.prune(model, density=0.5, method="random", prunable=["0.weight"])


@pytest.mark.filterwarnings("ignore::skeletal.CollapseWarning")
@given(st.floats(0.001, 1), st.integers(0, 5))
def test_density_is_exact(density, seed):
    mask = skeletal.prune(mlp(), density=density, method="random", seed=seed)
    assert mask.kept == round(density * mask.total)


def test_random_scores_do_not_follow_from_weights_of_the_same_seed():
    """Both used to be read from the same stream: a score was the lower digits of the number of the weight at 2j."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(300, 200, bias=False))
    seen = []
    skeletal.prune(
        model, density=0.1, method="random", seed=0, on_step=lambda step: seen.append(step.scores["0.weight"])
    )
    weights = (model[0].weight.detach().double().flatten() * 300**0.5 + 1) / 2
    drawn = 1 - weights[::2] * 8 % 1
    assert int(((seen[0].flatten()[: len(drawn)] - drawn).abs() < 1e-4).sum()) < 100


@pytest.mark.filterwarnings("ignore::skeletal.CollapseWarning")
def test_ties_go_to_the_first_positions():
    model = mlp()
    mask = skeletal.prune(
        model, density=0.1, score=lambda at: {n: torch.ones_like(w) for n, w in at.weights.items()}, method="magnitude"
    )
    flat = flatten(dict(mask))
    assert flat[: mask.kept].all()


def test_force_with_one_step_is_snip_bit_for_bit():
    for model, batches in ((convnet(), images()), (Residual(), images())):
        snip = skeletal.prune(model, batches, density=0.1, method="snip", seed=4)
        assert skeletal.prune(model, batches, density=0.1, method="force", steps=1, seed=4) == snip


@pytest.mark.parametrize("method", ["force", "grasp-it"])
@pytest.mark.parametrize("schedule", ["exponential", "linear"])
def test_masks_are_nested_at_every_step_and_hit_every_count(method, schedule):
    seen = []
    model = convnet()
    mask = skeletal.prune(
        model,
        images(),
        density=0.05,
        method=method,
        steps=12,
        schedule=schedule,
        on_step=seen.append,
        on_collapse="keep",
    )
    flats = [flatten(step.mask) for step in seen]
    assert [int(flat.sum()) for flat in flats] == [step.kept for step in seen]
    for earlier, later in zip(flats, flats[1:], strict=False):
        assert not (later & ~earlier).any()
    assert torch.equal(flats[-1], flatten(dict(mask)))


def test_recursion_of_nested_masks():
    """Algorithm 1 written out: each mask is the top k of |θ̄ ⊙ ∇L(θ̄)| at the one before."""
    model, batches = mlp().double(), [(x.double(), y) for x, y in images(4)]
    seen = []
    skeletal.prune(model, batches, density=0.05, steps=6, on_step=seen.append)
    theta = {name: model.get_parameter(name).detach() for name in seen[0].mask}
    c = torch.ones(sum(w.numel() for w in theta.values()), dtype=torch.bool)
    for t, step in enumerate(seen):
        x, y = batches[t % 4]
        one, two = theta.values()
        pieces = c.split([one.numel(), two.numel()])
        pruned = [(w * p.view_as(w)).requires_grad_() for w, p in zip((one, two), pieces, strict=True)]
        hidden = torch.tanh(x.flatten(1) @ pruned[0].T + model[1].bias.detach())
        loss = nn.functional.cross_entropy(hidden @ pruned[1].T + model[3].bias.detach(), y)
        loss.backward()
        g = torch.cat([(w.detach() * w.grad).abs().flatten() for w in pruned])
        c = torch.zeros_like(c)
        c[g.argsort(descending=True)[: step.kept]] = True
        assert torch.equal(c, flatten(step.mask))


def test_same_seed_same_mask_even_with_dropout_and_a_shuffling_loader():
    data = torch.utils.data.TensorDataset(*(torch.cat(parts) for parts in zip(*images(4), strict=True)))
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
    masks = [skeletal.prune(Residual_(), loader, density=0.2, steps=5, seed=seed) for seed in (0, 0, 1)]
    assert masks[0] == masks[1] != masks[2]


def Residual_():
    torch.manual_seed(9)
    return Residual()


def test_batches_are_one_continuous_stream():
    starts, served = [], []

    class Counting:
        def __iter__(self):
            starts.append(len(served))
            for batch in images(4):
                served.append(batch)
                yield batch

    skeletal.prune(mlp(), Counting(), density=0.2, steps=3, batches_per_step=2)
    assert len(served) == 6
    assert starts == [0, 4]


def test_sparsity_and_the_fields_names_are_other_words_for_the_same():
    batches = images(3)
    plain = skeletal.prune(mlp(), batches, density=0.05, method="snip", batches_per_step=60)
    assert skeletal.prune(mlp(), batches, sparsity=0.95, method="SNIP-MB") == plain
    assert skeletal.prune(mlp(), batches, sparsity=0.95, method="Snip_MB", batches_per_step=1) != plain
    named = skeletal.prune(mlp(), batches, density=0.05, method="Iter SNIP", steps=3)
    assert named == skeletal.prune(mlp(), batches, density=0.05, method="FORCE", steps=3)
    assert named.metadata["method"] == "force" and plain.metadata["method"] == "snip"


def test_a_generator_serves_while_it_lasts():
    skeletal.prune(mlp(), iter(images(3)), density=0.2, steps=3)
    with pytest.raises(ValueError, match="ran out after 3"):
        skeletal.prune(mlp(), iter(images(3)), density=0.2, steps=4)


def test_own_schedule_score_and_loss():
    model, batches = mlp(), images()

    def score(at):
        return {name: at.weights[name].square() * at.gradient[name].abs() for name in at.weights}

    def schedule(total, kept, steps):
        return [total // 2, kept]

    def loss(outputs, targets):
        return nn.functional.mse_loss(outputs, nn.functional.one_hot(targets, 10).float())

    seen = []
    mask = skeletal.prune(model, batches, density=0.1, score=score, schedule=schedule, loss=loss, on_step=seen.append)
    assert [step.kept for step in seen] == [mask.total // 2, mask.kept]
    assert (mask.metadata["score"], mask.metadata["schedule"], mask.metadata["loss"]) == (
        "score",
        "schedule",
        "loss",
    )
    assert seen[0].loss == pytest.approx(loss(model(batches[0][0]), batches[0][1]).item())


def test_dict_batches_use_the_models_own_loss_or_the_callers():
    torch.manual_seed(0)
    model = Tokens(tie=False)
    seen = []
    skeletal.prune(model, tokens(), density=0.5, steps=2, bn_mode="eval", on_step=seen.append)
    model.eval()
    assert seen[0].loss == pytest.approx(model(**tokens()[0])["loss"].item())
    by_hand = skeletal.prune(
        model,
        tokens(),
        density=0.5,
        steps=2,
        bn_mode="eval",
        loss=lambda out, batch: nn.functional.cross_entropy(out["logits"].flatten(0, 1), batch["labels"].flatten()),
    )
    assert by_hand == skeletal.prune(model, tokens(), density=0.5, steps=2, bn_mode="eval")


def test_half_precision_weights_do_not_underflow():
    model = mlp()
    small = copy.deepcopy(model).to(torch.bfloat16)
    batches = [(x.to(torch.bfloat16), y) for x, y in images()]
    mask = skeletal.prune(small, batches, density=0.05, steps=5)
    assert mask.kept == round(0.05 * mask.total)


def test_density_one_keeps_everything_even_dead_weights():
    model = mlp()
    with torch.no_grad():
        model[1].weight.zero_()
    assert skeletal.prune(model, images(), density=1.0, method="snip").kept == 192 * 20 + 200


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.head = nn.Linear(192, 20), nn.BatchNorm1d(20), nn.Linear(20, 10)
        self.middle = nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20), nn.ReLU())
        self.reentrant = reentrant

    def forward(self, x):
        x = self.norm(self.stem(x.flatten(1)))
        if self.reentrant is None:
            return self.head(self.middle(x))
        return self.head(torch.utils.checkpoint.checkpoint(self.middle, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_changes_neither_mask_nor_model(reentrant):
    plain = skeletal.prune(Checkpointed(None), images(), density=0.1, steps=4)
    model = Checkpointed(reentrant)
    before = everything_about(model)
    assert skeletal.prune(model, images(), density=0.1, steps=4) == plain
    assert_same(before[0], everything_about(model)[0])


def test_a_forward_pass_that_writes_to_weights_or_inputs():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(192, 10))
    batches = images()
    skeletal.prune(model, batches, density=0.5, steps=4)
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(batches, images(), strict=True))
    embedding = nn.Sequential(nn.Embedding(17, 8, max_norm=0.5), nn.Flatten(), nn.Linear(40, 10))
    weight = embedding[0].weight.detach().clone()
    ids = [(torch.randint(17, (6, 5)), torch.randint(10, (6,)))]
    mask = skeletal.prune(embedding, ids, density=0.5, steps=2)
    assert torch.equal(embedding[0].weight, weight)
    assert mask.metadata["left_out"] == ["0.weight"]
    assert "not covered: 1 more weights" in str(mask)


def test_a_callback_that_changes_mode_and_draws_numbers_changes_no_mask():
    def meddle(step):
        model.eval()
        torch.rand(3), random.random(), np.random.rand()

    torch.manual_seed(0)
    model = Residual()
    plain = skeletal.prune(model, images(), density=0.2, steps=5)
    assert skeletal.prune(model, images(), density=0.2, steps=5, on_step=meddle) == plain
    assert model.training


def test_numbers_may_come_from_numpy(tmp_path):
    mask = skeletal.prune(mlp(), images(), density=np.float64(0.25), steps=np.int64(2), seed=np.int64(3))
    mask.save(tmp_path / "m.safetensors")
    assert skeletal.Mask.load(tmp_path / "m.safetensors").metadata == mask.metadata


def test_named_tuples_and_packed_sequences_are_one_argument():
    class Pair(NamedTuple):
        one: torch.Tensor
        two: torch.Tensor

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 10)

        def forward(self, pair):
            return self.linear(pair.one + pair.two)

    y = torch.randint(10, (6,))
    skeletal.prune(Sum(), [(Pair(torch.randn(6, 4), torch.randn(6, 4)), y)], density=0.5, steps=2)

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 5), nn.Linear(5, 10)

        def forward(self, packed):
            return self.head(self.lstm(packed)[1][0][0])

    packed = nn.utils.rnn.pack_sequence([torch.randn(n, 4) for n in (5, 4, 4, 3, 2, 1)])
    mask = skeletal.prune(Recurrent(), [(packed, y)], density=0.5, steps=2)
    assert set(mask) == {"head.weight"}
    assert "lstm.weight_ih_l0" in mask.metadata["left_out"]


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_network_that_differentiates_by_its_inputs(micro_batch):
    class Force(nn.Sequential):
        def forward(self, x):
            return torch.autograd.grad(super().forward(x).sum(), x, create_graph=True)[0]

    torch.manual_seed(0)
    model = Force(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x, y = torch.rand(6, 2, dtype=torch.float64, requires_grad=True), torch.rand(6, 2, dtype=torch.float64)
    steps, mse = [], nn.MSELoss()
    skeletal.prune(model, [(x, y)], density=0.5, method="snip", loss=mse, micro_batch=micro_batch, on_step=steps.append)
    assert x.grad is None
    mse(model(x), y).backward()
    for name, score in steps[0].scores.items():
        weight = model.get_parameter(name)
        torch.testing.assert_close(score, (weight * weight.grad).abs().detach(), rtol=1e-9, atol=1e-12)
