"""Finished runs side by side: rows, tables, figures, equal budgets."""
