"""Algorithm 1, and what its settings are made of: scores, schedules, quotas."""
