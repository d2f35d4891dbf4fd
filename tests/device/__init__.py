"""Whether everything stays on its device, where there is no GPU: on one that is pretended (`pretended.py`)."""
