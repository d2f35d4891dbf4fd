"""Tables and figures: one writer for each, colours, and what masks and results look like in them."""
