"""Many calls to a chat endpoint, each paid once."""
