"""What pictures give away: an attack that draws them again from what the LLM host keeps."""
