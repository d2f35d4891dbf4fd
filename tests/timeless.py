"""What a run has found, without what differs from one machine and moment to the next: times and memory."""


def timeless(value):
    """A record without its times and peaks of memory, however deep they lie."""
    if isinstance(value, dict):
        kept = {key: part for key, part in value.items() if "seconds" not in str(key) and key != "peak_memory"}
        return {key: timeless(part) for key, part in kept.items()}
    return [timeless(part) for part in value] if isinstance(value, list) else value
