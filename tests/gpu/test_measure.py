"""Masks measured and ranked on a GPU."""

import pytest

import skeletal
from skeletal.core.pruning.ranking import Ranking
from skeletal.harness.config import Pruning, Setup, resolve
from skeletal.harness.runs import measure
from skeletal.harness.runs.finding import create_model, load_data
from tests.cases import convnet, images

FORCE = resolve(Pruning(density=0.05, steps=3), "quick")


def test_a_measurement_is_the_cpus_to_rounding(tmp_path):
    _, result = measure.measure(Setup(device="cuda"), FORCE, root=tmp_path, measure_batches=2, progress=False)
    assert result["connected"] and len(result["trace"]) == 3
    here = Setup(device="cpu")
    data = load_data(here)
    (path,) = tmp_path.glob("*/mask.safetensors")
    found = measure.measured(create_model(here, data), data, skeletal.Mask.load(path), seed=0, batches=2)
    for name in ("force_saliency", "gradient_norm", "loss"):
        assert result[name] == pytest.approx(found[name], rel=1e-2)
    for name in ("kept", "densities", "connected", "effective_density", "macs"):
        assert result[name] == found[name]


def test_a_run_on_a_gpu_ranks_its_own_mask_first():
    ranking = Ranking("force")
    model, batches = convnet().cuda(), [(x.cuda(), y.cuda()) for x, y in images()]
    mask = skeletal.prune(model, batches, density=0.1, steps=3, on_collapse="keep", on_step=ranking)
    assert ranking.mask(mask.kept) == mask
    within = ranking.keep_within_layers(mask)
    assert skeletal.Mask(within) == mask
