"""What makes a comparison count: the protocol of seeds, effects with intervals, equal time, boundaries of stability."""
