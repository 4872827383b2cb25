"""What a model can do: tasks of lm-evaluation-harness on a base and its adapted model, and what changed."""
