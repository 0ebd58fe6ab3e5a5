"""From RLDS directories to batches: records, episodes, statistics, windows, the input pipeline."""
