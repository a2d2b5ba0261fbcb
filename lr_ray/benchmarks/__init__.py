"""Published tests of long-context and of short answers: their files, their grades, their averages."""
