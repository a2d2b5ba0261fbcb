"""Documents → long-context prompts with answers, by an LLM."""
