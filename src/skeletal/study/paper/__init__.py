"""What the paper ran: scales, series, items and their jobs, published numbers."""
