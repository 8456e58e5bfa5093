"""The joint graph made fast and small: split in two, recomputed, in place, fused, compiled."""
