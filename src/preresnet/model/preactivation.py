"""How do a batch norm and a ReLU become one module of an `Order`?"""

import torch.nn.functional as F
from torch import Tensor, nn

from preresnet.spec import Dialect


class BatchNormReLU(nn.BatchNorm2d):
    """ReLU(BN(x)) on a feature map.

    A `torch.nn.BatchNorm2d` for everything that looks for one (SyncBatchNorm conversion, ``update_bn``), so its
    tensors carry the usual names.

    Paper: the pre-activation of Eq. 9 and Fig. 4(e).
    """

    def forward(self, input: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w), all entries at least 0."""
        # The norm's output is a fresh tensor that its own backward does not need: ReLU may overwrite it.
        return F.relu(super().forward(input), inplace=True)


def activation(pattern: str, width: int, dialect: Dialect) -> nn.Module:
    """The module of one field of an `Order`.

    Args:
        pattern: ``""``, ``"B"``, ``"R"`` or ``"BR"``.
        width: channels.
        dialect: epsilon and momentum of the norm.
    """
    if "B" not in pattern:
        return nn.ReLU() if pattern else nn.Identity()
    norm = BatchNormReLU if "R" in pattern else nn.BatchNorm2d
    return norm(width, eps=dialect.norm_eps, momentum=dialect.norm_momentum)
