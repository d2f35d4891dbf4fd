"""What a mask leaves of a network: paths, effective weights, multiply-adds, saliency, local optimality."""
