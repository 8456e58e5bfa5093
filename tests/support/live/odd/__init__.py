"""More of the table of live Python: what few models do, and some do."""
