"""Running a study: planned, estimated, executed here or sent to a cluster."""
