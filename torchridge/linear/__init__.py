"""Linear models in closed form and along paths of strengths: the front doors and what they decide."""
