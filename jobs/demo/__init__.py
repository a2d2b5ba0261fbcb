"""The demo: a synthetic task, the tiny policy shipped with it, and the loop over both."""
