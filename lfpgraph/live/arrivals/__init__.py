"""What arrives in a backward pass: at parameters, and in whose hands it is."""
