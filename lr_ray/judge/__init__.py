"""Four-dimension scoring of candidates by an off-the-shelf LLM (arXiv 2410.21252, section 3)."""
