"""What goes wrong when pruning: each with a clear error, and nothing changed."""

import pytest
import torch
from torch import nn

import skeletal
from tests.cases import images, mlp
from tests.unchanged import assert_same, everything_about


def test_processes_without_a_group_are_told_that_each_prunes_by_itself(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    skeletal.prune(mlp(), density=0.5, method="random")  # no launcher, only a variable of that name
    monkeypatch.setenv("RANK", "1")
    with pytest.warns(UserWarning, match="one of 4 processes, but there is no process group yet") as told:
        skeletal.prune(mlp(), density=0.5, method="random")
    assert told[0].filename == __file__


def test_weights_that_fsdp1_has_flattened_are_refused_by_its_name():
    wrapped = type("FullyShardedDataParallel", (nn.Sequential,), {})(mlp())
    with pytest.raises(TypeError, match=r"FSDP1.*use torch\.distributed\.fsdp\.fully_shard, then attach"):
        skeletal.prune(wrapped, density=0.5, method="random")


def test_collapse_is_refused_and_names_step_density_and_empty_layers():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    with torch.no_grad():
        model[3].bias.fill_(-100)  # no signal passes the second layer
    with pytest.raises(skeletal.CollapsedError, match=r"step 1 of 4, density 0\..*1\.weight, 3\.weight"):
        skeletal.prune(model, images(), density=0.1, steps=4)
    with pytest.warns(skeletal.CollapseWarning):
        mask = skeletal.prune(model, images(), density=0.1, steps=4, on_collapse="keep")
    assert mask.kept == round(0.1 * mask.total)
    assert [fill["step"] for fill in mask.metadata["filled"]] == [1, 2, 3, 4]


def test_steps_too_small_for_the_channels_they_close_are_told_from_empty_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 10))
    with torch.no_grad():
        model[1].bias[0] = -100  # one channel of eight: 202 weights
    with pytest.raises(skeletal.CollapsedError) as caught:
        skeletal.prune(model, images(), density=0.1, steps=60)
    told = str(caught.value)
    assert "Every layer has some, but 202 of the 1,616 weights to choose from lie on no path" in told
    assert "This step prunes only 61. Use fewer steps" in told and "Layers without any" not in told
    assert skeletal.prune(model, images(), density=0.1, steps=5).kept == 162


def test_filling_keeps_what_has_a_score_and_then_the_first_positions():
    def score(at):
        scores = {name: torch.zeros_like(weight) for name, weight in at.weights.items()}
        scores["3.weight"][-1] = 1.0
        return scores

    with pytest.warns(skeletal.CollapseWarning, match="20 of the 40 weights kept .* carry no signal"):
        mask = skeletal.prune(mlp(), density=0.01, score=score, method="magnitude", on_collapse="keep")
    assert mask["3.weight"][-1].all()
    assert mask["1.weight"].flatten()[: mask.kept - 20].all()
    assert mask.metadata["filled"] == [{"step": 1, "weights": mask.kept - 20}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_never_pass(value):
    model = mlp()
    with torch.no_grad():
        model[3].weight[2, 1] = value
    with pytest.raises(skeletal.NonFiniteError, match=r"3\.weight"):
        skeletal.prune(model, images(), density=0.5)
    batches = images()
    batches[1][0][0, 0, 0, 0] = value
    with pytest.raises(skeletal.NonFiniteError, match="batch 2"):
        skeletal.prune(mlp(), batches, density=0.5, steps=3)
    with pytest.raises(skeletal.NonFiniteError, match=r"score of 1\.weight .* step 1 of 1"):
        skeletal.prune(
            mlp(), density=0.5, method="magnitude", score=lambda at: {n: w * value for n, w in at.weights.items()}
        )


def test_a_gradient_that_overflows_is_named():
    with pytest.raises(skeletal.NonFiniteError, match=r"gradient of 1\.weight"):
        skeletal.prune(mlp(), images(), density=0.5, loss=lambda out, _: (out.sum() * 0).sqrt())


def test_a_mask_without_a_path_is_returned_with_a_warning():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 50), nn.ReLU(), nn.Linear(50, 10))
    batches = images()

    def only_the_first_layer(at):
        return {"1.weight": at.weights["1.weight"].abs() + 1, "3.weight": at.weights["3.weight"].abs() * 1e-3}

    with pytest.warns(skeletal.CollapseWarning, match=r"Empty layers: 3\.weight"):
        mask = skeletal.prune(model, batches, density=0.1, method="magnitude", score=only_the_first_layer)
    assert mask.metadata["connected"] is False
    assert mask.empty_layers == ["3.weight"]
    assert skeletal.prune(model, batches, density=0.5, method="magnitude").metadata["connected"] is True
    assert skeletal.prune(model, density=0.5, method="magnitude").metadata["connected"] is None


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"density": 0.0}, ValueError, "density is 0.0"),
        ({"density": -1}, ValueError, "density is -1"),
        ({"density": 1.5}, ValueError, "density is 1.5"),
        ({"density": float("nan")}, ValueError, "density is nan"),
        ({"density": 1e-9}, ValueError, "keeps none of 4,040"),
        ({"method": "snap"}, ValueError, r"unknown method 'snap'\. Did you mean 'snip'\? There are random"),
        ({"method": "snip", "steps": 5}, ValueError, "method='force'"),
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"sparsity": 0.5}, ValueError, r"give density, .*: not density=0.5 and sparsity=0.5"),
        ({"density": None}, ValueError, "give density, .*: neither is given"),
        ({"density": None, "sparsity": 1}, ValueError, "density is 0.0"),
        ({"batches_per_step": 0}, ValueError, "batches_per_step is 0"),
        ({"schedule": "cosine"}, ValueError, "unknown schedule 'cosine'"),
        ({"bn_mode": "off"}, ValueError, "unknown bn_mode"),
        ({"on_collapse": "off"}, ValueError, "unknown on_collapse"),
        ({"batches": []}, ValueError, "batches is empty"),
        ({"batches": None}, ValueError, "needs batches"),
        ({"batches": [torch.zeros(2, 192)]}, TypeError, "not a Tensor"),
        ({"batches": [(1, 2, 3)]}, TypeError, "not a tuple of 3"),
        ({"batches": [{"input": torch.zeros(2, 3, 8, 8)}]}, TypeError, "without a loss|multiple|required"),
        ({"loss": lambda out, y: out}, TypeError, r"one number, not \(12, 10\)"),
        ({"loss": lambda out, y: out.detach().sum()}, ValueError, "does not depend"),
        ({"loss": lambda out, y: torch.zeros((), requires_grad=True) * 1}, ValueError, "does not depend"),
        ({"prunable": lambda name, weight: False}, ValueError, "no prunable weights left"),
        ({"prunable": ["9.weight"]}, ValueError, "no parameter '9.weight'"),
        ({"score": lambda at: {}}, ValueError, "one tensor for each name"),
        (
            {"score": lambda at: {n: w[0] for n, w in at.weights.items()}},
            ValueError,
            r"score of 1\.weight is \(192,\)",
        ),
    ],
)
def test_bad_input_is_a_clear_error_and_changes_nothing(settings, error, message):
    model = mlp()
    before = everything_about(model)
    with pytest.raises(error, match=message):
        skeletal.prune(model, **{"batches": images(), "density": 0.5, **settings})
    assert_same(before, everything_about(model))


def test_nothing_prunable():
    with pytest.raises(ValueError, match="BatchNorm1d has no prunable weights"):
        skeletal.prune(nn.BatchNorm1d(3), images(), density=0.5)
    with pytest.raises(ValueError, match="no shape yet"):
        skeletal.prune(nn.LazyLinear(3), images(), density=0.5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_without_parameters(precision):
    with pytest.raises(ValueError, match="Sequential has no prunable weights"):
        skeletal.prune(nn.Sequential(nn.Flatten(), nn.ReLU()), images(), density=0.5, precision=precision)


@pytest.mark.parametrize("method", ["px", "force"])
def test_a_step_that_prunes_nothing_is_no_collapse(method):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.PReLU(), nn.Linear(8, 3))
    batch = [(torch.randn(1, 6).clamp(min=0), torch.tensor([1]))]  # where an input is 0, so are scores

    def stays(total, kept, steps):
        return [total, *[kept] * (steps - 1)]

    mask = skeletal.prune(net, batch, density=0.25, method=method, steps=8, schedule=stays)
    assert mask.kept == round(0.25 * mask.total)
