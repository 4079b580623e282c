"""An exchange or a text, as configured, to findings and a score: which texts it holds, which rules run on them, what they add up to."""
