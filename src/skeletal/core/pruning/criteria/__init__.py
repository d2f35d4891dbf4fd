"""What criteria of more than a line compute: sums over paths, kernels, walks. Without the loop, and without masks."""
