"""`storyv-lite render`: a story becomes pictures, a storyboard, a page and a receipt."""


def render() -> None:
    """Draw a story."""
