"""Our relevance in the tools of the field: one module for each, which imports that tool."""
