"""From a task or a file to tokens: where prompts come from, how they are checked and what they look like."""
