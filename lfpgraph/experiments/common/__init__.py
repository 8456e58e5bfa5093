"""What the experiments share: runs, data, models, drawings."""
