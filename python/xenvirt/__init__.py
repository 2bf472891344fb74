"""xenvirt."""
