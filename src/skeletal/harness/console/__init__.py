"""What a run tells people while it trains, and what it is told: bars, trackers, signals."""
