"""Patterns spelled out, one weight after the other: slow, and without a tensor operation."""

from itertools import product


def groups_of(pattern: str, scores, available):
    """The groups of a layer that may be kept: lists of (output, input, position), in the order of ties."""
    outputs, inputs, positions = scores.shape
    everywhere = list(product(range(outputs), range(inputs), range(positions)))
    inside = set(everywhere)

    def rank(at):  # weights without a score come last, then ties go to the first
        score = float(scores[at])
        return (score == 0, -score, at)

    if pattern == "fan-in":
        units = [sorted((at for at in everywhere if at[0] == o and available[at]), key=rank) for o in range(outputs)]
        return [[unit[j] for unit in units if j < len(unit)] for j in range(max(map(len, units)))]
    if ":" in pattern:
        n, m = map(int, pattern.split(":"))
        allowed = set()
        for o, first, k in product(range(outputs), range(0, inputs, m), range(positions)):
            group = [(o, i, k) for i in range(first, min(first + m, inputs)) if available[o, i, k]]
            allowed |= set(sorted(group, key=rank)[:n])
        return [[at] for at in everywhere if at in allowed]
    r, c = map(int, pattern.split("x"))
    blocks = product(range(0, outputs, r), range(0, inputs, c), range(positions))
    return [
        [at for o in range(o0, o0 + r) for i in range(i0, i0 + c) if (at := (o, i, k)) in inside and available[at]]
        for o0, i0, k in blocks
    ]


def choose(pattern: str, scores: dict, available: dict, count: int):
    """The kept weights, (layer, output, input, position), and how many are in groups without a score."""
    groups = []
    for name in scores:
        lowest = float("inf")
        for group in groups_of(pattern, scores[name], available[name]):
            if group:
                found = [float(scores[name][at]) for at in group]
                mean = sum(found) / len(found)
                lowest = min(lowest, mean)
                worth = lowest if pattern == "fan-in" else mean  # whose units lose their worst weights first
                groups.append((not any(found), -worth, len(groups), [(name, *at) for at in group]))
    kept, filled = set(), 0
    for unscored, _, _, group in sorted(groups):
        if len(kept) + len(group) <= count:
            kept |= set(group)
            filled += len(group) * unscored
    return kept, filled
