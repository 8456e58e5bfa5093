"""From graph and composite to feedback: units, the plan, the walk, and the walk as two static graphs."""
