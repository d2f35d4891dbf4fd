"""A network as a graph of its operations, and a module like others."""

from torch import fx


class GraphNetwork(fx.GraphModule):
    """A `torch.fx.GraphModule` with a length.

    The module that `torch.compile` wraps another one in has a `__len__`, which is therefore what `if network:` and
    `network or other` ask, and which raises "TypeError: GraphModule does not support len()" if that has none.
    """

    def __len__(self) -> int:
        """How many modules it has, itself included."""
        return sum(1 for _ in self.modules())
