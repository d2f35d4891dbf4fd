"""The exact removal of channels that a mask has left dead: the network traced, followed, cut."""
