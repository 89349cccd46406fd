"""The cartoon world the default model is trained on: cast, places, drawing, captions, stories. Knows no torch."""
