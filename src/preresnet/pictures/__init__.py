"""All that is drawn with matplotlib: curves, probes, answers, speed. Plain data in, a `Figure` out."""
