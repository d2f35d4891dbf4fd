import numpy as np
import pytest

from skeletal.core.seeds import seed_of


def test_a_seed_depends_on_the_number_and_not_on_its_type():
    assert seed_of("a", 3) == seed_of("a", np.int64(3)) != seed_of("a", 4)
    assert seed_of("a", 3) == 2100403335529444493
    with pytest.raises(TypeError):
        seed_of("a", 0.5)
