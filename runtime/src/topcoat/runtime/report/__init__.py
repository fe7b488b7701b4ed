"""What bench-latency makes of its measurements: a terminal table, JSON and an HTML page."""
