"""A network as a graph of operations, accepted only if it agrees with the network in everything."""
