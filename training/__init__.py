"""The reference model: a small GPT-2 trained on the four language tasks, shipped in `model/`; see MODEL_CARD.md."""
