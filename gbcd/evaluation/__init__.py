"""How well a ranking finds the circuit: measured effects, baselines, faithfulness, circuits."""
