"""Tables made once from a mask and shapes, for kernels to run over."""
