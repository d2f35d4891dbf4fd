"""Networks by name: ours, torchvision's and timm's."""

from skeletal.harness.models.factory import NAMES as NAMES
from skeletal.harness.models.factory import create as create
from skeletal.harness.models.factory import named as named
from skeletal.harness.models.shares import Shares as Shares
from skeletal.harness.models.shares import parameter_shares as parameter_shares
