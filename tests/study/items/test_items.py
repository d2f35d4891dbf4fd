"""The items are the paper's: its methods, budgets, recipes and published numbers."""

import pytest

from skeletal.study.items import ITEMS, items_named
from skeletal.study.items.structure import counts, fractions, intermediate, layer_sizes
from skeletal.study.paper import published
from skeletal.study.paper.scales import SCALES, scale_named
from skeletal.study.paper.select import select
from skeletal.study.paper.series import pruning

PAPER = SCALES["paper"]


def jobs_of(name, panel=None, series=None, scale=PAPER):
    cells = ITEMS[name].cells(scale)
    return [c.job for c in cells if (panel is None or c.panel == panel) and (series is None or c.series == series)]


def test_every_figure_and_table_is_there_in_order():
    assert list(ITEMS) == [f"fig{n}" for n in range(1, 11)] + [f"table{n}" for n in range(1, 5)] + ["contenders"]


@pytest.mark.parametrize("scale", SCALES.values(), ids=lambda scale: scale.name)
def test_every_cell_stands_in_a_panel_and_every_panel_is_filled_at_the_papers_scale(scale):
    for item in ITEMS.values():
        cells = item.cells(scale)
        keys = [panel.key for panel in item.panels]
        assert {cell.panel for cell in cells} <= set(keys)
        assert len(set(keys)) == len(keys)
        if scale is PAPER:
            assert {cell.panel for cell in cells} == set(keys)
        assert len(item.jobs(scale)) == len(set(item.jobs(scale)))


# Section 5.1, 5.2: T, B, images in a batch, epochs.
@pytest.mark.parametrize(
    "item, panel, steps, batches, images, epochs",
    [
        ("fig2", "a", 300, 1, 128, 350),
        ("fig2", "b", 300, 1, 128, 350),
        ("fig3", "a", 60, 10, 128, 350),
        ("fig3", "d", 60, 20, 128, 300),
        ("table4", "vgg19-top1", 60, 40, 256, 90),
    ],
)
def test_budgets_are_the_papers(item, panel, steps, batches, images, epochs):
    snip = "SNIP" if item == "table4" else "SNIP-MB"
    for series, expected in {"FORCE": (steps, batches), snip: (1, steps * batches)}.items():
        found = jobs_of(item, panel, series)
        assert {(job.pruning.steps, job.pruning.batches_per_step) for job in found} == {expected}
        assert {job.pruning.prune_batch_size for job in found} == {images}
        assert {job.training.epochs for job in found} == {epochs}
        assert {job.setup.seed for job in found} == {0, 1, 2}


def test_one_shot_methods_see_one_batch_in_figure_2_and_as_many_as_force_where_the_paper_says_so():
    assert {job.pruning.batches_per_step for job in jobs_of("fig2", series="SNIP")} == {1}
    assert {job.pruning.batches_per_step for job in jobs_of("fig8", "b", "SNIP")} == {600}
    assert {job.setup.model for job in jobs_of("fig8", series="SNIP-SR")} == {"stable-resnet50-cifar"}


def test_figure_2_goes_to_99_99_percent_on_the_resnet_only():
    deepest = {(panel, series) for panel in "ab" for series in ("FORCE", "SNIP", "Random")
               if any(job.pruning.density == 0.0001 for job in jobs_of("fig2", panel, series))}  # fmt: skip
    assert deepest == {("a", "FORCE")}


def test_what_items_share_is_one_run():
    assert set(ITEMS["fig1"].jobs(PAPER)) < set(ITEMS["fig2"].jobs(PAPER))
    assert set(ITEMS["table1"].jobs(PAPER)) | set(ITEMS["table2"].jobs(PAPER)) < set(ITEMS["table4"].jobs(PAPER))
    assert set(jobs_of("fig4", "a")) <= set(jobs_of("fig5", "a"))


def test_one_step_is_the_same_run_for_both_schedules():
    exponential, linear = (
        [cell.job for cell in ITEMS["fig4"].cells(PAPER) if cell.series == series]
        for series in ("exponential", "linear")
    )
    shared = set(exponential) & set(linear)
    assert {job.pruning.method for job in shared} == {"snip"} and len(shared) == 3
    assert {job.pruning.schedule for job in set(linear) - shared} == {"linear"}


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_smaller_scales_have_a_row_more(scale):
    scale = SCALES[scale]
    assert jobs_of("fig2", series="SynFlow", scale=scale) and not jobs_of("fig2", series="SynFlow")
    assert {job.setup.data for item in ITEMS.values() for job in item.jobs(scale)} <= {"cifar10", "fashion-mnist"}


def test_tables_1_and_2_are_rows_of_table_4():
    def rows(name, network):
        return {(r.series, r.x, r.y, p.title) for p in ITEMS[name].panels for r in p.published if network in p.title}

    for name, network in (("table1", "VGG-19"), ("table2", "ResNet-50")):
        assert rows(name, network) < rows("table4", network)
    ours = {(r.series, r.x): r.y for r in ITEMS["table2"].panels[0].published}
    assert ours["FORCE", 0.01] == 31.1 and ours["Random", 0.01] == 32.4 and ours["Dense", 1.0] == 75.6


def test_published_numbers_say_where_they_stand_and_are_percentages():
    for item in ITEMS.values():
        for panel in item.panels:
            for reference in panel.published:
                assert reference.source.startswith(("paper, ", published.SYNFLOW))
                assert 0 < reference.x <= 1 and 0 <= reference.y <= 100


def test_a_stand_in_is_named_and_not_compared_with_what_was_published_for_another():
    smoke = SCALES["smoke"]
    _, b = ITEMS["fig2"].at(smoke).panels
    assert b.title == "vgg-mini on digits (for VGG-19, CIFAR-10)" and b.published == ()
    assert ITEMS["fig2"].at(SCALES["gpu"]).panels == ITEMS["fig2"].panels
    assert "not at this scale" in ITEMS["fig3"].at(smoke).panels[0].title


def test_titles_tell_the_sparsity_of_the_scale():
    said = {
        scale: (ITEMS["fig7"].at(SCALES[scale]).title.rpartition(" ")[2], ITEMS["fig4"].at(SCALES[scale]).caption)
        for scale in ("paper", "digits", "smoke")
    }
    assert [title for title, _ in said.values()] == ["99.9%", "99%", "99%"]
    for scale, percent in (("paper", "99.5%"), ("digits", "99%"), ("smoke", "95%")):
        assert f"at {percent} sparsity" in said[scale][1]
    for item in ITEMS.values():
        assert not set("{}") & set(item.at(SCALES["smoke"]).title + item.at(SCALES["smoke"]).caption)


def test_selecting_panels_and_series_runs_first_seeds_first():
    smoke = SCALES["smoke"]
    everything = select([ITEMS["fig2"]], smoke)
    some = select([ITEMS["fig2"]], smoke, panels=["b"], methods=["FORCE", "Dense"])
    assert set(some) < set(everything) and len(some) == 2 * (2 + 1)
    assert {job.setup.model for job in some} == {"vgg-mini"}
    assert [job.setup.seed for job in some] == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match=r"unknown method 'FROCE'. Did you mean 'FORCE'"):
        select([ITEMS["fig2"]], smoke, methods=["FROCE"])
    with pytest.raises(ValueError, match="unknown panel 'c'"):
        select([ITEMS["fig2"]], smoke, panels=["c"])


def test_names_are_checked():
    assert [item.name for item in items_named(("fig2", "fig1", "fig2"))] == ["fig2", "fig1"]
    with pytest.raises(ValueError, match="unknown item 'fig11'"):
        items_named(("fig11",))
    with pytest.raises(ValueError, match=r"unknown scale 'gpus'. Did you mean 'gpu'"):
        scale_named("gpus")
    with pytest.raises(ValueError, match="unknown method 'EDGE'"):
        pruning(PAPER.trained["vgg19", "cifar10"], "EDGE", 0.1)


def test_other_epochs_and_seeds_are_other_runs_and_said_so():
    smoke = SCALES["smoke"]
    altered = smoke.altered(epochs=2, seeds=3)
    jobs = ITEMS["fig2"].jobs(altered)
    assert {job.training.epochs for job in jobs} == {2} and {job.setup.seed for job in jobs} == {0, 1, 2}
    assert altered.about.endswith("Here with 2 epochs and 3 seeds.")
    assert smoke.altered() is smoke
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        smoke.altered(seeds=0)


def test_layers_are_read_in_order_as_fractions_and_as_numbers_of_weights():
    sizes = layer_sizes("vgg-mini", "digits")
    result = {"model": "vgg-mini", "data": "digits", "densities": {name: 1 / n for name, n in sizes.items()}}
    assert counts(result) == [(float(i), 1.0) for i in range(1, len(sizes) + 1)]
    assert fractions(result) == [(float(i), 1 / n) for i, n in enumerate(sizes.values(), 1)]


def test_the_intermediate_mask_nearest_by_ratio_is_read():
    trace = [{"kept": kept, "densities": {"layer": kept / 1000}} for kept in (700, 300, 100, 10)]
    result = {"prunable": 1000, "trace": trace}
    assert intermediate(result, near=0.5) == [(1.0, 0.7)]  # 0.7 is 1.4 times 0.5, 0.3 is 1.7 times less
    assert intermediate(result, near=0.05) == [(1.0, 0.1)]
    assert intermediate(result, near=0.01) == [(1.0, 0.01)]


def test_what_is_held_out_at_the_papers_scale():
    """The paper's appendix A names CIFAR and Tiny-ImageNet; its code for ImageNet trains on all images."""
    for item in ITEMS.values():
        for job in item.jobs(PAPER):
            assert job.setup.validation == (0 if job.setup.data == "imagenet" else 0.1)
