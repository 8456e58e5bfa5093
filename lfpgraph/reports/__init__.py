"""Reports on a model: which operations carry reward, by which rule, and what cannot."""
