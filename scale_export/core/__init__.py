"""Words that everybody speaks: errors, records, limits, intervals, progress."""
