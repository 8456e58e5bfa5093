"""What a run does again that goes as the run before it went: little is noted, and that quickly."""
