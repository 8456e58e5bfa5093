"""The live engine: the model's own forward runs, autograd records it, and the rules amend what autograd hands back."""
