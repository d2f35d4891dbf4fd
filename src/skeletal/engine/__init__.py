"""A skeleton at the cost of what is left of it: compiled for the CPU, never slower than the best dense way."""

from skeletal.engine.host.availability import Availability as Availability
from skeletal.engine.host.availability import available as available
