import copy
import gc
import warnings
import weakref
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim.optimizer import _global_optimizer_post_hooks

import skeletal
from tests.cases import Tokens, convnet, images, mlp, tokens

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, amsgrad=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1, initial_accumulator_value=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
}


def train(model, optimizer, batches, autocast=False, clip=None):
    for batch in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if isinstance(batch, dict):
                loss = model(**batch)["loss"]
            else:
                loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def pruned_values(model, mask):
    return torch.cat([model.get_parameter(name).detach()[~keep] for name, keep in mask.items()])


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_stay_exactly_zero_under_every_optimizer(name, used):
    model, batches = convnet(), images(4)
    mask = skeletal.prune(model, batches, density=0.2, method="snip")
    optimizer = OPTIMIZERS[name](model.parameters())
    if used:
        train(model, optimizer, batches)
    mask.attach(model)  # a used optimizer that attach is not told of
    for autocast, clip in ((False, None), (True, None), (False, 0.01)):
        train(model, optimizer, batches, autocast, clip)
        values = pruned_values(model, mask)
        assert values.eq(0).all()
        assert not torch.signbit(values).any()
        mask.check(model)
    assert all(model.get_parameter(n).detach()[keep].ne(0).any() for n, keep in mask.items() if keep.any())


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_gradients_stay_in_the_memory_order_of_their_weights(order):
    model = nn.Conv2d(4, 6, 3).to(memory_format=order)
    keep = torch.rand_like(model.weight) < 0.5
    skeletal.Mask({"weight": keep}).attach(model)
    model(torch.randn(2, 4, 5, 5).contiguous(memory_format=order)).sum().backward()
    assert model.weight.grad.is_contiguous(memory_format=order)
    assert torch.equal(model.weight.grad != 0, keep)


def test_pruned_weights_whose_gradient_is_not_a_number_have_none():
    weight = nn.Parameter(torch.ones(3))
    model = nn.Module()
    model.register_parameter("weight", weight)
    skeletal.Mask({"weight": torch.tensor([True, False, False])}).attach(model)
    (weight * torch.tensor([1.0, torch.nan, torch.inf])).sum().backward()
    assert weight.grad.tolist() == [1.0, 0.0, 0.0]


def test_a_used_optimizer_forgets_pruned_weights():
    model, batches = convnet(), images(2)
    mask = skeletal.prune(model, batches, density=0.2, method="snip")
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    train(model, optimizer, batches)
    mask.attach(model, optimizer)
    for name, keep in mask.items():
        weight = model.get_parameter(name)
        assert weight.grad[~keep].eq(0).all()
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            assert optimizer.state[weight][key][~keep].eq(0).all()


def lbfgs_step(model, optimizer):
    """A step of several evaluations, at all of which pruned weights are 0."""
    pruned = [model[1].weight[0].abs().sum()]

    def loss():
        optimizer.zero_grad()
        value = model(images(1)[0][0]).square().mean()
        value.backward()
        pruned.append(model[1].weight[0].abs().sum())
        return value

    optimizer.step(loss)
    return sum(pruned[1:]).item()


def test_a_used_lbfgs_goes_on_as_a_new_one():
    model = mlp()
    used = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5)
    assert lbfgs_step(model, used) and used.state
    kept = {"1.weight": torch.ones_like(model[1].weight, dtype=torch.bool).index_fill(0, torch.tensor([0]), False)}
    found = []
    for forgets in (True, False):
        network = copy.deepcopy(model)
        optimizer = torch.optim.LBFGS(network.parameters(), lr=0.5, max_iter=5)
        if forgets:
            optimizer.load_state_dict(used.state_dict())
        skeletal.Mask(kept).attach(network, optimizer)
        assert lbfgs_step(network, optimizer) == 0
        found.append(network.state_dict())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_an_optimizer_whose_states_are_divided_among_processes_forgets_them_too(tmp_path):
    model, batches = convnet(), images()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
        train(model, optimizer, batches)
        mask = skeletal.prune(model, batches, density=0.3, method="snip")
        mask.attach(model, optimizer)
        for name, keep in mask.items():
            momentum = optimizer.optim.state[model.get_parameter(name)]["momentum_buffer"]
            assert not momentum[~keep].any() and momentum[keep].any()
    finally:
        dist.destroy_process_group()


def test_same_training_as_multiplying_with_the_mask():
    """The slower truth: multiply weights and gradients with the mask by hand."""
    model, batches = convnet().double(), [(x.double(), y) for x, y in images(3)]
    mask = skeletal.prune(model, batches, density=0.3, method="snip")
    by_hand = copy.deepcopy(model)
    mask.attach(model)
    train(model, OPTIMIZERS["sgd"](model.parameters()), batches)

    def multiply(grad=False):
        with torch.no_grad():
            for name, keep in mask.items():
                weight = by_hand.get_parameter(name)
                (weight.grad if grad else weight).mul_(keep)

    multiply()
    optimizer = OPTIMIZERS["sgd"](by_hand.parameters())
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(by_hand(x), y).backward()
        multiply(grad=True)
        optimizer.step()
        multiply()
    for one, two in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("assign", [False, True])
def test_loading_dense_weights_into_a_skeleton_keeps_it_sparse(assign):
    model, batches = convnet(), images()
    mask = skeletal.prune(model, batches, density=0.3, method="snip")
    mask.attach(model)
    model.load_state_dict(convnet(seed=5).state_dict(), assign=assign)
    mask.check(model)
    train(model, OPTIMIZERS["sgd"](model.parameters()), batches)
    mask.check(model)


def test_check_names_the_layer_and_the_first_weight():
    model = convnet()
    mask = skeletal.prune(model, images(), density=0.3, method="snip")
    mask.attach(model)
    index = tuple((~mask["3.weight"]).nonzero()[0].tolist())
    for value in (0.5, float("nan")):
        with torch.no_grad():
            model[3].weight[index] = value
        with pytest.raises(
            skeletal.MaskError, match=r"3\.weight: 1 of \d+ pruned weights are not zero, the first at \("
        ):
            mask.check(model)


def test_a_deepcopy_carries_no_hooks_and_check_says_so():
    model, batches = convnet(), images()
    mask = skeletal.prune(model, batches, density=0.3, method="snip")
    mask.attach(model)
    twin = copy.deepcopy(model)
    mask.check(twin)
    train(twin, OPTIMIZERS["sgd"](twin.parameters()), batches)
    with pytest.raises(skeletal.MaskError, match="to every copy"):
        mask.check(twin)
    mask.attach(twin)
    mask.check(twin)


def test_detach_leaves_nothing_behind():
    model, batches = convnet(), images()
    mask = skeletal.prune(model, batches, density=0.3, method="snip")
    before = len(_global_optimizer_post_hooks)
    with mask.attach(model):
        assert len(_global_optimizer_post_hooks) == before + 1
    assert len(_global_optimizer_post_hooks) == before
    assert not any(p._backward_hooks for p in model.parameters())
    mask.check(model)
    train(model, OPTIMIZERS["sgd"](model.parameters()), batches)
    with pytest.raises(skeletal.MaskError):
        mask.check(model)


def test_an_attached_mask_keeps_no_model_alive():
    model = convnet()
    skeletal.prune(model, images(), density=0.3, method="snip").attach(model)
    gone = weakref.ref(model[0].weight)
    del model
    gc.collect()
    assert gone() is None


def test_another_models_mask_is_refused():
    mask = skeletal.prune(convnet(), images(), density=0.3, method="snip")
    with pytest.raises(skeletal.MaskError, match=r"0\.weight is \(4, 3, 3, 3\) in Sequential but \(8, 3, 3, 3\)"):
        mask.attach(convnet(width=4))
    with pytest.raises(skeletal.MaskError, match=r"'0\.weight' that Tokens does not have"):
        mask.check(Tokens())


def test_a_weight_of_two_names_has_one_mask():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    keep = torch.rand_like(model[0].weight) < 0.5
    with pytest.raises(
        skeletal.MaskError, match=r"0\.weight and 2\.weight are one weight of Sequential, but have diff"
    ):
        skeletal.Mask({"0.weight": keep, "2.weight": ~keep}).attach(model)
    skeletal.Mask({"0.weight": keep, "2.weight": keep.clone()}).attach(model)
    assert not model[2].weight[~keep].any()


@pytest.mark.parametrize("how", ["deepcopy", "averaged", "pickled"])
def test_loading_into_a_copy_leaves_the_original_held(how, tmp_path):
    model, batches = convnet(), images()
    mask = skeletal.prune(model, batches, density=0.3, method="snip")
    mask.attach(model)
    if how == "pickled":
        torch.save(model, tmp_path / "model.pt")
        twin = torch.load(tmp_path / "model.pt", weights_only=False)
        twin.load_state_dict(model.state_dict())
    elif how == "averaged":
        twin = torch.optim.swa_utils.AveragedModel(model)
        twin.load_state_dict(twin.state_dict())
    else:
        twin = copy.deepcopy(model)
        twin.load_state_dict(convnet(seed=3).state_dict())
        assert twin[0].weight.ne(0).all()  # a copy is the caller's own
    train(model, OPTIMIZERS["sgd"](model.parameters()), batches)
    mask.check(model)


def test_a_copy_for_another_process_is_made_without_a_warning():
    model = convnet()
    skeletal.prune(model, images(), density=0.3, method="snip").attach(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ForkingPickler.dumps(model)


def test_second_derivatives_that_torch_does_not_store_are_zero():
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 1, 3)), torch.randn(2, 2, 8, 8)
    skeletal.Mask({f"{i}.weight": torch.rand_like(model[i].weight) < 0.5 for i in (0, 1)}).attach(model)
    weight = model[1].weight
    (slope,) = torch.autograd.grad(model(x).sum(), weight, create_graph=True)
    found = torch.autograd.grad(slope.pow(2).sum(), [weight, model[0].weight], allow_unused=True)
    assert found[0] is None and found[1] is not None


def test_loading_a_part_of_the_model_keeps_it_sparse():
    model = convnet()
    mask = skeletal.prune(model, images(), density=0.3, method="snip")
    mask.attach(model)
    model[3].load_state_dict(convnet(seed=5)[3].state_dict())
    mask.check(model)


def test_an_optimizer_step_in_the_middle_of_a_backward_pass():
    model, batches = convnet(), images()
    mask = skeletal.prune(model, batches, density=0.3, method="snip")
    mask.attach(model)
    optimizers = {weight: torch.optim.SGD([weight], 0.1, momentum=0.9) for weight in model.parameters()}
    for weight, optimizer in optimizers.items():
        weight.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
    for x, y in batches:
        nn.functional.cross_entropy(model(x), y).backward()
    mask.check(model)


@pytest.mark.parametrize("when", ["attached", "loaded"])
def test_weights_unfrozen_later_get_no_gradient_where_pruned(when):
    model, batches = convnet(), images()
    mask = skeletal.prune(model, batches, density=0.3, method="snip")
    model.requires_grad_(False)
    mask.attach(model)
    assert not any(weight.requires_grad for weight in model.parameters())
    if when == "loaded":
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
        assert not any(weight.requires_grad for weight in model.parameters())
    model.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, batches[:1])
    for name, keep in mask.items():
        weight = model.get_parameter(name)
        assert weight.grad[~keep].eq(0).all()  # not even the first one
        assert optimizer.state[weight]["exp_avg"][~keep].eq(0).all()
    train(model, optimizer, batches)
    assert all(model.get_parameter(name).grad[~keep].eq(0).all() for name, keep in mask.items())
    mask.check(model)


def test_skeletons_do_not_pile_up():
    before = len(_global_optimizer_post_hooks)
    for _ in range(3):
        model = convnet()
        skeletal.prune(model, images(), density=0.3, method="snip").attach(model)
    del model
    gc.collect()
    assert len(_global_optimizer_post_hooks) == before


def test_something_that_is_no_optimizer_is_refused_before_anything_changes():
    model = convnet()
    before = copy.deepcopy(model.state_dict())
    mask = skeletal.prune(model, images(), density=0.3, method="snip")
    with pytest.raises(TypeError, match="not str"):
        mask.attach(model, "adam")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model[0].weight._backward_hooks


def test_a_compiled_or_wrapped_model_has_the_names_of_the_plain_one():
    model, batches = convnet(), images()
    plain = skeletal.prune(model, batches, density=0.3, method="snip")
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        mask = skeletal.prune(wrapped, batches, density=0.3, method="snip")
        assert mask == plain
        with mask.attach(wrapped):
            mask.check(model)


def test_untouched_optimizers_are_left_alone():
    model, other = convnet(), Tokens()
    skeletal.prune(model, images(), density=0.3, method="snip").attach(model)
    train(other, OPTIMIZERS["adamw"](other.parameters()), tokens())
    assert other.head.weight.ne(0).all()


def test_to_torch_masks_every_use_of_a_tied_weight():
    model = Tokens()
    skeletal.prune(model, tokens(), density=0.3, method="random").to_torch(model)
    assert torch.equal(model.head.weight, model.embedding.weight)


def test_to_and_from_torch():
    model, batches = convnet(), images()
    mask = skeletal.prune(model, batches, density=0.3, method="snip")
    outputs = copy.deepcopy(model)
    mask.attach(outputs)
    mask.to_torch(model)
    assert "0.weight_mask" in model.state_dict()
    model.eval(), outputs.eval()
    torch.testing.assert_close(model(batches[0][0]), outputs(batches[0][0]))
    assert skeletal.Mask.from_torch(model) == skeletal.Mask.from_torch(nn.DataParallel(model)) == mask
    with pytest.raises(skeletal.MaskError, match="no layer pruned"):
        skeletal.Mask.from_torch(outputs)
