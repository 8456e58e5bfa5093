"""What a traced model is: nodes and their classes, regions, neurons, depths, and the sizes it is right for."""
