"""What is written in LLVM: vectors, bfloat16 pairs, the matrix unit, threads."""
