"""The engine's layers, and the blocked maps between them."""
