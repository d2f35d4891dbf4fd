"""Numbers below a logarithmic axis: some, whatever it spans, and none on another."""

import pytest

from skeletal.harness.output.figures import log_x

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.mark.parametrize("low, high", [(0.05, 0.1), (2e8, 5e9), (1e-3, 1), (3e5, 2e12), (0.011, 0.09), (4.0, 4.4)])
def test_numbers_stand_beside_each_other(low, high):
    figure, axes = plt.subplots(figsize=(3, 3))
    axes.plot([low, high], [0, 1])
    log_x(axes)
    axes.invert_xaxis()
    figure.canvas.draw()
    within = [label for label in axes.get_xticklabels(which="both") if low <= label.get_position()[0] <= high]
    boxes = sorted((label.get_window_extent() for label in within if label.get_text()), key=lambda box: box.x0)
    plt.close(figure)
    assert boxes
    assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:], strict=False))
