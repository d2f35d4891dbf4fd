"""What a skeleton's speed and memory are worth against others, measured in one run."""

from skeletal.harness.bench.contest import bench as bench
from skeletal.harness.bench.setting import Setting as Setting
