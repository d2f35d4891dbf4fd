"""The loop: train, checkpoint, evaluate, with several processes, shown as it goes."""
