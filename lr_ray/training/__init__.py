"""Preference training and fine-tuning over long prompts."""
