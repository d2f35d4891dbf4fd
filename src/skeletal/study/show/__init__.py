"""A study to look at: figures, tables, the report."""
