"""The paper, item by item: which runs a figure or a table is made of, and what is read from them."""
