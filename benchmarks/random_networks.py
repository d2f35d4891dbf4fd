"""Compare many random small networks, compacted and compiled, with their masked originals.

`python -m benchmarks.random_networks 10000 [first seed]`, from the repository's root; prints each network that differs,
and once a minute how many it has seen.
"""

import random
import sys
import time
import warnings

from tests.compaction.random_networks import PARTS, differences


def main(count: int, first: int) -> None:
    warnings.simplefilter("ignore")
    start, wrong, told = time.perf_counter(), 0, 0

    def tell(seen: int) -> None:
        print(f"{seen} networks from seed {first}: {wrong} differ; {time.perf_counter() - start:.0f} s", flush=True)

    for seed in range(first, first + count):
        draw = random.Random(seed)
        parts = draw.choices(sorted(PARTS), k=draw.randint(1, 6))
        case = parts, draw.random() < 0.5, draw.choice([0.05, 0.3, 0.7]), seed
        try:
            found = differences(*case)
        except Exception as error:  # what must not happen is what is looked for
            found = [f"{type(error).__name__}: {error}"]
        if found:
            wrong += 1
            print(f"seed {seed}: {case}: {'; '.join(found)}", flush=True)
        if (minute := int(time.perf_counter() - start) // 60) > told:
            told = minute
            tell(seed + 1 - first)
    tell(count)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
