"""The cartoon world of the default model: cast, places, drawing, captions, stories. Knows no torch."""
