"""Statistics over prompts, streamed from shards, and the ranks that follow."""
