"""The table of live Python: small models and scripts, each of one kind."""
