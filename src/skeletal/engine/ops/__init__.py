"""The engine's operations as autograd functions: convolution, linear, batch norm, pooling."""
