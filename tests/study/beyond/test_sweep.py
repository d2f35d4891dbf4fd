import pytest

import skeletal
from skeletal.harness.config import Pruning, Setup, resolve
from skeletal.harness.runs import finding
from skeletal.harness.runs.measure import measured
from skeletal.study.beyond.sweep import SweepJob, one_run_serves

pytestmark = pytest.mark.filterwarnings("ignore::skeletal.CollapseWarning")
SETUP = Setup(device="cpu")
DENSITIES = (0.1, 0.02)


def pruning(method="force", **options):
    if method == "force":
        options = {"steps": 2, **options}
    return resolve(Pruning(method=method, **options), "quick")


def sweep(root, of, densities=DENSITIES):
    job = SweepJob(SETUP, of, None, densities=densities, measure_batches=1)
    return job, job.run(root)


@pytest.fixture(scope="module")
def snip(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return root, *sweep(root, pruning("snip"))


def alone(of, density):
    data = finding.load_data(SETUP)
    model = finding.create_model(SETUP, data)
    wanted = resolve(Pruning(method=of.method, density=density, steps=of.steps), "quick")
    return finding.find_mask(model, data, SETUP, wanted, progress=False)


@pytest.mark.parametrize(
    "of, serves",
    [
        (pruning("snip"), True),
        (pruning("grasp"), True),
        (pruning("random"), True),
        (pruning("magnitude"), True),
        (pruning("force"), True),
        (pruning("synflow"), True),
        (pruning("force", schedule="linear"), False),
        (pruning("force-regrow"), False),
        (pruning("snip", pattern="2:4"), False),
        (pruning("random-uniform"), False),
        (pruning("random-erk"), False),
        (pruning("npb"), False),
        (pruning("phew"), False),
        (pruning("force-floor"), False),
    ],
    ids=lambda value: getattr(value, "method", value),
)
def test_which_methods_one_run_serves(of, serves):
    assert one_run_serves(of) is serves


def test_one_pass_of_scores_gives_the_masks_of_separate_runs(snip):
    root, job, _ = snip
    for density in DENSITIES:
        assert skeletal.Mask.load(job.file(root, density)) == alone(job.pruning, density)


def test_every_mask_is_measured(snip):
    root, job, result = snip
    data = finding.load_data(SETUP)
    model = finding.create_model(SETUP, data)
    assert [point["asked"] for point in result["points"]] == list(DENSITIES)
    for point in result["points"]:
        mask = skeletal.Mask.load(job.file(root, point["asked"]))
        assert mask.kept == round(point["asked"] * mask.total)
        told = measured(model, data, mask, seed=0, batches=1)
        assert {name: point[name] for name in told} == told


def test_a_finished_sweep_is_only_read(snip, monkeypatch):
    root, job, result = snip
    monkeypatch.setattr(finding, "load_data", lambda _: pytest.fail("done again"))
    assert job.run(root) == result


def test_an_iterative_method_passes_every_density_on_its_way(tmp_path):
    job, _ = sweep(tmp_path, pruning("force"), densities=(0.25, 0.0625))
    last, first = (skeletal.Mask.load(job.file(tmp_path, density)) for density in (0.0625, 0.25))
    assert last == alone(job.pruning, 0.0625)
    assert first == alone(pruning("force", steps=1), 0.25), "half of the way is a run of half the steps"


def test_methods_that_score_by_count_are_run_for_each_density(tmp_path):
    job, _ = sweep(tmp_path, pruning("random-erk"))
    for density in DENSITIES:
        assert skeletal.Mask.load(job.file(tmp_path, density)) == alone(job.pruning, density)


def test_densities_are_part_of_what_it_is(tmp_path):
    jobs = [SweepJob(SETUP, pruning("snip"), None, densities=d) for d in (DENSITIES, (0.1,), (0.1, 0.02, 0.01))]
    assert len({job.folder(tmp_path).path for job in jobs}) == 3
    assert not list(tmp_path.iterdir())
