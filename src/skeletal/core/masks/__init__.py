"""A mask: chosen exactly, kept on disk, held on a network, converted and compared."""
