"""What each operation of a graph does to channels: tables from operation to rule."""
