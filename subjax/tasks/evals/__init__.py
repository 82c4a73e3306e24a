"""Questions that models are asked, and how answers are scored."""
