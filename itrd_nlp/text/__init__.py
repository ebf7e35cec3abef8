"""Text tasks: data, heads and metrics of question answering and classification."""
